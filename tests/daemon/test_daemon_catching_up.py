"""Reads that have to see what others committed, and a log that is replaced: what an engine over a store of
several daemons asks of the daemon. The engine here is LMDB's, which the test lets lag."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import zmq

from kvstore_daemon.storage.interface import Write, WriteRequest
from support.engine_store import opened
from support.lagging import NO_QUORUM, LaggingDaemon, StartLagging
from support.protected import Protected
from support.servers import wait_until
from support.wire import Connect, Peer, get, pack, put, unpack


@pytest.fixture
def daemon(start_lagging: StartLagging) -> LaggingDaemon:
    return start_lagging()


@pytest.fixture
def dealer(daemon: LaggingDaemon, connect: Connect) -> zmq.Socket[bytes]:
    """A socket that asks without waiting for the answer."""
    return connect(daemon, zmq.DEALER).socket


def send(dealer: zmq.Socket[bytes], *ops: dict[str, Any], **header: Any) -> None:
    dealer.send_multipart([b"", *pack(*ops, **header)])


def received(dealer: zmq.Socket[bytes]) -> dict[str, Any]:
    return unpack(dealer.recv_multipart()[1:])


def status(peer: Peer) -> dict[str, Any]:
    return peer.ask({"op": "status"})[0]


def await_held(daemon: LaggingDaemon, count: int) -> None:
    wait_until(lambda: daemon.order("held") == count, what=f"{count} reads wait")


EACH_READ = {
    "get": {"op": "get", "key": "k"},
    "list": {"op": "list", "prefix": "k"},
    "level": {"op": "list", "delimiter": "/", "reverse": True},
    "count": {"op": "list", "count": True},
    "events": {"op": "events", "since": 0},
    "history": {"op": "history", "key": "k"},
    "recent": {"op": "history", "prefix": ""},
}


@pytest.mark.parametrize("name", EACH_READ)
def test_a_read_waits_and_sees_what_was_committed_meanwhile(
    daemon: LaggingDaemon, client: Peer, dealer: zmq.Socket[bytes], name: str
) -> None:
    read = EACH_READ[name]
    client.ask(put("k", b"old"))
    before = client.reply_to({**read, "stale": True})
    daemon.order("catch_up", "hold")
    send(dealer, read)
    await_held(daemon, 1)
    client.ask(put("k", b"new"), put("k2", b"new"))
    assert dealer.poll(0) == 0
    daemon.order("catch_up", "current")
    after = received(dealer)
    assert after["results"] != before["results"]
    assert after["results"] == client.ask({**read, "stale": True})
    assert after["revision"] > before["revision"]
    assert "age" not in after


@pytest.mark.parametrize("name", EACH_READ)
def test_a_stale_read_waits_for_nothing_and_says_how_old_it_may_be(
    daemon: LaggingDaemon, client: Peer, name: str
) -> None:
    client.ask(put("k", b"1"))
    assert client.reply_to({**EACH_READ[name], "stale": True})["age"] == 0
    daemon.order("catch_up", "hold")
    daemon.order("age", 1234)
    reply = client.reply_to({**EACH_READ[name], "stale": True})
    assert reply["age"] == 1234
    assert "error" not in reply["results"][0]
    assert daemon.order("held") == 0


def test_one_read_that_must_be_current_makes_its_request_wait(
    daemon: LaggingDaemon, client: Peer, dealer: zmq.Socket[bytes]
) -> None:
    daemon.order("catch_up", "hold")
    daemon.order("age", 7)
    send(dealer, get("a", stale=True), get("b"))
    await_held(daemon, 1)
    client.ask(put("a", b"1"), put("b", b"2"))
    daemon.order("catch_up", "current")
    reply = received(dealer)
    assert [result["value"] for result in reply["results"]] == [b"1", b"2"]
    assert reply["age"] == 7


def test_reads_beside_writes_wait_too(daemon: LaggingDaemon, client: Peer, dealer: zmq.Socket[bytes]) -> None:
    """A write that is refused commits nothing, so the reads after it need not be current by it."""
    daemon.order("catch_up", "hold")
    send(dealer, {"op": "delete", "key": "missing"}, get("k"))
    await_held(daemon, 1)
    client.ask(put("k", b"1"))
    daemon.order("catch_up", "current")
    refused, read = received(dealer)["results"]
    assert refused["error"]["code"] == "not_found"
    assert read["value"] == b"1"


def test_what_is_of_the_daemon_alone_never_waits(daemon: LaggingDaemon, client: Peer) -> None:
    daemon.order("catch_up", "hold")
    assert status(client)["cluster"] is None
    assert client.ask({"op": "whoami"})[0]["kind"] == "none"
    assert client.ask(put("k"))[0]["version"] == 1
    assert daemon.order("held") == 0


def test_without_word_of_the_others_a_read_is_refused_and_stale_ones_go_on(
    daemon: LaggingDaemon, client: Peer, dealer: zmq.Socket[bytes]
) -> None:
    client.ask(put("k", b"1"))
    daemon.order("catch_up", "hold")
    send(dealer, get("k"))
    await_held(daemon, 1)
    daemon.order("catch_up", "fail")
    waited = received(dealer)["error"]
    assert waited == client.refusal(get("k"))
    assert waited["code"] == "unavailable"
    assert NO_QUORUM in waited["message"]
    assert "'stale'" in waited["message"]
    assert client.ask(get("k", stale=True))[0]["value"] == b"1"
    daemon.order("catch_up", "current")
    assert client.ask(get("k"))[0]["value"] == b"1"
    assert client.ask(put("k"))[0]["version"] == 2


def test_writes_stand_where_the_reads_beside_them_cannot_be_current(
    daemon: LaggingDaemon, client: Peer
) -> None:
    daemon.order("catch_up", "fail")
    written, read, listed = client.ask(put("k", b"1"), get("k"), {"op": "list", "stale": True})
    assert written["revision"] == 1
    assert read["error"]["code"] == listed["error"]["code"] == "unavailable"
    assert client.ask(get("k", stale=True))[0]["value"] == b"1"


def test_a_cursor_that_is_ahead_of_this_daemon_waits_and_is_not_called_expired(
    daemon: LaggingDaemon, client: Peer, dealer: zmq.Socket[bytes]
) -> None:
    """It is another daemon's, which has seen more."""
    client.ask(put("k", b"1"))
    epoch = status(client)["epoch"]
    daemon.order("catch_up", "hold")
    sinces: list[Any] = [2, f"2-{epoch}"]
    for since in sinces:
        send(dealer, {"op": "events", "since": since, "stale": True})
    await_held(daemon, len(sinces))
    client.ask(put("k", b"2"), put("k", b"3"))
    daemon.order("catch_up", "current")
    for _ in sinces:
        (page,) = received(dealer)["results"]
        assert [event["revision"] for event in page["events"]] == [3]
    daemon.order("catch_up", "fail")
    ahead = client.refusal({"op": "events", "since": 9, "stale": True})
    assert ahead["code"] == "unavailable"
    other = client.refusal({"op": "events", "since": f"1-{'0' * 16}", "stale": True})
    assert other["code"] == "unavailable"
    malformed = client.ask({"op": "events", "since": "?", "stale": True})[0]["error"]
    assert malformed["code"] == "invalid_cursor"
    daemon.order("catch_up", "current")
    expired = client.ask({"op": "events", "since": 9, "stale": True})[0]["error"]
    assert expired["code"] == "cursor_expired"


def test_a_stale_read_waits_for_the_revision_that_it_asks_for(
    daemon: LaggingDaemon, client: Peer, dealer: zmq.Socket[bytes]
) -> None:
    """It was told of it by another daemon, which has seen more."""
    client.ask(put("k", b"1"))
    daemon.order("catch_up", "fail")
    reads = [EACH_READ[name] for name in ("get", "list", "count", "history", "recent")]
    for op in reads:
        assert "error" not in client.ask({**op, "stale": True, "min_revision": 1})[0], "it is here"
        assert client.refusal({**op, "stale": True, "min_revision": 2})["code"] == "unavailable"
    daemon.order("catch_up", "hold")
    for op in reads:
        send(dealer, {**op, "stale": True, "min_revision": 2})
    await_held(daemon, len(reads))
    client.ask(put("k", b"2"))
    daemon.order("catch_up", "current")
    for _ in reads:
        reply = received(dealer)
        assert reply["revision"] == 2
        assert "error" not in reply["results"][0]
    for op in reads:
        error = client.ask({**op, "stale": True, "min_revision": 3})[0]["error"]
        assert (error["code"], error["revision"]) == ("condition_failed", 2)


def test_reads_that_wait_are_counted_and_dropped_once_their_peer_has_gone(
    daemon: LaggingDaemon, client: Peer, connect: Connect
) -> None:
    daemon.order("catch_up", "hold")
    empty = status(client)
    gone = connect(daemon, zmq.DEALER).socket
    for number in range(10):
        send(gone, get(f"k{number}"), get("x" * 500))
    await_held(daemon, 10)
    waiting = status(client)
    assert waiting["pending"] == empty["pending"] + 10
    assert waiting["pending_bytes"] > empty["pending_bytes"] + 5000
    gone.close(linger=0)
    wait_until(lambda: status(client)["connections"] == empty["connections"])
    daemon.order("catch_up", "current")
    wait_until(lambda: status(client)["pending"] == empty["pending"])
    assert status(client)["pending_bytes"] == empty["pending_bytes"]
    assert status(client)["counters"]["requests_dropped"] == 10


def test_a_stop_answers_the_reads_that_wait(daemon: LaggingDaemon, dealer: zmq.Socket[bytes]) -> None:
    daemon.order("catch_up", "hold")
    send(dealer, get("k"))
    send(dealer, put("k"), get("k"))
    await_held(daemon, 2)
    daemon.stop()
    replies = [received(dealer), received(dealer)]  # in any order
    (read,) = [reply["error"] for reply in replies if "error" in reply]
    (written, read_after), *_ = [reply["results"] for reply in replies if "error" not in reply]
    assert written["revision"] == 1
    assert read == read_after["error"]
    assert read["code"] == "unavailable"
    assert "stopping" in read["message"]
    assert "'stale'" not in read["message"]


def test_a_read_is_checked_again_after_it_has_waited(start_lagging: StartLagging) -> None:
    """What the sender may do can have changed meanwhile."""
    daemon = start_lagging(access="required")
    with contextlib.closing(Protected(daemon)) as protected:
        protected.root.ask(put("app/k", b"secret"))
        reader = protected.peer(protected.keys("reader", "ro:app/"), zmq.DEALER).socket
        daemon.order("catch_up", "hold")
        send(reader, get("app/k"))
        send(reader, get("app/k", stale=True))
        assert received(reader)["results"][0]["value"] == b"secret"
        await_held(daemon, 1)
        protected.change("identity_put", "reader", grants=["ro:other/"])
        daemon.order("catch_up", "current")
        assert received(reader)["error"]["code"] == "not_allowed"


# ── a log that is replaced ───────────────────────────────────────────────────────────────────────

OTHERS = 500


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The folder of a store with another history; one of its keys expires soon."""
    folder = tmp_path / "other"
    store = opened(folder)
    store.submit(WriteRequest([Write("put", b"k%03d" % number, b"new") for number in range(OTHERS)]))
    store.write("put", b"soon", ttl_ms=1500)
    store.engine.close()
    return folder


def test_subscribers_hear_at_once_of_a_log_that_was_replaced(
    daemon: LaggingDaemon, client: Peer, subscribe: Connect, other: Path
) -> None:
    client.ask(put("k000", b"old"), put("left", b"old"))
    subscriber = subscribe(daemon)
    before = subscriber.heartbeat()
    epoch, floor, head, *_ = daemon.order("replace", [str(other), 0])
    assert epoch != before["epoch"]
    beat = before
    while beat["epoch"] == before["epoch"]:
        beat = subscriber.heartbeat()
    assert (beat["epoch"], beat["revision"], beat["floor"]) == (epoch, head, floor)
    key, header, value = subscriber.change()
    assert (key, header["op"], value) == (b"soon", "expire", b"v")
    assert (header["epoch"], header["prev"], header["revision"]) == (epoch, head, head + 1)
    written = client.reply_to(put("k000", b"newer"))
    assert written["epoch"] == epoch
    assert written["results"][0]["version"] == 2
    key, header, value = subscriber.change()
    assert (key, header["epoch"], header["prev"]) == (b"k000", epoch, head + 1)
    expired = client.ask({"op": "events", "since": f"1-{before['epoch']}"})[0]["error"]
    assert (expired["code"], expired["reason"]) == ("cursor_expired", "epoch")


def test_a_reply_is_of_one_history(daemon: LaggingDaemon, client: Peer, other: Path) -> None:
    """Reads of the former one are done again, so that the epoch and the revision of the reply are a cursor
    that continues all that is in it."""
    client.ask(put("k000", b"old"), put("left", b"old"))
    former = status(client)["epoch"]
    counts = [{"op": "list", "count": True, "prefix": "k"}] * 2_000
    epoch, _, head, *_ = daemon.order("replace", [str(other), 50])  # far from done
    reply = client.reply_to(get("k000"), *counts[1:])
    first, *rest = reply["results"]
    assert epoch != former
    assert reply["epoch"] == epoch
    assert reply["revision"] >= head
    assert first["value"] == b"new"
    assert {result["count"] for result in rest} == {OTHERS}
