"""The thread that commits: one group of requests, one LMDB transaction, one sync."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.files import NO_ROOM
from kvstore_daemon.storage.clock import ClockStep, boot_id
from kvstore_daemon.storage.commit_stats import CommitStats
from kvstore_daemon.storage.interface import EngineSettings, StoredEvent, WriteAnswer, WriteRequest
from kvstore_daemon.storage.lmdb_store.applier import Applier
from kvstore_daemon.storage.lmdb_store.file_errors import errno_of
from kvstore_daemon.storage.lmdb_store.free_space import FreeSpace
from kvstore_daemon.storage.lmdb_store.idempotency import IdempotencyTable
from kvstore_daemon.storage.lmdb_store.tables import Tables
from kvstore_daemon.storage.lmdb_store.write_transaction import WriteTransaction

log = logging.getLogger("kvstore.daemon")

_IDLE_TRIM_EVENTS = 2_000
# how often the reader slots of killed processes are cleared; while one is held, no page is used again
_READER_CHECK_MS = 5_000

Committed = tuple[list[StoredEvent], list[WriteAnswer]]
"""What was committed, and what became of the requests."""

Inbox = queue.SimpleQueue[Sequence[WriteRequest] | None]
"""Groups to commit, in order. An empty one asks for a step of trimming, None ends the writer."""


class Writer(threading.Thread):
    """The one thread that writes. It gets its work from ``inbox``.

    ``deliver`` is called in this thread with the events and answers of each transaction, in commit order.
    All its state is its own, but others may look at ``commits``, and at ``broken``: the error that every
    write gets since a commit failed.
    """

    def __init__(
        self,
        tables: Tables,
        settings: EngineSettings,
        space: FreeSpace,
        inbox: Inbox,
        deliver: Callable[[list[StoredEvent], list[WriteAnswer]], None],
    ) -> None:
        super().__init__(name="kvstore-writer", daemon=True)
        self._tables = tables
        self._settings = settings
        self._space = space
        self._inbox = inbox
        self._deliver = deliver
        self._replies = IdempotencyTable(tables)
        self.commits = CommitStats()
        self.broken: KvError | None = None
        retention = settings.retention
        self._retention = retention._replace(bytes=space.log_bytes(retention.bytes))
        if self._retention != retention:
            log.info("the log is kept to %d bytes, a quarter of the available space", self._retention.bytes)
        self._trim_due_at = 0
        self._has_new_time = False
        self._reader_check_due_at = 0
        self._unsynced_since: float | None = None
        space.prepare()
        if tables.step_at_start is not None:
            _log_step(tables.step_at_start, "while the store was closed")
        self._begin_weak_sync()
        with tables.env.begin() as txn:
            self._counters = tables.counters(txn)

    def _begin_weak_sync(self) -> None:
        """Begin a new epoch if a crash of the machine may have taken commits back.

        Without a sync on every commit, subscribers saw those commits, and their revisions will be used
        again. While a store is open like that, a mark in it names the boot.
        """
        tables = self._tables
        boot = boot_id().encode()
        with tables.env.begin(write=True) as txn:
            mark = txn.get(b"unsynced", db=tables.meta)
            if mark is not None and bytes(mark) != boot:
                log.warning("the machine stopped while writes were not synced: cursors start over")
                tables.begin_epoch(txn)
            if self._settings.sync == "always":
                txn.delete(b"unsynced", db=tables.meta)
            else:
                txn.put(b"unsynced", boot, db=tables.meta)
        tables.env.sync(True)

    def run(self) -> None:
        """Commit each group that comes in, until None does."""
        while True:
            try:
                group = self._inbox.get(timeout=self._seconds_to_sync())
            except queue.Empty:
                self._sync()
                continue
            if group is None:
                return self._end()
            self._serve(group)

    def _seconds_to_sync(self) -> float | None:
        if self._unsynced_since is None or self._settings.sync != "interval":
            return None
        return max(0.0, self._unsynced_since + self._settings.sync_interval_ms / 1000 - time.monotonic())

    def _sync(self) -> None:
        started = time.perf_counter()
        self._unsynced_since = None
        try:
            self._tables.env.sync(True)
        except lmdb.Error as error:
            self._break([], error)
        else:
            self.commits.sync_seconds.count(time.perf_counter() - started)

    def _end(self) -> None:
        """Leave a store that is all on disk. After a failed commit its mark stays, for the next start."""
        if self.broken is not None:
            return
        try:
            self._tables.env.sync(True)
            with self._tables.env.begin(write=True) as txn:
                txn.delete(b"unsynced", db=self._tables.meta)
            self._tables.env.sync(True)
        except lmdb.Error as error:
            log.error("the last sync before the end failed: %s", error)

    def _serve(self, group: Sequence[WriteRequest]) -> None:
        events, answers = self._commit(group)
        if events and self._unsynced_since is None:
            self._unsynced_since = time.monotonic()
        if events or answers:
            self._deliver(events, answers)

    def _commit(self, group: Sequence[WriteRequest]) -> Committed:
        if self.broken is not None:
            return [], [WriteAnswer(request.ticket, None, self.broken) for request in group]
        try:
            return self._attempt(group)
        except Exception as error:
            if not self._found_no_room(error):
                return [], self._break(group, error)
            self._space.release()
            return self._commit_one_by_one(group)

    def _found_no_room(self, error: Exception) -> bool:
        """Whether a transaction was undone because the map or the disk is full.

        LMDB has a special error for that, except when the last write was cut short: that it reports as
        an input/output error.
        """
        if isinstance(error, lmdb.MapFullError | lmdb.DiskError):
            return True
        if not isinstance(error, lmdb.Error) or isinstance(error, lmdb.PanicError):
            return False
        return errno_of(error) in NO_ROOM or self._space.is_used_up()

    def _commit_one_by_one(self, group: Sequence[WriteRequest]) -> Committed:
        """After a transaction found no room: commit those requests that still find some."""
        events: list[StoredEvent] = []
        answers: list[WriteAnswer] = []
        for request in group:
            try:
                more_events, more_answers = self._attempt([request])
            except Exception as error:
                if self._found_no_room(error):
                    answers.append(self._no_room(request))
                else:
                    answers += self._break([request], error)
            else:
                events += more_events
                answers += more_answers
        return events, answers

    def _no_room(self, request: WriteRequest) -> WriteAnswer:
        answer = WriteAnswer(request.ticket, None, self._space.disk_full())
        if request.client is not None:
            self._replies.keep_refusal(request, answer)
        return answer

    def _break(self, group: Sequence[WriteRequest], error: Exception) -> list[WriteAnswer]:
        """Take no more writes. After a failed sync nobody knows what is on the disk: the kernel may
        have dropped the pages, and a second sync would succeed without having written them.

        The environment is not touched again from here on: a reader may have to reopen it.
        """
        reason = f"a commit failed ({error}); writes are refused until the daemon is restarted"
        self.broken = KvError("internal", reason)
        self._unsynced_since = None
        self._tables.writer_is_done.set()
        # for an error that is not the disk's, it matters where it came from
        log.critical(
            "a commit failed (%s); writes are refused until the daemon is restarted, reads go on",
            error,
            exc_info=None if isinstance(error, lmdb.Error) else error,
        )
        unknown = KvError("internal", reason, outcome="unknown")
        return [WriteAnswer(request.ticket, None, unknown) for request in group]

    def _attempt(self, group: Sequence[WriteRequest]) -> Committed:
        try:
            return self._transact(group)
        finally:
            self._tables.clock.release()

    def _transact(self, group: Sequence[WriteRequest]) -> Committed:
        clock = self._tables.clock
        step = clock.notice(self._counters.head)
        if step is not None:
            self._has_new_time = True
            _log_step(step, "")
        steady = clock.hold()
        now = steady + clock.shift
        if steady >= self._reader_check_due_at:
            self._tables.env.reader_check()
            self._reader_check_due_at = steady + _READER_CHECK_MS
        started = time.perf_counter()
        with self._replies.remembering(), self._tables.env.begin(write=True) as txn:
            transaction = WriteTransaction(self._tables, txn, self._counters, now)
            applier = Applier(transaction, self._refusal(txn))
            answers = [self._answer(txn, applier, request) for request in group]
            written = len(transaction.events)
            budget = 2 * written + 16 if group else _IDLE_TRIM_EVENTS
            trim_due_at = transaction.trim(self._retention, budget, self._trim_due_at)
            self._replies.forget(txn, clock.running(), written + 1)
            if self._has_new_time:
                self._tables.keep_time(txn)
            counters = transaction.finish()
            applied = time.perf_counter()
        if transaction.events:
            self._count(group, started, applied)
        self._has_new_time = False
        self._counters, self._trim_due_at = counters, trim_due_at
        return transaction.events, answers

    def _count(self, group: Sequence[WriteRequest], started: float, applied: float) -> None:
        """Count a commit that changed something; LMDB writes no other to the disk."""
        done = time.perf_counter()
        self.commits.count(len(group), sum(len(request.writes) for request in group), done - started)
        if self._settings.sync == "always":
            self.commits.sync_seconds.count(done - applied)

    def _refusal(self, txn: lmdb.Transaction[bytes]) -> KvError | None:
        return self._space.refusal(self._tables.file_bytes(), lambda: self._tables.used_bytes(txn))

    def _answer(self, txn: lmdb.Transaction[bytes], applier: Applier, request: WriteRequest) -> WriteAnswer:
        if request.client is None:
            return applier.apply(request)
        kept = self._replies.find(txn, request)
        if kept is not None:
            return kept
        answer = applier.apply(request)
        self._replies.keep(txn, request, answer, self._tables.clock.running())
        return answer


def _log_step(step: ClockStep, when: str) -> None:
    log.warning(
        "the machine's clock was set %s by %.1f s%s; keys with a TTL keep the time that they had left",
        "forward" if step.by > 0 else "back",
        abs(step.by) / 1000,
        f" {when}" if when else "",
    )
