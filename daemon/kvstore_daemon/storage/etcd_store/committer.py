"""The thread that commits: groups of requests, in as few etcd transactions as they fit.

What fits one transaction is planned against the mirror, with every read asserted
(:mod:`kvstore_daemon.storage.etcd_store.transaction`), and sent. The next is planned once the mirror has this
one, so that a plan never depends on another that is not decided.

**Applied once.** Each transaction also asserts and puts a key of this daemon alone, ``writer/NODE``. So one
whose outcome is not known (a member died, no answer came) can simply be sent again: at most one copy of it
can be applied, and where it fails, the answer shows what the key holds, and so whether an earlier copy was.
A copy that is delayed for longer fails as soon as a later transaction has gone through.

**Conflicts.** Where an assertion fails, another daemon has changed what was read. The mirror catches up, the
requests before the one that is concerned go first, and that one is planned anew, alone. Each failure means
that another transaction has succeeded, so all daemons together always get on.

**In time.** Whatever stands in the way (no answer, conflicts, a mirror that does not follow or is damaged), a
request gets an answer within ``ANSWER_SECONDS`` of the last transaction that went through.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from kvstore_core.backoff import Backoff
from kvstore_core.errors import KvError
from kvstore_daemon.storage.applier import Applier, as_answer, returned
from kvstore_daemon.storage.commit_stats import CommitStats
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError
from kvstore_daemon.storage.etcd_store.freshness import is_other_history
from kvstore_daemon.storage.etcd_store.layout import Head, Names, ReplyRow, filled
from kvstore_daemon.storage.etcd_store.members import CURE_OF_NOSPACE
from kvstore_daemon.storage.etcd_store.mirroring.mirror import EtcdMirror
from kvstore_daemon.storage.etcd_store.retention import CROWDED, LEAST_EVENTS, due_floor, shortened
from kvstore_daemon.storage.etcd_store.transaction import (
    DoesNotFitError,
    EtcdTransaction,
    MirrorDamageError,
)
from kvstore_daemon.storage.interface import Retention, WriteAnswer, WriteRequest
from kvstore_daemon.storage.write_rules import repeat_error

log = logging.getLogger("kvstore.daemon")

ANSWER_SECONDS = 3.5
"""How long a transaction is tried before its requests get an error: longer than an election takes."""

_AGAIN_SECONDS = 1.0
"""The same after one that was given up. So a write that comes while another is tried in vain is still refused
before its client gives up; to that the daemon would seem to be away."""

_MIRROR_SECONDS = 1.0
"""How long at least what was committed is waited for in the mirror."""

_CALL_SECONDS = 2.0
_SHORTEST_SECONDS = 0.2
_LEASE_SECONDS = 11 * 60
"""How long a reply is kept after its last use, at least 10 minutes: a lease serves for one minute."""

_LEASE_USE_SECONDS = 60.0
_FLOOR_SECONDS = 1.0
_CONFLICT_SECONDS = 0.01

Inbox = queue.SimpleQueue[Sequence[WriteRequest] | None]
"""Groups to commit, in order. An empty one asks for a step of trimming, None ends the thread."""


class _Job:
    """A request on its way: ``done`` of its writes are committed, with ``results``."""

    __slots__ = ("answer", "at_once", "done", "request", "results", "seen")

    def __init__(self, request: WriteRequest) -> None:
        self.request = request
        self.done = 0
        self.results: list[dict[str, Any] | KvError] = []
        self.answer: WriteAnswer | None = None
        self.at_once = len(request.writes)
        """How many of independent writes a transaction may take."""
        self.seen = 0
        """The revision of the client's reply in the mirror that it was last planned with."""

    def finish(self, error: KvError | None = None) -> None:
        results = self.results if error is None else None
        self.answer = WriteAnswer(self.request.ticket, results, error)


class _Stretch(NamedTuple):
    """What a transaction does of a job: its writes from ``start`` up to ``end``. Its keys are asserted by the
    compares from number ``compares`` on."""

    job: _Job
    start: int
    end: int
    results: list[dict[str, Any] | KvError]
    error: KvError | None
    compares: int


class _Plan(NamedTuple):
    transaction: EtcdTransaction
    parts: list[_Stretch]


class _Unsettled(Exception):  # noqa: N818 - it is an outcome
    """A transaction that was not committed, or not known to be; ``error`` is what its requests get."""

    def __init__(self, error: KvError) -> None:
        super().__init__(error.message)
        self.error = error


class _Conflict(Exception):  # noqa: N818 - it is an outcome
    """An assertion failed; ``head`` is the revision that the mirror has to reach."""

    def __init__(self, head: int) -> None:
        super().__init__(head)
        self.head = head


class _TooLarge(Exception):  # noqa: N818 - it is an outcome
    """etcd has a lower limit to the size of a transaction than usual."""


class MirrorKeeper(Protocol):
    """What the committer needs of :class:`~kvstore_daemon.storage.etcd_store.mirroring.watcher.Watcher`."""

    made: int
    broken: KvError | None

    def rebuild(self, reason: str, made: int | None = None) -> None: ...

    def wait_until_made(self, made: int, timeout: float) -> bool: ...

    def look(self, reason: str) -> None: ...


class Committer(threading.Thread):
    """Commits what comes into ``inbox``, as the daemon ``node``, a name that no other run of any daemon has;
    ``answer`` is called, in this thread, with answers in their order.

    By then the mirror has what they tell of. ``refusal`` gives the ``store_full`` that a write
    which grows the store would get for want of room here, None if there is some; whether etcd has room is
    found out. A fault of ours is answered with ``internal``, and the next request is tried again.
    """

    def __init__(
        self,
        node: str,
        cluster: Cluster,
        mirror: EtcdMirror,
        names: Names,
        retention: Retention,
        inbox: Inbox,
        answer: Callable[[list[WriteAnswer]], None],
        refusal: Callable[[], KvError | None],
        crowding: Callable[[], tuple[float, float]],
        lead: Callable[[], int],
        watcher: MirrorKeeper,
    ) -> None:
        super().__init__(name="kvstore-committer", daemon=True)
        self._cluster = cluster
        self._mirror = mirror
        self._names = names
        self._retention = retention
        self._inbox = inbox
        self._answer = answer
        self._refusal = refusal
        self._crowding = crowding
        self._lead = lead
        self._crowding_seen_at = 0.0
        self._is_shortening = False
        self._watcher = watcher
        self.commits = CommitStats()
        self._node = node
        self._writer = names.of_writer(node)
        self._patience = ANSWER_SECONDS
        self._deadline = 0.0
        # the revision that the mirror did not reach in time, and the mirror that was waited for
        self._owed, self._owing = 0, 0
        self._fence = 0
        self._sequence = 0
        # by what they say in the writer's key
        self._undecided: dict[bytes, _Plan] = {}
        self._lease = 0
        self._lease_until = 0.0
        self._floor_due_at = 0.0

    def run(self) -> None:
        """Commit each group that comes in, until None does."""
        while (group := self._inbox.get()) is not None:
            try:
                if group:
                    self._commit(group)
                if time.monotonic() >= self._floor_due_at:
                    self._floor_due_at = time.monotonic() + _FLOOR_SECONDS
                    self._move_floor()
            except Exception:
                log.critical("a step of the committer failed", exc_info=True)

    # ── a group ──────────────────────────────────────────────────────────────────────────────────

    def _commit(self, group: Sequence[WriteRequest]) -> None:
        jobs = deque(map(_Job, group))
        limits: list[int] = []
        self._renew_deadline()
        while jobs:
            try:
                limits = self._step(jobs, limits)
            except _Unsettled as failure:
                self._give_up(jobs, failure.error)
            except Exception as error:
                log.critical("the committer failed", exc_info=True)
                self._give_up(jobs, _fault(error))
            finally:
                self._mirror.tables.clock.release()
            self._hand_over(jobs)

    def _renew_deadline(self) -> None:
        self._deadline = time.monotonic() + self._patience

    def _left(self) -> float:
        """The seconds that are left until the requests are to have an answer."""
        return self._deadline - time.monotonic()

    def _step(self, jobs: deque[_Job], limits: list[int]) -> list[int]:
        """Commit what fits one transaction, of as many jobs as the first of ``limits`` says; how many the
        next ones are to take. Raises _Unsettled."""
        self._catch_up()
        limit = limits[0] if limits else len(jobs)
        made = self._watcher.made
        try:
            plan = self._plan(jobs, limit)
        except MirrorDamageError:
            self._wait_for_rebuild(made)
            return []
        except Exception as error:
            if limit > 1:
                return [1] * len(jobs)  # it may be one request that is concerned
            log.critical("a request could not be planned", exc_info=True)
            self._refuse(jobs[0], _fault(error))
            return limits[1:]
        try:
            self._settle(*self._send(plan))
        except _Conflict as conflict:
            return self._after(conflict, plan)
        except _TooLarge:
            return self._apart(plan)
        except _Unsettled:
            raise
        except Exception:
            self._undecided[self._said] = plan
            raise
        self._renew_deadline()
        return limits[1:]

    def _catch_up(self) -> None:
        """Refuse to plan against a mirror that did not get what was committed before: the answer would have
        to wait for it as well, and so would all behind it."""
        if self._watcher.broken is not None:
            raise _Unsettled(self._watcher.broken)
        if self._owing == self._watcher.made and not self._mirror.wait_for(self._owed, self._left()):
            raise _Unsettled(_not_following())
        self._owed = 0

    def _wait_for_rebuild(self, made: int) -> None:
        """Have the mirror made again, which is damaged, and wait for it."""
        self._watcher.rebuild("a record of the mirror is damaged", made)
        if not self._watcher.wait_until_made(made, self._left()):
            words = "a record of this daemon's mirror is damaged; the mirror is being made again"
            raise _Unsettled(KvError("unavailable", words))

    def _give_up(self, jobs: Iterable[_Job], error: KvError) -> None:
        """Finish all jobs with ``error``."""
        self._patience = _AGAIN_SECONDS
        for job in jobs:
            if job.answer is None:
                self._refuse(job, error)
        self._undecided.clear()

    def _refuse(self, job: _Job, error: KvError) -> None:
        """Finish a job with ``error``; whether it was applied is not known of what has been sent."""
        is_sent = any(part.job is job for plan in self._undecided.values() for part in plan.parts)
        job.finish(_unknown(error) if is_sent or job.done else error)

    def _hand_over(self, jobs: deque[_Job]) -> None:
        """Deliver the answers of the jobs that are done; those are at the front."""
        answers: list[WriteAnswer] = []
        while jobs and jobs[0].answer is not None:
            answers.append(jobs.popleft().answer)  # type: ignore[arg-type]  # it is not None
        if answers:
            self._answer(answers)

    def _after(self, conflict: _Conflict, plan: _Plan) -> list[int]:
        """Let the mirror catch up; how many jobs the next transactions are to take. Where it is not to be
        seen which request is concerned, all are planned again."""
        if not self._mirror.wait_for(conflict.head, self._left()):
            raise _Unsettled(_not_following())
        if self._left() < 0:
            raise _Unsettled(KvError("unavailable", "others change all the time what this depends on"))
        with self._mirror.tables.env.begin() as txn:
            stale = plan.transaction.first_stale(txn)
        if stale is None:
            time.sleep(_CONFLICT_SECONDS)  # the mirror will show it in a moment
            return []
        before = sum(part.compares <= stale for part in plan.parts) - 1
        return [before, 1] if before > 0 else [1]

    def _apart(self, plan: _Plan) -> list[int]:
        """After a transaction that etcd found too large: each request goes alone, and of independent writes
        half as many at once. What cannot be divided is refused."""
        if len(plan.parts) != 1:
            return [1] * len(plan.parts)
        job, start, end, *_ = plan.parts[0]
        error = _too_large()
        if job.request.atomic or (end - start == 1 and job.request.client is not None):
            self._refuse(job, error)
        elif end - start > 1:
            job.at_once = (end - start) // 2
        else:
            self._advance(job, [*job.results, error], end, None)
        return [1]

    # ── planning ─────────────────────────────────────────────────────────────────────────────────

    def _plan(self, jobs: deque[_Job], limit: int) -> _Plan:
        """What fits one transaction of the first ``limit`` jobs, in their order."""
        tables = self._mirror.tables
        tables.clock.release()
        now, watched = tables.clock.hold(), self._mirror.watched
        with tables.env.begin() as txn:
            transaction = EtcdTransaction(self._names, tables, txn, watched, now)
            applier = Applier(transaction, self._refusal())
            parts: list[_Stretch] = []
            for job, _ in zip(jobs, range(limit), strict=False):
                self._resume(txn, job)
                if job.answer is not None:
                    continue
                part = self._plan_job(transaction, applier, job)
                if part is not None:
                    parts.append(part)
                if part is None or part.end < len(job.request.writes):
                    break
        return _Plan(transaction, parts)

    def _plan_job(self, transaction: EtcdTransaction, applier: Applier, job: _Job) -> _Stretch | None:
        """As much of a job as fits; None if that is nothing."""
        request, compares, begun = job.request, transaction.compares, transaction.mark()
        row: bytes | None = None
        part: _Stretch | None = None
        try:
            if request.client is not None:
                row = transaction.expect_reply(request.client, job.seen)
            if request.atomic:
                part = self._plan_atomic(transaction, applier, job, compares)
            else:
                part = self._plan_writes(transaction, applier, job, compares)
        except DoesNotFitError:
            pass
        if part is None:
            transaction.undo_to(begun)
            return self._too_large(job, compares) if transaction.is_empty else None
        if row is not None:
            self._put_reply(transaction, row, part)
        return part

    def _plan_atomic(
        self, transaction: EtcdTransaction, applier: Applier, job: _Job, compares: int
    ) -> _Stretch:
        request = job.request
        if request.client is not None:
            for write in request.writes:
                transaction.grow_reply(write)
        try:
            results = returned(applier.together(request.writes))
            return _Stretch(job, 0, len(request.writes), results, None, compares)
        except KvError as error:
            return _Stretch(job, 0, len(request.writes), [], as_answer(error), compares)

    def _plan_writes(
        self, transaction: EtcdTransaction, applier: Applier, job: _Job, compares: int
    ) -> _Stretch | None:
        """The next writes of a job, as many as fit; None if not even one does."""
        request = job.request
        results: list[dict[str, Any] | KvError] = []
        for write in request.writes[job.done : job.done + job.at_once]:
            mark = transaction.mark()
            try:
                if request.client is not None:
                    transaction.grow_reply(write)
                results.append(applier.one(write))
            except KvError as error:
                results.append(as_answer(error))
            except DoesNotFitError:
                transaction.undo_to(mark)
                break
        if not results and request.writes:
            return None
        return _Stretch(job, job.done, job.done + len(results), results, None, compares)

    def _put_reply(self, transaction: EtcdTransaction, row: bytes, part: _Stretch) -> None:
        """Put the reply of a numbered request, unless nothing was applied for a reason that may pass. Of a
        request in parts each is put: with a gap, it would not be known what became of the whole."""
        request = part.job.request
        if request.only_checks:  # the number counts, and a repeat begins at the beginning
            transaction.keep_reply(
                row, ReplyRow(request.seq, request.fingerprint, 0, len(request.writes), [])
            )
            return
        is_whole = (part.start, part.end) == (0, len(request.writes))
        refusals = [part.error] if part.error is not None else part.results
        if (
            is_whole
            and refusals
            and all(isinstance(each, KvError) and each.row.retryable for each in refusals)
        ):
            transaction.drop_reply(row)
            return
        reply = ReplyRow(
            request.seq, request.fingerprint, part.start, len(request.writes), part.results, part.error
        )
        transaction.keep_reply(row, reply)

    def _resume(self, txn: Any, job: _Job) -> None:
        """Continue a numbered request where it was left, by this daemon or by another; or finish it, where
        all of it was done before or its number is another's."""
        request = job.request
        if request.client is None or job.answer is not None:
            return
        kept = self._mirror.kept_reply(txn, request.client)
        job.seen = 0 if kept is None else kept.mod_revision
        if kept is None or kept.seq < request.seq:
            return
        error = repeat_error(request, kept.seq, kept.fingerprint) or kept.error
        if error is None and job.done and len(kept.results) <= job.done:
            return  # it is what this daemon did itself, and knows all of
        if error is None and None in kept.results:
            error = KvError("unavailable", "what became of an earlier copy of this is no longer known")
            error = _unknown(error)
        if error is not None:
            job.finish(error)
            return
        job.results, job.done = [each for each in kept.results if each is not None], len(kept.results)
        if job.done == len(request.writes):
            job.finish()

    @staticmethod
    def _too_large(job: _Job, compares: int) -> _Stretch:
        return _Stretch(job, job.done, len(job.request.writes), [], _too_large(), compares)

    # ── sending ──────────────────────────────────────────────────────────────────────────────────

    def _send(self, plan: _Plan) -> tuple[_Plan, int]:
        """Send a plan until its outcome is known: the plan that was committed, which may be an earlier one
        whose outcome was not known, and its revision. Raises _Conflict, _TooLarge or _Unsettled."""
        if plan.transaction.is_empty:
            return plan, 0
        started = time.monotonic()
        self._sequence += 1
        backoff = Backoff(0.02, 0.5, jitter=0.5)
        while True:
            if plan.transaction.changes:
                self._renew_lease()
            before = self._mirror.state
            try:
                seconds = min(_CALL_SECONDS, max(_SHORTEST_SECONDS, self._left()))
                answer = self._cluster.call(api.TXN, self._message(plan), seconds)
            except EtcdError as error:
                if error.kind == "full" and plan.transaction.changes:
                    return self._full(plan, error)
                self._note(error, plan)
                if self._left() < 0:
                    raise _Unsettled(_refused(error)) from error
                time.sleep(backoff.next())
                continue
            self._patience = ANSWER_SECONDS
            if is_other_history(answer.header, before, self._mirror):
                self._refuse_history(plan, answer)
            if answer.succeeded:
                return self._committed(plan, answer, started)
            return self._lost(answer)

    def _note(self, error: EtcdError, plan: _Plan) -> None:
        """Draw the conclusions from a call that failed; raises _Unsettled where another would not help."""
        if error.kind == "unknown" and plan.transaction.changes:
            self._undecided[self._said] = plan
        elif error.kind == "lease_gone":
            self._lease_until = 0.0
        elif error.kind == "too_large" and plan.parts:
            raise _TooLarge from error
        elif error.kind not in ("not_sent", "unknown"):
            raise _Unsettled(_refused(error)) from error

    def _refuse_history(self, plan: _Plan, answer: api.Message) -> None:
        """After an answer from an etcd that was restored: raises _Unsettled."""
        self._watcher.look("etcd has another history")
        if answer.succeeded and plan.transaction.changes:
            self._undecided[self._said] = plan
        raise _Unsettled(KvError("unavailable", "etcd has another history than the mirror; try again"))

    @property
    def _said(self) -> bytes:
        """What the present transaction puts into the writer's key."""
        return b"%d" % self._sequence

    def _message(self, plan: _Plan) -> api.Message:
        state = self._mirror.state
        head = Head(plan.transaction.now, self._node, self._sequence, (), state.watched, state.digest)
        return plan.transaction.message(head, self._writer, self._fence, self._said, self._lease)

    def _renew_lease(self) -> None:
        """See that there is a lease for what is put now."""
        if time.monotonic() < self._lease_until:
            return
        try:
            granted = self._cluster.ask(
                api.LEASE_GRANT, api.LeaseGrantRequest(TTL=_LEASE_SECONDS), self._patience
            )
        except EtcdError as error:
            raise _Unsettled(_refused(error)) from error
        self._lease = granted.ID
        self._lease_until = time.monotonic() + _LEASE_USE_SECONDS

    def _committed(self, plan: _Plan, answer: api.Message, started: float) -> tuple[_Plan, int]:
        if not plan.transaction.changes:
            return plan, _revision_of(answer.responses[0])
        self._fence = answer.header.revision
        self._undecided.clear()
        self.commits.count(
            len(plan.parts), sum(len(part.results) for part in plan.parts), time.monotonic() - started
        )
        return plan, self._fence

    def _lost(self, answer: api.Message) -> tuple[_Plan, int]:
        """After a transaction has failed: was an earlier copy of it, or an earlier plan, applied?"""
        writer, head = answer.responses
        fence = _revision_of(writer)
        if fence == self._fence:
            raise _Conflict(_revision_of(head))
        self._fence = fence
        applied = self._undecided.get(writer.response_range.kvs[0].value) if fence else None
        self._undecided.clear()
        if applied is None:
            raise _Conflict(_revision_of(head))
        return applied, fence

    def _full(self, plan: _Plan, error: EtcdError) -> tuple[_Plan, int]:
        """After etcd has said that it is full: it says so of the change by which it noticed, too, and that
        one is applied. The writer's key tells."""
        sent = {**self._undecided, self._said: plan}
        try:
            found = self._cluster.ask(api.RANGE, api.RangeRequest(key=self._writer), self._patience).kvs
        except EtcdError as unread:
            self._undecided = sent
            raise _Unsettled(_refused(unread)) from unread
        fence = int(found[0].mod_revision) if found else 0
        if fence == self._fence:
            # this call has changed nothing; but a copy that was not answered before may still be on its way
            raise _Unsettled(_refused(error)) from error
        self._fence = fence
        self._undecided.clear()
        applied = sent.get(found[0].value) if found else None
        if applied is None:
            raise _Unsettled(_refused(error)) from error
        return applied, fence

    def _settle(self, plan: _Plan, revision: int) -> None:
        """Wait until the mirror has what was committed, and finish what is done by it."""
        is_there = self._mirror.wait_for(revision, max(_MIRROR_SECONDS, self._left()))
        if not is_there:
            self._owed, self._owing = revision, self._watcher.made
        for job, start, end, results, error, _ in plan.parts:
            if job.answer is not None or end < job.done:
                continue  # an earlier plan, of which the mirror has shown more already
            new = [each if isinstance(each, KvError) else filled(each, revision) for each in results]
            self._advance(job, job.results[:start] + new, end, error)
            if not is_there:
                job.finish(_unknown(_not_following()))

    @staticmethod
    def _advance(job: _Job, results: list[dict[str, Any] | KvError], end: int, error: KvError | None) -> None:
        """Take down that a job is done up to ``end``, or refused."""
        job.results, job.done = results, end
        if error is not None or end == len(job.request.writes):
            job.finish(error)

    # ── the log's floor ──────────────────────────────────────────────────────────────────────────

    def _move_floor(self) -> None:
        """Move the floor that all daemons have agreed on, if the log is too long; and let etcd forget what is
        below it. Another daemon may do the same, and one of the two then fails, which is as well."""
        tables = self._mirror.tables
        with tables.env.begin() as txn:
            floor = due_floor(tables, txn, self._present_retention(txn), self._lead())
            if floor is None:
                return
            transaction = EtcdTransaction(
                self._names, tables, txn, self._mirror.watched, tables.clock.present()
            )
            transaction.move_floor(floor)
        self._renew_deadline()
        try:
            self._settle(*self._send(_Plan(transaction, [])))
            self._cluster.call(api.COMPACT, api.CompactionRequest(revision=floor), _CALL_SECONDS)
        except (_Conflict, _Unsettled, EtcdError) as error:
            log.debug("the floor was not moved to %d: %s", floor, error)

    def _present_retention(self, txn: Any) -> Retention:
        """What the log may have now: less, with each look at the members, while they are getting full. The
        history in etcd has every value that the log has."""
        share, found_at = self._crowding()
        if found_at <= self._crowding_seen_at:
            return self._retention
        self._crowding_seen_at = found_at
        events = self._mirror.tables.counters(txn).events
        retention = self._retention if share < CROWDED else shortened(self._retention, events)
        self._say_whether_shortened(share, events, retention.events)
        return retention

    def _say_whether_shortened(self, share: float, events: int, most: int) -> None:
        is_shortening = most < min(events, self._retention.events)
        if is_shortening and not self._is_shortening:
            log.warning(
                "the data in etcd take %.0f%% of its quota: the log is cut from %d events to %d, and again "
                "until they take less than %.0f%%, down to %d",
                100 * share,
                events,
                most,
                100 * CROWDED,
                LEAST_EVENTS,
            )
        elif self._is_shortening and share < CROWDED:
            log.info("the log is no longer cut: the data in etcd take %.0f%% of its quota", 100 * share)
        self._is_shortening = share >= CROWDED and (is_shortening or self._is_shortening)


def _revision_of(response: api.Message) -> int:
    """The revision of the key that a range of one has found, 0 if there is none."""
    found = response.response_range.kvs
    return int(found[0].mod_revision) if found else 0


def _refused(error: EtcdError) -> KvError:
    """What the requests of a transaction get that was certainly not applied."""
    if error.kind == "full":
        return KvError("store_full", f"etcd is full (alarm NOSPACE): {CURE_OF_NOSPACE}")
    return KvError("unavailable", f"etcd does not take the change: {error}; try again")


def _unknown(error: KvError) -> KvError:
    return KvError(error.code, error.message, **{**error.details, "outcome": "unknown"})


def _not_following() -> KvError:
    return KvError("unavailable", "the mirror of this daemon does not follow etcd for now; try again")


def _too_large() -> KvError:
    return KvError("request_too_large", "this does not fit one transaction of etcd; ask for less at once")


def _fault(error: Exception) -> KvError:
    return KvError("internal", f"the commit failed: {error!r}; see the daemon's log")
