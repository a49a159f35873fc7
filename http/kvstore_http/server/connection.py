"""A connection in the gevent hub: waitress's channel, driven by io watchers instead of its poll loop."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gevent.hub import Waiter
from waitress.buffers import OverflowableBuffer
from waitress.channel import ClientDisconnected, HTTPChannel

from kvstore_core.errors import KvError
from kvstore_http.backend.request_queue import QueuedRequest
from kvstore_http.protocol.environ import NO_ROOM
from kvstore_http.routes import SUBSCRIBE_PATH
from kvstore_http.server.access_log import Ended
from kvstore_http.server.parser import Parser, RefusalError
from kvstore_http.server.response import (
    JOINED_BYTES,
    HandOver,
    RefusalTask,
    Task,
    refused_by_head,
    wants_stream,
)
from kvstore_http.server.tls_socket import READ, WRITE

log = logging.getLogger("kvstore.http")

IDLE_SECONDS = 75.0
"""A connection without a request is closed after this long."""
HEADER_SECONDS = 15.0
"""The headers of a request must be complete this long after its first byte, a TLS handshake this long after
its connection."""
STALL_SECONDS = 30.0
"""A body that stops arriving, or a response that is not read, for this long ends the connection."""
LINGER_SECONDS = 2.0
"""How long the unread input of a refused request is thrown away, so that the refusal reaches the client; and
how long a client for which there is no room may take to send its request."""

FLUSH_BYTES = 64 * 1024


class _QuietLogger(logging.LoggerAdapter[logging.Logger]):
    """The log of waitress's channels, with DEBUG for INFO: at INFO it has a line for each client that leaves
    before its answer, so any stranger could fill the log."""

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection. All methods run in the hub, except ``service`` and what it calls: those run in the
    greenlet of the request that is being served."""

    task_class = Task
    error_task_class = RefusalTask
    parser_class = Parser
    logger = _QuietLogger(logging.getLogger("waitress"))

    request: Any = None
    socket: Any
    lingers = False
    peer_finished = False
    serving = False
    no_room: KvError | None = None
    """Why this is one connection too many. It is closed after its first request."""
    hand_over: tuple[HandOver, bool] | None = None
    on_stream_end: Ended | None = None
    short: QueuedRequest | None = None
    """The request that is under way on the short path. ``serving`` is set as well."""
    kept_waiting_ns = 0
    """How long answers waited, since the connection began, for the client to take what was before."""
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
        """When something was last received or sent, by the monotonic clock: a step of the wall clock must
        not end every connection."""
        return self._last_activity

    @last_activity.setter
    def last_activity(self, _wall: float) -> None:
        # waitress assigns the time of the wall clock
        self._last_activity = time.monotonic()

    # ── in the hub ──────────────────────────────────────────────────────────────────────────────

    def _on_readable(self) -> None:
        try:
            if self.handle_read():
                return
            if self.no_room is not None:
                self._refuse_for_lack_of_room(self.no_room)
            self._serve_if_due()
            self._flush_and_watch()
        except Exception:
            log.exception("a connection failed while it was read")
            self.handle_close()

    def _on_writable(self) -> None:
        try:
            self._flush_and_watch()
        except Exception:
            log.exception("a connection failed while it was written")
            self.handle_close()

    def handle_read(self) -> bool:
        """Read once; whether that began a request on the short path. A request that is being served goes on
        at the end of the input: a client may close its sending side and still read."""
        try:
            data = self.socket.recv(self.adj.recv_bytes)
        except BlockingIOError:
            return False
        except OSError:
            self.handle_close()
            return False
        if data:
            self._last_activity = time.monotonic()
            if self._begins_short(data):
                return True
            self.received(data)
        elif self.requests or self.short is not None:
            self.peer_finished = True
        else:
            self.handle_close()
        return False

    def _begins_short(self, data: bytes) -> bool:
        short_path = self.server.short_path
        is_between = not (self.serving or self.request or self.requests or self.total_outbufs_len)
        if short_path is None or not is_between or self.close_when_flushed or self.no_room is not None:
            return False
        self.short = short_path.begin(self, data)
        if self.short is None:
            return False
        self.serving = True
        if self.short.size:
            self.count_held()
        return True

    def send_short(self, head: bytes, body: bytes) -> None:
        """Send the answer to the request on the short path, unless the client has left."""
        if self.connected:
            pieces = (head + body,) if len(body) <= JOINED_BYTES else (head, body)
            with suppress(ClientDisconnected):
                self._send_at_once(pieces, len(head) + len(body))

    def end_short(self) -> None:
        """Go on with what came while it was under way."""
        self.short, self.serving = None, False
        if self.server.stopping:
            # the answer said that it is the last
            while self.requests:
                self.requests.pop().close()
            self.close_when_flushed = True
        elif self.peer_finished and not self.requests:  # else that is said behind the last of them
            self.close_when_flushed = True
        is_done = not (self.total_outbufs_len or self.close_when_flushed or self.will_close)
        if is_done and not (self.request or self.requests or self._counted):
            return
        self._serve_if_due()
        self._flush_and_watch()

    def check_client_disconnected(self) -> bool:
        return self.peer_finished or not self.connected

    def send_continue(self) -> None:
        """Nothing: the body is asked for by :meth:`_answer_expectation`, once the head was looked at."""

    def refuse_for(self, reason: KvError) -> None:
        """Refuse the first request for ``reason`` as soon as its head is there; but leave that of an
        EventSource to the application."""
        self.no_room = self.environ[NO_ROOM] = reason

    def _refuse_for_lack_of_room(self, reason: KvError) -> None:
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

    def _serve_if_due(self) -> None:
        if not self.serving and (self.requests or self._expects_continue()):
            self.serving = True
            if self.requests and self.requests[0].path == SUBSCRIBE_PATH:
                self.server.serve_stream(self._serve)
            else:
                self.server.pool.run(self._serve)

    def _expects_continue(self) -> bool:
        """Whether to look at a request before its body is there: the client waits to hear whether to send it,
        or is not known; not behind the connection's last response, which nothing may follow."""
        request = self.request
        if request is None or self.close_when_flushed:
            return False
        return bool((request.expect_continue or request.is_from_stranger) and request.headers_finished)

    def _flush_and_watch(self) -> None:
        """Send what is complete, close or hand over the connection if that is due, and watch for what is
        missing."""
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
            self._hand_over(*self.hand_over)
        elif self.close_when_flushed and not self.total_outbufs_len and self.connected:
            self._finish()
        elif self.will_close:
            self.handle_close()

    def _finish(self) -> None:
        if self.lingers:
            self.server.linger(self._detach())
        else:
            self.handle_close()

    def _hand_over(self, taker: HandOver, chunked: bool) -> None:
        unsent = b"".join(outbuf.get() for outbuf in self.outbufs)
        stream = taker(self._detach(), unsent, chunked)
        if self.on_stream_end is not None:
            stream.on_end = self.on_stream_end

    def count_held(self) -> None:
        """Report to the server how many bytes are kept for this connection: unsent answers and received
        requests, in memory or in a temporary file."""
        if not (self._counted or self.total_outbufs_len or self.requests or self.request or self.short):
            return
        held: int = self.total_outbufs_len + sum(map(_size_of, self.requests)) if self.connected else 0
        if self.request is not None and self.connected:
            held += _size_of(self.request)
        if self.short is not None and self.connected:
            held += self.short.size
        if held != self._counted:
            change, self._counted = held - self._counted, held
            self.server.held_changed(self, change, held)

    @property
    def waits_for_daemon(self) -> bool:
        """Whether the client has nothing to do: no answer is left for it to read, no request to send."""
        return self.serving and not self.total_outbufs_len and self.request is None

    def add_channel(self, map: Any = None) -> None:  # noqa: A002
        super().add_channel(map)
        self.server.counters.connections_changed(1)

    def del_channel(self, map: Any = None) -> None:  # noqa: A002
        is_open = self.server.active_channels.get(self._fileno) is self
        super().del_channel(map)
        self.server.counters.connections_changed(-is_open)

    def _detach(self) -> socket.socket:
        """Give up the socket without closing it."""
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
        """Start and stop the watchers as waitress's predicates say."""
        reading = not self.peer_finished and self.readable() and not self._keeps_stranger_waiting()
        if reading != self._is_reading:
            self._is_reading = reading
            if reading:
                self._reader.start(self._on_readable)
            else:
                self._reader.stop()
        writing = self.total_outbufs_len > 0 and (not self.serving or self._drained is not None)
        if writing != self._is_writing:
            self._watch_writable(writing)

    def _keeps_stranger_waiting(self) -> bool:
        """Whether the rest of a body is left where it is until the request was looked at."""
        return self.serving and self.request is not None and self.request.is_from_stranger

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
        if not (self.requests or self.short or self.total_outbufs_len):
            self.handle_close()

    def sweep(self, now: float) -> None:
        """End the connection if it has stalled; called every few seconds."""
        idle = now - self.last_activity
        if (
            self.no_room is not None
            and idle > LINGER_SECONDS
            and not (self.requests or self.total_outbufs_len)
        ):
            self.server.reject(self._detach(), self.no_room)
        elif self.total_outbufs_len:
            if idle > STALL_SECONDS:
                self.handle_close()
        elif self.requests or self.short:
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
        self._flush_and_watch()

    # ── in the greenlet of a request ────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        try:
            with suppress(ClientDisconnected):
                # what is left of an answer on the short path: the next one may be long in coming
                self._flush_outbufs_below_high_watermark()
            while self.connected:
                if self.requests:
                    self.service()
                elif self._expects_continue():
                    self._answer_expectation()
                else:
                    break
        except Exception:
            log.exception("a connection failed while it was served")
            self.handle_close()
        finally:
            self.serving = False
        if self.peer_finished or self.server.stopping or self.no_room is not None:
            self.close_when_flushed = True
        self._flush_and_watch()

    def _answer_expectation(self) -> None:
        """Refuse the request if its head is enough for that, else ask for its body."""
        request = self.request
        is_asked, request.expect_continue = request.expect_continue, False
        refusal = refused_by_head(self, request)
        request.is_from_stranger = False
        if self.request is not request or not self.connected:
            return  # meanwhile the body came unasked, or the client left
        if refusal is None:
            if is_asked:
                self._flush_exception(self._ask_for_body)
            return
        request.error, request.completed, self.request = refusal, True, None
        self.requests.append(request)

    def _ask_for_body(self, do_close: bool) -> None:  # noqa: ARG002 - waitress passes it to what flushes
        super().send_continue()

    def write_soon(self, *pieces: bytes) -> int:
        """Queue ``pieces``; wait while more than the high watermark is unsent, so that a streamed answer is
        made no faster than it is read.

        waitress sends on every write: a system call for the headers and one for the body. Here they come
        together.
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
        """Send what the socket takes now and queue the rest. Most responses leave no rest, and so never go
        through waitress's buffers."""
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
                self.outbufs += [_ViewBuffer(rest), OverflowableBuffer(self.adj.outbuf_overflow)]
            else:
                self.outbufs[-1].append(rest)

    def _flush_outbufs_below_high_watermark(self) -> None:
        while self.connected and self.total_outbufs_len > self.server.high_watermark:
            if self.will_close:
                raise ClientDisconnected
            self._drained = Waiter(self.server.hub)
            self._watch()
            began = time.perf_counter_ns()
            self._drained.get()
            self.kept_waiting_ns += time.perf_counter_ns() - began

    def _wake_writer(self) -> None:
        waiter = self._drained
        if waiter is not None and (
            not self.connected or self.will_close or self.total_outbufs_len <= self.server.high_watermark
        ):
            self._drained = None
            self.server.loop.run_callback(waiter.switch, None)


def _size_of(request: Any) -> int:
    """How many bytes of a request are kept."""
    body = request.body_rcv
    return len(request.header_plus) if body is None else len(body)


class _ViewBuffer:
    """A large piece of a response. waitress's buffers copy what they take and what they give out; this one
    does not."""

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
    """Closes ``sock`` once its peer has, or after LINGER_SECONDS; ``registry`` has it until then.

    Closing with unread input makes the kernel reset the connection, and the reset overtakes the response
    that says why. So the input is read and thrown away.
    """

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
        """Close now; may be called twice."""
        self._watcher.close()
        self._timer.close()
        self._registry.pop(self._fd, None)
        self._sock.close()
