"""A snapshot that takes several pages, while keys come and go in front of, behind and between them."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvstore_client import AsyncSubscription, Client, Cursor, Event, Subscription, Sync, commands
from support.load import LAST_KEY, Seen, seen_event, seen_json, whole_log
from support.mirrors import State, apply
from support.patience import PATIENCE_SECONDS
from support.servers import Service, clean_environment, kvstore_command
from support.streams import open_stream

LARGE_KEYS = 48
LARGE_BYTES = 512 * 1024
"""A page holds some 4 MiB of values, so that there are several pages, with few keys in each: many of the
keys that are put meanwhile lie right between two of them."""

Changes = Generator[Seen | None, None, None]
"""Each event that is told, and None for the sync."""


def prepare(client: Client) -> None:
    """Large records, which the churn leaves alone."""
    for number in range(LARGE_KEYS):
        client.put(f"k{number:02}", b"v" * LARGE_BYTES)


@contextmanager
def churn(requests: str) -> Iterator[None]:
    """Puts keys between the large ones, each once, and deletes some of them, until the block is left;
    then puts the last key. A change that is not told is not made good by a later one."""
    stopping = threading.Event()

    def work() -> None:
        with Client(requests) as client:
            for number in itertools.count():
                if stopping.is_set():
                    break
                keys = [f"k{random.randrange(LARGE_KEYS):02}/{number}.{part}" for part in range(4)]
                client.batch([commands.put(key, key.encode()) for key in keys])
                client.delete(keys[0])
            client.put(LAST_KEY, b"")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        stopping.set()
        worker.join()


def native_changes(service: Service) -> Changes:
    with Subscription(service.requests, service.changes, snapshot=True) as subscription:
        for item in subscription:
            if isinstance(item, Event | Sync):
                yield seen_event(item) if isinstance(item, Event) else None


def streamed_changes(service: Service) -> Changes:
    with closing(open_stream(service.url, "snapshot=1")) as stream:
        for event in stream:
            if event.name != "heartbeat":
                yield seen_json(event.json, event.name) if event.name != "sync" else None


@pytest.mark.parametrize("changes_of", [native_changes, streamed_changes])
@pytest.mark.parametrize("attempt", range(3))
def test_a_snapshot_under_change_ends_in_the_state_of_the_store(
    changes_of: Callable[[Service], Changes], service: Service, attempt: int
) -> None:
    with Client(service.requests) as client:
        prepare(client)
    told: list[Seen | None] = []
    with closing(changes_of(service)) as changes:
        with churn(service.requests):
            while not told or told[-1] is not None:
                told.append(next(changes))
        while told[-1] is None or told[-1].key != LAST_KEY:
            told.append(next(changes))
    with Client(service.requests) as client:
        present = {record.key: (record.value or b"").decode() for record in client.list()}
    assert state_after(seen for seen in told if seen is not None) == present


# ── writers at full speed from the first moment ──────────────────────────────────────────────────

WRITERS = 8
AFTERWARDS = 20


class Beginning(NamedTuple):
    """What a client was told: the snapshot and what came before the sync, its cursor, the next events."""

    before: list[Seen]
    cursor: Cursor
    after: list[Seen]


def begin_native(service: Service, folder: Path) -> Beginning:
    before: list[Seen] = []
    with Subscription(service.requests, service.changes, snapshot=True) as subscription:
        while not isinstance(item := next(subscription), Sync):
            assert isinstance(item, Event)
            before.append(seen_event(item))
        events = (event for event in subscription if isinstance(event, Event))
        news = [seen_event(event) for event in itertools.islice(events, AFTERWARDS)]
    return Beginning(before, item.cursor, news)


def begin_async(service: Service, folder: Path) -> Beginning:
    async def begin() -> Beginning:
        before: list[Seen] = []
        async with AsyncSubscription(service.requests, service.changes, snapshot=True) as subscription:
            while not isinstance(item := await anext(subscription), Sync):
                assert isinstance(item, Event)
                before.append(seen_event(item))
            news = [await anext(subscription) for _ in range(AFTERWARDS)]
        return Beginning(
            before, item.cursor, [seen_event(event) for event in news if isinstance(event, Event)]
        )

    return asyncio.run(begin())


def begin_json(lines: Iterator[tuple[str, str | None, dict[str, Any]]]) -> Beginning:
    """From events, each with its name and its cursor."""
    before: list[Seen] = []
    for name, cursor, data in lines:
        if name == "sync":
            assert cursor is not None
            news = (seen_json(data, name) for name, _, data in lines if name != "heartbeat")
            return Beginning(before, Cursor.parse(cursor), list(itertools.islice(news, AFTERWARDS)))
        before.append(seen_json(data, name))
    raise AssertionError("the stream ended before its sync")


def begin_sse(service: Service, folder: Path) -> Beginning:
    with closing(open_stream(service.url, "snapshot=1")) as stream:
        return begin_json((event.name, event.id, event.json) for event in stream)


def begin_command(service: Service, folder: Path) -> Beginning:
    environment = clean_environment(folder, KVSTORE_URL=service.url)
    command = kvstore_command("subscribe", "--json", "--snapshot")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        try:
            lines = map(json.loads, process.stdout)
            return begin_json((line["event"], line.get("cursor"), line) for line in lines)
        finally:
            process.terminate()


@contextmanager
def full_speed(requests: str) -> Iterator[None]:
    """Eight writers that put and delete a few keys each, alone and in atomic batches."""
    stopping = threading.Event()

    def work(name: int) -> None:
        with Client(requests, timeout=PATIENCE_SECONDS) as client:
            for number in itertools.count():
                if stopping.is_set():
                    return
                keys = [f"w{name}/{(number + part) % 5}" for part in range(3)]
                value = b"%d" % number
                client.put(keys[0], value)
                client.batch([commands.put(key, value) for key in keys[1:]], atomic=True)
                client.delete(keys[0])

    writers = [threading.Thread(target=work, args=(name,)) for name in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        yield
    finally:
        stopping.set()
        for writer in writers:
            writer.join()


def state_after(events: Iterable[Seen]) -> dict[str, str | None]:
    state: State = {}
    for event in events:
        apply(state, event)
    return {key: seen.value for key, seen in state.items()}


def test_beside_writers_at_full_speed_a_sync_is_the_state_of_its_cursor(
    service: Service, tmp_path: Path
) -> None:
    ways = [begin_native] * 12 + [begin_async] * 12 + [begin_sse] * 4 + [begin_command] * 2
    with full_speed(service.requests):
        begun = [(way.__name__, way(service, tmp_path)) for way in ways]
    with Client(service.requests) as client:
        log = list(map(seen_event, whole_log(client)))
    for name, (before, cursor, after) in begun:
        assert max((event.revision for event in before), default=0) <= cursor.revision, name
        assert state_after(before) == state_after([e for e in log if e.revision <= cursor.revision]), name
        assert after == [event for event in log if event.revision > cursor.revision][:AFTERWARDS], name
