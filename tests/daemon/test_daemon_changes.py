"""What subscribers receive: every change, in order, before its writer gets the reply."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import orjson
import zmq

from kvstore_core.digest import SetHash, record_hash
from support.servers import Daemon, StartDaemon, wait_until
from support.wire import Connect, Peer, get, pack, put


def test_a_subscriber_filters_by_key_prefix_with_nothing_but_a_sub_socket(
    daemon: Daemon, connect: Connect, subscribe: Connect
) -> None:
    subscriber = subscribe(daemon, b"b/")
    peer = connect(daemon)
    [before] = peer.ask(put("a/1"))
    [written] = peer.ask(put("b/1", b"\0\1", content_type="image/png"))
    key, header, value = subscriber.change()
    assert (key, value) == (b"b/1", b"\0\1")
    assert header.pop("time") == header.pop("modified_at") <= time.time() * 1000
    assert len(header.pop("epoch")) == 16
    assert header == {
        "v": 1,
        "op": "put",
        "revision": written["revision"],
        "index": 0,
        "count": 1,
        "prev": before["revision"],
        "previous_revision": 0,
        "content_type": "image/png",
        "create_revision": written["revision"],
        "version": 1,
    }


def test_prev_names_the_revision_before_for_all_events_of_a_batch(subscriber: Peer, client: Peer) -> None:
    before = client.reply_to({"op": "status"})["revision"]
    [first] = [result["revision"] for result in client.ask(put("a"))]
    second, *_ = [result["revision"] for result in client.ask(put("b"), put("c"), put("d"), atomic=True)]
    [third] = [result["revision"] for result in client.ask({"op": "delete", "key": "a"})]
    headers = [subscriber.change()[1] for _ in range(5)]
    assert [(h["revision"], h["prev"], h["index"], h["count"]) for h in headers] == [
        (first, before, 0, 1),
        (second, first, 0, 3),
        (second, first, 1, 3),
        (second, first, 2, 3),
        (third, second, 0, 1),
    ]


def test_prev_continues_over_a_restart(daemon: Daemon, connect: Connect, subscribe: Connect) -> None:
    _, before = connect(daemon).ask(put("a"), put("b"))
    daemon.restart()
    subscriber = subscribe(daemon)
    [written] = connect(daemon).ask(put("c"))
    header = subscriber.change()[1]
    assert (header["prev"], header["revision"]) == (before["revision"], written["revision"])


def test_a_delete_has_an_empty_value(subscriber: Peer, client: Peer) -> None:
    written, _ = client.ask(put("a"), {"op": "delete", "key": "a"})
    subscriber.change()
    key, header, value = subscriber.change()
    assert (key, header["op"], value) == (b"a", "delete", b"")
    assert header["previous_revision"] == written["revision"]
    assert "previous" not in header


def test_a_change_is_published_before_its_writer_gets_the_reply(subscriber: Peer, client: Peer) -> None:
    """The event is on its way when the reply arrives: no heartbeat sent later overtakes it."""
    for number in range(200):
        [result] = client.ask(put("k", b"%d" % number))
        _, header, value = subscriber.change()
        assert (header["revision"], value) == (result["revision"], b"%d" % number)


def test_an_event_is_never_published_before_its_change_can_be_read(
    daemon: Daemon, connect: Connect, subscriber: Peer, client: Peer
) -> None:
    writer = connect(daemon, zmq.DEALER).socket
    for number in range(200):
        writer.send_multipart([b"", *pack(put(f"k{number}"))])
    for _ in range(200):
        key, header, _ = subscriber.change()
        [record] = client.ask(get(key.decode()))
        assert record["revision"] == header["revision"]


def test_a_refused_write_is_not_published(subscriber: Peer, client: Peer) -> None:
    client.ask(put("a", if_revision=7), {"op": "delete", "key": "b"})
    client.refusal(put("c"), put("d", if_revision=7), atomic=True)
    client.ask(put("e"))
    assert subscriber.change()[0] == b"e"


def test_events_on_pub_are_those_of_the_log(subscriber: Peer, client: Peer) -> None:
    client.ask(
        put("a", b"1", ttl=600), put("b"), {"op": "incr", "key": "n"}, {"op": "touch", "key": "b", "ttl": 9}
    )
    client.ask({"op": "persist", "key": "b"}, {"op": "delete", "key": "a"})
    client.ask({"op": "delete_prefix", "prefix": "b"})
    [page] = client.ask({"op": "events", "since": 0})
    for event in page["events"]:
        key, header, value = subscriber.change()
        assert event.pop("value", b"") == value
        assert event.pop("key").encode() == key
        assert header.items() >= event.items()


def test_a_heartbeat_every_second_tells_head_and_floor(subscriber: Peer, client: Peer) -> None:
    reply = client.reply_to(put("a"), put("b"))
    head = reply["revision"]
    beat = wait_until(lambda: next(iter(b for b in [subscriber.heartbeat()] if b["revision"] == head), None))
    later = subscriber.heartbeat()
    assert beat is not None
    assert 500 < later["time"] - beat["time"] < 5_000
    expected = {"v": 1, "epoch": reply["epoch"], "revision": head, "floor": 0, "time": later["time"]}
    assert later == {**expected, "digest": client.ask({"op": "digest"})[0]["digest"]}


def test_every_heartbeat_has_the_digest_of_its_own_revision(subscriber: Peer, client: Peer) -> None:
    """Also beside writes: what a subscriber that takes every change adds up to is the digest it hears."""
    there = SetHash(int(client.ask({"op": "digest"})[0]["digest"], 16))
    records: dict[bytes, bytes] = {}
    at: dict[int, str] = {}
    for number in range(60):
        client.ask(put(f"sum/{number % 7}", b"%d" % number), {"op": "incr", "key": "sum/n"})
        client.ask(put("sum/a"), put("sum/b"), {"op": "persist", "key": "sum/b"}, put("sum/c", ttl=0.01))
        client.ask(put("sum/a", b"x"), put("sum/d"), {"op": "delete", "key": "sum/b"}, atomic=True)
    client.ask({"op": "delete_prefix", "prefix": "sum/3"})
    wait_until(lambda: client.ask({"op": "status"})[0]["expiring_keys"] == 0)
    head = client.reply_to({"op": "delete_prefix", "prefix": "sum/d"})["revision"]
    beats: list[dict[str, Any]] = []
    while not beats or beats[-1]["revision"] < head:
        key, header, *values = subscriber.socket.recv_multipart()
        fields = orjson.loads(header)
        if key == b"\0heartbeat":
            beats.append(fields)
            continue
        old, new = records.pop(key, b""), b""
        if fields["op"] == "put":
            records[key] = new = record_hash(key, fields["revision"], values[0])
        there.replace(old, new)
        at[fields["revision"]] = there.hexdigest()
    heard = [beat for beat in beats if beat["revision"] in at]
    assert heard[-1]["revision"] == head
    for beat in heard:
        assert beat["digest"] == at[beat["revision"]]
    status = client.ask({"op": "status"})[0]
    assert (status["revision"], status["digest"]) == (head, beats[-1]["digest"])


def test_a_key_expires_with_an_event_that_holds_its_last_value(subscriber: Peer, client: Peer) -> None:
    client.ask(put("k", b"last", ttl=0.05, content_type="text/plain"))
    subscriber.change()
    key, header, value = subscriber.change()
    assert (key, header["op"], value) == (b"k", "expire", b"last")
    assert (header["previous"]["content_type"], header["previous"]["version"]) == ("text/plain", 1)
    assert "size" not in header["previous"]
    assert client.ask(get("k"))[0]["error"]["code"] == "not_found"


def test_a_ttl_that_is_shortened_is_noticed_at_once(subscriber: Peer, client: Peer) -> None:
    client.ask(put("k", ttl=3600), {"op": "touch", "key": "k", "ttl": 0.05})
    assert [subscriber.change()[1]["op"] for _ in range(3)] == ["put", "put", "expire"]


def test_a_key_that_was_put_again_does_not_expire(subscriber: Peer, client: Peer) -> None:
    client.ask(put("k", b"1", ttl=0.05), put("other", ttl=0.1), put("k", b"2"))
    assert [subscriber.change()[0] for _ in range(4)] == [b"k", b"other", b"k", b"other"]
    assert client.ask(get("k"))[0]["value"] == b"2"


def test_what_expired_while_no_daemon_ran_expires_at_the_start(daemon: Daemon, connect: Connect) -> None:
    connect(daemon).ask(put("k", b"v", ttl=0.001))
    daemon.restart()
    peer = connect(daemon)

    def expired() -> list[dict[str, Any]]:
        [page] = peer.ask({"op": "events", "since": 0, "ops": ["expire"]})
        return list(page["events"])

    [event] = wait_until(expired)
    assert event["previous"]["value"] == b"v"


def test_keys_that_expire_together_are_each_published_once(client: Peer, subscriber: Peer) -> None:
    keys = 5_000
    client.ask(*(put(f"k{number}", ttl=0.3) for number in range(keys)))
    changes = [subscriber.change() for _ in range(2 * keys)]
    expired = [key for key, header, _ in changes if header["op"] == "expire"]
    assert len(expired) == len(set(expired)) == keys
    headers = [header for _, header, _ in changes]
    for before, after in pairwise(headers):
        expected = "prev" if before["revision"] == after["revision"] else "revision"
        assert after["prev"] == before[expected]


def test_a_slow_subscriber_loses_events_but_can_tell(
    start_daemon: StartDaemon, connect: Connect, subscribe: Connect
) -> None:
    daemon = start_daemon(subscriber_queue=10)
    subscriber, peer = subscribe(daemon), connect(daemon)
    subscriber.socket.rcvhwm = 10
    value = bytes(100_000)
    for _ in range(60):
        peer.ask(*(put(f"k{number}", value) for number in range(10)))
    [end] = peer.ask(put("last"))
    last = 0
    gaps = 0
    while last < end["revision"]:
        frames = subscriber.socket.recv_multipart()
        if frames[0].startswith(b"\0"):
            peer.ask(put("again"))
            continue
        header = orjson.loads(frames[1])
        gaps += header["prev"] != last
        last = header["revision"]
    assert gaps


def test_what_was_written_while_nobody_subscribed_shows_in_prev(
    daemon: Daemon, subscribe: Connect, client: Peer
) -> None:
    for _ in range(3):
        [unheard] = client.ask(put("perhaps unheard"))
        subscriber = subscribe(daemon)
        [heard] = client.ask(put("heard"))
        _, header, _ = subscriber.change()
        assert (header["prev"], header["revision"]) == (unheard["revision"], heard["revision"])
        subscriber.socket.close(0)


def test_a_heartbeat_follows_a_subscription_before_the_next_is_due(
    daemon: Daemon, new_socket: Callable[[int], zmq.Socket[bytes]]
) -> None:
    times = []
    for _ in range(10):
        subscriber = Peer(new_socket(zmq.SUB))
        subscriber.socket.connect(daemon.changes)
        subscriber.socket.subscribe(b"\0")
        times.append(subscriber.heartbeat()["time"])
    assert min(later - earlier for earlier, later in pairwise(times)) < 900
