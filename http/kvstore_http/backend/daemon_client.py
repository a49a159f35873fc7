"""The facade's client of the daemon: the ops of one turn of the loop are sent as one request.

A round trip costs both processes much more than an op. So the ops that the greenlets of one turn of the
loop ask for are gathered, and a callback at the end of the turn sends them together. Everything here runs
in the hub's thread.

- Of gathered gets one request is under way at a time, so that more gather behind it when there is much to
  do; and one of those that are ``stale``, which must not wait for what the others wait for. Other reads are
  not gathered; a few of them are under way at a time and the rest wait here, where one whose time is up is
  dropped unsent.
- Writes are numbered, so that a repeat is applied once (protocol section 6). Gathered writes have few
  sequences of numbers, so that more gather; batches, which cannot be gathered, have many, so that many
  share a commit.
- A request is sent again, under its number, only when the connection that it was sent on is lost
  (:mod:`kvstore_http.backend.dealer_socket`): repeats only make a slow daemon slower.

When nothing was received for the whole time that a request may take, the daemon counts as away: all calls
fail at once, and a probe looks for it. A time in which this process was stopped is nobody's fault: after one,
requests get their time once more.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Sequence
from functools import partial
from time import monotonic, perf_counter_ns
from typing import Any

import gevent
import zmq

from kvstore_core.access.login_file import CurveKeys
from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError
from kvstore_core.follower import PAGE_SECONDS
from kvstore_core.operations import OPERATIONS, check_operation
from kvstore_core.wire import Reply, WriteSequence
from kvstore_http.backend.dealer_socket import DealerSocket, Outcome, SentRequest
from kvstore_http.backend.request_queue import OpResult, QueuedRequest, RequestQueue, WaitingRequest, with_age
from kvstore_http.metrics.counters import WorkerCounters

GETS_UNDER_WAY = 1
PAGES_UNDER_WAY = 16
"""Of reads that are not gathered."""

WRITES_UNDER_WAY = 2
BATCHES_UNDER_WAY = 64

TICK_SECONDS = 0.05
LATE_SECONDS = 0.5
"""A tick that is so late, and by half the time that a request may take, comes after a pause: this process was
stopped, or the whole machine."""

PROBE_SECONDS = 0.5
FOREVER = float("inf")
NOT_THERE = "does it run, and is that its --requests?"

_WRITING = frozenset(row.name for row in OPERATIONS.values() if row.writes)

log = logging.getLogger("kvstore.http")


class DaemonClient:
    """Requests to the daemon at ``endpoint``, by CURVE where there are ``keys``; each blocks the greenlet
    that makes it.

    Whatever is asked is asked for ``who``, and all that its ops need is checked before any of them is queued:
    ``not_allowed`` or ``unauthenticated``, with the index of the ``op`` in a request of several. The daemon
    checks nothing that the facade sends. Changes are made in the name of ``who``.

    Requests raise ``unavailable`` when the daemon is away and ``timed_out`` when it is there but did not
    answer within ``timeout_ms``; a write that may nevertheless have been applied has
    ``details["outcome"] == "unknown"``.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        timeout_ms: int,
        counters: WorkerCounters | None = None,
        keys: CurveKeys | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._counters = counters or WorkerCounters.alone()
        self._hub = gevent.get_hub()
        self._loop = self._hub.loop
        self._timeout = timeout_ms / 1000
        connect = partial(DealerSocket, context, self._loop, endpoint, self._note_reply, keys)
        self._read_socket, self._write_socket, self._probe_socket = (
            connect(),
            connect(),
            connect(immediate=True),
        )
        reads, writes, flush = self._read_socket, self._write_socket, self._flush_soon
        self._gets = RequestQueue(reads, [None] * GETS_UNDER_WAY, flush, merges=True)
        self._stale_gets = RequestQueue(reads, [None] * GETS_UNDER_WAY, flush, merges=True)
        self._pages = RequestQueue(reads, [None] * PAGES_UNDER_WAY, flush, merges=False)
        self._writes = RequestQueue(writes, _sequences(WRITES_UNDER_WAY), flush, merges=True)
        self._batches = RequestQueue(writes, _sequences(BATCHES_UNDER_WAY), flush, merges=False)
        self._queues = (self._gets, self._stale_gets, self._writes, self._batches, self._pages)
        self._is_flush_due = False
        self._heard_at = -FOREVER
        self._next_probe = 0.0
        self.is_away = False
        self._said = ""
        """Why it is away, as the log has it."""
        self.epoch = ""
        """The store's epoch, as of the last reply or heartbeat."""
        self.head = 0
        """The highest revision that is known to be committed. A read that starts now sees it."""
        self._ticked_at = monotonic()
        self._patient_until = -FOREVER
        self._ticker = self._loop.timer(TICK_SECONDS, TICK_SECONDS)
        self._ticker.start(self._tick)

    # ── requests: in the caller's greenlet ──────────────────────────────────────────────────────

    def call(self, op: dict[str, Any], value: bytes | None = None, *, who: Principal) -> dict[str, Any]:
        """The result of one op, which shares a request with others; raises the KvError it failed with.

        ``value`` is the op's value; its ``size`` is filled in here. Where the op is ``stale``, the result, or
        the error's details, have the ``age`` of the reply.
        """
        if value is not None:
            op = {**op, "size": len(value)}
        row = check_operation(op, 0)
        if not who.is_unrestricted:
            who.check_op(op, row.needs)
        values = () if value is None else (value,)
        request = WaitingRequest(self._hub, (op,), values, self._deadline(self._timeout), author=who.name)
        result: OpResult
        if not row.writes and row.name != "get":
            # not gathered: others would wait for a page, which may be large
            reply = _reply(self._wait_in(self._pages, request))
            result = with_age(reply.results[0], reply.age)
        elif row.writes:
            result = self._wait_in(self._writes, request)
        else:
            result = self._wait_in(self._stale_gets if op.get("stale") else self._gets, request)
        if isinstance(result, KvError):
            result.details.pop("op", None)  # an index in a request that the caller never saw
            raise result
        return result

    def request(
        self,
        ops: Sequence[dict[str, Any]],
        values: Sequence[bytes] = (),
        *,
        who: Principal,
        atomic: bool = False,
        idempotency_key: str | None = None,
    ) -> Reply:
        """The reply to ops that are sent as a request of their own; raises the KvError that refused all
        of them. ``values`` are those of the ops that have one, which say their ``size``; the ops must have
        been checked.

        Under an ``idempotency_key`` the writes are applied once however often this is called for ``who``.
        """
        if not who.is_unrestricted:
            for index, op in enumerate(ops):
                who.check_op(op, OPERATIONS[op["op"]].needs, index)
        deadline = self._deadline(self._timeout)
        request = WaitingRequest(self._hub, ops, values, deadline, author=who.name, atomic=atomic)
        if not any(op["op"] in _WRITING for op in ops):
            return _reply(self._wait_in(self._pages, request))
        if idempotency_key is None:
            return _reply(self._wait_in(self._batches, request))
        header = {"atomic": atomic, "request_id": request.request_id, "author": request.author}
        key = WriteSequence(_client_of(who, idempotency_key)).next()
        self._write_socket.send(ops, values, request.finish, request.deadline, **header, **key)
        return _reply(request.wait())

    def read(self, op: dict[str, Any], *, who: Principal) -> tuple[dict[str, Any], int]:
        """The result of a reading op and the revision of its snapshot; raises what it failed with."""
        reply = self.request([op], who=who)
        result = reply.results[0]
        if isinstance(result, KvError):
            raise result
        return result, reply.revision

    def read_in_background(self, ops: Sequence[dict[str, Any]]) -> Reply:
        """The reply to a request that only reads and has no caller who waits, such as a page
        for streams that catch up: it does not fail because the daemon has much to do. Make one at a time,
        since these do not wait for each other as other reads do. Who gets what of it is up to the caller."""
        return self._read_at_once(ops, PAGE_SECONDS)

    def access(self) -> dict[str, Any]:
        """The daemon's table of identities: the result of ``access``. Nobody's requests hold it up, however
        many there are: among them may be those of somebody whom the table no longer lets in. Ask one at a
        time."""
        result = self._read_at_once([{"op": "access"}], self._timeout).results[0]
        if isinstance(result, KvError):
            raise result
        return result

    def _read_at_once(self, ops: Sequence[dict[str, Any]], seconds: float) -> Reply:
        """The reply to a reading request of the facade's own, which waits behind no other here."""
        deadline = self._deadline(seconds)
        request = WaitingRequest(self._hub, ops, (), deadline, author=THE_FACADE.name)
        self._read_socket.send(ops, (), request.finish, request.deadline)
        return _reply(request.wait())

    def _wait_in(self, queue: RequestQueue, request: WaitingRequest) -> Any:
        queue.waiting.append(request)
        self._flush_soon()
        return request.wait()

    def _deadline(self, seconds: float) -> float:
        if self.is_away:
            raise self._failure()
        return monotonic() + seconds

    # ── requests that no greenlet waits for: in the hub ─────────────────────────────────────────

    def begin(self, request: QueuedRequest) -> bool:
        """Send a get or a put, its op checked and allowed, as :meth:`call` does; its outcome is what that
        returns or raises, and its deadline is set here. False, and nothing done, while the daemon is away."""
        if self.is_away:
            return False
        request.deadline = monotonic() + self._timeout
        (self._writes if request.values else self._gets).waiting.append(request)
        self._flush_soon()
        return True

    # ── in the hub ──────────────────────────────────────────────────────────────────────────────

    def _flush_soon(self) -> None:
        """Send once everything that is readable in this turn of the loop has been looked at."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.run_callback(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        for queue in self._queues:
            if queue.waiting:
                queue.send()

    # ── is the daemon there? ────────────────────────────────────────────────────────────────────

    def _note_reply(self, request: SentRequest, outcome: Outcome) -> None:
        self._counters.daemon_answered(request.count, perf_counter_ns() - request.begun_at)
        self._heard_at = monotonic()
        if isinstance(outcome, Reply):
            self.note_position(outcome.epoch, outcome.revision)
        if self.is_away:
            self.is_away, self._said = False, ""
            log.warning("the daemon at %s answers again", self._endpoint)

    def note_position(self, epoch: str, revision: int) -> None:
        """The store is at ``revision``, as a reply or the feed says. While the daemon counts as away this
        only makes the probe ask at once: a daemon that publishes need not answer."""
        if epoch != self.epoch:
            self.epoch, self.head = epoch, revision
        elif revision > self.head:
            self.head = revision
        self._next_probe = 0.0

    def _tick(self) -> None:
        now = monotonic()
        if now - self._ticked_at > max(LATE_SECONDS, self._timeout / 2):
            # the replies are here unread, or the daemon was stopped as well
            self._patient_until = now + self._timeout
        self._ticked_at = now
        if self.is_away:
            self._look_for_daemon(now)
        elif now >= self._patient_until:
            self._fail_overdue(now)

    def _fail_overdue(self, now: float) -> None:
        """Fail what has waited too long; everything, if the daemon was silent as long."""
        reads, writes = self._read_socket.take_overdue(now), self._write_socket.take_overdue(now)
        unsent = self._take_unsent(now)
        if not (reads or writes or unsent):
            return
        if now - self._heard_at >= self._timeout:
            self.is_away = True
            if now < FOREVER:  # and not because the client is being closed
                self._say_why(self._probe_socket.handshake_problem() or NOT_THERE)
            self._next_probe = 0.0
            reads += self._read_socket.take_overdue(FOREVER)
            writes += self._write_socket.take_overdue(FOREVER)
            unsent += self._take_unsent(FOREVER)
            # what was queued for a connection that did not come is dropped with its socket, and not
            # delivered long after it was reported as failed
            self._read_socket.renew()
            self._write_socket.renew()
        for sent in reads:
            sent.done(self._failure())
        for sent in writes:
            sent.done(self._failure(outcome="unknown"))
        for waiting in unsent:
            waiting.finish(self._failure())

    def _take_unsent(self, now: float) -> list[QueuedRequest]:
        return [late for queue in self._queues for late in queue.take_overdue(now)]

    def _failure(self, **details: Any) -> KvError:
        if self.is_away:
            code = "unavailable"
            what = self._probe_socket.handshake_problem() or "the daemon cannot be reached"
        else:
            what, code = f"the daemon did not answer within {self._timeout:g} s", "timed_out"
        if details:
            what += "; the write may have been applied: repeat it under the same Idempotency-Key"
        return KvError(code, what, **details)

    def _say_why(self, why: str) -> None:
        """Log why the daemon is away, once for each reason: the first one may not be the last."""
        if why != self._said:
            self._said = why
            log.warning("the daemon at %s cannot be reached: %s", self._endpoint, why)

    def _look_for_daemon(self, now: float) -> None:
        self._probe_socket.take_overdue(now)
        if now >= self._next_probe:
            self._say_why(self._probe_socket.handshake_problem() or self._said)
            self._next_probe = now + PROBE_SECONDS
            # the reply has done its work by arriving
            self._probe_socket.send([{"op": "status"}], (), lambda _: None, now + PROBE_SECONDS)

    def close(self) -> None:
        """Close the sockets. Requests that still wait fail with ``unavailable``."""
        self._ticker.close()
        self._heard_at = -FOREVER
        self._loop.run_callback(self._fail_overdue, FOREVER)  # only the hub may wake greenlets
        gevent.sleep(0)
        self.is_away = True
        for socket in (self._read_socket, self._write_socket, self._probe_socket):
            socket.close()


def _client_of(who: Principal, idempotency_key: str) -> str:
    """The name under which the daemon numbers the writes of one idempotency key. It is another one for
    another caller who chose the same key, and is never too long."""
    if not who.name:
        return f"http:{idempotency_key}"
    digest = hashlib.sha256(f"{who.name}\0{idempotency_key}".encode()).hexdigest()
    return f"http:{digest}"


def _sequences(count: int) -> list[WriteSequence]:
    return [WriteSequence(f"facade:{secrets.token_hex(8)}") for _ in range(count)]


def _reply(outcome: Outcome) -> Reply:
    if isinstance(outcome, KvError):
        raise outcome
    return outcome
