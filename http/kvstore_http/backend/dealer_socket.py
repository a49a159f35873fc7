"""One DEALER socket to the daemon, driven by the gevent hub.

All requests are pipelined; each carries a correlation id in front of the empty frame, which the
daemon returns. A plain pyzmq socket with one io watcher is used and not ``zmq.green``, which makes a
greenlet switch of every send and every receive.

A request is sent once for each connection (:mod:`kvstore_core.connection_monitor`); what a connection
took with it is sent again on the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, perf_counter_ns
from typing import Any

import zmq

from kvstore_core.connection_monitor import Monitor
from kvstore_core.errors import KvError
from kvstore_core.wire import Reply, decode_reply

READ = 1

log = logging.getLogger("kvstore.http")

# As plain numbers: those of zmq are enums, of which an "or" alone costs more than sending a frame.
_MORE, _AT_ONCE = int(zmq.SNDMORE | zmq.NOBLOCK), int(zmq.NOBLOCK)
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)

RECONNECT_MS = 50
RECONNECT_MAX_MS = 500

RENEWAL_SECONDS = 0.25
"""The least time between two renewals: a request that makes the daemon end the connection is not sent
again in a tight loop."""

Outcome = Reply | KvError


class Exchange:
    """A request of ``count`` ops on its way. ``deadline`` is in seconds of the loop's clock, ``begun_at``
    in nanoseconds.

    ``done`` is called once, in the hub, with the reply or with the error that refused the request.
    """

    __slots__ = ("begun_at", "count", "deadline", "done", "frames")

    def __init__(
        self,
        frames: Sequence[bytes],
        count: int,
        done: Callable[[Outcome], None],
        deadline: float,
    ) -> None:
        self.begun_at = perf_counter_ns()
        self.frames = frames
        self.count = count
        self.done = done
        self.deadline = deadline

    def outcome_of(self, frames: Sequence[bytes]) -> Outcome:
        """What the frames of a reply say."""
        try:
            reply = decode_reply(frames)
        except KvError as error:
            return error
        if len(reply.results) != self.count:
            return KvError("internal", f"the daemon gave {len(reply.results)} results for {self.count} ops")
        return reply


class Pipe:
    """A socket and what was sent on it without being answered yet.

    ``heard`` is called for every reply, before its exchange is told. With ``immediate`` a request is
    dropped while there is no connection; otherwise it is queued until there is one.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        loop: Any,
        endpoint: str,
        heard: Callable[[Exchange, Outcome], None],
        *,
        immediate: bool = False,
    ) -> None:
        self._context = context
        self._loop = loop
        self._endpoint = endpoint
        self._heard = heard
        self._immediate = immediate
        self._next_id = 1
        self._renewed_at = -RENEWAL_SECONDS
        self._renewal = loop.timer(RENEWAL_SECONDS)
        self.outstanding: dict[bytes, Exchange] = {}
        self._open()

    def _open(self) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.immediate = self._immediate
        self._socket.sndhwm = self._socket.rcvhwm = 0  # bounded by the callers that wait
        self._socket.reconnect_ivl = RECONNECT_MS
        self._socket.reconnect_ivl_max = RECONNECT_MAX_MS
        self._monitor = Monitor(self._socket)
        self._socket.connect(self._endpoint)
        self._watcher = self._loop.io(self._socket.getsockopt(zmq.FD), READ)
        self._watcher.start(self._receive)
        self._monitoring = self._loop.io(self._monitor.socket.getsockopt(zmq.FD), READ)
        self._monitoring.start(self._note_connection)
        # ZMQ_FD, which is edge-triggered, only speaks of what comes after the socket was found empty
        self._loop.run_callback(self._note_connection)

    def _shut(self) -> None:
        self._monitoring.close()
        self._watcher.close()
        self._monitor.close()
        self._socket.close()

    # ── the connection ──────────────────────────────────────────────────────────────────────────

    def _note_connection(self) -> None:
        """Take in what the monitor tells."""
        if self._monitor.take() and not self._immediate:
            self._receive()  # what came before the end
            self._renew_soon()

    def _renew_soon(self) -> None:
        """Renew, but not too often; nothing is sent until then, or it would be sent twice."""
        pause = self._renewed_at + RENEWAL_SECONDS - monotonic()
        if pause <= 0:
            self.renew()
            return
        self._shut()
        self._renewal = self._loop.timer(pause)
        self._renewal.start(self.renew)

    def renew(self) -> None:
        """Go on with a fresh socket, and send everything on it that is not answered.

        What was queued in the old one is dropped with it, so nothing arrives twice that the old
        connection has not taken.
        """
        log.debug("a fresh socket to %s; %d requests are sent again", self._endpoint, len(self.outstanding))
        self._renewal.close()
        self._renewed_at = monotonic()
        if not self._socket.closed:
            self._shut()
        self._open()
        for correlation, exchange in list(self.outstanding.items()):
            self._transmit(correlation, exchange)

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def send(self, exchange: Exchange) -> None:
        """Send the request; its outcome comes later."""
        correlation = self._next_id.to_bytes(8, "big")
        self._next_id += 1
        self.outstanding[correlation] = exchange
        self._transmit(correlation, exchange)

    def _transmit(self, correlation: bytes, exchange: Exchange) -> None:
        if self._socket.closed:
            return  # it is sent when there is a socket again
        with suppress(zmq.Again):  # immediate, and not connected
            send, last = self._socket.send, exchange.frames[-1]
            send(correlation, _MORE)
            send(b"", _MORE)
            for frame in exchange.frames[:-1]:
                send(frame, _MORE)
            send(last, _AT_ONCE)
        # ZMQ_FD is edge-triggered. Sending may have consumed the edge of a reply that is there, and
        # there is no edge at all for a reply to a socket that nobody found empty before.
        if self._socket.get(_EVENTS) & _READABLE:
            self._loop.run_callback(self._receive)

    def overdue(self, now: float) -> list[Exchange]:
        """Take out the exchanges whose deadline has passed."""
        late = [key for key, exchange in self.outstanding.items() if exchange.deadline <= now]
        return [self.outstanding.pop(key) for key in late]

    def _receive(self) -> None:
        if self._socket.closed:
            return
        socket = self._socket
        with suppress(zmq.Again):
            self._deliver(socket.recv_multipart(_AT_ONCE))
            # to ask costs half of an exception
            while not socket.closed and socket.get(_EVENTS) & _READABLE:
                self._deliver(socket.recv_multipart(_AT_ONCE))

    def _deliver(self, frames: list[bytes]) -> None:
        exchange = self.outstanding.pop(frames[0], None)
        if exchange is None or len(frames) < 3:
            return  # answered already: the reply to a repeat
        outcome = exchange.outcome_of(frames[2:])
        self._heard(exchange, outcome)
        exchange.done(outcome)

    def close(self) -> None:
        """Close the socket; what is outstanding is never told."""
        self.outstanding.clear()
        self._renewal.close()
        if not self._socket.closed:
            self._shut()
