"""Plans groups of writes, has them written to the journal, and shows them once they are on the disk.

All of it runs in the loop's thread. A group is planned against what was planned before it, whether that is on
the disk yet or not, and becomes one frame; the journal's thread syncs several at once where they wait. Only
then are its rows put into the overlay that reads see, and its events and answers given out. So nothing is
acknowledged, or read, that a power cut can take back.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.files import NO_ROOM
from kvstore_daemon.storage.applier import Applier
from kvstore_daemon.storage.clock import ClockStep
from kvstore_daemon.storage.commit_stats import CommitStats
from kvstore_daemon.storage.interface import (
    Committed,
    EngineSettings,
    EvictionState,
    StoredEvent,
    WriteAnswer,
    WriteRequest,
)
from kvstore_daemon.storage.lmdb_store.eviction import EvictionFigures, EvictionOrder
from kvstore_daemon.storage.lmdb_store.file_errors import errno_of
from kvstore_daemon.storage.lmdb_store.free_space import FreeSpace
from kvstore_daemon.storage.lmdb_store.idempotency import IdempotencyTable
from kvstore_daemon.storage.lmdb_store.journaling import journal
from kvstore_daemon.storage.lmdb_store.journaling.checkpointer import Checkpoint
from kvstore_daemon.storage.lmdb_store.journaling.journal_thread import Append, Appended, RefusedError
from kvstore_daemon.storage.lmdb_store.journaling.overlay import Generation, Overlay
from kvstore_daemon.storage.lmdb_store.row_format import LogCounters
from kvstore_daemon.storage.lmdb_store.tables import Tables
from kvstore_daemon.storage.lmdb_store.write_transaction import WriteTransaction

log = logging.getLogger("kvstore.daemon")

_SLICE_SECONDS = 0.002
"""How long a group is planned before the loop looks at everything else."""
_IDLE_TRIM_EVENTS = 2_000
_ROOM_SECONDS = 0.02
_ROOM_BYTES = 256 * 1024
_MOST_FILES = 4
"""How many times its full size a file of the journal may have before writes wait for a checkpoint."""


class JournalPlace(NamedTuple):
    """Where the journal ends: the number of the last frame, the index of its file, and that file's bytes."""

    number: int = 0
    file: int = 0
    size: int = 0


class BegunGroup(NamedTuple):
    """A group that is being planned; each of the ``steps`` is a write, or less."""

    group: Sequence[WriteRequest]
    held: int
    steps: Generator[None, None, tuple[PlannedGroup, bytes]]


class PlannedGroup(NamedTuple):
    """A group that is on its way to the disk, and what is true once it is there."""

    group: Sequence[WriteRequest]
    staged: Generation
    events: list[StoredEvent]
    answers: list[WriteAnswer]
    counters: LogCounters
    place: JournalPlace
    held: int
    began: float
    eviction: EvictionFigures | None


class GroupPlanner:
    """The part of the LMDB engine that commits.

    ``append`` hands a frame to the journal's thread, ``resume`` lets it write again after a failure, and
    ``begin_checkpoint`` asks for a checkpoint; what comes of it comes back through :meth:`appended` and
    :meth:`checkpointed`. ``file_bytes`` is where a file of the journal is full. ``order`` says which records
    are evicted, None if none are. With ``is_closing`` no further step of evicting is begun. ``broken`` is the
    error that every write gets since one could not be synced.
    """

    def __init__(
        self,
        tables: Tables,
        settings: EngineSettings,
        space: FreeSpace,
        append: Callable[[Append], None],
        resume: Callable[[], None],
        begin_checkpoint: Callable[[int, int], None],
        file_bytes: int,
        order: EvictionOrder | None = None,
    ) -> None:
        self._tables = tables
        self._order = order
        self._syncs_each = settings.sync == "always"
        self._space = space
        self._append = append
        self._resume = resume
        self._begin_checkpoint = begin_checkpoint
        self._file_bytes = file_bytes
        self._replies = IdempotencyTable(tables)
        self.commits = CommitStats()
        self.broken: KvError | None = None
        self.is_closing = False
        retention = settings.retention
        self._retention = retention._replace(bytes=space.log_bytes(retention.bytes))
        if self._retention != retention:
            log.info("the log is kept to %d bytes, a quarter of the available space", self._retention.bytes)
        self._trim_due_at = 0
        self._has_new_time = False
        with tables.env.begin() as txn:
            counters = tables.counters(txn)
        self._published = tables.overlay = Overlay(counters)
        self._planned = Overlay(counters)
        self._place = self._published_place = JournalPlace()
        self._waiting: deque[Sequence[WriteRequest]] = deque()
        self._in_flight: deque[PlannedGroup] = deque()
        self._begun: BegunGroup | None = None
        self._failed: list[PlannedGroup] = []
        self._alone: deque[WriteRequest] = deque()
        self._is_alone = False
        self._checkpoint_error: KvError | None = None
        self._no_room: KvError | None = None
        self._has_room_until = 0.0
        self._has_room_up_to = 0
        self._done = Committed([], [])

    # ── what the engine asks ─────────────────────────────────────────────────────────────────────

    def commit(self, group: Sequence[WriteRequest]) -> None:
        """Plan a group, or let it wait for its turn. An empty one is a step of trimming, and of evicting."""
        self._waiting.append(group)
        self.go_on()

    def is_busy(self) -> bool:
        """Whether a group waits or is on its way."""
        return bool(self._waiting or self._in_flight or self._alone or self._begun)

    def is_planning(self) -> bool:
        """Whether :meth:`go_on` is to be called soon: a group is planned in part."""
        return self._begun is not None and not self._failed

    def has_news(self) -> bool:
        """Whether :meth:`take` has something."""
        return bool(self._done.events or self._done.answers)

    def take(self) -> Committed:
        """What was committed and answered since the last call."""
        done, self._done = self._done, Committed([], [])
        return done

    def shortage(self) -> KvError | None:
        """The ``store_full`` that a write which grows the store would get now."""
        return self._space.shortage(self._tables.file_bytes(), self._used_bytes, self._planned.size)

    @property
    def max_log_bytes(self) -> int:
        """Up to where the log is kept."""
        return self._retention.bytes

    @property
    def last_frame(self) -> int:
        """The number of the last frame that is on the disk."""
        return self._published_place.number

    @property
    def journal_bytes(self) -> int:
        """The bytes in the journal that are not in LMDB, about."""
        return self._place.size + (self._file_bytes if self._is_checkpointing() else 0)

    @property
    def overlay_bytes(self) -> int:
        """What is kept in memory of them, at most."""
        return self._published.size

    def eviction(self) -> EvictionState | None:
        """What the cache takes, and what was evicted of it."""
        return None if self._order is None else self._order.state()

    # ── planning ─────────────────────────────────────────────────────────────────────────────────

    def go_on(self) -> None:
        """Plan what may be planned now, for a slice of time."""
        deadline = time.monotonic() + _SLICE_SECONDS
        while not self._failed and self._finish(deadline) and self._has_next():
            if self._alone or self._is_alone:
                if self._in_flight:
                    return
                self._is_alone = bool(self._alone)
                if self._alone:
                    self._begin([self._alone.popleft()], self._no_room or self._refusal())
                else:
                    self._no_room = None
                continue
            refusal = self._refusal()
            if self.broken is None and self._must_wait(refusal):
                return
            self._begin(self._waiting.popleft(), refusal)

    def _has_next(self) -> bool:
        return bool(self._alone or self._is_alone or self._waiting)

    def _must_wait(self, refusal: KvError | None) -> bool:
        """Whether the next group waits for a checkpoint, which is begun if need be.

        It does where the journal has grown too far, and where the store is full with what is in memory
        counted twice: there, and under the same key in LMDB.
        """
        place, is_checkpointing = self._place, self._is_checkpointing()
        is_short = refusal is not None and place.size > 0 and self._checkpoint_error is None
        if not is_checkpointing and (is_short or place.size >= self._file_bytes):
            if self._in_flight:
                return True
            self._planned.freeze(place.number)
            self._published.freeze(place.number)
            self._place = self._published_place = JournalPlace(place.number, 1 - place.file)
            self._begin_checkpoint(place.file, place.number)
            is_checkpointing = True
        if not is_checkpointing:
            return False
        is_too_long = place.size >= _MOST_FILES * self._file_bytes
        if self._checkpoint_error is not None:
            # refused, but after the answers to what is on its way
            return is_too_long and bool(self._in_flight)
        return refusal is not None or is_too_long

    def _is_checkpointing(self) -> bool:
        return len(self._planned.generations) > 1

    def _refuse(self, group: Sequence[WriteRequest], error: KvError) -> None:
        for request in group:
            answer = self._kept_answer(request)
            if answer is None:
                answer = WriteAnswer(request.ticket, None, error)
                if request.client is not None:
                    self._replies.keep_refusal(request, answer)
            self._done.answers.append(answer)

    def _kept_answer(self, request: WriteRequest) -> WriteAnswer | None:
        """What a repeat of a request that was committed is answered, whatever new ones get; None for a new
        one. Nothing may be in flight."""
        if request.client is None:
            return None
        with self._tables.snapshot() as txn:
            return self._replies.find(txn, request)

    def _begin(self, group: Sequence[WriteRequest], refusal: KvError | None) -> None:
        if self.broken is not None:
            self._refuse_broken(group, self.broken)
            return
        error = self._checkpoint_error
        if error is not None and self._place.size >= _MOST_FILES * self._file_bytes:
            self._refuse(group, error)
            return
        now = self._tables.clock.hold()
        self._begun = BegunGroup(group, now, self._plan(group, now, refusal))

    def _finish(self, deadline: float) -> bool:
        """Go on with the group that was begun, and hand it over; returns whether none is left to go on
        with."""
        begun = self._begun
        if begun is None:
            return True
        group, held, steps = begun
        if self.broken is not None:
            self._abandon()
            self._refuse_broken(group, self.broken)
            return True
        try:
            next(steps)
            while time.monotonic() < deadline:
                next(steps)
        except StopIteration as end:
            self._begun = None
            planned, rows = end.value
        except Exception as error:
            self._abandon()
            self._break(group, error)
            return True
        else:
            return False
        if not rows and not group:
            self._tables.clock.release(held)
            return True
        self._in_flight.append(planned)
        number, file, end_of_frame = planned.place
        self._append(Append(number, rows, file, end_of_frame == journal.HEAD_BYTES + len(rows)))
        return True

    def _refuse_broken(self, group: Sequence[WriteRequest], error: KvError) -> None:
        for request in group:
            answer = self._kept_answer(request)
            if answer is None:
                # a numbered one may be a repeat of what was in flight then
                is_new = request.client is None
                refused = error if is_new else KvError("internal", error.message, outcome="unknown")
                answer = WriteAnswer(request.ticket, None, refused)
            self._done.answers.append(answer)

    def _abandon(self) -> Sequence[WriteRequest] | None:
        """Forget what was planned of the group that was begun, and return it."""
        begun, self._begun = self._begun, None
        if begun is None:
            return None
        begun.steps.close()
        self._tables.clock.release(begun.held)
        return begun.group

    def _plan(
        self, group: Sequence[WriteRequest], now: int, refusal: KvError | None
    ) -> Generator[None, None, tuple[PlannedGroup, bytes]]:
        tables, clock, overlay = self._tables, self._tables.clock, self._planned
        step = clock.notice(overlay.counters.head)
        if step is not None:
            self._has_new_time = True
            log_step(step, "")
        began = time.perf_counter()
        staged = Generation()
        with self._replies.remembering(), tables.env.begin() as base:
            txn: Any = tables.layered(base, (staged, *overlay.generations), staged)
            order = self._order
            transaction = WriteTransaction(tables, txn, overlay.counters, now + clock.shift, order)
            applier = Applier(transaction, refusal, order)
            answers: list[WriteAnswer] = []
            for request in group:
                size, head = (0 if order is None else order.size), transaction.head
                answers.append((yield from self._answer(txn, applier, request)))
                if order is not None and order.is_over():
                    before = head + 1 if request.atomic else None
                    keys = order.pushed_out(size, transaction.data_row, before)
                    yield from _evict(order, applier, keys)
            if order is not None and (refusal is not None or not group):
                keys = order.due(transaction.data_row, is_full=refusal is not None)
                yield from _evict(order, applier, keys)
            written = len(transaction.events)
            budget = 2 * written + 16 if group else _IDLE_TRIM_EVENTS
            trim_due_at = transaction.trim(self._retention, budget, self._trim_due_at)
            self._replies.forget(txn, clock.running(), written + 1)
            if self._has_new_time:
                tables.keep_time(txn)
            counters = transaction.finish()
        self._has_new_time = False
        self._trim_due_at = trim_due_at
        rows = yield from journal.encode_rows(staged)
        self._stack(staged, counters, len(rows))
        eviction = None if order is None else order.planned()
        return PlannedGroup(
            group, staged, transaction.events, answers, counters, self._place, now, began, eviction
        ), rows

    def _stack(self, staged: Generation, counters: LogCounters, size: int) -> None:
        """Let what comes next be planned on top of ``staged``."""
        if size:
            self._planned.take(staged, counters)
            number, file, used = self._place
            self._place = JournalPlace(number + 1, file, used + journal.HEAD_BYTES + size)

    def _refusal(self) -> KvError | None:
        """The ``store_full`` for writes that grow the store. That there is room holds for a while: to look
        takes longer than to plan a put."""
        now, size = time.monotonic(), self._place.size
        if now < self._has_room_until and size < self._has_room_up_to:
            return None
        refusal = self._space.refusal(self._tables.file_bytes(), self._used_bytes, self._planned.size)
        if refusal is None:
            self._has_room_until, self._has_room_up_to = now + _ROOM_SECONDS, size + _ROOM_BYTES
        return refusal

    def _used_bytes(self) -> int:
        with self._tables.env.begin() as txn:
            return self._tables.used_bytes(txn)

    def _answer(
        self, txn: Any, applier: Applier, request: WriteRequest
    ) -> Generator[None, None, WriteAnswer]:
        if request.client is None:
            return (yield from applier.apply(request))
        kept = self._replies.find(txn, request)
        if kept is not None:
            return kept
        answer = yield from applier.apply(request)
        self._replies.keep(txn, request, answer, self._tables.clock.running())
        return answer

    # ── what the threads say ─────────────────────────────────────────────────────────────────────

    def appended(self, what: Appended) -> None:
        """Take note of what became of frames."""
        groups = [self._in_flight.popleft() for _ in range(what.frames)]
        error = what.error
        if error is None:
            if not groups or (self._syncs_each and any(group.events for group in groups)):
                self.commits.sync_seconds.count(what.seconds)
            for group in groups:
                self._publish(group)
        elif what.is_lost or not (isinstance(error, RefusedError) or errno_of(error) in NO_ROOM):
            groups, self._failed = self._failed + groups, []
            self._break([], error)
            for group in groups:
                self._tables.clock.release(group.held)
                self._break(group.group, error)
        elif self.broken is not None:
            for group in groups:
                self._tables.clock.release(group.held)
                self._break(group.group, error)
        else:
            self._failed += groups
            if not self._in_flight:
                self._begin_again()
        self.go_on()

    def _publish(self, planned: PlannedGroup) -> None:
        overlay = self._published
        overlay.take(planned.staged, planned.counters)
        self._published_place = planned.place
        self._tables.clock.release(planned.held)
        if self._order is not None and planned.eviction is not None:
            self._order.published(planned.eviction)
            if self._order.is_over() and not planned.group and not self.is_closing:
                self._waiting.append(())  # one step after the other, with what others want in between
        self._done.events.extend(planned.events)
        self._done.answers.extend(planned.answers)
        if planned.events:
            ops = sum(len(request.writes) for request in planned.group)
            self.commits.count(len(planned.group), ops, time.perf_counter() - planned.began)

    def _begin_again(self) -> None:
        """After the journal found no room: plan each request anew, by itself, so that those which still find
        some are done. One that was alone already is refused."""
        failed, self._failed = self._failed, []
        for each in failed:
            self._tables.clock.release(each.held)
        if (group := self._abandon()) is not None:
            self._waiting.appendleft(group)
        self._planned = self._published.copy()
        if self._order is not None:
            self._order.begin_again(self._published.counters.head)
        self._place = self._published_place
        self._trim_due_at = 0
        self._has_new_time = True  # what was kept of a step may be gone with the rest
        self._replies.reset()
        self._resume()
        if self._is_alone:
            # of the others, those that need room get this without trying; the system may know of a quota only
            self._no_room = self._space.disk_full()
            self._refuse(failed[0].group, self._no_room)
        else:
            self._space.release()
            self._alone.extend(request for each in failed for request in each.group)

    def checkpointed(self, what: Checkpoint) -> None:
        """Take note of a checkpoint."""
        if what.error is not None:
            if self._checkpoint_error is None:
                log.error("a checkpoint failed, and is tried again: %s", what.error.message)
            self._checkpoint_error = what.error
            # LMDB calls a write that was cut short for want of room an input/output error
            if what.error.code == "store_full" or self._space.is_used_up():
                self._space.release()
        else:
            self._checkpoint_error = None
            self.commits.checkpoint_seconds.count(what.seconds)
            self._planned.drop()
            self._published.drop()
        self.go_on()

    def _break(self, group: Sequence[WriteRequest], error: Exception) -> None:
        """Take no more writes. After a failed sync nobody knows what is on the disk: the kernel may have
        dropped the pages, and a second sync would succeed without having written them."""
        reason = f"a commit failed ({error}); writes are refused until the daemon is restarted"
        if self.broken is None:
            self.broken = KvError("internal", reason)
            self._replies.reset()
            # for an error that is not the disk's, it matters where it came from
            log.critical(
                "a commit failed (%s); writes are refused until the daemon is restarted, reads go on",
                error,
                exc_info=None if isinstance(error, lmdb.Error | OSError) else error,
            )
        unknown = KvError("internal", reason, outcome="unknown")
        self._done.answers.extend(WriteAnswer(request.ticket, None, unknown) for request in group)


def _evict(order: EvictionOrder, applier: Applier, keys: Sequence[bytes]) -> Generator[None, None, None]:
    size = order.size
    records = yield from applier.expire(keys)
    order.count_evicted(records, size - order.size)


def log_step(step: ClockStep, when: str) -> None:
    """Log that the machine's clock was set."""
    log.warning(
        "the machine's clock was set %s by %.1f s%s; keys with a TTL keep the time that they had left",
        "forward" if step.by > 0 else "back",
        abs(step.by) / 1000,
        f" {when}" if when else "",
    )
