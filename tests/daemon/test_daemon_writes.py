"""Writes that meet: group commit, numbered requests, and what a crash leaves."""

from __future__ import annotations

from typing import Any

import zmq

from support.servers import Daemon, StartDaemon
from support.wire import Connect, Peer, get, pack, put, unpack


def counters(peer: Peer) -> dict[str, int]:
    found: dict[str, int] = peer.ask({"op": "status"})[0]["counters"]
    return found


def test_writes_that_wait_are_committed_together_and_answered_apart(daemon: Daemon, connect: Connect) -> None:
    peer, dealer = connect(daemon), connect(daemon, zmq.DEALER).socket
    before = counters(peer)
    requests = 400
    for number in range(requests):
        ops = (
            [put(f"k{number}", b"%d" % number), get(f"k{number}")],
            [put("same", b"x", if_revision=1)],
            [{"op": "incr", "key": "n"}],
            [put("a"), put("b"), get("missing")],
        )[number % 4]
        dealer.send_multipart([b"%d" % number, b"", *pack(*ops, atomic=number % 4 == 3)])
    replies = {}
    for _ in range(requests):
        number, _, *frames = dealer.recv_multipart()
        replies[int(number)] = unpack(frames)["results"]
    for number in range(0, requests, 4):
        written, read = replies[number]
        assert (read["value"], read["revision"]) == (b"%d" % number, written["revision"])
        assert replies[number + 1][0]["error"]["code"] == "condition_failed"
        a, b, missing = replies[number + 3]
        assert a["revision"] == b["revision"]
        assert missing["error"]["code"] == "not_found"
    assert sorted(replies[number][0]["value"] for number in range(2, requests, 4)) == list(range(1, 101))
    after = counters(peer)
    assert after["requests_committed"] - before["requests_committed"] == requests
    assert after["groups_committed"] - before["groups_committed"] < requests


def test_each_write_is_one_event_and_no_key_gets_a_revision_twice(daemon: Daemon, connect: Connect) -> None:
    dealers = [connect(daemon, zmq.DEALER).socket for _ in range(4)]
    for number in range(100):
        for index, dealer in enumerate(dealers):
            dealer.send_multipart([b"", *pack(put(f"d{index}"), put(f"n{number}"))])
    written = []
    for dealer in dealers:
        replies = [unpack(dealer.recv_multipart()[1:])["results"] for _ in range(100)]
        own = [first["revision"] for first, _ in replies]
        assert own == sorted(set(own))
        written += own + [second["revision"] for _, second in replies]
    [page] = connect(daemon).ask({"op": "events", "since": 0})
    events = [(event["revision"], event["key"]) for event in page["events"]]
    assert len(set(events)) == len(events)
    assert [revision for revision, _ in events] == sorted(written)


def test_an_acknowledged_write_is_read_by_everybody(daemon: Daemon, connect: Connect) -> None:
    writer, reader = connect(daemon), connect(daemon)
    for number in range(300):
        writer.ask(put("k", b"%d" % number))
        assert reader.ask(get("k"))[0]["value"] == b"%d" % number


def test_reads_are_answered_while_a_large_write_is_under_way(daemon: Daemon, connect: Connect) -> None:
    writer, reader = connect(daemon), connect(daemon)
    writer.ask(put("k"))
    reads = 0
    for _ in range(5):
        writer.socket.send_multipart(pack(*(put(f"k{number}", bytes(100)) for number in range(10_000))))
        while not writer.socket.poll(0):
            reader.ask(get("k"))
            reads += 1
        assert "error" not in unpack(writer.socket.recv_multipart())
    assert reads > 5


def numbered(peer: Peer, seq: int, *ops: dict[str, Any], client: str = "c") -> dict[str, Any]:
    return peer.reply_to(*ops, client=client, seq=seq)


def test_a_repeated_number_is_applied_once_and_gets_the_same_answer(daemon: Daemon, connect: Connect) -> None:
    first, second = connect(daemon), connect(daemon)
    answer = numbered(first, 1, {"op": "incr", "key": "n"})
    assert numbered(second, 1, {"op": "incr", "key": "n"})["results"] == answer["results"]
    assert numbered(second, 2, {"op": "incr", "key": "n"})["results"][0]["value"] == 2
    assert numbered(second, 1, {"op": "incr", "key": "n"}, client="d")["results"][0]["value"] == 3


def test_a_repeat_reads_again_what_it_reads(client: Peer) -> None:
    ops = [put("k", b"1"), get("other")]
    assert numbered(client, 1, *ops)["results"][1]["error"]["code"] == "not_found"
    client.ask(put("other", b"2"))
    assert numbered(client, 1, *ops)["results"][1]["value"] == b"2"


def test_a_number_belongs_to_one_request(client: Peer) -> None:
    numbered(client, 5, put("k", b"1"))
    assert numbered(client, 5, put("k", b"2"))["error"]["code"] == "sequence_reused"
    assert numbered(client, 4, put("k", b"1"))["error"]["code"] == "sequence_stale"
    assert client.ask(get("k"))[0]["value"] == b"1"


def test_an_error_is_repeated_too(client: Peer) -> None:
    ops = [put("k", if_revision=9)]
    failed = numbered(client, 1, *ops)["results"]
    assert failed[0]["error"]["code"] == "condition_failed"
    client.ask(put("k"))
    assert numbered(client, 1, *ops)["results"] == failed


def test_sigkill_loses_nothing_acknowledged_and_repeats_apply_once(daemon: Daemon, connect: Connect) -> None:
    """Each client repeats its last request after every crash, as one does that got no answer."""
    applied = 0
    for crash in range(5):
        peer = connect(daemon)
        requests = [pack({"op": "incr", "key": "n"}, client="c", seq=crash * 50 + n + 1) for n in range(50)]
        for frames in requests:
            applied += 1
            assert unpack(peer.exchange(*frames))["results"][0]["value"] == applied
        unanswered = pack({"op": "incr", "key": "n"}, client=f"crash {crash}", seq=1)
        peer.socket.send_multipart(unanswered)
        daemon.kill()
        daemon.start()
        peer = connect(daemon)
        applied += 1
        assert unpack(peer.exchange(*unanswered))["results"][0]["value"] == applied
        assert unpack(peer.exchange(*unanswered))["results"][0]["value"] == applied
        assert peer.ask(get("n"))[0]["value"] == b"%d" % applied


def test_sigkill_under_load_loses_nothing_acknowledged(daemon: Daemon, connect: Connect) -> None:
    acknowledged: dict[str, bytes] = {}
    before = 0
    for crash in range(3):
        revisions = []
        dealer = connect(daemon, zmq.DEALER).socket
        for number in range(1_000):
            key = f"{crash}/{number}"
            dealer.send_multipart([key.encode(), b"", *pack(put(key, b"%d" % number))])
        for _ in range(300):
            key, _, *frames = dealer.recv_multipart()
            [result] = unpack(frames)["results"]
            revisions.append(result["revision"])
            acknowledged[key.decode()] = key.split(b"/")[1]
        assert before < min(revisions)
        before = max(revisions)
        daemon.kill()
        daemon.start()
    records = connect(daemon).ask(*map(get, acknowledged))
    assert [record["value"] for record in records] == list(acknowledged.values())


def test_requests_beyond_the_limit_wait_for_those_before_them(
    start_daemon: StartDaemon, connect: Connect
) -> None:
    daemon = start_daemon(max_pending_requests=2)
    dealer = connect(daemon, zmq.DEALER).socket
    sent = 300
    for number in range(sent):
        op = {"op": "incr", "key": "n"} if number % 2 else get("n")
        dealer.send_multipart([b"%d" % number, b"", *pack(op)])
    assert sorted(int(dealer.recv_multipart()[0]) for _ in range(sent)) == list(range(sent))
    assert connect(daemon).ask(get("n"))[0]["value"] == b"%d" % (sent // 2)
