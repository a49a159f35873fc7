"""Subscriptions against a real daemon: in order, each once, none missing, whatever happens to it."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvstore_client import (
    AsyncSubscription,
    Client,
    Cursor,
    Event,
    Heartbeat,
    KvError,
    Reset,
    Subscription,
    Sync,
    commands,
)
from kvstore_client.subscription_base import QUEUED_MESSAGES
from support.patience import PATIENCE_SECONDS
from support.proxy import CuttingProxy
from support.servers import Daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.requests, timeout=PATIENCE_SECONDS) as client:
        yield client


def subscribe(daemon: Daemon, **options: Any) -> Subscription:
    return Subscription(daemon.requests, daemon.changes, **options)


def take(subscription: Subscription, number: int) -> list[Event]:
    """The next events, whatever else comes between them."""
    events: list[Event] = []
    while len(events) < number:
        item = subscription.next(PATIENCE_SECONDS)
        assert item is not None, f"only {len(events)} of {number} events came"
        if isinstance(item, Event):
            events.append(item)
    return events


def until_sync(subscription: Subscription) -> tuple[list[Event], Sync]:
    """What comes before the next Sync, and the Sync."""
    events: list[Event] = []
    while not isinstance(item := subscription.next(PATIENCE_SECONDS), Sync):
        assert isinstance(item, Event), f"{item} instead of an event or a Sync"
        events.append(item)
    return events, item


def reset_of(subscription: Subscription) -> Reset:
    """The next item, which has to be a Reset."""
    reset = subscription.next(PATIENCE_SECONDS)
    assert isinstance(reset, Reset)
    return reset


def names(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.op, event.key) for event in events]


def test_a_subscription_starts_now_with_a_sync_and_then_tells_what_happens(
    daemon: Daemon, client: Client
) -> None:
    before = client.put("before", b"v").revision
    with subscribe(daemon) as subscription:
        first = subscription.next(PATIENCE_SECONDS)
        assert first == Sync(Cursor(before, client.status()["epoch"]))
        assert subscription.cursor == first.cursor
        client.put("k", b"v", content_type="text/plain", ttl=1000)
        client.delete("before")
        put, delete = take(subscription, 2)
        assert (put.op, put.key, put.record) == ("put", "k", client.get("k"))
        assert (delete.op, delete.key, delete.previous_revision) == ("delete", "before", before)


def test_an_expiry_is_told_with_the_old_value(daemon: Daemon, client: Client) -> None:
    with subscribe(daemon, ops=["expire"]) as subscription:
        until_sync(subscription)
        client.put("k", b"old", ttl=0.001)
        (event,) = take(subscription, 1)
        assert (event.op, event.previous and event.previous.value) == ("expire", b"old")


def test_a_snapshot_comes_first_and_sync_ends_it(daemon: Daemon, client: Client) -> None:
    client.batch([commands.put(f"k{number:04}", b"v") for number in range(2500)])
    last = client.put("other", b"v").revision
    with subscribe(daemon, prefixes=["k"], keys=["other", "missing"], snapshot=True) as subscription:
        assert subscription.cursor is None
        events, sync = until_sync(subscription)
        assert [event.key for event in events] == [f"k{number:04}" for number in range(2500)] + ["other"]
        assert subscription.cursor == sync.cursor == Cursor(last, client.status()["epoch"])


def test_a_snapshot_taken_while_everything_changes_ends_in_the_present_state(
    daemon: Daemon, client: Client
) -> None:
    client.batch([commands.put(f"k{number:04}", b"0") for number in range(3000)])
    is_done = threading.Event()

    def change() -> None:
        chance = random.Random(1)
        while not is_done.is_set():
            key = f"k{chance.randrange(3000):04}"
            client.batch([commands.delete(key) if chance.random() < 0.3 else commands.put(key, b"1")])

    writer = threading.Thread(target=change)
    writer.start()
    state: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()

    def apply(event: Event) -> None:
        assert (event.key, event.revision) not in seen
        seen.add((event.key, event.revision))
        state.pop(event.key, None)
        if event.record is not None:
            state[event.key] = event.revision

    with subscribe(daemon, snapshot=True, values=False) as subscription:
        for event in until_sync(subscription)[0] + take(subscription, 50):
            apply(event)
        is_done.set()
        writer.join()
        client.put("last", b"v")
        while "last" not in state:
            apply(take(subscription, 1)[0])
    assert state == {record.key: record.revision for record in client.list(keys_only=True)}


def test_events_of_one_revision_come_together_and_the_cursor_stays_before_a_part_of_them(
    daemon: Daemon, client: Client
) -> None:
    with subscribe(daemon) as subscription:
        _, sync = until_sync(subscription)
        written = client.batch([commands.put(key, b"1") for key in ("a", "b", "c")], atomic=True)
        take(subscription, 1)
        assert subscription.cursor == sync.cursor
        rest = subscription.next_batch(PATIENCE_SECONDS)
        assert isinstance(rest, list)
        assert [event.key for event in rest] == ["b", "c"]
        assert subscription.cursor == Cursor(written[0].revision, sync.cursor.epoch)
        client.batch([commands.put("a", b"2"), commands.put("b", b"2")], atomic=True)
        whole = subscription.next_batch(PATIENCE_SECONDS)
        assert isinstance(whole, list)
        assert [event.index for event in whole] == [0, 1]


def test_a_later_subscription_continues_where_the_cursor_says(daemon: Daemon, client: Client) -> None:
    with subscribe(daemon) as subscription:
        until_sync(subscription)
        first = client.put("a", b"1").revision
        take(subscription, 1)
        cursor = str(subscription.cursor)
    client.put("b", b"1")
    client.put("c", b"1")
    for since in (cursor, Cursor.parse(cursor), first):
        with subscribe(daemon, since=since) as subscription:
            assert names(until_sync(subscription)[0]) == [("put", "b"), ("put", "c")]


def test_only_what_was_asked_for_comes(daemon: Daemon, client: Client) -> None:
    with subscribe(daemon, prefixes=["p/", "é"], keys=["k"], ops=["put"], values=False) as subscription:
        until_sync(subscription)
        for key in ("k", "kk", "p/1", "p", "é1", "z"):
            client.put(key, b"v")
        client.delete("k")
        client.batch(
            [commands.put("x", b"1"), commands.put("p/2", b"1"), commands.put("k", b"1")], atomic=True
        )
        client.put("p/end", b"v")
        events = take(subscription, 6)
        assert [event.key for event in events] == ["k", "p/1", "é1", "p/2", "k", "p/end"]
        assert all(event.record is not None and event.record.value is None for event in events)


def test_previous_records_come_where_they_are_asked_for(daemon: Daemon, client: Client) -> None:
    with subscribe(daemon, previous=True) as subscription:
        until_sync(subscription)
        client.put("k", b"1")
        client.put("k", b"2")
        client.delete("k")
        previous = [event.previous and event.previous.value for event in take(subscription, 3)]
        assert previous == [None, b"1", b"2"]


def test_heartbeats_come_with_the_position_and_move_the_cursor_of_a_quiet_subscription(
    daemon: Daemon, client: Client
) -> None:
    with subscribe(daemon, keys=["quiet"], heartbeats=True) as subscription:
        until_sync(subscription)
        revision = client.put("other", b"v").revision
        while (
            not isinstance(item := subscription.next(PATIENCE_SECONDS), Heartbeat) or item.revision < revision
        ):
            assert isinstance(item, Heartbeat)
        assert subscription.cursor == Cursor(revision, item.epoch)


def test_waiting_ends_with_its_time_and_loses_nothing(daemon: Daemon, client: Client) -> None:
    with subscribe(daemon) as subscription:
        written = []
        for number in range(50):
            written.append(client.put("k", b"%d" % number).revision)
            subscription.next(0)
        written.append(client.put("k", b"last").revision)
        events = take(subscription, 1)
        while (last := events[-1].record) is not None and last.value != b"last":
            events += take(subscription, 1)
        revisions = [event.revision for event in events]
        assert revisions == written[-len(revisions) :]


def test_a_consumer_that_stops_reading_gets_everything_afterwards(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon(subscriber_queue=10)
    value = b"x" * 10_000
    with (
        Client(daemon.requests, timeout=PATIENCE_SECONDS) as client,
        subscribe(daemon) as subscription,
    ):
        until_sync(subscription)
        number = QUEUED_MESSAGES + 4000
        written: list[Any] = []
        for _ in range(number // 500):
            written += client.batch([commands.put(f"k{at}", value) for at in range(500)])
        events = take(subscription, number)
        assert [event.revision for event in events] == [result.revision for result in written]


def test_a_cursor_that_left_the_log_is_reset_and_a_snapshot_follows(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon(retain_events=10)
    with Client(daemon.requests) as client:
        for number in range(100):
            client.put(f"k{number % 3}", b"v")
        while client.status()["floor"] < 50:
            client.put("k0", b"v")
        with subscribe(daemon, since=1) as subscription:
            reset = reset_of(subscription)
            assert (reset.reason, reset.floor >= 50) == ("expired", True)
            assert subscription.cursor is None
            assert sorted(event.key for event in until_sync(subscription)[0]) == ["k0", "k1", "k2"]
            assert subscription.cursor is not None


def test_a_cursor_of_another_history_is_reset(daemon: Daemon, client: Client) -> None:
    client.put("k", b"v")
    for since in (Cursor(1, "0" * 16), 1000):
        with subscribe(daemon, since=since) as subscription:
            assert reset_of(subscription).reason == "epoch"
            assert names(until_sync(subscription)[0]) == [("put", "k")]


def test_a_store_that_is_replaced_under_a_subscription_resets_it(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon()
    with Client(daemon.requests, timeout=PATIENCE_SECONDS) as client, subscribe(daemon) as subscription:
        until_sync(subscription)
        client.put("old", b"v")
        take(subscription, 1)
        daemon.restart(data=daemon.folder / "another")
        client.put("new", b"v")
        assert reset_of(subscription).reason == "epoch"
        assert ("put", "new") in names(until_sync(subscription)[0])


@pytest.mark.lmdb_only("a data folder that is put back")
def test_a_data_folder_that_was_rolled_back_resets_a_subscription(daemon: Daemon, client: Client) -> None:
    client.put("kept", b"v")
    daemon.stop()
    shutil.copytree(daemon.data, daemon.folder / "earlier")
    daemon.start()
    with subscribe(daemon, heartbeats=True) as subscription:
        until_sync(subscription)
        for _ in range(3):
            client.put("kept", b"lost")
        take(subscription, 3)
        while not isinstance(subscription.next(PATIENCE_SECONDS), Heartbeat):
            pass  # no read of the log is under way, which would find it out by itself
        daemon.restart(data=daemon.folder / "earlier")
        while isinstance(reset := subscription.next(PATIENCE_SECONDS), Heartbeat):
            pass
        assert isinstance(reset, Reset)
        assert reset.reason == "epoch", "though its epoch is the same one"
        [kept] = until_sync(subscription)[0]
        assert kept.record is not None
        assert kept.record.value == b"v"


@pytest.mark.parametrize("text", ["", "x", "1", "-1-" + "0" * 16, "1-" + "0" * 15])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(KvError) as caught:
        Subscription(since=text)
    assert caught.value.code == "invalid_cursor"


def test_a_filter_is_checked_before_anything_is_sent() -> None:
    for wrong in ({"keys": [""]}, {"ops": ["get"]}):
        with pytest.raises(KvError):
            Subscription(**wrong)
    with pytest.raises(TypeError):
        Subscription(prefixes="k")


def test_an_error_that_waiting_does_not_cure_is_raised(daemon: Daemon) -> None:
    with subscribe(daemon, keys=[f"k{number}" for number in range(1001)]) as subscription:
        until_sync(subscription)
        with pytest.raises(KvError) as caught:
            until_sync(subscription)
        assert caught.value.code == "bad_request"


# ── restarts and broken connections ──────────────────────────────────────────────────────────────


@contextmanager
def writing(client: Client, written: list[int]) -> Iterator[None]:
    """Write without a pause, in single puts and atomic pairs, until the block ends."""
    is_done = threading.Event()

    def write() -> None:
        pair = [commands.put("n/a", b"v"), commands.put("other", b"v")]
        while not is_done.is_set():
            written.append(client.put("n/k", b"v").revision)
            written.append(client.batch(pair, atomic=True)[0].revision)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        is_done.set()
        writer.join()


def collect(subscription: Subscription, revisions: list[int], last: int) -> None:
    """Take whole revisions until ``last`` or a later one."""
    while not revisions or revisions[-1] < last:
        batch = subscription.next_batch(PATIENCE_SECONDS)
        assert batch is not None
        assert not isinstance(batch, Reset)
        if isinstance(batch, list):
            revisions.append(batch[0].revision)


@pytest.mark.parametrize("options", [{}, {"prefixes": ["n/"]}, {"previous": True}])
def test_a_subscription_misses_nothing_while_the_daemon_is_killed_again_and_again(
    daemon: Daemon, client: Client, options: dict[str, Any]
) -> None:
    written: list[int] = []
    revisions: list[int] = []
    with subscribe(daemon, since=0, **options) as subscription:
        with writing(client, written):
            for _ in range(3):
                collect(subscription, revisions, max(revisions, default=0) + 30)
                daemon.kill()
                daemon.start()
        collect(subscription, revisions, written[-1])
    assert revisions == sorted(set(revisions))
    assert set(written) <= set(revisions)


def test_an_asyncio_subscription_misses_nothing_while_the_daemon_is_killed(
    daemon: Daemon, client: Client
) -> None:
    written: list[int] = []
    revisions: list[int] = []

    async def collect_all() -> None:
        async with AsyncSubscription(daemon.requests, daemon.changes, since=0) as subscription:
            with writing(client, written):
                while len(revisions) < 50:
                    await collect_one(subscription)
                daemon.kill()
                daemon.start()
            while revisions[-1] < written[-1]:
                await collect_one(subscription)

    async def collect_one(subscription: AsyncSubscription) -> None:
        batch = await subscription.next_batch(PATIENCE_SECONDS)
        assert batch is not None
        assert not isinstance(batch, Reset)
        if isinstance(batch, list):
            revisions.append(batch[0].revision)

    asyncio.run(collect_all())
    assert revisions == sorted(set(revisions))
    assert set(written) <= set(revisions)


def test_cancelling_a_wait_loses_nothing(daemon: Daemon, client: Client) -> None:
    written: list[int] = []

    async def run() -> list[int]:
        revisions: list[int] = []
        async with AsyncSubscription(daemon.requests, daemon.changes, since=0) as subscription:
            for number in range(40):
                written.append((await asyncio.to_thread(client.put, "k", b"v")).revision)
                waiting = asyncio.create_task(subscription.next())
                await asyncio.sleep(number / 5000)
                if waiting.cancel():
                    await asyncio.gather(waiting, return_exceptions=True)
                if not waiting.cancelled() and isinstance(item := waiting.result(), Event):
                    revisions.append(item.revision)
            async for item in subscription:
                if isinstance(item, Event):
                    revisions.append(item.revision)
                if revisions[-1] == written[-1]:
                    return revisions
        return []

    assert asyncio.run(run()) == written


def test_a_subscription_misses_nothing_over_connections_that_break(daemon: Daemon, client: Client) -> None:
    written: list[int] = []
    revisions: list[int] = []
    with (
        CuttingProxy(daemon.requests) as requests,
        CuttingProxy(daemon.changes, 5000) as changes,
        Subscription(requests.endpoint, changes.endpoint, since=0) as subscription,
    ):
        with writing(client, written):
            while changes.connections < 10:
                collect(subscription, revisions, max(revisions, default=0) + 30)
                requests.cut()
        collect(subscription, revisions, written[-1])
    assert revisions == written


def test_changes_still_come_from_the_log_when_the_publisher_has_fallen_silent(
    daemon: Daemon, client: Client
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        changes = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with Subscription(daemon.requests, changes) as subscription:
            until_sync(subscription)
            for _ in range(2):
                written = client.put("k", b"v").revision
                assert take(subscription, 1)[0].revision == written


def test_a_subscription_with_very_many_topics_still_hears_all_of_them_after_a_restart(
    daemon: Daemon, client: Client
) -> None:
    keys = [f"key{number:03}." for number in range(1000)]
    with subscribe(daemon, keys=keys) as subscription:
        until_sync(subscription)
        client.batch([commands.put(key, b"1") for key in keys])
        assert [event.key for event in take(subscription, 1000)] == keys
        daemon.restart()
        client.batch([commands.put(key, b"2") for key in reversed(keys)])
        assert [event.key for event in take(subscription, 1000)] == keys[::-1]
