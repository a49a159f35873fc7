"""The engine that keeps everything in an LMDB file on this machine.

One thread writes: it takes all requests that are waiting, applies them in one transaction, syncs
once, and hands the changes and answers back through a pipe (group commit). The loop's thread reads
from snapshots and never waits for the writer, because LMDB's readers do not. py-lmdb lets go of the
interpreter lock while it syncs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.address_in_use import patiently
from kvstore_core.process.files import NO_ROOM
from kvstore_daemon.storage.clock import ClockStep, StoreClock, boot_id, machine_clock
from kvstore_daemon.storage.commit_stats import CommitStats
from kvstore_daemon.storage.folder_lock import FolderLock, unusable
from kvstore_daemon.storage.interface import (
    EngineSettings,
    EventFilter,
    EventPage,
    KeyCount,
    KeyHistory,
    LogPosition,
    RangePage,
    Statistics,
    StoredEvent,
    StoredRecord,
    Write,
    WriteAnswer,
    WriteRequest,
)
from kvstore_daemon.storage.lmdb_store.file_errors import errno_of, file_error
from kvstore_daemon.storage.lmdb_store.free_space import FreeSpace
from kvstore_daemon.storage.lmdb_store.idempotency import IdempotencyTable
from kvstore_daemon.storage.lmdb_store.row_format import NO_EVENT, DamageError, encode_place
from kvstore_daemon.storage.lmdb_store.tables import Tables, WriteTransaction, damaged
from kvstore_daemon.storage.write_rules import GROWING, NEEDS_VALUE, Plan, plan

log = logging.getLogger("kvstore.daemon")

# what one transaction takes on at most, so that its answers are not kept waiting by later requests
_MAX_GROUP_WRITES = 20_000
_MAX_GROUP_BYTES = 64 * 1024 * 1024
_IDLE_TRIM_EVENTS = 2_000
# how often the places of readers that were killed are cleared; while one is left, no page is used again
_READER_CHECK_MS = 5_000

_NO_EVENT = NO_EVENT.encode()

Outcome = tuple[list[StoredEvent], list[WriteAnswer]]


class LmdbEngine:
    """See :class:`kvstore_daemon.storage.interface.Engine`."""

    def __init__(self, settings: EngineSettings, clock: StoreClock | None = None) -> None:
        self._settings = settings
        self._clock = clock or machine_clock()
        self._folder = Path(settings.data)
        self._lock = FolderLock(self._folder)
        self._outcomes: deque[Outcome] = deque()
        self._inbox: queue.SimpleQueue[Sequence[WriteRequest] | None] = queue.SimpleQueue()
        self._open = False

    def open(self) -> None:
        """Open or create the store in the data folder and start the writer.

        Raises ``not_allowed`` if another daemon owns the folder or it cannot be used,
        ``unsupported_version`` if a newer kvstore wrote it, ``damaged`` if LMDB cannot read it, and
        what a disk that fails or is full calls for. A store that could not be made leaves nothing behind.
        """
        if "\0" in self._settings.data:
            raise KvError("bad_request", "--data has a NUL in it, as no path can have")
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
        self._space = FreeSpace(self._folder, self._settings.max_store_bytes)
        try:
            self._open_tables()
        except KvError as error:
            # a start writes a little, and on a full disk the ballast is there for that
            if error.code != "store_full" or not self._space.release():
                raise
            self._open_tables()
        try:
            self._start_writer()
        except BaseException:
            self._tables.close()
            raise

    def _open_tables(self) -> None:
        settings = self._settings
        reserve = max(settings.max_store_bytes // 4, 64 * 1024 * 1024)
        self._tables = Tables(
            self._folder / "lmdb",
            map_size=settings.max_store_bytes + reserve,
            sync=settings.sync == "always",
            clock=self._clock,
        )

    def _start_writer(self) -> None:
        try:
            self._writer = Writer(self._tables, self._settings, self._space, self._inbox, self._deliver)
        except lmdb.Error as error:
            raise file_error(self._folder / "lmdb" / "data.mdb", error) from error
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
        """The reading end of the pipe that the writer wakes the loop with."""
        return self._wake_reader

    def commit(self, group: Sequence[WriteRequest]) -> None:
        """See :meth:`kvstore_daemon.storage.interface.Engine.commit`."""
        self._inbox.put(group)

    def trim(self) -> None:
        """See :meth:`kvstore_daemon.storage.interface.Engine.trim`."""
        self._inbox.put(())

    # Runs in the writer's thread.
    def _deliver(self, changes: list[StoredEvent], answers: list[WriteAnswer]) -> None:
        self._outcomes.append((changes, answers))
        # a full pipe means that the loop is awake already
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_writer, b"\0")

    def poll(self) -> Outcome:
        """See :meth:`kvstore_daemon.storage.interface.Engine.poll`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)
        changes: list[StoredEvent] = []
        answers: list[WriteAnswer] = []
        while self._outcomes:
            more_changes, more_answers = self._outcomes.popleft()
            changes += more_changes
            answers += more_answers
        return changes, answers

    def read(self, keys: Sequence[bytes]) -> tuple[list[StoredRecord | KvError | None], int]:
        """See :meth:`kvstore_daemon.storage.interface.Engine.read`."""
        return self._tables.read(keys)

    def range(
        self, start: bytes, end: bytes | None, limit: int, *, values: bool, max_bytes: int
    ) -> RangePage:
        """See :meth:`kvstore_daemon.storage.interface.Engine.range`."""
        return self._tables.range(start, end, limit, values=values, max_bytes=max_bytes)

    def count(self, start: bytes, end: bytes | None) -> KeyCount:
        """See :meth:`kvstore_daemon.storage.interface.Engine.count`."""
        return self._tables.count(start, end)

    def log(
        self, since: int, wanted: EventFilter, limit: int, *, values: bool, previous: bool, max_bytes: int
    ) -> EventPage | LogPosition:
        """See :meth:`kvstore_daemon.storage.interface.Engine.log`."""
        return self._tables.log(since, wanted, limit, values=values, previous=previous, max_bytes=max_bytes)

    def history(
        self,
        key: bytes,
        before: int | None,
        cursor: str | None,
        limit: int,
        *,
        values: bool,
        max_bytes: int,
    ) -> KeyHistory:
        """See :meth:`kvstore_daemon.storage.interface.Engine.history`."""
        return self._tables.history(key, before, cursor, limit, values=values, max_bytes=max_bytes)

    def due(self, limit: int) -> tuple[list[tuple[bytes, int]], int | None]:
        """See :meth:`kvstore_daemon.storage.interface.Engine.due`."""
        return self._tables.due(limit)

    def position(self) -> LogPosition:
        """See :meth:`kvstore_daemon.storage.interface.Engine.position`."""
        return self._tables.position()

    def statistics(self) -> Statistics:
        """See :meth:`kvstore_daemon.storage.interface.Engine.statistics`."""
        counts = self._tables.counts()
        disk = self._writer.space.disk()
        return Statistics(
            **counts._asdict(),
            max_store_bytes=self._settings.max_store_bytes,
            disk_bytes=disk.size,
            disk_free_bytes=disk.free,
            writes_refused=self._writer.broken
            or self._writer.space.shortage(counts.file_bytes, lambda: counts.store_bytes),
            commits=self._writer.commits,
            clock=self._clock.state(),
        )

    def now(self) -> int:
        """See :meth:`kvstore_daemon.storage.interface.Engine.now`."""
        return self._clock.present()


class Writer(threading.Thread):
    """The one thread that writes. It is spoken to through ``inbox``.

    ``deliver`` is called in this thread with what was committed and answered, in commit order.
    All its state is its own, but others may look at ``commits``, and at ``broken``: the error that
    every write gets since a commit failed.
    """

    def __init__(
        self,
        tables: Tables,
        settings: EngineSettings,
        space: FreeSpace,
        inbox: queue.SimpleQueue[Sequence[WriteRequest] | None],
        deliver: Any,
    ) -> None:
        super().__init__(name="kvstore-writer", daemon=True)
        self._tables = tables
        self._settings = settings
        self._inbox = inbox
        self._deliver = deliver
        self._replies = IdempotencyTable(tables.env)
        self.commits = CommitStats()
        self.broken: KvError | None = None
        self.space = space
        retention = settings.retention
        self._retention = retention._replace(bytes=space.log_bytes(retention.bytes))
        if self._retention != retention:
            log.info(
                "the log is kept to %d bytes, a quarter of what there is room for", self._retention.bytes
            )
        self._trim_due_at = 0
        self._has_new_time = False
        self._reader_check_due_at = 0
        self._unsynced_since: float | None = None
        self.space.prepare()
        if tables.step_at_start is not None:
            _tell(tables.step_at_start, "while the store was closed")
        self._begin_weak_sync()
        with tables.env.begin() as txn:
            self._position = tables.log_position(txn)

    def _begin_weak_sync(self) -> None:
        """Begin a new epoch if a crash of the machine may have taken commits back.

        Without a sync on every commit those commits were seen by subscribers, and their revisions
        will be given out again. A mark that names the boot is left while the store is open like that.
        """
        tables = self._tables
        boot = boot_id().encode()
        with tables.env.begin(write=True) as txn:
            mark = txn.get(b"unsynced", db=tables.meta)
            if mark is not None and bytes(mark) != boot:
                log.warning("the machine stopped while writes were not synced: cursors begin anew")
                tables.new_epoch(txn)
            if self._settings.sync == "always":
                txn.delete(b"unsynced", db=tables.meta)
            else:
                txn.put(b"unsynced", boot, db=tables.meta)
        tables.env.sync(True)

    def run(self) -> None:
        """Commit what comes in until None does."""
        while True:
            try:
                group = self._inbox.get(timeout=self._seconds_to_sync())
            except queue.Empty:
                self._sync()
                continue
            requests, stopping = self._gather(group)
            if group is not None:
                self._serve(requests)
            if stopping:
                return self._end()

    def _gather(self, group: Sequence[WriteRequest] | None) -> tuple[list[WriteRequest], bool]:
        """``group`` and what waits behind it, as much as one transaction takes; and whether to stop."""
        requests: list[WriteRequest] = []
        while group is not None:
            requests += group
            if self._inbox.empty() or _is_full(requests):
                return requests, False
            group = self._inbox.get()
        return requests, True

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
        """Leave a store of which all is on disk. What a failed commit left is not made to look like one: its
        mark stays, for the next start."""
        if self.broken is not None:
            return
        try:
            self._tables.env.sync(True)
            with self._tables.env.begin(write=True) as txn:
                txn.delete(b"unsynced", db=self._tables.meta)
            self._tables.env.sync(True)
        except lmdb.Error as error:
            log.error("the last sync before the end failed: %s", error)

    def _serve(self, requests: list[WriteRequest]) -> None:
        changes, answers = self._commit(requests)
        if changes and self._unsynced_since is None:
            self._unsynced_since = time.monotonic()
        if changes or answers:
            self._deliver(changes, answers)

    def _commit(self, requests: list[WriteRequest]) -> Outcome:
        if self.broken is not None:
            return [], [WriteAnswer(request.ticket, None, self.broken) for request in requests]
        try:
            return self._attempt(requests)
        except Exception as error:
            if not self._found_no_room(error):
                return [], self._break(requests, error)
            self.space.release()
            return self._commit_one_by_one(requests)

    def _found_no_room(self, error: Exception) -> bool:
        """Whether a transaction was undone because the map or the disk is full.

        LMDB says so with an error of its own, except when the last write was cut short: that it calls
        an input/output error.
        """
        if isinstance(error, lmdb.MapFullError | lmdb.DiskError):
            return True
        if not isinstance(error, lmdb.Error) or isinstance(error, lmdb.PanicError):
            return False
        return errno_of(error) in NO_ROOM or self.space.is_used_up()

    def _commit_one_by_one(self, requests: list[WriteRequest]) -> Outcome:
        """After a transaction found no room: let those through that still find some."""
        changes: list[StoredEvent] = []
        answers: list[WriteAnswer] = []
        for request in requests:
            try:
                more_changes, more_answers = self._attempt([request])
            except Exception as error:
                if self._found_no_room(error):
                    answers.append(self._no_room(request))
                else:
                    answers += self._break([request], error)
            else:
                changes += more_changes
                answers += more_answers
        return changes, answers

    def _no_room(self, request: WriteRequest) -> WriteAnswer:
        answer = WriteAnswer(request.ticket, None, self.space.disk_full())
        if request.client is not None:
            self._replies.keep_refusal(request, answer)
        return answer

    def _break(self, requests: list[WriteRequest], error: Exception) -> list[WriteAnswer]:
        """Take no more writes. After a failed sync nobody knows what is on the disk: the kernel may
        have dropped the pages, and a second sync would succeed without having written them.

        The environment is not touched any more from here on: a reader may have to open it anew.
        """
        reason = f"a commit failed ({error}); writes are refused until the daemon is restarted"
        self.broken = KvError("internal", reason)
        self._unsynced_since = None
        self._tables.given_up.set()
        # of an error that is not the disk's, where it came from is worth knowing
        log.critical(
            "a commit failed (%s); writes are refused until the daemon is restarted, reads go on",
            error,
            exc_info=None if isinstance(error, lmdb.Error) else error,
        )
        unknown = KvError("internal", reason, outcome="unknown")
        return [WriteAnswer(request.ticket, None, unknown) for request in requests]

    def _attempt(self, requests: list[WriteRequest]) -> Outcome:
        try:
            return self._transact(requests)
        finally:
            self._tables.clock.release()

    def _transact(self, requests: list[WriteRequest]) -> Outcome:
        clock = self._tables.clock
        step = clock.notice(self._position.head)
        if step is not None:
            self._has_new_time = True
            _tell(step, "")
        steady = clock.hold()
        now = steady + clock.shift
        if steady >= self._reader_check_due_at:
            self._tables.env.reader_check()
            self._reader_check_due_at = steady + _READER_CHECK_MS
        started = time.perf_counter()
        with self._replies.remembering(), self._tables.env.begin(write=True) as txn:
            applying = WriteTransaction(self._tables, txn, self._position, now)
            transaction = Transaction(applying, self._refusal(txn))
            answers = [self._answer(txn, transaction, request) for request in requests]
            written = len(applying.changes)
            budget = 2 * written + 16 if requests else _IDLE_TRIM_EVENTS
            trim_due_at = applying.trim(self._retention, budget, self._trim_due_at)
            self._replies.forget(txn, clock.running(), written + 1)
            if self._has_new_time:
                self._tables.keep_time(txn)
            position = applying.finish()
            applied = time.perf_counter()
        if applying.changes:
            self._count(requests, started, applied)
        self._has_new_time = False
        self._position, self._trim_due_at = position, trim_due_at
        return applying.changes, answers

    def _count(self, requests: list[WriteRequest], started: float, applied: float) -> None:
        """Note a commit that changed something: of others none is written to the disk."""
        done = time.perf_counter()
        self.commits.count(len(requests), sum(len(request.writes) for request in requests), done - started)
        if self._settings.sync == "always":
            self.commits.sync_seconds.count(done - applied)

    def _refusal(self, txn: lmdb.Transaction[bytes]) -> KvError | None:
        return self.space.refusal(self._tables.file_bytes(), lambda: self._tables.used_bytes(txn))

    def _answer(
        self, txn: lmdb.Transaction[bytes], transaction: Transaction, request: WriteRequest
    ) -> WriteAnswer:
        if request.client is None:
            return transaction.answer(request)
        kept = self._replies.find(txn, request)
        if kept is not None:
            return kept
        answer = transaction.answer(request)
        self._replies.keep(txn, request, answer, self._tables.clock.running())
        return answer


class Transaction:
    """Requests turned into changes, within one write transaction.

    ``refusal`` is the ``store_full`` that writes which grow the store get, None if there is room.
    """

    def __init__(self, applying: WriteTransaction, refusal: KvError | None) -> None:
        self.now = applying.now
        self._applying = applying
        self._refusal = refusal

    def answer(self, request: WriteRequest) -> WriteAnswer:
        """Apply what can be applied of ``request`` and say what became of it."""
        if request.atomic:
            try:
                return WriteAnswer(request.ticket, self._all(request.writes))
            except KvError as error:
                return WriteAnswer(request.ticket, None, error)
        results: list[dict[str, Any] | KvError] = []
        for write in request.writes:
            try:
                results.append(self._one(write))
            except KvError as error:
                results.append(error)
        return WriteAnswer(request.ticket, results)

    def _one(self, write: Write) -> dict[str, Any]:
        if write.op == "delete_prefix":
            return self._delete_prefix(write)
        self._check_room(write)
        current, before = self._current(write)
        revision = self._applying.head + 1
        if current is _DAMAGED:
            self._remove_damaged(write.key, revision)
            return {"revision": revision, "deleted": 1}
        op, record, result = plan(write, current, revision, self.now)
        if op is not None:
            self._apply(op, write.key, record, current, before, revision, 0, 1)
        return result

    def _all(self, writes: Sequence[Write]) -> list[dict[str, Any] | KvError]:
        """All writes in one revision. Every plan is made before the first is applied; keys differ,
        so none of them depends on another."""
        found: list[tuple[StoredRecord | None, bytes]] = []
        planned: list[Plan] = []
        try:
            for write in writes:
                found.append(self._found(write))  # noqa: PERF401 - how many there are tells which one failed
            revision, now = self._applying.head + 1, self.now
            for write, (current, _) in zip(writes, found, strict=True):
                planned.append(plan(write, current, revision, now))
        except KvError as error:
            at = len(planned) if len(found) == len(writes) else len(found)
            raise KvError(error.code, error.message, **{**error.details, "op": at}) from error
        changing = [index for index, (op, _, _) in enumerate(planned) if op is not None]
        for index, at in enumerate(changing):
            op, record, _ = planned[at]
            current, before = found[at]
            self._apply(op or "", writes[at].key, record, current, before, revision, index, len(changing))
        return [result for _, _, result in planned]

    def _found(self, write: Write) -> tuple[StoredRecord | None, bytes]:
        self._check_room(write)
        current, before = self._current(write)
        if current is _DAMAGED:
            raise damaged(write.key, DamageError("it cannot be deleted in an atomic batch"))
        return current, before

    def _check_room(self, write: Write) -> None:
        if self._refusal is not None and write.op in GROWING:
            raise self._refusal

    def _current(self, write: Write) -> tuple[StoredRecord | None, bytes]:
        """The live record of the write's key and the encoded place of its newest event.

        A record whose time has come is expired first, in a revision of its own, so that no write
        ever builds on it. A damaged record may be replaced or deleted without a condition.
        """
        try:
            current, before = self._applying.current(write.key, value=write.op in NEEDS_VALUE)
        except DamageError as damage:
            if write.if_revision is not None or write.op not in ("put", "delete"):
                raise damaged(write.key, damage) from damage
            self._applying.forget_expiry(write.key)
            return (None if write.op == "put" else _DAMAGED), _NO_EVENT
        if current is None or write.op == "expire":
            return current, before
        expires_at = current.expires_at
        if expires_at is None or expires_at > self.now:
            return current, before
        current, _ = self._applying.current(write.key, value=True)
        revision = self._applying.head + 1
        self._apply("expire", write.key, None, current, before, revision, 0, 1)
        return None, encode_place(revision, 0)

    def _apply(
        self,
        op: str,
        key: bytes,
        record: StoredRecord | None,
        current: StoredRecord | None,
        before: bytes,
        revision: int,
        index: int,
        count: int,
    ) -> None:
        """Record an event; on an expire ``current`` has its value."""
        previous = current if op == "expire" else None
        previous_revision = 0 if current is None else current.revision
        change = StoredEvent(op, key, revision, index, count, self.now, record, previous, previous_revision)
        self._applying.apply(change, current, before)

    def _remove_damaged(self, key: bytes, revision: int) -> None:
        change = StoredEvent("delete", key, revision, 0, 1, self.now, None, None, 0)
        self._applying.apply(change, None, _NO_EVENT)

    def _delete_prefix(self, write: Write) -> dict[str, Any]:
        """Remove the first keys with the prefix; those that were expired are told of as such."""
        keys = self._applying.keys(write.key, write.limit + 1)
        found = []
        for key in keys[: write.limit]:
            current, before = self._current(Write("delete", key))
            if current is not None:
                found.append((key, current, before))
        revision = self._applying.head + 1
        for index, (key, current, before) in enumerate(found):
            live = None if current is _DAMAGED else current
            self._apply("delete", key, None, live, before, revision, index, len(found))
        result = {"deleted": len(found), "more": len(keys) > write.limit}
        return {"revision": revision, **result} if found else result


_DAMAGED = StoredRecord(None, "", 0, 0, 0, 0, None)
"""Stands for a record that cannot be read but may be deleted."""


def _is_full(requests: list[WriteRequest]) -> bool:
    """Whether the requests are as much as one transaction takes."""
    writes = sum(len(request.writes) for request in requests)
    size = sum(len(write.value) for request in requests for write in request.writes)
    return writes >= _MAX_GROUP_WRITES or size >= _MAX_GROUP_BYTES


def _tell(step: ClockStep, when: str) -> None:
    log.warning(
        "the machine's clock was set %s by %.1f s%s; what has a time to live keeps what was left of it",
        "forward" if step.by > 0 else "back",
        abs(step.by) / 1000,
        f" {when}" if when else "",
    )
