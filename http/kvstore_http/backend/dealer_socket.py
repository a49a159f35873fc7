"""One DEALER socket to the daemon, driven by the gevent hub.

All requests are pipelined; each carries a correlation id before the empty frame, which the daemon
returns. It is a plain pyzmq socket with one io watcher: ``zmq.green`` makes a greenlet switch of every
send and every receive.

A request is sent once for each connection (:mod:`kvstore_core.connection_monitor`); what was lost with a
connection is sent again on the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, perf_counter_ns
from typing import Any

import zmq

from kvstore_core.access.login_file import CurveKeys
from kvstore_core.connection_monitor import NOBLOCK, POLLIN, SNDMORE, Monitor
from kvstore_core.curve import apply_curve
from kvstore_core.errors import KvError
from kvstore_core.wire import Reply, decode_reply, encode_request

READ = 1

log = logging.getLogger("kvstore.http")

_MORE, _EVENTS = NOBLOCK | SNDMORE, int(zmq.EVENTS)

RECONNECT_MS = 50
RECONNECT_MAX_MS = 500

RENEWAL_SECONDS = 0.25
"""The least time between two renewals, so that a request that makes the daemon end the connection is not
sent again in a tight loop."""

HANDSHAKES = 3
"""So many that end without a word, one after the other, are no daemon that is just being stopped."""

UNKNOWN_KEY = (
    "the daemon does not know the key of --facade-key-file, which must be facade.key of its data folder"
)
NO_KEY = (
    "the daemon lets in only who has a key: name facade.key of its data folder with --facade-key-file, and "
    "start this again"
)
ACCESS_IS_OFF = "access is off at the daemon, which takes no keys: start this again without --facade-key-file"
ENDED = "the daemon ends each connection at once: it has no room for one more"
ANOTHER_KEY = (
    "the daemon ends each connection at once: its key is not the server_key of --facade-key-file, which must "
    "be facade.key of its data folder, or it has no room for one more"
)
"""Nothing of whose key it is, nor where: callers are told, and they may be anybody."""

Outcome = Reply | KvError


@dataclass(slots=True, eq=False)
class SentRequest:
    """A request of ``count`` ops that has no reply yet. ``deadline`` is a time of ``monotonic()``, and
    ``begun_at`` one of ``perf_counter_ns()``.

    ``done`` is called once, in the hub, with the reply or with the error that refused the request.
    """

    frames: Sequence[bytes]
    count: int
    done: Callable[[Outcome], None]
    deadline: float
    begun_at: int = field(default_factory=perf_counter_ns)

    def outcome_of(self, frames: Sequence[bytes]) -> Outcome:
        """What the frames of its reply say."""
        try:
            reply = decode_reply(frames)
        except KvError as error:
            return error
        if len(reply.results) != self.count:
            return KvError("internal", f"the daemon gave {len(reply.results)} results for {self.count} ops")
        return reply


class DealerSocket:
    """A socket, and the requests that were sent on it and have no reply yet.

    ``on_reply`` is called for every reply, before the request's own ``done``. With ``immediate`` a request
    is dropped while there is no connection; otherwise it waits for one.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        loop: Any,
        endpoint: str,
        on_reply: Callable[[SentRequest, Outcome], None],
        keys: CurveKeys | None = None,
        *,
        immediate: bool = False,
    ) -> None:
        self._context = context
        self._loop = loop
        self._endpoint = endpoint
        self._on_reply = on_reply
        self._keys = keys
        self._immediate = immediate
        self._next_id = 1
        self._renewed_at = -RENEWAL_SECONDS
        self._renewal = loop.timer(RENEWAL_SECONDS)
        self._unanswered: dict[bytes, SentRequest] = {}
        self._open()

    def _open(self) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.immediate = self._immediate
        self._socket.sndhwm = self._socket.rcvhwm = 0  # bounded by the callers that wait
        self._socket.reconnect_ivl = RECONNECT_MS
        self._socket.reconnect_ivl_max = RECONNECT_MAX_MS
        apply_curve(self._socket, self._keys)
        self._monitor = Monitor(self._socket)
        self._socket.connect(self._endpoint)
        self._watcher = self._loop.io(self._socket.getsockopt(zmq.FD), READ)
        self._watcher.start(self._receive)
        self._monitoring = self._loop.io(self._monitor.socket.getsockopt(zmq.FD), READ)
        self._monitoring.start(self._note_connection)
        # ZMQ_FD, which is edge-triggered, reports only what comes after the socket was found empty
        self._loop.run_callback(self._note_connection)

    def _shut(self) -> None:
        self._monitoring.close()
        self._watcher.close()
        self._monitor.close()
        self._socket.close()

    def _note_connection(self) -> None:
        """Take in what the monitor reports."""
        if self._monitor.take() and not self._immediate:
            self._receive()  # what came before the end
            self._renew_soon()

    def handshake_problem(self) -> str:
        """Why the daemon does not let in this socket, empty where that is not known. Only for one with
        ``immediate``: others are renewed, and begin again."""
        if self._monitor.is_refused:
            return UNKNOWN_KEY
        if self._monitor.speak_differently:
            return NO_KEY if self._keys is None else ACCESS_IS_OFF
        if self._monitor.broken_off < HANDSHAKES:
            return ""
        return ENDED if self._keys is None else ANOTHER_KEY

    def _renew_soon(self) -> None:
        """Renew, but not too often. Nothing is sent until then, since it would be sent twice."""
        pause = self._renewed_at + RENEWAL_SECONDS - monotonic()
        if pause <= 0:
            self.renew()
            return
        self._shut()
        self._renewal = self._loop.timer(pause)
        self._renewal.start(self.renew)

    def renew(self) -> None:
        """Go on with a fresh socket, and send everything on it that has no reply yet.

        What was queued in the old one is dropped with it, so nothing arrives twice but what the old
        connection has taken.
        """
        log.debug("a new socket to %s; resending %d requests", self._endpoint, len(self._unanswered))
        self._renewal.close()
        self._renewed_at = monotonic()
        if not self._socket.closed:
            self._shut()
        self._open()
        for correlation, request in list(self._unanswered.items()):
            self._transmit(correlation, request)

    def send(
        self,
        ops: Sequence[dict[str, Any]],
        values: Sequence[bytes],
        done: Callable[[Outcome], None],
        deadline: float,
        **header: Any,
    ) -> None:
        """Send a request, whose ``header`` is that of :func:`kvstore_core.wire.encode_request`, and call
        ``done`` with its outcome: at once for one that cannot be encoded, else in the hub."""
        try:
            frames = encode_request(ops, values, **header)
        except KvError as error:
            done(error)
            return
        correlation = self._next_id.to_bytes(8, "big")
        self._next_id += 1
        request = self._unanswered[correlation] = SentRequest(frames, len(ops), done, deadline)
        self._transmit(correlation, request)

    def _transmit(self, correlation: bytes, request: SentRequest) -> None:
        if self._socket.closed:
            return  # it is sent when there is a socket again
        with suppress(zmq.Again):  # immediate, and not connected
            send, last = self._socket.send, request.frames[-1]
            send(correlation, _MORE)
            send(b"", _MORE)
            for frame in request.frames[:-1]:
                send(frame, _MORE)
            send(last, NOBLOCK)
        # ZMQ_FD is edge-triggered. Sending may have consumed the edge of a reply that is there, and
        # there is no edge at all for a reply to a socket that was not found empty before.
        if self._socket.get(_EVENTS) & POLLIN:
            self._loop.run_callback(self._receive)

    def take_overdue(self, now: float) -> list[SentRequest]:
        """Take out the requests whose deadline has passed."""
        late = [key for key, request in self._unanswered.items() if request.deadline <= now]
        return [self._unanswered.pop(key) for key in late]

    def _receive(self) -> None:
        if self._socket.closed:
            return
        socket = self._socket
        with suppress(zmq.Again):
            self._deliver(socket.recv_multipart(NOBLOCK))
            # asking is cheaper than an exception
            while not socket.closed and socket.get(_EVENTS) & POLLIN:
                self._deliver(socket.recv_multipart(NOBLOCK))

    def _deliver(self, frames: list[bytes]) -> None:
        request = self._unanswered.pop(frames[0], None)
        if request is None or len(frames) < 3:
            return  # the reply to a repeat of a request that has had its reply
        outcome = request.outcome_of(frames[2:])
        self._on_reply(request, outcome)
        request.done(outcome)

    def close(self) -> None:
        """Close the socket; requests without a reply never get an outcome."""
        self._unanswered.clear()
        self._renewal.close()
        if not self._socket.closed:
            self._shut()
