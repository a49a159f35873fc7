"""The daemon at work: requests in, commits to the engine, changes and replies out.

Everything here runs in the loop's thread. One turn of the loop:

1. receive the requests that have come, answer those that only read;
2. hand the writes that have gathered to the engine as one group, if it has committed the last one;
3. of what it has committed, publish each change, then answer whose request it was. The next group is
   on its way to the disk meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from math import inf

from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog, request_extra
from kvstore_core.process.sd_notify import Notifier
from kvstore_core.wire import RequestId, decode_request, encode_error
from kvstore_daemon.event_loop import Loop, Timer
from kvstore_daemon.expiry import Expiry
from kvstore_daemon.group_commit import GROUP_OPS, GroupCommitter
from kvstore_daemon.peer_limits.connections import ConnectionLimit
from kvstore_daemon.peer_limits.peer import UNKNOWN
from kvstore_daemon.publisher import Publisher
from kvstore_daemon.requests.fair_queue import SLICE_SECONDS, FairQueue
from kvstore_daemon.requests.pending_request import PendingRequest
from kvstore_daemon.requests.router_socket import (
    MAX_ENVELOPE_BYTES,
    MAX_ENVELOPE_FRAMES,
    Frames,
    RequestMessage,
    RouterSocket,
)
from kvstore_daemon.requests.writes import write_request
from kvstore_daemon.settings import DaemonSettings
from kvstore_daemon.status import Counters, Status, limits_of
from kvstore_daemon.storage.interface import Engine, StoredEvent, WriteAnswer
from kvstore_daemon.watchdog import Watchdog

log = logging.getLogger("kvstore.daemon")

TICK_SECONDS = 1.0
"""The interval of heartbeats, to subscribers and to the service manager, and of trimming."""

WELCOME_SECONDS = 0.01
"""How soon after a subscription a heartbeat follows: at once would be one for each of a thousand that come
together."""

RECEIVE_AT_ONCE = 64
"""Requests received in one turn, before what was committed meanwhile is told."""

PENDING_BYTES = 64 * 1024 * 1024
"""Of the requests that wait for their answer; with more, the next ones wait with their senders."""

PENDING_FACTOR = 4
"""What a request takes while it is done, as a multiple of its bytes: they are copied out of what libzmq
received, into the store's pages, and into those of the log."""

CONNECTION_BYTES = 64 * 1024
"""What libzmq may take for a connection, most of it for what it reads and writes at once."""

STOP_SECONDS = 3.0
"""How long a stop may wait for the engine."""


class Server:
    """Serves the request address from one engine."""

    def __init__(
        self,
        loop: Loop,
        settings: DaemonSettings,
        engine: Engine,
        publisher: Publisher,
        requests: RouterSocket,
        room: ConnectionLimit,
        notifier: Notifier,
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._publisher = publisher
        self._requests = requests
        self._room = room
        self._max_pending = settings.max_pending_requests
        self._pending = 0
        self._pending_bytes = 0
        self._is_drained = False
        self._is_emptying = False
        self._limits = limits_of(settings)
        self._counters = Counters()
        self._status = Status(settings, engine, self._counters, self._present)
        self._committer = GroupCommitter(engine, self._counters, settings.slow_commit_ms / 1000 or inf)
        self._expiry = Expiry(loop, engine, self._committer, self._counters)
        self._watchdog = Watchdog(notifier, self._committer)
        self._tick: Timer = loop.timer(self._beat)
        self._welcome: Timer = loop.timer(self._send_heartbeat)
        self._turns = FairQueue(loop, requests, self._counters, self)
        self._outbox: deque[StoredEvent | WriteAnswer] = deque()
        self._malformed = RateLimitedLog(log)
        self._is_stopping = False
        self._epoch = ""
        self._head = 0

    def start(self) -> None:
        """Watch the engine and the sockets, and begin to publish after what the log holds."""
        position = self._engine.position()
        self._epoch, self._head = position.epoch, position.head
        self._publisher.begin(position)
        self._loop.watch(self._engine.fileno(), self._collect)
        self._loop.watch(self._requests.fileno(), self._hear)
        self._loop.watch(self._requests.monitor_fileno(), self._requests.notice_gone)
        self._loop.watch(self._requests.intake.fileno(), self._empty)
        self._requests.intake.explained = self._explained
        self._loop.watch(self._publisher.fileno(), self._note_subscriptions)
        self._expiry.start()
        self._tick.set(0)

    def turn(self) -> None:
        """One turn of the loop; sleeps until there is something to do."""
        self._loop.turn(wait=not (self._turns or self._outbox or self._can_receive()))
        self._receive_some()
        if len(self._outbox) < GROUP_OPS:
            self._committer.flush()
        self._tell()
        self._turns.work()
        self._turns.relieve()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def has_room(self) -> bool:
        """Whether another request may be received."""
        return self._pending < self._max_pending and self._pending_bytes < PENDING_BYTES

    def _hear(self) -> None:
        self._is_drained = False

    def _empty(self) -> None:
        """Too much waits in libzmq: receive it all, and refuse what there is no room for."""
        self._requests.intake.hear()
        self._is_emptying = True
        self._is_drained = False

    def _explained(self) -> int:
        """The bytes of memory that connections, requests and replies may take; any thread may ask."""
        return (
            PENDING_FACTOR * self._pending_bytes
            + self._requests.untaken
            + self._turns.making
            + CONNECTION_BYTES * self._room.taken
        )

    def _may_receive(self) -> bool:
        return not self._is_drained and (self._is_emptying or self.has_room())

    def _can_receive(self) -> bool:
        return self._may_receive() and self._requests.has_request()

    def _receive_some(self) -> None:
        """Receive until there is nothing left, there is no room, or it is others' turn. What cannot be done
        within a slice, or has to wait for its peer's turn, is only received.

        Once the socket was found empty it is not asked again before its descriptor has spoken, or a
        reply may have consumed what it had to say.
        """
        deadline = time.monotonic() + SLICE_SECONDS
        for number in range(RECEIVE_AT_ONCE):
            if not self._may_receive():
                break
            received = self._requests.receive()
            if received is not None:
                self._receive(received, deadline)
            # A lone request is followed by none: to ask takes less than to receive nothing.
            if received is None or (number == 0 and not self._requests.has_request()):
                self._is_drained = True
        if self._is_drained and self._is_emptying:
            self._is_emptying = False
            self._requests.intake.emptied()

    def _receive(self, received: RequestMessage, deadline: float) -> None:
        peer, size = received.peer, received.size
        has_room = self.has_room()
        self._pending += 1
        self._pending_bytes += size
        counters = self._counters
        counters.requests += 1
        counters.bytes_received += size
        if not has_room:
            self._refuse(received, size, _no_room())
        elif self._turns.is_open_to(peer) and time.monotonic() < deadline:
            self.begin(received)
        elif self._turns.is_over(peer, self._max_pending, PENDING_BYTES):
            self._refuse(received, size, _read_first())
        else:
            self._turns.add(received)

    def begin(self, received: RequestMessage) -> None:
        """Work on a request that was received."""
        size = received.size
        try:
            self._begin(received, size)
        except Exception as error:  # whatever it is, the client gets its one reply
            self._refuse(received, size, error)

    def _begin(self, received: RequestMessage, size: int) -> None:
        if self._is_stopping:
            raise KvError("unavailable", "the daemon is stopping; try again when it is back")
        frames = received.frames
        if received.peer.descriptor == UNKNOWN:
            raise self._malformed_request(
                "its sender speaks a version of ZMTP before 3.0; use libzmq 4 or newer"
            )
        if not frames:
            raise self._not_a_request()
        self._check_size(frames)
        request = decode_request(frames, self._limits)
        if received.peer.is_gone and not request.writes:
            self._counters.requests_dropped += 1
            self.drop(size)
            return
        self._counters.count_operations(request.ops)
        exchange = PendingRequest(received, size, request)
        if request.writes:
            self._committer.add(write_request(request, frames, exchange), size)
        else:
            self.go_on(exchange)

    def _not_a_request(self) -> KvError:
        """The error for a message without an empty frame and a request behind it, which is logged too:
        who forgot the frame may not look for a reply that begins with one."""
        return self._malformed_request(
            "a message needs an empty frame and the request behind it, as a REQ socket sends them; before "
            f"the empty one there may be {MAX_ENVELOPE_FRAMES - 2} frames, none of them empty, of "
            f"{MAX_ENVELOPE_BYTES} bytes together"
        )

    def _malformed_request(self, message: str) -> KvError:
        self._malformed.warning("refused what came to the requests address: %s", message)
        return KvError("bad_request", message)

    def _check_size(self, frames: Frames) -> None:
        limit = self._limits.request_bytes
        if len(frames[0]) > limit:
            raise KvError("request_too_large", f"frame 1 has more than {limit} bytes", limit=limit)

    def go_on(self, exchange: PendingRequest, answer: WriteAnswer | None = None) -> None:
        """Take the engine's answer, if there is one to take, and do the reads, or a slice of them."""
        try:
            if answer is not None:
                exchange.accept(answer)
            if exchange.peer.is_gone:
                self._counters.requests_dropped += not exchange.has_writes_only()
                self.drop(exchange.size)
            elif exchange.has_writes_only() or self._turns.read(exchange, self._engine, self._status):
                self._answer(exchange)
        except Exception as error:  # whatever it is, the client gets its one reply
            self._refuse(exchange, exchange.size, error, exchange.request_id)

    # ── commits ──────────────────────────────────────────────────────────────────────────────────

    def _collect(self) -> None:
        """The engine has something: queue it to be told, and let the next group go."""
        changes, answers = self._engine.poll()
        if changes:
            self._head = changes[-1].revision
            self._expiry.saw(changes)
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "committed %d changes of %d requests; the head is %d", len(changes), len(answers), self._head
            )
        self._outbox.extend(changes)
        self._outbox.extend(answers)
        for _ in answers:
            self._committer.answered()

    def _tell(self) -> None:
        """Publish and answer, in the order in which the engine committed, for one slice of time."""
        outbox = self._outbox
        if not outbox:
            return
        self._note_subscriptions()
        deadline = time.monotonic() + SLICE_SECONDS
        while outbox:
            told = outbox.popleft()
            if isinstance(told, StoredEvent):
                self._publisher.publish(told)
                self._counters.changes_published += 1
            elif told.ticket is self._expiry:
                self._expiry.removed(told)
            else:
                self.go_on(told.ticket, told)
            if time.monotonic() > deadline:
                break
        if self._publisher.is_heard:
            self._note_subscriptions()

    def _note_subscriptions(self) -> None:
        """Tell new subscribers soon where the store stands, so that they need not wait for the next tick
        to see what was committed before their subscription was in effect.

        Sending may consume the signal of a subscription that came meanwhile, so this is called before
        changes are sent, which are encoded only if anybody subscribes, and after anything was sent.
        """
        if self._publisher.take_subscriptions() and self._welcome.at is None:
            self._welcome.set(WELCOME_SECONDS)

    # ── replies ──────────────────────────────────────────────────────────────────────────────────

    def _answer(self, exchange: PendingRequest) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("answered %s", exchange.summary(), extra=request_extra(exchange.request_id))
        self._reply(exchange, exchange.size, exchange.reply(self._epoch, self._head))

    def _refuse(
        self,
        asked: RequestMessage | PendingRequest,
        size: int,
        error: Exception,
        request_id: RequestId | None = None,
    ) -> None:
        """Answer a whole request with an error."""
        if not isinstance(error, KvError):
            log.error("a request failed", exc_info=error, extra=request_extra(request_id))
            error = KvError("internal", "the daemon failed on this request; its log says how")
        elif log.isEnabledFor(logging.DEBUG):
            log.debug("refused a request: %s: %s", error.code, error.message, extra=request_extra(request_id))
        self._counters.requests_refused += 1
        self._reply(asked, size, encode_error(error, request_id))

    def _reply(self, asked: RequestMessage | PendingRequest, size: int, frames: Frames) -> None:
        self.drop(size)
        self._counters.bytes_replied += self._requests.reply(asked.peer, asked.envelope, frames)
        self._is_drained = False

    def drop(self, size: int) -> None:
        """Let go of a request of so many bytes, which was answered or whose peer has gone."""
        self._pending -= 1
        self._pending_bytes -= size

    # ── the rest ─────────────────────────────────────────────────────────────────────────────────

    def _beat(self) -> None:
        self._count_cut_off()
        self._tick.set(TICK_SECONDS)
        self._watchdog.tick()
        self._send_heartbeat()
        if self._committer.is_idle():
            self._engine.trim()

    def _count_cut_off(self) -> None:
        while self._room.cut_off:
            self._room.cut_off.popleft()
            self._counters.peers_cut_off += 1

    def _present(self) -> dict[str, int]:
        self._count_cut_off()
        self._requests.settle_all()
        return {
            "pending": self._pending,
            "pending_bytes": self._pending_bytes,
            "untaken_bytes": self._requests.untaken,
            # one that is about to be closed does not count
            "connections": min(self._room.taken, self._room.limit),
            "max_connections": self._room.limit,
            "subscriptions": self._publisher.topics,
        }

    def _send_heartbeat(self) -> None:
        self._publisher.heartbeat(self._engine.position().floor)
        self._note_subscriptions()

    def stop(self) -> None:
        """Finish what was accepted: commit it, publish it, answer it; and turn away what still comes.

        Gives up after ``STOP_SECONDS``, when a disk does not answer; nothing unanswered was promised.
        """
        self._is_stopping = True
        self._expiry.stop()
        deadline = time.monotonic() + STOP_SECONDS
        while self._has_work():
            self.turn()
            if time.monotonic() > deadline:
                log.error("stopping without an answer from the engine")
                return
        self._loop.turn(wait=False)
        self._receive_some()

    def _has_work(self) -> bool:
        # requests that wait do not count: clients that ask again at once would keep us up for ever
        return bool(self._outbox or self._turns) or not self._committer.is_idle()


def _no_room() -> KvError:
    return KvError("too_busy", "too many requests are being done and wait to be; try again")


def _read_first() -> KvError:
    return KvError(
        "too_busy",
        "read the replies that wait for you, then try again: too many requests wait behind them",
    )
