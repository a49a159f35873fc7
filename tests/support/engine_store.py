"""An engine as its tests use it: a clock that they move, and short ways to write and read."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.clock import StoreClock
from kvstore_daemon.storage.interface import (
    Engine,
    EngineSettings,
    EventFilter,
    EventPage,
    EvictionLimit,
    History,
    LogPosition,
    Retention,
    StoredEvent,
    StoredRecord,
    Write,
    WriteAnswer,
    WriteRequest,
)
from kvstore_daemon.storage.lmdb_store.engine import LmdbEngine
from kvstore_daemon.storage.lmdb_store.journaling import checkpoint, journal
from kvstore_daemon.storage.offline.journaled import files_in as journal_files
from kvstore_daemon.storage.offline.verify import verify
from support.servers import wait_until

MIB = 1024 * 1024
WIDE = Retention(1_000_000, 1 << 30, 7 * 86_400_000)


def refused(code: str) -> Any:
    """Expect the KvError with this code."""
    return pytest.raises(KvError, check=lambda error: error.code == code)


class FakeClock:
    """The clocks of a machine, which a test moves."""

    def __init__(self) -> None:
        self._since_boot = 1_000
        self._ahead = 1_700_000_000_000
        self._boots = 0

    @property
    def now(self) -> int:
        """What the wall clock shows. To set it lets time go by, for both clocks."""
        return self._since_boot + self._ahead

    @now.setter
    def now(self, now: int) -> None:
        self._since_boot += now - self.now

    def step(self, by: int) -> None:
        """Set the wall clock: no time goes by."""
        self._ahead += by

    def reboot(self, after: int = 0) -> None:
        """Boot the machine: the wall clock goes on, the other begins again."""
        self._ahead += self._since_boot + after
        self._since_boot = 0
        self._boots += 1

    def seen(self) -> StoreClock:
        """The clock of an engine that is opened now."""
        return StoreClock(lambda: self.now, lambda: self._since_boot, f"boot {self._boots}")


class EngineKind(NamedTuple):
    """One of the engines that the suites run on: how it is made, the address that belongs to a data folder,
    and what is wrong with a store of it, found by reading all of it."""

    make: Callable[[EngineSettings, FakeClock | None], Engine]
    address: Callable[[Path], str]
    faults: Callable[[Any], list[str]]


def _faults_of_file(engine: Any) -> list[str]:
    tables = engine._tables
    files = journal_files(tables.folder)
    with tables.env.begin() as txn:
        frames = checkpoint.read(tables.folder, txn, tables.handles, files)
        return list(verify(tables.env, txn, frames))


def lmdb_engine(journal_bytes: int = journal.FILE_BYTES) -> EngineKind:
    """LMDB's engine with a journal whose files are full, and go into LMDB, at ``journal_bytes``."""

    def make(settings: EngineSettings, clock: FakeClock | None) -> LmdbEngine:
        return LmdbEngine(settings, clock and clock.seen(), journal_bytes)

    return EngineKind(make, lambda _: "lmdb:", _faults_of_file)


LMDB = lmdb_engine()


class Store:
    """An engine, its clock, and the few lines that every test of it would repeat."""

    def __init__(self, kind: EngineKind, settings: EngineSettings, clock: FakeClock | None) -> None:
        self.kind = kind
        self.engine = kind.make(settings, clock)
        self.clock = clock or FakeClock()
        self.feed: list[StoredEvent] = []

    def submit(self, *requests: WriteRequest) -> list[WriteAnswer]:
        """Commit requests as one group and wait for all their answers."""
        self.engine.commit(requests)
        return self.answers(len(requests))

    def answers(self, count: int) -> list[WriteAnswer]:
        """The next ``count`` answers to what was handed over."""
        answers: list[WriteAnswer] = []
        while len(answers) < count:
            readable, _, _ = select.select([self.engine.fileno()], [], [], 30)
            assert readable, "the engine never answered"
            changes, more, _ = self.engine.poll()
            self.feed += changes
            answers += more
        return answers

    def write(self, op: str, key: bytes = b"k", **fields: Any) -> dict[str, Any]:
        """One independent write; raises the KvError with which it failed."""
        if op == "put":
            fields = {"value": b"v", "content_type": "text/plain", **fields}
        (result,) = self._results(WriteRequest([Write(op, key, **fields)]))
        if isinstance(result, KvError):
            raise result
        return result

    def atomic(self, *writes: Write) -> list[Any]:
        """An atomic batch; raises the KvError with which it was refused."""
        return self._results(WriteRequest(writes, atomic=True))

    def _results(self, request: WriteRequest) -> list[Any]:
        (answer,) = self.submit(request)
        if answer.error is not None:
            raise answer.error
        assert answer.results is not None
        return answer.results

    def faults(self) -> list[str]:
        """What is wrong with the store, found by reading all of it."""
        return self.kind.faults(self.engine)

    def get(self, key: bytes = b"k") -> StoredRecord | None:
        (found,), _ = self.engine.read([key])
        if isinstance(found, KvError):
            raise found
        return found

    def keys(self) -> list[bytes]:
        page = self.engine.range(b"", None, 1000, values=True, max_bytes=MIB)
        return [key for key, _ in page.items]

    def log(self, since: int = 0, wanted: EventFilter | None = None, limit: int = 1000) -> EventPage:
        page = self.engine.log(
            since, wanted or EventFilter(), limit, values=True, previous=True, max_bytes=MIB
        )
        assert isinstance(page, EventPage)
        return page

    def history(self, key: bytes = b"k", before: int | None = None, limit: int = 10, **more: Any) -> History:
        return self.engine.history(key, before, more.get("cursor"), limit, values=True, max_bytes=MIB)

    def recent(self, prefix: bytes = b"", before: int | None = None, limit: int = 10, **more: Any) -> History:
        return self.engine.recent(prefix, before, more.get("cursor"), limit, values=True, max_bytes=MIB)

    def trim_until(self, condition: Callable[[LogPosition], bool]) -> LogPosition:
        """Do what the daemon does again and again, until the log's position is as wanted. One step may take a
        while, and then another is needed."""

        def trimmed() -> LogPosition | None:
            self.engine.trim()
            position = self.engine.position()
            return position if condition(position) else None

        position = wait_until(trimmed, what="the log is trimmed", every=0.02)
        assert position is not None
        return position

    def trim_to(self, fewest: int, most: int | None = None) -> LogPosition:
        """As `trim_until`, until the log holds that many events: `fewest` where no `most` is given."""

        def is_there(position: LogPosition) -> bool:
            page = self.engine.log(
                position.floor, EventFilter(), 1000, values=True, previous=True, max_bytes=MIB
            )
            # over etcd the floor may have moved since the position was read; then there is no page
            return isinstance(page, EventPage) and fewest <= len(page.events) <= (most or fewest)

        return self.trim_until(is_there)

    def expire_due(self) -> None:
        """Do what the daemon's timer does."""
        due, _ = self.engine.due(1000)
        if due:
            self.submit(WriteRequest([Write("expire", key, if_revision=revision) for key, revision in due]))


OpenStore = Callable[..., Store]
"""The fixture ``open_store``."""


def opened(
    data: Path,
    clock: FakeClock | None = None,
    *,
    kind: EngineKind = LMDB,
    sync: str = "always",
    max_store_bytes: int = 1 << 34,
    retention: Retention = WIDE,
    eviction: EvictionLimit | None = None,
) -> Store:
    """The store in the folder ``data``, by the machine's clock unless another is given."""
    address = kind.address(data)
    settings = EngineSettings(
        address, str(data), sync, 1000, max_store_bytes, retention, MIB, 100, MIB, eviction
    )
    store = Store(kind, settings, clock)
    store.engine.open()
    return store


def fill(store: Store) -> list[bytes]:
    """Put until the store refuses it; the keys."""
    written: list[bytes] = []
    with refused("store_full"):
        while True:
            store.write("put", key := b"k%03d" % len(written), value=os.urandom(100_000))
            written.append(key)
    return written


def flipped(data: bytes, bit: int) -> bytes:
    """The same with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
