"""The daemon at work: requests in, commits to the engine, changes and replies out.

Everything here runs in the loop's thread. One turn of the loop:

1. receive a request from each REP socket that has one, answer it if it only reads;
2. hand the writes that have gathered to the engine as one group;
3. when the engine has committed: publish each change, then answer whose request it was.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from functools import partial

from kvstore_client.errors import KvError
from kvstore_client.protocol import decode_request, encode_error
from kvstore_daemon.committer import GROUP_OPS, GroupCommitter
from kvstore_daemon.engine import Answer, Change, Engine
from kvstore_daemon.exchange import Exchange
from kvstore_daemon.expiry import Expiry
from kvstore_daemon.loop import Loop, Timer
from kvstore_daemon.publisher import Publisher
from kvstore_daemon.settings import DaemonSettings
from kvstore_daemon.sockets import Frames, Responder
from kvstore_daemon.status import Counters, Status, limits_of
from kvstore_daemon.writing import write_request

log = logging.getLogger(__name__)

SLICE_SECONDS = 0.002
"""How long one turn works on what can be done in parts, before it looks for new requests."""

TICK_SECONDS = 1.0
"""The interval of heartbeats and of trimming."""

STOP_SECONDS = 3.0
"""How long a stop may wait for the engine."""


class Server:
    """Serves the pool of responders from one engine."""

    def __init__(
        self,
        loop: Loop,
        settings: DaemonSettings,
        engine: Engine,
        publisher: Publisher,
        responders: list[Responder],
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._publisher = publisher
        self._responders = responders
        self._limits = limits_of(settings)
        self._counters = Counters()
        self._status = Status(settings, engine, self._counters)
        self._committer = GroupCommitter(engine, self._counters)
        self._expiry = Expiry(loop, engine, self._committer)
        self._tick: Timer = loop.timer(self._beat)
        # a dict as an ordered set: a responder is noted by its descriptor and after its reply, often both
        self._ready: dict[Responder, None] = {}
        self._reading: deque[Exchange] = deque()
        self._outbox: deque[Change | Answer] = deque()
        self._is_stopping = False
        self._epoch = ""
        self._head = 0

    def start(self) -> None:
        """Watch the engine and the pool, and begin to publish after what the log holds."""
        position = self._engine.position()
        self._epoch, self._head = position.epoch, position.head
        self._publisher.begin(position)
        self._loop.watch(self._engine.fileno(), self._collect)
        for responder in self._responders:
            self._loop.watch(responder.fileno(), partial(self._note_ready, responder))
            self._note_ready(responder)
        self._expiry.start()
        self._tick.set(0)

    def turn(self) -> None:
        """One turn of the loop; sleeps until there is something to do."""
        self._loop.turn(wait=not (self._ready or self._reading or self._outbox))
        self._receive_ready()
        self._tell()
        self._read_on()
        if len(self._outbox) < GROUP_OPS:
            self._committer.flush()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def _note_ready(self, responder: Responder) -> None:
        if responder.has_request():
            self._ready[responder] = None

    def _receive_ready(self) -> None:
        """Receive one request from each responder that has one; a second one waits for the next turn."""
        ready, self._ready = self._ready, {}
        for responder in ready:
            self._receive(responder)

    def _receive(self, responder: Responder) -> None:
        frames = responder.receive()
        if frames is None:
            self._note_ready(responder)
            return
        counters = self._counters
        counters.requests += 1
        counters.bytes_received += sum(map(len, frames))
        try:
            self._begin(responder, frames)
        except Exception as error:  # whatever it is, the client gets its one reply
            self._refuse(responder, error)

    def _begin(self, responder: Responder, frames: Frames) -> None:
        if self._is_stopping:
            raise KvError("unavailable", "the daemon is stopping; try again when it is back")
        self._check_size(frames)
        request = decode_request(frames, self._limits)
        self._counters.operations += len(request.ops)
        exchange = Exchange(responder, request)
        if exchange.has_writes():
            self._committer.add(write_request(request, frames, exchange))
        else:
            self._read(exchange)

    def _check_size(self, frames: Frames) -> None:
        limit = self._limits.request_bytes
        if len(frames[0]) > limit:
            raise KvError("request_too_large", f"frame 1 has more than {limit} bytes", limit=limit)

    def _read(self, exchange: Exchange) -> None:
        if exchange.read(self._engine, self._status, time.monotonic() + SLICE_SECONDS):
            self._reply(exchange.responder, exchange.reply(self._epoch, self._head))
        else:
            self._reading.append(exchange)

    def _read_on(self) -> None:
        """Work on one of the requests whose reads did not fit into a slice, in turns."""
        if self._reading:
            self._finish(self._reading.popleft())

    def _finish(self, exchange: Exchange, answer: Answer | None = None) -> None:
        """Take the engine's answer, if there is one to take, and do the reads."""
        try:
            if answer is not None:
                exchange.accept(answer)
            self._read(exchange)
        except Exception as error:  # whatever it is, the client gets its one reply
            self._refuse(exchange.responder, error)

    # ── commits ──────────────────────────────────────────────────────────────────────────────────

    def _collect(self) -> None:
        """The engine has something: queue it to be told, and let the next group go."""
        changes, answers = self._engine.poll()
        if changes:
            self._head = changes[-1].revision
            self._expiry.saw(changes)
        self._outbox.extend(changes)
        self._outbox.extend(answers)
        for _ in answers:
            self._committer.answered()

    def _tell(self) -> None:
        """Publish and answer, in the order in which the engine committed, for one slice of time."""
        deadline = time.monotonic() + SLICE_SECONDS
        outbox = self._outbox
        while outbox:
            told = outbox.popleft()
            if isinstance(told, Change):
                self._publisher.publish(told)
                self._counters.changes_published += 1
            elif told.ticket is self._expiry:
                self._expiry.removed(told)
            else:
                self._finish(told.ticket, told)
            if time.monotonic() > deadline:
                break

    # ── replies ──────────────────────────────────────────────────────────────────────────────────

    def _refuse(self, responder: Responder, error: Exception) -> None:
        """Answer a whole request with an error."""
        if not isinstance(error, KvError):
            log.error("a request failed", exc_info=error)
            error = KvError("internal", "the daemon failed on this request; its log says how")
        self._counters.requests_refused += 1
        self._reply(responder, encode_error(error))

    def _reply(self, responder: Responder, frames: Frames) -> None:
        self._counters.bytes_replied += sum(map(len, frames))
        responder.reply(frames)
        self._note_ready(responder)

    # ── the rest ─────────────────────────────────────────────────────────────────────────────────

    def _beat(self) -> None:
        self._tick.set(TICK_SECONDS)
        self._publisher.heartbeat(self._engine.position().floor)
        if self._committer.is_idle():
            self._engine.trim()

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
        self._receive_ready()

    def _has_work(self) -> bool:
        # responders that are ready do not count: clients that ask again at once would keep us up for ever
        return bool(self._outbox or self._reading) or not self._committer.is_idle()
