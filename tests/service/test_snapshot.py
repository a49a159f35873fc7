"""A snapshot that takes several pages, while keys come and go in front of, behind and between them."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager

import pytest

from kvstore_client import Client, Event, Subscription, Sync, commands
from support import Service
from support.streams import open_stream

LARGE_KEYS = 48
LARGE_BYTES = 512 * 1024
"""A page holds some 4 MiB of values, so that there are several pages, with few keys in each: many of the
keys that are put meanwhile lie right between two of them."""

LAST_KEY = "~last"

State = dict[str, bytes | None]
Changes = Callable[[Service], Generator[tuple[str, str, bytes | None], None, None]]


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


def everything(requests: str) -> State:
    with Client(requests) as client:
        return {record.key: record.value for record in client.list()}


def native_changes(service: Service) -> Generator[tuple[str, str, bytes | None], None, None]:
    """What a native subscription tells: op, key and value; ``sync`` has neither."""
    with Subscription(service.requests, service.changes, snapshot=True) as subscription:
        for item in subscription:
            if isinstance(item, Event):
                yield item.op, item.key, None if item.record is None else item.record.value
            elif isinstance(item, Sync):
                yield "sync", "", None


def streamed_changes(service: Service) -> Generator[tuple[str, str, bytes | None], None, None]:
    """What an event stream tells, in the same form."""
    with closing(open_stream(service.url, "snapshot=1")) as stream:
        for event in stream:
            data = event.json
            value = data["value"].encode() if event.name == "put" else None
            yield event.name, data.get("key", ""), value


@pytest.mark.parametrize("changes_of", [native_changes, streamed_changes])
@pytest.mark.parametrize("attempt", range(3))
def test_a_snapshot_under_change_ends_in_the_state_of_the_store(
    changes_of: Changes, service: Service, attempt: int
) -> None:
    with Client(service.requests) as client:
        prepare(client)
    state: State = {}
    is_complete = False
    with closing(changes_of(service)) as changes:
        with churn(service.requests):
            while not is_complete:
                is_complete = apply(next(changes), state)
        while LAST_KEY not in state:
            apply(next(changes), state)
    assert state == everything(service.requests)


def apply(change: tuple[str, str, bytes | None], state: State) -> bool:
    """Do to ``state`` what was told; whether that was that the snapshot is complete."""
    op, key, value = change
    if op == "put":
        state[key] = value
    elif op == "delete":
        state.pop(key, None)
    return op == "sync"
