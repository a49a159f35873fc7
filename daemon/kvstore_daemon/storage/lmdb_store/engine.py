"""The engine that keeps everything in an LMDB file on this machine, with a journal in front.

The loop's thread plans a group of requests, one thread writes it to the journal with one sync, and the loop
shows it (:mod:`kvstore_daemon.storage.lmdb_store.planner`). What the journal has is kept in memory on top of
LMDB, until a process of its own has put it there, thousands of rows at a time
(:mod:`kvstore_daemon.storage.lmdb_store.journaling.checkpointer`). Threads hand over what they have to say
through a queue and a pipe.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb

from kvstore_core.errors import KvError
from kvstore_daemon.storage.clock import StoreClock, boot_id, machine_clock
from kvstore_daemon.storage.folder_kinds import refuse_mirror
from kvstore_daemon.storage.folder_lock import FolderLock
from kvstore_daemon.storage.interface import (
    Committed,
    EngineSettings,
    Statistics,
    WriteRequest,
    never,
)
from kvstore_daemon.storage.lmdb_store.eviction import EvictionOrder
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.free_space import FreeSpace, map_bytes
from kvstore_daemon.storage.lmdb_store.journaling import checkpoint, journal
from kvstore_daemon.storage.lmdb_store.journaling.checkpointer import Checkpoint, Checkpointer
from kvstore_daemon.storage.lmdb_store.journaling.journal_thread import Appended, JournalThread
from kvstore_daemon.storage.lmdb_store.planner import GroupPlanner, log_step
from kvstore_daemon.storage.lmdb_store.snapshot_reads import SnapshotReads
from kvstore_daemon.storage.lmdb_store.tables import Tables

log = logging.getLogger("kvstore.daemon")

ADDRESS = "lmdb:"


class LmdbEngine(SnapshotReads):
    """See :class:`kvstore_daemon.storage.interface.Engine`."""

    plans_at_once = True

    def __init__(
        self,
        settings: EngineSettings,
        clock: StoreClock | None = None,
        journal_bytes: int = journal.FILE_BYTES,
    ) -> None:
        """``journal_bytes`` is where a file of the journal is full, so how often checkpoints are made."""
        self._settings = settings
        self._clock = clock or machine_clock()
        self._folder = Path(settings.data)
        self._journal_bytes = journal_bytes
        self._lock = FolderLock(self._folder)
        self._space = FreeSpace(self._folder, settings.max_store_bytes)
        self._news: queue.SimpleQueue[Appended | Checkpoint] = queue.SimpleQueue()
        self._open = False
        tables = Tables(
            self._folder / "lmdb", map_size=map_bytes(settings.max_store_bytes), sync=True, clock=self._clock
        )
        super().__init__(tables)

    def open(self, is_over: Callable[[], bool] = never) -> None:  # noqa: ARG002 - it waits for nobody
        """Open or create the store in the data folder, and begin its journal.

        Raises ``bad_request`` for an address that is not its own, ``not_allowed`` if another daemon owns the
        folder, it cannot be used, or a cluster's mirror is in it, ``unsupported_version`` if a newer kvstore
        wrote it, ``damaged`` if LMDB cannot read it, and the error of a disk that fails or is full. A store
        that could not be made leaves nothing behind.
        """
        if self._settings.address != ADDRESS:
            raise KvError(
                "bad_request",
                f"--engine {self._settings.address!r}: nothing follows {ADDRESS}; --data says where it is",
            )
        self._lock.claim()
        try:
            self._open_store()
        except OSError as error:
            self._lock.release()
            raise file_error(self._folder, error) from error
        except BaseException:
            self._lock.release()
            raise

    def _open_store(self) -> None:
        refuse_mirror(self._folder)
        try:
            self._tables.open()
        except KvError as error:
            # a start writes a little, and on a full disk the ballast is there for that
            if error.code != "store_full" or not self._space.release():
                raise
            self._tables.open()
        try:
            self._begin_journal()
        except (lmdb.Error, OSError) as error:
            self._tables.close()
            raise file_error(self._tables.file, error) from error
        except BaseException:
            self._tables.close()
            raise

    def _begin_journal(self) -> None:
        tables, sync = self._tables, self._settings.sync
        self._space.prepare()
        if tables.step_at_start is not None:
            log_step(tables.step_at_start, "while the store was closed")
        interval = {"always": 0, "interval": self._settings.sync_interval_ms}.get(sync)
        with contextlib.ExitStack() as undo:
            self._journal = JournalThread(tables.folder, interval, self._tell)
            undo.callback(self._journal.close)
            with tables.env.begin(write=True) as txn:
                self._begin_weak_sync(txn)
                journal_id = checkpoint.begin(txn, tables.handles)
            self._checkpointer = Checkpointer(tables.folder, tables.map_size, journal_id, self._tell)
            self._planner = GroupPlanner(
                tables,
                self._settings,
                self._space,
                self._journal.append,
                self._journal.resume,
                self._checkpointer.begin,
                min(self._journal_bytes, self._space.journal_bytes()),
                self._eviction_order(),
            )
            self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            undo.pop_all()
        self._journal.begin(journal_id)
        self._checkpointer.start()
        self._open = True

    def _eviction_order(self) -> EvictionOrder | None:
        limit = self._settings.eviction
        if limit is None:
            return None
        order = EvictionOrder(limit)
        with self._tables.env.begin(buffers=True) as txn:
            order.load(self._tables.below(txn, order.prefixes))
        state = order.state()
        log.info("the cache takes %d bytes of %d, %d records", state.bytes, state.max_bytes, state.records)
        return order

    def _begin_weak_sync(self, txn: lmdb.Transaction[Any]) -> None:
        """Begin a new epoch if a crash of the machine may have taken commits back.

        Without a sync on every commit, subscribers saw those commits, and their revisions will be used
        again. While a store is open like that, a mark in it names the boot.
        """
        tables, boot = self._tables, boot_id().encode()
        mark = txn.get(b"unsynced", db=tables.meta)
        if mark is not None and bytes(mark) != boot:
            log.warning("the machine stopped while writes were not synced: cursors start over")
            tables.begin_epoch(txn)
        if self._settings.sync == "always":
            txn.delete(b"unsynced", db=tables.meta)
        else:
            txn.put(b"unsynced", boot, db=tables.meta)

    def close(self) -> None:
        """Commit what was handed over, put it all into LMDB, and let go of the folder; may be called
        twice."""
        if not self._open:
            return
        self._open = False
        planner = self._planner
        planner.is_closing = True
        while planner.is_busy():
            if planner.is_planning():
                planner.go_on()
            else:
                self._note(self._news.get())
        self._journal.stop()
        self._checkpointer.stop()
        self._checkpointer.join()
        with contextlib.suppress(queue.Empty):
            while True:  # the last sync may have failed
                self._note(self._news.get_nowait())
        if planner.broken is None:
            self._end_journal()
        else:
            self._begin_again_with_another_epoch()
        self._tables.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        self._lock.release()

    def _end_journal(self) -> None:
        """Leave a store that is all in LMDB. Where that cannot be done, the next start does it."""
        tables = self._tables
        try:
            with tables.env.begin(write=True) as txn:
                checkpoint.apply(txn, tables.handles, checkpoint.read(tables.folder, txn, tables.handles))
                if checkpoint.applied(txn, tables.handles) != self._planner.last_frame:
                    raise KvError("damaged", "the journal has not all that was written to it")
                checkpoint.end(txn, tables.handles)
                txn.delete(b"unsynced", db=tables.meta)
            for name in journal.NAMES:
                (tables.folder / name).unlink()
        except (KvError, lmdb.Error, OSError) as error:
            log.error("the journal stays for the next start, the last checkpoint failed: %s", error)
            self._begin_again_with_another_epoch()

    def _begin_again_with_another_epoch(self) -> None:
        """Where syncs come later and one failed, what was acknowledged may be gone, though the machine goes
        on: let the next start take that for a crash of the machine."""
        tables = self._tables
        with contextlib.suppress(lmdb.Error), tables.env.begin(write=True) as txn:
            if txn.get(b"unsynced", db=tables.meta) is not None:
                txn.put(b"unsynced", b"a sync failed", db=tables.meta)

    def fileno(self) -> int:
        return self._wake_reader

    def commit(self, group: Sequence[WriteRequest]) -> None:
        self._planner.commit(group)
        self._wake_for_more()

    def trim(self) -> None:
        if not self._planner.is_busy():
            self.commit(())

    # runs in the threads of the journal and of checkpoints
    def _tell(self, news: Appended | Checkpoint) -> None:
        self._news.put(news)
        self._wake()

    def _wake(self) -> None:
        # a full pipe means that the loop is awake already
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_writer, b"\0")

    def _wake_for_more(self) -> None:
        if self._planner.has_news() or self._planner.is_planning():
            self._wake()

    def poll(self) -> Committed:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)
        with contextlib.suppress(queue.Empty):
            while True:
                self._note(self._news.get_nowait())
        if self._planner.is_planning():
            self._planner.go_on()
        done = self._planner.take()
        self._wake_for_more()
        return done

    def _note(self, news: Appended | Checkpoint) -> None:
        if isinstance(news, Appended):
            self._planner.appended(news)
        else:
            self._planner.checkpointed(news)

    def catch_up(self, _ticket: Any) -> bool:
        return True

    def age(self) -> int:
        return 0

    def cluster(self) -> None:
        return None

    def statistics(self) -> Statistics:
        disk, counts = self._space.disk(), self._counts()
        shortage = self._planner.shortage()
        return Statistics(
            max_log_bytes=self._planner.max_log_bytes,
            max_store_bytes=self._settings.max_store_bytes,
            disk_bytes=disk.size,
            disk_free_bytes=disk.free,
            writes_refused=self._planner.broken or shortage,
            commits=self._planner.commits,
            journal_bytes=self._planner.journal_bytes,
            overlay_bytes=self._planner.overlay_bytes,
            eviction=self._planner.eviction(),
            **counts,
        )

    def now(self) -> int:
        return self._clock.present()
