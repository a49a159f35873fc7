"""When the feed listens to the changes, and that nobody misses what came before it did."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import gevent
import pytest
import zmq

from kvstore_cli.config.resolve import resolve
from kvstore_core.access.principal import UNRESTRICTED
from kvstore_core.filters import Filter
from kvstore_core.model import Cursor
from kvstore_core.wire import (
    HEARTBEAT_TOPIC,
    Heartbeat,
    Limits,
    decode_request,
    encode_change,
    encode_heartbeat,
    encode_reply,
)
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.streaming import lagging_streams
from kvstore_http.streaming.broadcaster import Broadcaster
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.event_format import Format
from kvstore_http.streaming.stream_sockets import StreamSpec, StreamStart
from kvstore_http.streaming.waiting import Asking
from support.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.slow

EPOCH = "00112233445566ff"
NOW = StreamStart(None)
SUBSCRIBE, UNSUBSCRIBE = b"\1", b"\0"

Read = Callable[..., "Reader"]


class Store:
    """A daemon in the test's own loop: it publishes when the test says so, and answers from its log."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.head = 0
        self.asked: list[str] = []
        self._requests = self.context.socket(zmq.ROUTER)
        self._changes = self.context.socket(zmq.XPUB)
        self.requests = f"tcp://127.0.0.1:{self._requests.bind_to_random_port('tcp://127.0.0.1')}"
        self.changes = f"tcp://127.0.0.1:{self._changes.bind_to_random_port('tcp://127.0.0.1')}"
        self.subscriptions: list[bytes] = []
        self._greenlet = gevent.spawn(self._serve)

    def _serve(self) -> None:
        while True:
            while self._changes.poll(0):
                self.subscriptions.append(self._changes.recv())
            while self._requests.poll(0):
                *envelope, header = self._requests.recv_multipart()
                request = decode_request([header], Limits())
                self.asked += [op["op"] for op in request.ops]
                results = [self._result(op) for op in request.ops]
                self._requests.send_multipart([*envelope, *encode_reply(EPOCH, self.head, results)])
            gevent.sleep(0.001)

    def _result(self, op: dict[str, Any]) -> dict[str, Any]:
        if op["op"] == "status":
            return {"revision": self.head, "epoch": EPOCH, "floor": 0}
        since = Cursor.parse(op["since"]).revision
        events = [{**self._event(each), "key": "k"} for each in range(since + 1, self.head + 1)]
        return {"events": events, "next": max(since, self.head), "floor": 0, "head": self.head}

    def _event(self, revision: int) -> dict[str, Any]:
        position = {"revision": revision, "index": 0, "count": 1}
        return {"op": "delete", **position, "time": 0, "previous_revision": 1}

    def commit(self) -> int:
        """A change that PUB does not bring."""
        self.head += 1
        return self.head

    def publish(self, **fields: Any) -> int:
        """A change that it does, to who is subscribed, with ``fields`` in the place of what is right."""
        revision = self.commit()
        fields = {"epoch": EPOCH, "prev": revision - 1, **self._event(revision), **fields}
        self._changes.send_multipart(encode_change(b"k", fields, b""))
        return revision

    def beat(self) -> None:
        """A heartbeat."""
        self._changes.send_multipart(encode_heartbeat(Heartbeat(EPOCH, self.head, 0, 0)))

    def close(self) -> None:
        self._greenlet.kill()
        self._requests.close(0)
        self._changes.close(0)
        self.context.term()


ALWAYS = Asking(lambda: None, lambda: False)
"""A long poll whose caller may always read, and stays."""

K = Filter(keys=frozenset("k"))


class Reader:
    """A stream that was handed over to the broadcaster."""

    def __init__(self, broadcaster: Broadcaster, start: StreamStart) -> None:
        self._socket, other = socket.socketpair()
        self._socket.setblocking(False)
        other.setblocking(False)
        self._received = b""
        self._is_over = False
        form = Format(is_sse=False, has_values=True, is_chunked=False)
        broadcaster.adopt(StreamSpec(Filter(), form, previous=False), start, UNRESTRICTED, other, b"")

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All that has come."""
        while True:
            try:
                received = self._socket.recv(65536)
            except BlockingIOError:
                break
            if not received:
                self._is_over = True
                break
            self._received += received
        return [json.loads(line) for line in self._received.splitlines()]

    @property
    def is_cut_off(self) -> bool:
        return self.messages is not None and self._is_over

    @property
    def is_live(self) -> bool:
        return any(message["event"] == "sync" for message in self.messages)

    @property
    def revisions(self) -> list[int]:
        """Those of the changes."""
        return [message["revision"] for message in self.messages if message["event"] == "delete"]

    def leave(self) -> None:
        self._socket.close()


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.close()


@pytest.fixture
def broadcaster(store: Store) -> Iterator[Broadcaster]:
    """One on a feed of its own, which has subscribed."""
    context: zmq.Context[Any] = zmq.Context()
    flags = {"requests": store.requests, "changes": store.changes, "stream-heartbeat": 60_000}
    settings = resolve(flags, "http", environ={}).http_settings()
    client = DaemonClient(context, store.requests, settings.daemon_timeout_ms)
    feed = ChangeFeed(context, client, store.changes)
    made = Broadcaster(client, feed, settings, WorkerCounters.alone())
    until(lambda: store.subscriptions)
    yield made
    made.close()
    feed.close()
    client.close()
    context.term()


@pytest.fixture
def feed(broadcaster: Broadcaster) -> ChangeFeed:
    return broadcaster.feed


@pytest.fixture
def read(broadcaster: Broadcaster) -> Iterator[Read]:
    """Opens a stream."""
    readers: list[Reader] = []

    def opened(start: StreamStart = NOW) -> Reader:
        readers.append(Reader(broadcaster, start))
        return readers[-1]

    yield opened
    for reader in readers:
        reader.leave()


def until(condition: Callable[[], object]) -> None:
    """Let the loop run until ``condition`` holds."""
    with gevent.Timeout(30):
        while not condition():
            gevent.sleep(0.001)


def live(store: Store, reader: Reader) -> Reader:
    """Wait until the stream is live, the subscription in effect, and the log read."""
    until(lambda: store.subscriptions[-1] == SUBSCRIBE and "events" in store.asked and reader.is_live)
    return reader


def asleep(store: Store) -> None:
    """Wait until the feed has unsubscribed."""
    until(lambda: store.subscriptions[-1] == UNSUBSCRIBE)
    store.asked.clear()


def test_changes_are_subscribed_to_only_while_somebody_listens(store: Store, read: Read) -> None:
    assert store.subscriptions == [SUBSCRIBE + HEARTBEAT_TOPIC]
    for _ in range(2):
        live(store, read()).leave()
        asleep(store)
    assert store.subscriptions == [SUBSCRIBE + HEARTBEAT_TOPIC, *[SUBSCRIBE, UNSUBSCRIBE] * 2]


def test_a_stream_begins_at_the_present_however_long_the_feed_was_asleep(store: Store, read: Read) -> None:
    live(store, read()).leave()
    asleep(store)
    before = [store.publish() for _ in range(5)]
    reader = live(store, read())
    assert reader.messages[0]["revision"] == before[-1]
    after = store.publish()
    until(lambda: reader.revisions)
    assert reader.revisions == [after]


@pytest.mark.parametrize("tell", [Store.beat, Store.publish])
def test_what_came_before_the_subscription_took_effect_is_fetched_once_it_is_known(
    store: Store, feed: ChangeFeed, read: Read, tell: Callable[[Store], object]
) -> None:
    reader = live(store, read())
    until(lambda: not feed.cursor(previous=False).is_reading)
    missed = [store.commit(), store.commit()]
    tell(store)
    until(lambda: len(reader.revisions) >= store.head)
    store.publish()
    until(lambda: reader.revisions[-1] == store.head)
    assert reader.revisions == list(range(missed[0], store.head + 1))


def test_a_stream_that_resumes_needs_no_heartbeat(store: Store, read: Read) -> None:
    seen = store.commit()
    missed = [store.commit() for _ in range(5)]
    reader = live(store, read(StreamStart(Cursor(seen, EPOCH))))
    assert reader.revisions == missed
    missed.append(store.publish())
    until(lambda: len(reader.revisions) == len(missed))
    assert reader.revisions == missed


def test_readers_that_come_and_go_see_every_change_once_whoever_else_listens(
    store: Store, read: Read
) -> None:
    last, seen = 0, []
    for visit in range(3):
        for _ in range(visit):
            store.publish()
        reader = read(StreamStart(Cursor(last, EPOCH)))
        for _ in range(20):  # before, while and after it becomes live
            store.publish() if visit % 2 else store.commit()
            gevent.sleep(0)
        store.beat()
        until(lambda r=reader: r.revisions and r.revisions[-1] == store.head)
        seen += reader.revisions
        last = store.head
        reader.leave()
        asleep(store)
    assert seen == list(range(1, store.head + 1))


def test_the_loop_turns_between_streams_that_are_caught_up(
    store: Store, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lagging_streams, "TURN_SECONDS", 0)
    seen = store.commit()
    store.commit()
    readers = [read(StreamStart(Cursor(seen, EPOCH))) for _ in range(20)]
    caught_up = [0]
    watcher = gevent.get_hub().loop.check()
    watcher.start(lambda: caught_up.append(sum(reader.is_live for reader in readers)))
    until(lambda: caught_up[-1] == len(readers))
    watcher.close()
    assert max(after - before for before, after in pairwise(caught_up)) <= len(readers) / 4


def test_a_key_that_changed_while_the_feed_was_asleep_is_looked_at_again(
    store: Store, feed: ChangeFeed
) -> None:
    known = store.head
    store.commit()
    assert feed.wait_for_change(K, Cursor(known, EPOCH), 60, ALWAYS).goes_on


def test_a_change_ends_a_wait_that_woke_the_feed(store: Store, feed: ChangeFeed) -> None:
    known = store.commit()
    waiting = gevent.spawn(feed.wait_for_change, K, Cursor(known, EPOCH), 60, ALWAYS)
    until(lambda: "events" in store.asked and not feed.cursor(previous=False).is_reading)
    changed = store.commit()
    store.beat()
    assert waiting.get(timeout=PATIENCE_SECONDS) == (True, changed - 1)


def test_a_wait_says_up_to_where_nothing_happened_that_it_waits_for(store: Store, feed: ChangeFeed) -> None:
    begun = Cursor(store.commit(), EPOCH)
    waiting = gevent.spawn(feed.wait_for_change, Filter(prefixes=("other/",)), begun, 0.5, ALWAYS)
    until(lambda: feed.is_started)
    passed = store.publish()
    woken = waiting.get(timeout=PATIENCE_SECONDS)
    assert not woken.goes_on
    assert woken.revision == passed


def test_a_wait_ends_soon_after_its_client_has_left(store: Store, feed: ChangeFeed) -> None:
    leaving: list[bool] = []
    asking = ALWAYS._replace(has_left=lambda: bool(leaving))
    waiting = gevent.spawn(feed.wait_for_change, K, Cursor(store.head, EPOCH), 600, asking)
    until(lambda: feed.is_started)
    leaving.append(True)
    assert not waiting.get(timeout=PATIENCE_SECONDS).goes_on


def test_a_wait_in_another_history_than_the_feeds_is_told_to_read_again(
    store: Store, feed: ChangeFeed
) -> None:
    feed.wait_until_started(30)
    assert feed.wait_for_change(K, Cursor(store.head, "f" * 16), 600, ALWAYS).goes_on


def test_a_wait_that_woke_the_feed_ends_when_its_time_is_up(store: Store, feed: ChangeFeed) -> None:
    assert not feed.wait_for_change(K, Cursor(store.head, EPOCH), 0.05, ALWAYS).goes_on


def test_a_stream_for_which_a_change_cannot_be_written_is_cut_off_before_it(
    store: Store, read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    readers = [live(store, read()) for _ in range(2)]
    first = store.publish()
    until(lambda: all(reader.revisions for reader in readers))
    store.publish(op="put", content_type="text/plain", create_revision=1, version=1, modified_at="never")
    store.publish()
    until(lambda: all(reader.is_cut_off for reader in readers))
    assert [reader.revisions for reader in readers] == [[first], [first]]
    assert "changes could not be written" in caplog.text
    resumed = read(StreamStart(Cursor(first, EPOCH)))
    until(lambda: resumed.is_cut_off)
    assert not resumed.revisions
