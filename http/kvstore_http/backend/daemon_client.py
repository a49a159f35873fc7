"""The facade's way to the daemon: what the requests of one moment ask is sent as one request.

A round trip to the daemon costs both processes some 90 µs, whether it carries one op or fifty. So
the ops that the greenlets of one turn of the loop ask for are gathered, and a callback at the end of
the turn sends them together. Everything here runs in the hub's thread.

- Of gathered gets one request is under way at a time, so that more gather behind it when there is
  much to do. Other reads are not gathered; a few of them are under way at a time and the rest wait
  here, where one whose caller has given up is not sent any more.
- Writes go through *lanes*. A lane is a client of the daemon's with a number for each request and one
  request at a time, so a repeat is applied once (protocol section 6). Gathered writes have few of them,
  so that more gather; batches, which cannot be gathered, have many, so that many share a commit.
- A request is sent again, under its number, only when the connection that it went out on is lost
  (:mod:`kvstore_http.backend.dealer_socket`): a daemon that is slow to answer is not helped by more to do.

When nothing was heard for the whole time that a request may take, the daemon counts as away: all
calls fail at once, and a probe looks for it.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic, perf_counter_ns
from typing import Any

import gevent
import zmq
from gevent.hub import Waiter

from kvstore_core.errors import KvError
from kvstore_core.follower import PAGE_SECONDS
from kvstore_core.operations import OPERATIONS, check_keys, check_operation
from kvstore_core.wire import Reply, RequestId, encode_request
from kvstore_http.backend.dealer_socket import Exchange, Outcome, Pipe
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.request_id import current_request_id

LANES = 2
BATCH_LANES = 64
READS_UNDER_WAY = 1
PAGES_UNDER_WAY = 16
"""Of reads that are not gathered."""

MERGED_OPS = 500
MERGED_BYTES = 1024 * 1024
TICK_SECONDS = 0.05
PROBE_SECONDS = 0.5
FOREVER = float("inf")

_WRITING = frozenset(row.name for row in OPERATIONS.values() if row.writes)

log = logging.getLogger("kvstore.http")

Result = dict[str, Any] | KvError


class _Call:
    """One op whose greenlet waits. ``alone`` keeps it from being merged with others."""

    __slots__ = ("alone", "deadline", "op", "request_id", "size", "value", "waiter")

    def __init__(self, op: dict[str, Any], value: bytes | None, deadline: float, hub: Any) -> None:
        self.op = op
        self.value = value
        self.size = len(value) if value is not None else 0
        self.deadline = deadline
        self.waiter = Waiter(hub)
        self.alone = False
        self.request_id = current_request_id.get()

    def settle(self, result: Result) -> None:
        self.waiter.switch(result)


class _Request:
    """A request that a greenlet made itself and that is sent as it is."""

    __slots__ = ("atomic", "deadline", "ops", "request_id", "values", "waiter")

    def __init__(
        self, ops: Sequence[dict[str, Any]], values: Sequence[bytes], atomic: bool, deadline: float, hub: Any
    ) -> None:
        self.ops = ops
        self.values = values
        self.atomic = atomic
        self.deadline = deadline
        self.waiter = Waiter(hub)
        self.request_id = current_request_id.get()

    def settle(self, outcome: Outcome) -> None:
        self.waiter.switch(outcome)


class _Lane:
    """A client id with one numbered request at a time."""

    __slots__ = ("client", "is_busy", "seq")

    def __init__(self) -> None:
        self.client = f"facade:{secrets.token_hex(8)}"
        self.seq = 0
        self.is_busy = False


class DaemonClient:
    """Calls to the daemon at ``endpoint`` that wait for the answer while others go on.

    A call raises ``unavailable`` when the daemon is away and ``timed_out`` when it is there but did
    not answer within ``timeout_ms``; a write that may nevertheless have been applied has
    ``details["outcome"] == "unknown"``.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        timeout_ms: int,
        counters: WorkerCounters | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._counters = counters or WorkerCounters.alone()
        self._hub = gevent.get_hub()
        self._loop = self._hub.loop
        self._timeout = timeout_ms / 1000
        self._reads = Pipe(context, self._loop, endpoint, self._note)
        self._writes = Pipe(context, self._loop, endpoint, self._note)
        self._probe = Pipe(context, self._loop, endpoint, self._note, immediate=True)
        self._lanes = [_Lane() for _ in range(LANES)]
        self._batch_lanes = [_Lane() for _ in range(BATCH_LANES)]
        self._waiting_gets: deque[_Call] = deque()
        self._waiting_writes: deque[_Call] = deque()
        self._waiting_batches: deque[_Request] = deque()
        self._waiting_pages: deque[_Request] = deque()
        self._pages_under_way = 0
        self._gets_under_way = 0
        self._is_flush_due = False
        self._heard_at = -FOREVER
        self._next_probe = 0.0
        self.is_away = False
        self.epoch = ""
        self.head = 0
        self._ticker = self._loop.timer(TICK_SECONDS, TICK_SECONDS)
        self._ticker.start(self._tick)

    # ── calls: in the caller's greenlet ─────────────────────────────────────────────────────────

    def call(self, op: dict[str, Any], value: bytes | None = None) -> dict[str, Any]:
        """The result of one op, which shares a request with others; raises the KvError it failed with.

        ``value`` is the op's value; its ``size`` is filled in here.
        """
        if value is not None:
            op = {**op, "size": len(value)}
        row = check_operation(op, 0)
        check_keys(op)
        if not row.writes and row.name != "get":
            # Others would wait for a page, which may be large.
            result = self.request([op]).results[0]
        else:
            call = _Call(op, value, self._deadline(), self._hub)
            (self._waiting_writes if row.writes else self._waiting_gets).append(call)
            self._flush_soon()
            result = call.waiter.get()
        if isinstance(result, KvError):
            result.details.pop("op", None)  # an index in a request that the caller never saw
            raise result
        return result

    def request(
        self,
        ops: Sequence[dict[str, Any]],
        values: Sequence[bytes] = (),
        *,
        atomic: bool = False,
        idempotency_key: str | None = None,
    ) -> Reply:
        """The reply to ops that are sent as a request of their own; raises the KvError that refused all
        of them. ``values`` are those of the ops that have one, which say their ``size``.

        Under an ``idempotency_key`` the writes are applied once however often this is called.
        """
        request = _Request(ops, values, atomic, self._deadline(), self._hub)
        if not any(op["op"] in _WRITING for op in ops):
            self._waiting_pages.append(request)
            self._flush_soon()
        elif idempotency_key is not None:
            number: dict[str, Any] = {"client": f"http:{idempotency_key}", "seq": 1}
            how = {"atomic": atomic, "request_id": request.request_id, **number}
            self._send(self._writes, ops, values, request.settle, request.deadline, **how)
        else:
            self._waiting_batches.append(request)
            self._flush_soon()
        return self._answer(request)

    def read(self, op: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """The result of a reading op and the revision of its snapshot; raises what it failed with."""
        reply = self.request([op])
        result = reply.results[0]
        if isinstance(result, KvError):
            raise result
        return result, reply.revision

    def read_in_background(self, ops: Sequence[dict[str, Any]]) -> Reply:
        """The reply to a request that only reads and that nobody is waiting for at a certain time, such
        as a page for streams that catch up: it does not fail because the daemon has much to do. Ask
        for one thing at a time, for these do not wait behind each other as others do."""
        self._deadline()
        request = _Request(ops, (), False, monotonic() + PAGE_SECONDS, self._hub)
        self._send(self._reads, ops, (), request.settle, request.deadline)
        return self._answer(request)

    def _answer(self, request: _Request) -> Reply:
        outcome = request.waiter.get()
        if isinstance(outcome, KvError):
            raise outcome
        reply: Reply = outcome
        return reply

    def _deadline(self) -> float:
        if self.is_away:
            raise self._failure()
        return monotonic() + self._timeout

    # ── in the hub ──────────────────────────────────────────────────────────────────────────────

    def _flush_soon(self) -> None:
        """Send when all that is readable in this turn of the loop has been looked at."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.run_callback(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        while self._waiting_gets and self._gets_under_way < READS_UNDER_WAY:
            self._send_gets(_take(self._waiting_gets))
        if self._waiting_writes:
            for lane in _free(self._lanes, self._waiting_writes):
                self._send_writes(lane)
        if self._waiting_batches:
            for lane in _free(self._batch_lanes, self._waiting_batches):
                self._send_batch(lane)
        while self._waiting_pages and self._pages_under_way < PAGES_UNDER_WAY:
            self._send_page(self._waiting_pages.popleft())

    def _send_page(self, request: _Request) -> None:
        def done(outcome: Outcome) -> None:
            self._pages_under_way -= 1
            request.settle(outcome)
            self._flush_soon()

        self._pages_under_way += 1
        how = {"atomic": request.atomic, "request_id": request.request_id}
        self._send(self._reads, request.ops, request.values, done, request.deadline, **how)

    def _send_gets(self, calls: list[_Call]) -> None:
        def done(outcome: Outcome) -> None:
            self._gets_under_way -= 1
            self._settle(calls, outcome, self._waiting_gets)
            self._flush_soon()

        self._gets_under_way += 1
        ops = [call.op for call in calls]
        self._send(self._reads, ops, (), done, calls[0].deadline, request_id=_ids_of(calls))

    def _send_writes(self, lane: _Lane) -> None:
        calls = _take(self._waiting_writes)
        ops = [call.op for call in calls]
        values = [call.value for call in calls if call.value is not None]
        settle = partial(self._settle, calls, queue=self._waiting_writes)
        self._send_numbered(lane, ops, values, settle, calls[0].deadline, request_id=_ids_of(calls))

    def _send_batch(self, lane: _Lane) -> None:
        batch = self._waiting_batches.popleft()
        how = {"atomic": batch.atomic, "request_id": batch.request_id}
        self._send_numbered(lane, batch.ops, batch.values, batch.settle, batch.deadline, **how)

    def _send_numbered(
        self,
        lane: _Lane,
        ops: Sequence[dict[str, Any]],
        values: Sequence[bytes],
        settle: Callable[[Outcome], None],
        deadline: float,
        **how: Any,
    ) -> None:
        def done(outcome: Outcome) -> None:
            lane.is_busy = False
            settle(outcome)
            self._flush_soon()

        lane.seq += 1
        lane.is_busy = True
        number = {"client": lane.client, "seq": lane.seq}
        self._send(self._writes, ops, values, done, deadline, **how, **number)

    def _send(
        self,
        pipe: Pipe,
        ops: Sequence[dict[str, Any]],
        values: Sequence[bytes],
        done: Callable[[Outcome], None],
        deadline: float,
        **how: Any,
    ) -> None:
        try:
            frames = encode_request(ops, values, **how)
        except KvError as error:  # nothing was sent, and nobody may be left waiting
            done(error)
        else:
            pipe.send(Exchange(frames, len(ops), done, deadline))

    def _settle(self, calls: list[_Call], outcome: Outcome, queue: deque[Any]) -> None:
        """Give each of the merged calls its own result."""
        if isinstance(outcome, KvError):
            self._settle_refusal(calls, outcome, queue)
            return
        for call, result in zip(calls, outcome.results, strict=True):
            if len(calls) > 1 and isinstance(result, KvError) and result.code == "reply_too_large":
                self._try_alone(call, queue)
            else:
                call.settle(result)

    def _settle_refusal(self, calls: list[_Call], error: KvError, queue: deque[Any]) -> None:
        """A request that is wrong was not applied. If several callers share it, one of them is at
        fault, or it is too large only because they do: each then asks alone."""
        is_wrong = error.row.status < 500 or error.code == "reply_too_large"
        for call in calls:
            if is_wrong and len(calls) > 1:
                self._try_alone(call, queue)
            else:
                call.settle(_copy(error))

    def _try_alone(self, call: _Call, queue: deque[Any]) -> None:
        call.alone = True
        queue.appendleft(call)
        self._flush_soon()

    # ── is the daemon there? ────────────────────────────────────────────────────────────────────

    def _note(self, exchange: Exchange, outcome: Outcome) -> None:
        """A reply came."""
        self._counters.daemon_answered(exchange.count, perf_counter_ns() - exchange.begun_at)
        self._heard_at = monotonic()
        if isinstance(outcome, Reply):
            self.note_position(outcome.epoch, outcome.revision)
        if self.is_away:
            self.is_away = False
            log.warning("the daemon at %s answers again", self._endpoint)

    def note_position(self, epoch: str, revision: int) -> None:
        """The store was heard to be at ``revision``; the feed says so too. While the daemon counts
        as away this only makes the probe ask at once: who publishes need not answer."""
        if epoch != self.epoch:
            self.epoch, self.head = epoch, revision
        elif revision > self.head:
            self.head = revision
        self._next_probe = 0.0

    def _tick(self) -> None:
        now = monotonic()
        if self.is_away:
            self._look_for_daemon(now)
        else:
            self._fail_overdue(now)

    def _fail_overdue(self, now: float) -> None:
        """Fail what has waited too long; all that waits if the daemon was silent as long."""
        reads, writes = self._reads.overdue(now), self._writes.overdue(now)
        unsent = self._take_unsent(now)
        if not (reads or writes or unsent):
            return
        if now - self._heard_at >= self._timeout:
            self.is_away = True
            if now < FOREVER:  # and not because the link is being closed
                log.warning(
                    "the daemon at %s cannot be reached: does it run, and is that its --requests?",
                    self._endpoint,
                )
            self._next_probe = 0.0
            reads += self._reads.overdue(FOREVER)
            writes += self._writes.overdue(FOREVER)
            unsent += self._take_unsent(FOREVER)
            # what was queued for a connection that did not come is dropped with its socket, and not
            # delivered long after it was reported as failed
            self._reads.renew()
            self._writes.renew()
        for exchange in reads:
            exchange.done(self._failure())
        for exchange in writes:
            exchange.done(self._failure(outcome="unknown"))
        for waiting in unsent:
            waiting.settle(self._failure())

    def _take_unsent(self, now: float) -> list[_Call | _Request]:
        queues: tuple[deque[Any], ...] = (
            self._waiting_gets,
            self._waiting_writes,
            self._waiting_batches,
            self._waiting_pages,
        )
        return [late for queue in queues for late in _overdue(queue, now)]

    def _failure(self, **details: Any) -> KvError:
        if self.is_away:
            what, code = "the daemon cannot be reached", "unavailable"
        else:
            what, code = f"the daemon did not answer within {self._timeout:g} s", "timed_out"
        if details:
            what += "; the write may have been applied: repeat it under the same Idempotency-Key"
        return KvError(code, what, **details)

    def _look_for_daemon(self, now: float) -> None:
        self._probe.overdue(now)
        if now >= self._next_probe:
            self._next_probe = now + PROBE_SECONDS
            self._send(self._probe, [{"op": "status"}], (), _ignore, now + PROBE_SECONDS)

    def close(self) -> None:
        """Close the sockets. Calls that still wait fail with ``unavailable``."""
        self._ticker.close()
        self._heard_at = -FOREVER
        self._loop.run_callback(self._fail_overdue, FOREVER)  # only the hub may wake who waits
        gevent.sleep(0)
        self.is_away = True
        for pipe in (self._reads, self._writes, self._probe):
            pipe.close()


def _free(lanes: Sequence[_Lane], queue: deque[Any]) -> Iterator[_Lane]:
    """Lanes that may send, as long as something waits in ``queue``."""
    for lane in lanes:
        if not queue:
            return
        if not lane.is_busy:
            yield lane


def _take(queue: deque[_Call]) -> list[_Call]:
    """Take from the front what goes into one request; at least one call."""
    calls: list[_Call] = [queue.popleft()]
    size = calls[0].size
    while queue and len(calls) < MERGED_OPS and not calls[0].alone:
        call = queue[0]
        if call.alone or size + call.size > MERGED_BYTES:
            break
        size += call.size
        calls.append(queue.popleft())
    return calls


def _ids_of(calls: Sequence[_Call]) -> RequestId | None:
    """What the requests are called that share one; None if none of them is to be named."""
    ids = [call.request_id for call in calls]
    if not any(ids):
        return None
    return ids if len(ids) > 1 else ids[0]


def _overdue(queue: deque[Any], now: float) -> list[Any]:
    """Take out of ``queue``, which is in order of the deadlines, what is past its own."""
    late = []
    while queue and queue[0].deadline <= now:
        late.append(queue.popleft())
    return late


def _copy(error: KvError) -> KvError:
    """An exception of its own for each who raises it: a raised one collects its raiser's frames."""
    return KvError(error.code, error.message, **error.details)


def _ignore(_outcome: Outcome) -> None:
    """A probe's reply has done its work by arriving."""
