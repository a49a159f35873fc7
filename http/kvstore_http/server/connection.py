"""A connection in the gevent hub: waitress's channel, driven by io watchers instead of its poll loop."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from typing import Any

from gevent.hub import Waiter
from waitress.buffers import OverflowableBuffer
from waitress.channel import ClientDisconnected, HTTPChannel

from kvstore_core.errors import KvError
from kvstore_http.server.access_log import Ended
from kvstore_http.server.parser import Parser, RefusalError
from kvstore_http.server.response import NO_ROOM, HandOver, RefusalTask, Task, refused_by_head, wants_stream

log = logging.getLogger("kvstore.http")

READ, WRITE = 1, 2  # libev's event bits

IDLE_SECONDS = 75.0
"""A connection without a request is closed after this long."""
HEADER_SECONDS = 15.0
"""The headers of a request must be complete this long after its first byte."""
STALL_SECONDS = 30.0
"""A body that does not move, or a response that is not read, for this long ends the connection."""
LINGER_SECONDS = 2.0
"""How long a refused request's unread input is thrown away, so that the refusal reaches the client; and how
long one for whom there is no room may take to ask."""

FLUSH_BYTES = 64 * 1024


class _Discreet(logging.LoggerAdapter[logging.Logger]):
    """The log of waitress's connections. It has a line at INFO for each client that goes away before its
    answer, with which any stranger could fill the log; it helps only to find a fault, so it is DEBUG here."""

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection. All methods run in the hub, except that ``service`` and what it calls run in
    the greenlet of the request being served."""

    task_class = Task
    error_task_class = RefusalTask
    parser_class = Parser
    logger = _Discreet(logging.getLogger("waitress"))

    request: Any = None
    socket: Any
    lingers = False
    peer_finished = False
    serving = False
    has_task = False
    has_question = False
    """The client waits to hear whether to send its body."""
    no_room: KvError | None = None
    """Why there is one connection too many with this one. It is closed after its first request."""
    hand_over: tuple[HandOver, bool] | None = None
    on_stream_end: Ended | None = None
    _counted = 0
    _drained: Waiter | None = None
    _writer: Any = None
    _is_reading = False
    _is_writing = False

    def __init__(self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> None:  # noqa: A002
        super().__init__(server, sock, addr, adj, map=map)
        self.environ = {
            **server.environ,
            "REMOTE_ADDR": addr[0],
            "REMOTE_PORT": str(addr[1]),
            "waitress.client_disconnected": self.check_client_disconnected,
        }
        self._reader = server.loop.io(self._fileno, READ)
        self._watch()

    @property
    def last_activity(self) -> float:
        """When something was last received or sent, in seconds of a clock that nobody sets: a step of the
        wall clock must not end every connection."""
        return self._last_activity

    @last_activity.setter
    def last_activity(self, _wall: float) -> None:
        # waitress says here what the wall clock shows
        self._last_activity = time.monotonic()

    # ── in the hub ──────────────────────────────────────────────────────────────────────────────

    def _on_readable(self) -> None:
        try:
            self.handle_read()
            if self.no_room is not None:
                self._refuse_for_want_of_room(self.no_room)
            self._serve_if_due()
            self._settle()
        except Exception:
            log.exception("a connection failed while it was read")
            self.handle_close()

    def _on_writable(self) -> None:
        try:
            self._settle()
        except Exception:
            log.exception("a connection failed while it was written")
            self.handle_close()

    def handle_read(self) -> None:
        """Read once. The end of the input lets a request that is being served finish: a client may
        close its sending side and still read."""
        try:
            data = self.socket.recv(self.adj.recv_bytes)
        except BlockingIOError:
            return
        except OSError:
            self.handle_close()
            return
        if data:
            self.last_activity = time.monotonic()
            self.received(data)
        elif self.requests:
            self.peer_finished = True
        else:
            self.handle_close()

    def check_client_disconnected(self) -> bool:
        return self.peer_finished or not self.connected

    def send_continue(self) -> None:
        """Have the request looked at before its body is asked for. waitress holds a lock at this point."""
        self.request.expect_continue = False
        self.has_question = True

    def lack_room(self, reason: KvError) -> None:
        """Take no more than the head of a request, and refuse it for ``reason``; but leave it to the
        application where it is an EventSource's."""
        self.no_room = self.environ[NO_ROOM] = reason

    def _refuse_for_want_of_room(self, reason: KvError) -> None:
        request = self.requests[0] if self.requests else self.request
        if request is None or not request.headers_finished or request.error or wants_stream(request):
            return
        self._refuse(request, reason)

    def _refuse(self, request: Any, reason: KvError) -> None:
        """Answer a request with ``reason``, whether it is complete or not."""
        request.error = RefusalError(reason)
        if request is self.request:
            self.request = None
            self.requests.append(request)
            self.has_task = True

    def _serve_if_due(self) -> None:
        if (self.has_task or self.has_question) and not self.serving:
            self.serving = True
            self.server.pool.run(self._serve)

    def _settle(self) -> None:
        """Send what is complete, close or give away the connection if that is due, and watch for
        what is missing."""
        if self.socket is None:
            return
        if not self.serving or self._drained is not None:
            self.handle_write()
            self._wake_writer()
        if self.socket is not None:
            self._watch()
        self.count_held()

    def handle_write(self) -> None:
        """As in waitress, with two more ways for a connection to end."""
        if self.total_outbufs_len:
            self._flush_exception(self._flush_some)
        if self.hand_over is not None and self.connected:
            self._give_away(*self.hand_over)
        elif self.close_when_flushed and not self.total_outbufs_len and self.connected:
            self._finish()
        elif self.will_close:
            self.handle_close()

    def _finish(self) -> None:
        if self.lingers:
            self.server.linger(self._release())
        else:
            self.handle_close()

    def _give_away(self, taker: HandOver, chunked: bool) -> None:
        unsent = b"".join(outbuf.get() for outbuf in self.outbufs)
        stream = taker(self._release().detach(), unsent, chunked)
        if self.on_stream_end is not None:
            stream.on_end = self.on_stream_end

    def count_held(self) -> None:
        """Tell the server how many bytes are kept for this connection: of answers that are not sent, and of
        requests, whether in memory or in a temporary file."""
        if not (self._counted or self.total_outbufs_len or self.requests or self.request):
            return
        held: int = self.total_outbufs_len + sum(map(_size_of, self.requests)) if self.connected else 0
        if self.request is not None and self.connected:
            held += _size_of(self.request)
        if held != self._counted:
            change, self._counted = held - self._counted, held
            self.server.held_changed(self, change, held)

    @property
    def waits_for_daemon(self) -> bool:
        """Whether it is not the client's turn: nothing waits for it to read, and no request to arrive."""
        return self.serving and not self.total_outbufs_len and self.request is None

    def add_channel(self, map: Any = None) -> None:  # noqa: A002
        super().add_channel(map)
        self.server.counters.connections_changed(1)

    def del_channel(self, map: Any = None) -> None:  # noqa: A002
        is_open = self.server.active_channels.get(self._fileno) is self
        super().del_channel(map)
        self.server.counters.connections_changed(-is_open)

    def _release(self) -> socket.socket:
        """Forget the socket without closing it."""
        sock: socket.socket = self.socket
        self._unwatch()
        self.del_channel()
        self.socket, self.connected = None, False
        for outbuf in self.outbufs:
            outbuf.close()
        self.total_outbufs_len = 0
        self.count_held()
        return sock

    def handle_close(self) -> None:
        self._unwatch()
        if self.socket is not None:
            super().handle_close()
        self.count_held()
        self._wake_writer()

    def _watch(self) -> None:
        """Bring the watchers in line with what waitress's predicates say now."""
        reading = not self.peer_finished and self.readable()
        if reading != self._is_reading:
            self._is_reading = reading
            if reading:
                self._reader.start(self._on_readable)
            else:
                self._reader.stop()
        writing = self.total_outbufs_len > 0 and (not self.serving or self._drained is not None)
        if writing != self._is_writing:
            self._watch_writable(writing)

    def _watch_writable(self, writing: bool) -> None:
        self._is_writing = writing
        if self._writer is None:
            self._writer = self.server.loop.io(self._fileno, WRITE)
        if writing:
            self._writer.start(self._on_writable)
        else:
            self._writer.stop()

    def _unwatch(self) -> None:
        self._reader.close()
        self._is_reading = self._is_writing = False
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def finish(self) -> None:
        """Serve a request that has already arrived; close the connection if there is none."""
        if not self.requests:
            self._on_readable()
        if not self.requests and not self.total_outbufs_len:
            self.handle_close()

    def sweep(self, now: float) -> None:
        """End the connection if it stands still; called every SWEEP_SECONDS."""
        idle = now - self.last_activity
        if (
            self.no_room is not None
            and idle > LINGER_SECONDS
            and not (self.requests or self.total_outbufs_len)
        ):
            self.server.turn_away(self._release(), self.no_room)
        elif self.total_outbufs_len:
            if idle > STALL_SECONDS:
                self.handle_close()
        elif self.requests:
            return
        elif self.request is None:
            if idle > IDLE_SECONDS:
                self.handle_close()
        elif idle > STALL_SECONDS or (
            not self.request.headers_finished and now - self.request.started > HEADER_SECONDS
        ):
            self._refuse_late_request()

    def _refuse_late_request(self) -> None:
        self._refuse(self.request, KvError("request_timeout", "the request stopped arriving"))
        self._serve_if_due()
        self._settle()

    # ── in the greenlet of a request ────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        try:
            while self.has_task or self.has_question:
                if self.has_task:
                    self.has_task = False
                    self.service()
                else:
                    self.has_question = False
                    self._answer_question()
        finally:
            self.serving = False
        if self.peer_finished or self.server.stopping or self.no_room is not None:
            self.close_when_flushed = True
        self._settle()

    def _answer_question(self) -> None:
        """Refuse the request if its head is enough for that, else ask for its body."""
        request = self.request
        if request is None or self.requests:
            return  # the body came unasked
        refusal = refused_by_head(self, request)
        if self.request is not request or not self.connected:
            return
        if refusal is None:
            self._flush_exception(self._ask_for_body)
            return
        request.error, request.completed, self.request = refusal, True, None
        self.requests.append(request)
        self.has_task = True

    def _ask_for_body(self, do_close: bool) -> None:  # noqa: ARG002 - as waitress calls what flushes
        super().send_continue()

    def write_soon(self, *pieces: bytes) -> int:
        """Queue ``pieces``; wait while more than the high watermark is unsent, so that an answer which is
        made while it is sent is made no faster than it is read.

        waitress sends on every write, which costs a system call for the headers and one for the
        body; here they come together.
        """
        if not self.connected:
            raise ClientDisconnected
        size = sum(map(len, pieces))
        if not size:
            return 0
        if self.total_outbufs_len:
            self._append(pieces)
        else:
            self._send_at_once(pieces, size)
        if self.total_outbufs_len > FLUSH_BYTES:
            self._flush_exception(self._flush_some, do_close=False)
            self.count_held()
            self._flush_outbufs_below_high_watermark()
        return size

    def _send_at_once(self, pieces: Sequence[bytes], size: int) -> None:
        """Send what the socket takes now and queue the rest, which is nothing for most responses. It
        spares them the way through waitress's buffers."""
        try:
            sent = self.socket.send(pieces[0]) if len(pieces) == 1 else self.socket.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.will_close = True
            raise ClientDisconnected from None
        if sent:
            self.last_activity = time.monotonic()
        if sent < size:
            self._append(pieces, sent)

    def _append(self, pieces: Sequence[bytes], sent: int = 0) -> None:
        """Queue ``pieces`` without the first ``sent`` bytes of them."""
        for piece in pieces:
            rest = memoryview(piece)[sent:]
            sent = max(0, sent - len(piece))
            self.total_outbufs_len += len(rest)
            if len(rest) > FLUSH_BYTES:
                self.outbufs += [_Unsent(rest), OverflowableBuffer(self.adj.outbuf_overflow)]
            else:
                self.outbufs[-1].append(rest)

    def _flush_outbufs_below_high_watermark(self) -> None:
        while self.connected and self.total_outbufs_len > self.server.high_watermark:
            if self.will_close:
                raise ClientDisconnected
            self._drained = Waiter(self.server.hub)
            self._watch()
            self._drained.get()

    def _wake_writer(self) -> None:
        waiter = self._drained
        if waiter is not None and (
            not self.connected or self.will_close or self.total_outbufs_len <= self.server.high_watermark
        ):
            self._drained = None
            self.server.loop.run_callback(waiter.switch, None)


def _size_of(request: Any) -> int:
    """How many bytes of a request have come that are still kept."""
    body = request.body_rcv
    return len(request.header_plus) if body is None else len(body)


class _Unsent:
    """In place of waitress's buffers, which copy what they are given and what they give out: a large
    piece of a response, as it is."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def __len__(self) -> int:
        return len(self._view)

    def get(self, numbytes: int = -1) -> memoryview:
        return self._view if numbytes < 0 else self._view[:numbytes]

    def skip(self, numbytes: int, _allow_prune: bool = False) -> None:
        self._view = self._view[numbytes:]

    def close(self) -> None:
        self._view = memoryview(b"")


class LingeringClose:
    """A socket whose response is sent and whose further input is thrown away."""

    def __init__(self, sock: socket.socket, loop: Any, registry: dict[int, LingeringClose]) -> None:
        self._sock = sock
        self._registry = registry
        self._fd = sock.fileno()
        registry[self._fd] = self
        self._watcher = loop.io(self._fd, READ)
        self._watcher.start(self._on_readable)
        self._timer = loop.timer(LINGER_SECONDS)
        self._timer.start(self.close)
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def _on_readable(self) -> None:
        try:
            if self._sock.recv(256 * 1024):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Let go of the socket; may be called twice."""
        self._watcher.close()
        self._timer.close()
        self._registry.pop(self._fd, None)
        self._sock.close()
