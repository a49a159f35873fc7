"""waitress inside the gevent hub: its parser, channels and tasks, driven by io watchers.

waitress's own poll loop asks every connection on every turn whether it wants anything, so idle connections
cost as much as busy ones. Here each channel has an io watcher: an idle connection costs only its memory.

Everything runs in one thread. A readable socket is read and parsed in the hub, and a complete request is
served inline in a raw greenlet that the hub switches to: a request that needs nothing from elsewhere is
answered without entering the loop again. Switching is what costs, and spawning a greenlet for each request
would cost more, so the greenlet leaves only to wait for the daemon or for a slow reader.

Nothing is monkey-patched. waitress's locks are taken and released without a switch in between, so they are
never contended; the one place where it waits on a condition (too much unsent output) is replaced.
"""

from __future__ import annotations

import errno
import logging
import resource
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gevent
from waitress.adjustments import Adjustments
from waitress.server import BaseWSGIServer

from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog
from kvstore_http.greenlet_pool import GreenletPool
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.protocol.environ import new_id
from kvstore_http.protocol.problems import rendered
from kvstore_http.server.access_log import AccessLog
from kvstore_http.server.certificate import Certificate
from kvstore_http.server.connection import HEADER_SECONDS, LINGER_SECONDS, Channel, LingeringClose
from kvstore_http.server.listen import BACKLOG
from kvstore_http.server.short_path import ShortPath
from kvstore_http.server.tls_socket import READ, Handshake

log = logging.getLogger("kvstore.http")

ACCEPTS_PER_TURN = 64
"""How many connections are accepted before the loop looks at the others again."""

TURN_SECONDS = 0.001
"""For how long requests for streams, or handshakes, are served before the loop looks at the others again."""

SPARE_DESCRIPTORS = 64
"""Kept for connections that are refused for lack of room, and for whatever else a process opens."""

SWEEP_SECONDS = 2.0
LATE_SECONDS = 1.0
"""A sweep that is so late comes after a pause in which this process, or the whole machine, was stopped."""

BUFFER_BYTES = 1024 * 1024
"""Default of the bytes that are kept for one connection that does not read."""
HELD_BYTES = 256 * 1024 * 1024
"""Default of the bytes that are kept for all connections of a worker together."""


class _Turns:
    """Functions that ``run`` calls in the next turns of the loop, for ``TURN_SECONDS`` in each: clients come
    back by the thousand when a worker ends, and the others do not wait for all of them."""

    def __init__(self, loop: Any, run: Callable[[Callable[[], None]], object]) -> None:
        self._run = run
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer = loop.timer(0)

    def add(self, function: Callable[[], None]) -> None:
        self._waiting.append(function)
        if not self._timer.active:
            self._timer.start(self._turn)

    def _turn(self) -> None:
        turn_ends = time.monotonic() + TURN_SECONDS
        while self._waiting:
            self._run(self._waiting.popleft())
            if time.monotonic() >= turn_ends:
                break
        if not self._waiting:
            self._timer.stop()
        elif not self._timer.active:
            self._timer.start(self._turn)

    def finish(self) -> None:
        """Call all of them now."""
        while self._waiting:
            self._run(self._waiting.popleft())

    def close(self) -> None:
        self._timer.close()


class HttpServer(BaseWSGIServer):  # type: ignore[misc]
    """Accepts connections on one bound socket and serves ``application`` on them, in the hub of the thread
    that made it. While ``stopping``, every response says that its connection ends. With a ``certificate`` it
    speaks TLS, and answers those who do not with 400.

    Requests that ``short_path`` recognises do not reach the application.
    ``environ`` is part of that of every request. A large body is read only if the application wants it, asked
    without it, where ``is_stranger`` says so of the request's headers."""

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
        certificate: Certificate | None = None,
        environ: Mapping[str, Any] | None = None,
        short_path: ShortPath | None = None,
        **adjustments: Any,
    ) -> None:
        # a streamed answer holds the next part of it as well
        self.high_watermark = buffer_bytes // 4
        self._max_held = held_bytes or HELD_BYTES
        self._held = 0
        self._holding: set[Channel] = set()
        self._cut_off_log = RateLimitedLog(log)
        self._unaccepted_log = RateLimitedLog(log)
        self.counters = counters or WorkerCounters.alone()
        self.access_log = access_log or AccessLog()
        self.short_path = short_path
        self.hub = gevent.get_hub()
        self.loop = self.hub.loop
        self.pool = GreenletPool(self.hub)
        self._lingering: dict[int, LingeringClose] = {}
        self._stream_requests = _Turns(self.loop, self.pool.run)
        self._certificate = certificate
        self._handshakes: set[Handshake] = set()
        self._handshake_steps = _Turns(self.loop, lambda step: step())
        self._max_descriptor = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS
        super().__init__(
            application,
            {},
            True,
            sock,
            dispatcher=self,
            adj=make_adjustments(**adjustments),
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
            bind_socket=False,
        )
        self.environ: dict[str, Any] = {
            "SERVER_NAME": self.server_name,
            "SERVER_PORT": str(self.effective_port),
            "SERVER_SOFTWARE": self.adj.ident,
            "SCRIPT_NAME": "",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http" if certificate is None else "https",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            **(environ or {}),
        }
        """The part of the environ that all requests share."""

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
        self._swept_at = self._patient_until = time.monotonic()
        self._sweeper = self.loop.timer(SWEEP_SECONDS, SWEEP_SECONDS)
        self._sweeper.start(self._sweep)

    def add_task(self, task: Channel) -> None:
        """Nothing: waitress holds a lock here, and the channel serves its requests after the read."""

    def pull_trigger(self) -> None:
        """Nothing: no other thread waits."""

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
            if self._certificate is None:
                self._open(addr, no_room, conn)
            else:
                self._begin_handshake(self._certificate, addr, no_room, conn)

    def _open(self, addr: Any, no_room: KvError | None, conn: socket.socket) -> None:
        channel = self.channel_class(self, conn, self.fix_addr(addr), self.adj, map=self._map)
        if no_room is not None:
            channel.refuse_for(no_room)

    def _begin_handshake(
        self, certificate: Certificate, addr: Any, no_room: KvError | None, conn: socket.socket
    ) -> None:
        handshake = Handshake(
            conn,
            certificate.context,
            HEADER_SECONDS if no_room is None else LINGER_SECONDS,
            self.loop,
            self._handshake_steps.add,
            self._handshake_ended,
            partial(self._open, addr, no_room),
            self.reject,
        )
        self._handshakes.add(handshake)

    def _handshake_ended(self, handshake: Handshake, has_failed: bool) -> None:
        self._handshakes.discard(handshake)
        if has_failed:
            self.counters.handshake_failed()

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
        """Why there is no room for the connection; None if there is."""
        limit = self.adj.connection_limit
        if len(self.active_channels) + len(self._handshakes) >= limit:
            message = f"{limit} connections are open, the limit (--max-connections)"
            return KvError("too_busy", message, limit=limit)
        # the kernel gives out the lowest free number, so this one shows how many are left
        if conn.fileno() >= self._max_descriptor:
            self._unaccepted_log.warning(
                "refused a connection: the limit of %d open files leaves no room for it: raise it "
                "(ulimit -n, LimitNOFILE=)",
                self._max_descriptor + SPARE_DESCRIPTORS,
            )
            return KvError("too_busy", "the process may not open more connections (ulimit -n)")
        return None

    def reject(self, conn: socket.socket, error: KvError) -> None:
        """Answer a client with ``error`` before it has sent a request."""
        request_id = new_id()
        status, headers, body = rendered(error, request_id)
        self.counters.connection_rejected(status)
        headers |= {"content-length": str(len(body)), "connection": "close", "x-request-id": request_id}
        lines = "\r\n".join(f"{name}: {value}" for name, value in headers.items())
        try:
            conn.send(f"HTTP/1.1 {status}\r\n{lines}\r\n\r\n".encode("latin-1") + body)
        except OSError:
            conn.close()
            return
        self.linger(conn)

    def serve_stream(self, serve: Callable[[], None]) -> None:
        """Let ``serve`` serve a request for a stream, in one of the next turns of the loop."""
        self._stream_requests.add(serve)

    def held_changed(self, channel: Channel, change: int, held: int) -> None:
        """``channel`` now holds ``held`` bytes, ``change`` more than before.

        While all together hold too much, the connection that has been still for longest is closed: clients
        that read and send go on.
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
        """Close ``sock`` without losing the response that it was sent."""
        LingeringClose(sock, self.loop, self._lingering)

    def _sweep(self) -> None:
        now = time.monotonic()
        if now - self._swept_at > SWEEP_SECONDS + LATE_SECONDS:
            self._patient_until = now + LATE_SECONDS  # what clients sent meanwhile is to be read first
        self._swept_at = now
        if now < self._patient_until:
            return
        for each in (*self.active_channels.values(), *self._handshakes):
            each.sweep(now)

    def stop_accepting(self) -> None:
        """Take what has already arrived, close the listening socket, the idle connections and those whose
        handshake is not done; connections with a request in flight end after its response. Runs in the
        hub."""
        self.stopping = True
        self._on_acceptable()
        self._acceptor.close()
        self.accepting = False
        self.socket.close()
        self._handshake_steps.finish()
        for handshake in list(self._handshakes):
            handshake.close()
        for channel in list(self.active_channels.values()):
            channel.finish()
        self._stream_requests.finish()

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight and no response unsent."""
        return not self.active_channels and not self._lingering

    def close(self) -> None:
        """Drop everything at once."""
        self._acceptor.close()
        self._sweeper.close()
        self._stream_requests.close()
        self._handshake_steps.close()
        for handshake in list(self._handshakes):
            handshake.close()
        for channel in list(self.active_channels.values()):
            channel.handle_close()
        for lingering in list(self._lingering.values()):
            lingering.close()
        super().close()


def make_adjustments(
    *,
    max_body_bytes: int,
    max_header_bytes: int,
    max_connections: int,
    is_stranger: Callable[[dict[str, str]], bool] = lambda _headers: False,
) -> Adjustments:
    """waitress's settings for this server, and ``is_stranger`` for the parser, which gets nothing else."""
    adjustments = Adjustments(
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
    adjustments.is_stranger = is_stranger
    return adjustments
