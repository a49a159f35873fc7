"""The sockets of the daemon: how requests reach the REP pool, and where changes are published.

Threads: the broker's two sockets belong to its own thread from the moment it starts, and everything
else to the loop's. No socket is ever touched from two threads.

Why a pool of REP sockets behind a proxy and not one ROUTER read by the loop: the proxy is C code that
runs without the interpreter lock, and a REP socket strips and keeps the envelope itself, so one request
costs Python one receive and one send. Measured, it serves twice as many requests.
"""

from __future__ import annotations

import logging
import os
import socket as plain_socket
import stat
import threading
from contextlib import suppress
from pathlib import Path

import zmq

from kvstore_client.errors import KvError

log = logging.getLogger(__name__)

Frames = list[bytes]

POOL_ENDPOINT = "inproc://responders"
STEERING_ENDPOINT = "inproc://broker"
FLUSH_MS = 1_000
"""How long a closing socket may take to hand the last replies or changes to the network."""

REQUEST_FRAMES = 2
ROUTER_QUEUE = 128
RESPONDER_QUEUE = 8
REPLY_QUEUE = 10_000
ZERO_COPY_BYTES = 64 * 1024

# plain integers: pyzmq's enums take longer to combine than the socket takes to receive
_EVENTS, _RCVMORE, _POLLIN = int(zmq.EVENTS), int(zmq.RCVMORE), int(zmq.POLLIN)
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)


def listen(socket: zmq.Socket[bytes], endpoint: str, option: str) -> str:
    """Bind ``socket`` and return the endpoint it got, with the real port where 0 was asked for.

    Raises ``unavailable`` with a sentence that names ``option`` if the endpoint cannot be used.
    """
    _leave_to_its_owner(endpoint, option)
    # Only for an address written with brackets: with IPv6 on, a plain 127.0.0.1 becomes ::ffff:127.0.0.1
    # in everything that is reported.
    socket.ipv6 = "[" in endpoint
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 60)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 20)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise _cannot_listen(endpoint, str(error.strerror).lower(), option) from error
    bound: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
    return bound.decode()


def forget(endpoint: str) -> None:
    """Remove what :func:`listen` made in the file system; libzmq does not."""
    path = _socket_path(endpoint)
    if path is not None:
        with suppress(OSError):
            Path(path).unlink()


def _socket_path(endpoint: str) -> str | None:
    """The path of an ``ipc://`` endpoint; None of one that is no file (abstract names begin with @)."""
    scheme, _, path = endpoint.partition("://")
    return path if scheme == "ipc" and not path.startswith(("@", "*")) else None


def _cannot_listen(endpoint: str, reason: str, option: str) -> KvError:
    return KvError(
        "unavailable", f"cannot listen on {endpoint}: {reason}; choose another address with {option}"
    )


def _leave_to_its_owner(endpoint: str, option: str) -> None:
    """Raise ``unavailable`` if an ``ipc://`` path is somebody's: libzmq removes whatever is there before
    it binds, a living daemon's socket and a file that is none too. What a crash left may be removed."""
    path = _socket_path(endpoint)
    if path is None:
        return
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise _cannot_listen(endpoint, "there is a file that is no socket", option)
        is_alive = _accepts_connections(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_listen(endpoint, str(error.strerror).lower(), option) from error
    if is_alive:
        raise _cannot_listen(endpoint, "address in use, perhaps by another daemon: stop that one", option)


def _accepts_connections(path: str) -> bool:
    """Whether a process listens on the socket at ``path``."""
    with plain_socket.socket(plain_socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # more connections wait for it than it allows
            return True
    return True


class Broker:
    """Joins the request address with the pool: a ROUTER and a DEALER under ``zmq_proxy_steerable``."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, max_frame_bytes: int) -> None:
        """Bind; raises ``unavailable`` as :func:`listen` does. Nothing is forwarded before :meth:`start`."""
        self._context = context
        self._front = self._make_front(max_frame_bytes)
        try:
            self.endpoint = listen(self._front, endpoint, "--requests")
        except KvError:
            self._front.close(0)
            raise
        self._back = context.socket(zmq.DEALER)
        self._back.linger = 0
        # Short queues: what no responder can take waits with its sender, where TCP bounds it.
        self._back.sndhwm = RESPONDER_QUEUE
        self._back.bind(POOL_ENDPOINT)
        self._control = context.socket(zmq.PAIR)
        self._control.bind(STEERING_ENDPOINT)
        self._steering = context.socket(zmq.PAIR)
        self._steering.connect(STEERING_ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)

    def _make_front(self, max_frame_bytes: int) -> zmq.Socket[bytes]:
        front = self._context.socket(zmq.ROUTER)
        front.linger = FLUSH_MS
        front.maxmsgsize = max_frame_bytes
        front.rcvhwm = ROUTER_QUEUE
        front.sndhwm = REPLY_QUEUE
        # A client that comes back under the identity it chose takes over from its dead connection.
        # ROUTER_MANDATORY stays off: a reply to a client that has gone must vanish, not stop the proxy.
        front.router_handover = True
        return front

    def start(self) -> None:
        """Begin to forward, in the broker's own thread."""
        self._thread.start()

    def _run(self) -> None:
        """The broker's thread."""
        try:
            zmq.proxy_steerable(self._front, self._back, None, self._control)
            self._forward_last_replies()
        except zmq.ZMQError:
            log.exception("the proxy between the request address and the pool has stopped")
        finally:
            for socket in (self._back, self._control):
                socket.close(0)
            self._front.close()

    def _forward_last_replies(self) -> None:
        """The proxy stops between two messages: replies that the pool gave before are still to be sent."""
        with suppress(zmq.Again):
            while True:
                self._front.send_multipart(self._back.recv_multipart(zmq.NOBLOCK))

    def stop(self) -> None:
        """Stop forwarding after the replies that were given so far; requests still queued are dropped."""
        if self._thread.is_alive():
            self._steering.send(b"TERMINATE")
            self._thread.join()
        forget(self.endpoint)
        self._steering.close(0)

    def is_alive(self) -> bool:
        """Whether requests are being forwarded."""
        return self._thread.is_alive()


class Responder:
    """One REP socket of the pool, used by the loop's thread only.

    Its descriptor is edge-triggered inside ØMQ: it becomes readable once when the socket's state
    changes, only if the socket was last seen without a message, and any call may consume that. So
    :meth:`has_request` is to be asked at the start, whenever the descriptor was readable, and again
    after every :meth:`reply`.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._socket = context.socket(zmq.REP)
        self._socket.linger = FLUSH_MS
        self._socket.rcvhwm = RESPONDER_QUEUE
        self._socket.connect(POOL_ENDPOINT)

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    def has_request(self) -> bool:
        """Whether a request can be received. False from :meth:`receive` to :meth:`reply`."""
        events: int = self._socket.getsockopt(_EVENTS)  # type: ignore[assignment]
        return events & _POLLIN != 0

    def receive(self) -> Frames | None:
        """The next request's frames; of one with too many, the first few that show it.

        None if there was no request after all: the socket is readable too when all it holds is a
        message without the empty delimiter, which it drops here because nobody could be answered.
        """
        socket = self._socket
        try:
            frames = [socket.recv(_NOBLOCK)]
        except zmq.Again:
            return None
        while socket.getsockopt(_RCVMORE):
            part = socket.recv(_NOBLOCK)
            if len(frames) <= REQUEST_FRAMES:
                frames.append(part)
        return frames

    def reply(self, frames: Frames) -> None:
        """Answer the request that was received last."""
        *first, last = frames
        for frame in first:
            self._send(frame, _NOBLOCK | _SNDMORE)
        self._send(last, _NOBLOCK)

    def _send(self, frame: bytes, flags: int) -> None:
        self._socket.send(frame, flags, copy=len(frame) < ZERO_COPY_BYTES)

    def close(self) -> None:
        """Close the socket; a reply already given still goes out."""
        self._socket.close()
