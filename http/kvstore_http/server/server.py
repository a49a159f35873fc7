"""waitress inside the gevent hub: its parser, its channels and its tasks, driven by io watchers.

waitress's own poll loop asks every connection on every turn whether it wants anything, so a thousand
idle connections cost as much as a thousand busy ones. Here each channel has an io watcher of its own:
an idle connection costs its memory and nothing else.

Everything in this module runs in one thread. A readable socket is read and parsed in the hub, and a
complete request is served inline in a raw greenlet that the hub switches to: a request that needs
nothing from elsewhere is answered without the loop being entered again. The switch is what costs
(a greenlet spawned per request gives 9,600 requests/s where this gives 16,000), so the greenlet
leaves only when it waits for the daemon or for a slow reader.

Nothing is monkey-patched. waitress's locks are taken and released without a switch between, so they
are never contended; the one place where it waits on a condition (too much unsent output) is replaced.
"""

from __future__ import annotations

import errno
import logging
import resource
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import gevent
from gevent.hub import Waiter
from waitress.adjustments import Adjustments
from waitress.buffers import OverflowableBuffer
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.server import BaseWSGIServer

from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog
from kvstore_http.greenlet_pool import GreenletPool
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.protocol.problems import rendered
from kvstore_http.request_id import new_id
from kvstore_http.server.access_log import AccessLog, Ended
from kvstore_http.server.parser import Parser, RefusalError
from kvstore_http.server.response import NO_ROOM, HandOver, RefusalTask, Task, refused_by_head, wants_stream

log = logging.getLogger("kvstore.http")

READ, WRITE = 1, 2  # libev's event bits

BACKLOG = 4096
ACCEPTS_PER_TURN = 64
"""How many connections are accepted before the loop looks at the others again."""

SPARE_DESCRIPTORS = 64
"""For those who are told that there is no room, once they have said what they want, and for whatever else a
process opens."""

SWEEP_SECONDS = 2.0
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
BUFFER_BYTES = 1024 * 1024
"""How many bytes are kept for one connection that does not read, if nothing else is said."""
HELD_BYTES = 256 * 1024 * 1024
"""How many bytes are kept for all connections of a worker together, if nothing else is said."""


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

    def __init__(self, server: Server, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> None:  # noqa: A002
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


class InlineDispatcher:
    """Where waitress hands a channel to a thread: here it is only marked, and served as soon as the
    read that completed the request is done (waitress holds a lock at this point)."""

    def add_task(self, channel: Channel) -> None:
        channel.has_task = True

    def shutdown(self) -> None:
        """Nothing to stop."""


class Server(BaseWSGIServer):  # type: ignore[misc]
    """Accepts connections on one bound socket and serves ``application`` on them, from the hub of
    the thread that made it. ``stopping`` makes every response say that its connection ends."""

    channel_class = Channel
    stopping = False

    def __init__(
        self,
        application: Any,
        sock: socket.socket,
        counters: WorkerCounters | None = None,
        access_log: AccessLog | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        held_bytes: int | None = None,
        **adjustments: Any,
    ) -> None:
        # whoever makes an answer while it is sent holds a part of it besides
        self.high_watermark = buffer_bytes // 4
        self._max_held = held_bytes or HELD_BYTES
        self._held = 0
        self._holding: set[Channel] = set()
        self._cut_off_log = RateLimitedLog(log)
        self._unaccepted_log = RateLimitedLog(log)
        self.counters = counters or WorkerCounters.alone()
        self.access_log = access_log or AccessLog()
        self.hub = gevent.get_hub()
        self.loop = self.hub.loop
        self.pool = GreenletPool(self.hub)
        self._lingering: dict[int, _Lingering] = {}
        self._max_descriptor = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS
        super().__init__(
            application,
            {},
            True,
            sock,
            dispatcher=InlineDispatcher(),
            adj=make_adjustments(**adjustments),
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
            bind_socket=False,
        )
        self.environ = self._environ()

    def _environ(self) -> dict[str, Any]:
        """What the environs of all requests have in common."""
        return {
            "SERVER_NAME": self.server_name,
            "SERVER_PORT": str(self.effective_port),
            "SERVER_SOFTWARE": self.adj.ident,
            "SCRIPT_NAME": "",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }

    def getsockname(self) -> tuple[str, int]:
        host, port, *_ = self.socket.getsockname()
        return host, port

    def set_socket_options(self, conn: socket.socket) -> None:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def accept_connections(self) -> None:
        self.accepting = True
        self.socket.listen(self.adj.backlog)
        self._acceptor = self.loop.io(self.socket.fileno(), READ)
        self._acceptor.start(self._on_acceptable)
        self._sweeper = self.loop.timer(SWEEP_SECONDS, SWEEP_SECONDS)
        self._sweeper.start(self._sweep)

    def pull_trigger(self) -> None:
        """Nothing waits in another thread."""

    def _on_acceptable(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                conn, addr = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._pause_accepting(error)
                return
            no_room = self._is_full(conn)
            self.set_socket_options(conn)
            channel = self.channel_class(self, conn, self.fix_addr(addr), self.adj, map=self._map)
            if no_room is not None:
                channel.lack_room(no_room)

    def _pause_accepting(self, error: OSError) -> None:
        """Out of descriptors: the connection stays in the backlog, and a level-triggered watcher
        would spin on it."""
        if error.errno in (errno.ECONNABORTED, errno.EINTR):
            return
        self._unaccepted_log.warning("cannot accept a connection: %s; trying again in 0.2 s", error)
        self._acceptor.stop()
        timer = self.loop.timer(0.2)
        timer.start(self._resume_accepting)
        self._resumer = timer

    def _resume_accepting(self) -> None:
        if not self.stopping:
            self._acceptor.start(self._on_acceptable)

    def _is_full(self, conn: socket.socket) -> KvError | None:
        """Why there is no room for the connection, if there is none."""
        limit = self.adj.connection_limit
        if len(self.active_channels) >= limit:
            message = f"{limit} connections are open, the limit (--max-connections)"
            return KvError("too_busy", message, limit=limit)
        # the kernel gives out the lowest number that is free, so this one tells how many are left
        if conn.fileno() >= self._max_descriptor:
            self._unaccepted_log.warning(
                "refused a connection: the limit of %d open files leaves no room for it: raise it "
                "(ulimit -n, LimitNOFILE=)",
                self._max_descriptor + SPARE_DESCRIPTORS,
            )
            return KvError("too_busy", "the process may not open more connections (ulimit -n)")
        return None

    def turn_away(self, conn: socket.socket, error: KvError) -> None:
        """Say that there is no room to a client that has not asked for anything yet."""
        request_id = new_id()  # that of the request was not read
        status, headers, body = rendered(error, request_id)
        self.counters.turn_away(status)
        headers |= {"content-length": str(len(body)), "connection": "close", "x-request-id": request_id}
        lines = "\r\n".join(f"{name}: {value}" for name, value in headers.items())
        try:
            conn.send(f"HTTP/1.1 {status}\r\n{lines}\r\n\r\n".encode("latin-1") + body)
        except OSError:
            conn.close()
            return
        self.linger(conn)

    def held_changed(self, channel: Channel, change: int, held: int) -> None:
        """``channel`` holds ``held`` bytes, which is a ``change``.

        While all together hold too much, the connection on which nothing has moved for longest is closed:
        those who read and send go on.
        """
        self._held += change
        if held:
            self._holding.add(channel)
        else:
            self._holding.discard(channel)
        while self._held > self._max_held and change > 0 and self._holding:
            victim = min(self._holding, key=lambda each: (each.waits_for_daemon, each.last_activity))
            self._cut_off_log.warning(
                "clients that do not read or send make this worker keep more than %d bytes "
                "(--max-held-bytes): closed the connection of %s, on which nothing moved for longest",
                self._max_held,
                victim.addr[0],
            )
            victim.handle_close()

    def linger(self, sock: socket.socket) -> None:
        """Close ``sock`` once its peer has, or after LINGER_SECONDS.

        Closing with unread input makes the kernel reset the connection, and the reset overtakes the
        response that says why.
        """
        _Lingering(sock, self.loop, self._lingering)

    def _sweep(self) -> None:
        now = time.monotonic()
        for channel in list(self.active_channels.values()):
            channel.sweep(now)

    def stop_accepting(self) -> None:
        """Take what has already arrived, close the listening socket and the idle connections; those
        with a request in flight end after its response. Runs in the hub."""
        self.stopping = True
        self._on_acceptable()
        self._acceptor.close()
        self.accepting = False
        self.socket.close()
        for channel in list(self.active_channels.values()):
            channel.finish()

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight and no response unsent."""
        return not self.active_channels and not self._lingering

    def close(self) -> None:
        """Drop everything at once."""
        self._acceptor.close()
        self._sweeper.close()
        for channel in list(self.active_channels.values()):
            channel.handle_close()
        for lingering in list(self._lingering.values()):
            lingering.close()
        super().close()


class _Lingering:
    """A socket whose response is sent and whose further input is thrown away."""

    def __init__(self, sock: socket.socket, loop: Any, registry: dict[int, _Lingering]) -> None:
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


def make_adjustments(*, max_body_bytes: int, max_header_bytes: int, max_connections: int) -> Adjustments:
    """waitress's settings for this server."""
    return Adjustments(
        sockets=[],
        ident="kvstore",
        backlog=BACKLOG,
        recv_bytes=64 * 1024,
        connection_limit=max_connections,
        # waitress refuses at the limit, the option promises that the limit itself is still taken
        max_request_body_size=max_body_bytes + 1,
        max_request_header_size=max_header_bytes,
        # buffers of this size and more go to temporary files, which block the loop: only for bodies
        # far beyond the largest value
        inbuf_overflow=4 * 1024 * 1024,
        outbuf_overflow=64 * 1024 * 1024,
        # a connection stays readable while its request is served, so that its end is noticed
        channel_request_lookahead=2,
        # forwarded headers are neither trusted nor used; dropping them costs a wrapper per request
        clear_untrusted_proxy_headers=False,
        threads=1,
    )
