"""The engine that keeps everything in an LMDB file on this machine.

One thread writes: it applies a group of requests in one transaction, syncs once, and hands events and answers
back to the loop through a queue and a pipe (group commit). The loop's thread reads from snapshots and never
waits for the writer, since LMDB's readers do not; and py-lmdb releases the interpreter lock while it syncs.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.startup import patiently
from kvstore_daemon.storage.clock import StoreClock, machine_clock
from kvstore_daemon.storage.folder_lock import FolderLock, unusable
from kvstore_daemon.storage.interface import (
    EngineSettings,
    Statistics,
    StoredEvent,
    WriteAnswer,
    WriteRequest,
)
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.free_space import FreeSpace
from kvstore_daemon.storage.lmdb_store.snapshot_reads import SnapshotReads
from kvstore_daemon.storage.lmdb_store.tables import Tables
from kvstore_daemon.storage.lmdb_store.writer import Committed, Inbox, Writer


class LmdbEngine(SnapshotReads):
    """See :class:`kvstore_daemon.storage.interface.Engine`."""

    def __init__(self, settings: EngineSettings, clock: StoreClock | None = None) -> None:
        self._settings = settings
        self._clock = clock or machine_clock()
        self._folder = Path(settings.data)
        self._lock = FolderLock(self._folder)
        self._space = FreeSpace(self._folder, settings.max_store_bytes)
        self._committed: deque[Committed] = deque()
        self._inbox: Inbox = queue.SimpleQueue()
        self._open = False
        reserve = max(settings.max_store_bytes // 4, 64 * 1024 * 1024)
        tables = Tables(
            self._folder / "lmdb",
            map_size=settings.max_store_bytes + reserve,
            sync=settings.sync == "always",
            clock=self._clock,
        )
        super().__init__(tables)

    def open(self) -> None:
        """Open or create the store in the data folder and start the writer.

        Raises ``not_allowed`` if another daemon owns the folder or it cannot be used,
        ``unsupported_version`` if a newer kvstore wrote it, ``damaged`` if LMDB cannot read it, and the
        error of a disk that fails or is full. A store that could not be made leaves nothing behind.
        """
        if "\0" in self._settings.data:
            raise KvError("bad_request", "--data contains a NUL, which no path can")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            patiently(self._lock.acquire)
        except OSError as error:
            raise KvError("not_allowed", unusable(self._folder, error)) from error
        try:
            self._open_store()
        except OSError as error:
            self._lock.release()
            raise file_error(self._folder, error) from error
        except BaseException:
            self._lock.release()
            raise

    def _open_store(self) -> None:
        try:
            self._tables.open()
        except KvError as error:
            # a start writes a little, and on a full disk the ballast is there for that
            if error.code != "store_full" or not self._space.release():
                raise
            self._tables.open()
        try:
            self._start_writer()
        except BaseException:
            self._tables.close()
            raise

    def _start_writer(self) -> None:
        try:
            self._writer = Writer(self._tables, self._settings, self._space, self._inbox, self._deliver)
        except lmdb.Error as error:
            raise file_error(self._tables.file, error) from error
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._writer.start()
        self._open = True

    def close(self) -> None:
        """Commit what was handed over, sync, and let go of the folder; may be called twice."""
        if not self._open:
            return
        self._open = False
        self._inbox.put(None)
        self._writer.join()
        self._tables.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        self._lock.release()

    def fileno(self) -> int:
        return self._wake_reader

    def commit(self, group: Sequence[WriteRequest]) -> None:
        self._inbox.put(group)

    def trim(self) -> None:
        # whatever waits already trims too: on a disk that hangs, steps must not pile up before the next group
        if self._inbox.empty():
            self._inbox.put(())

    # runs in the writer's thread
    def _deliver(self, events: list[StoredEvent], answers: list[WriteAnswer]) -> None:
        self._committed.append((events, answers))
        # a full pipe means that the loop is awake already
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_writer, b"\0")

    def poll(self) -> Committed:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)
        events: list[StoredEvent] = []
        answers: list[WriteAnswer] = []
        while self._committed:
            more_events, more_answers = self._committed.popleft()
            events += more_events
            answers += more_answers
        return events, answers

    def statistics(self) -> Statistics:
        tables, disk = self._tables, self._space.disk()
        with tables.snapshot() as txn:
            counters, used_bytes = tables.counters(txn), tables.used_bytes(txn)
            file_bytes = tables.file_bytes()
            oldest, newest = tables.event_times(txn)
            return Statistics(
                keys=txn.stat(tables.data)["entries"],
                expiring_keys=txn.stat(tables.expiry)["entries"],
                log_events=counters.events,
                log_bytes=counters.size,
                oldest_event_at=oldest,
                newest_event_at=newest,
                data_bytes=tables.bytes_of(txn, tables.data),
                store_bytes=used_bytes,
                file_bytes=file_bytes,
                max_store_bytes=self._settings.max_store_bytes,
                disk_bytes=disk.size,
                disk_free_bytes=disk.free,
                writes_refused=self._writer.broken or self._space.shortage(file_bytes, lambda: used_bytes),
                commits=self._writer.commits,
                clock=self._clock.state(),
            )

    def now(self) -> int:
        return self._clock.present()
