"""The connections of a socket, how many there may be, and what has come on them.

ØMQ hides its peers; a monitor reports them, and the system knows the rest."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket as plain_socket
import struct
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import zmq

from kvstore_core.addresses import shown_address
from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog
from kvstore_core.wall_clock import now_ms
from kvstore_daemon.process_usage import max_files, open_files

log = logging.getLogger("kvstore.daemon")

SPARE_FILES = 48
"""Descriptors that are not for connections: the sockets and their threads take 15 of them; the rest is for a
backup, for status, and for connections that are closed as soon as they were accepted."""

FEWEST_CONNECTIONS = 8
"""The daemon does not start if it could have only fewer."""

SWEEP_SECONDS = 2.0
"""How often all connections are looked at: epoll does not report what libzmq reads before epoll looks."""

CURVE_OVERHEAD = 33
"""By how many bytes CURVE makes a frame longer: its name, a nonce, the authenticator and the flags."""

_HEARTBEAT_RATE = 16

_ACCEPTED, _ENDED = int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)
_EVENT = struct.Struct("=HI")
_NOBLOCK = int(zmq.NOBLOCK)

_TCP_INFO_BYTES = 136
_INT = struct.Struct("=i")
_COUNTS = struct.Struct("=QQ")
_COUNTS_AT = 120
"""The offset of tcpi_bytes_acked and tcpi_bytes_received in struct tcp_info (Linux 4.1)."""


class ConnectionLimit:
    """How many connections all sockets of the daemon may have together.

    Without it, connections would take the last descriptor. libzmq then fails to accept the next one, and
    tries again without a pause: that takes a whole core, and nothing is logged."""

    def __init__(self) -> None:
        """Measure it; to be called once everything is open but the sockets.

        Raises ``unavailable`` if the limit of open files leaves no room for clients.
        """
        self._files = max_files()
        taken = (open_files() or 0) + SPARE_FILES
        self.max = self._files - taken
        """The most connections there may be."""
        if self.max < FEWEST_CONNECTIONS:
            raise KvError(
                "unavailable",
                f"{self._files} open files are allowed, which leaves no room for clients: allow at least "
                f"{taken + FEWEST_CONNECTIONS} (ulimit -n, LimitNOFILE=)",
            )
        self._sockets: list[Connections] = []
        self._cut_off: deque[int] = deque()
        self._refused = RateLimitedLog(log)

    def add(self, connections: Connections) -> None:
        """Count these too."""
        self._sockets.append(connections)

    @property
    def open(self) -> int:
        """How many connections are open."""
        return sum(len(each.open) for each in self._sockets)

    def log_refused(self, name: str) -> None:
        """Log, now and then, that a connection to the address called ``name`` was refused."""
        self._refused.warning(
            "closed a new connection to the %s address: %d connections are open, as many as there is room "
            "for with %d open files: raise that limit (ulimit -n, LimitNOFILE=)",
            name,
            self.max,
            self._files,
        )

    def note_cut_off(self, descriptor: int) -> None:
        """Note that a connection was cut off; any thread may."""
        self._cut_off.append(descriptor)

    def take_cut_off(self) -> int:
        """How many were cut off since the last call."""
        count = 0
        while self._cut_off:
            self._cut_off.popleft()
            count += 1
        return count


class Connections:
    """The connections of one bound socket, each named by its descriptor in this process.

    libzmq reports a connection before it hands over what came on it, and its end before the system can give
    the descriptor to the next one. So after :meth:`take`, ``open`` holds every connection that anything was
    received from and that has not ended, except those beyond the :class:`ConnectionLimit`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
        name: str,
        limit: ConnectionLimit,
    ) -> None:
        """Watch ``socket``, which is not bound yet; ``name`` is unique in this context."""
        self._name, self._limit = name, limit
        address = f"inproc://connections-of-{name}"
        socket.monitor(address, _ACCEPTED | _ENDED)
        self._monitor = context.socket(zmq.PAIR)
        # no limit: libzmq's thread would wait for room, and everything with it
        self._monitor.rcvhwm = 0
        self._monitor.linger = 0
        self._monitor.connect(address)
        self.open: dict[int, int] = {}
        """When each began, in milliseconds since 1970."""
        limit.add(self)
        # the descriptor signals nothing before the socket was found empty once
        self.take()

    def fileno(self) -> int:
        """The descriptor to watch; edge-triggered, and consumed by any call."""
        return self._monitor.fileno()

    def take(self) -> tuple[list[int], list[int]]:
        """Take note of what happened since the last call; returns the connections that began and those
        that ended. One may be in both: ``open`` says what came last. Beyond the limit, the newest are
        closed."""
        begun, ended = self._receive()
        while begun and self._limit.open > self._limit.max:
            newest = begun.pop()
            if newest in self.open:
                self.shut(newest)
                # it no longer counts, and nothing that comes on it is accepted
                self.open.pop(newest, None)
                self._limit.log_refused(self._name)
        return begun, ended

    def _receive(self) -> tuple[list[int], list[int]]:
        begun: list[int] = []
        ended: list[int] = []
        while True:
            try:
                event, descriptor = _EVENT.unpack(self._monitor.recv(_NOBLOCK))
                self._monitor.recv(_NOBLOCK)
            except zmq.Again:
                return begun, ended
            if event == _ACCEPTED:
                self.open[descriptor] = now_ms()
                begun.append(descriptor)
            else:
                self.open.pop(descriptor, None)
                ended.append(descriptor)

    def cut_off(self, descriptor: int) -> None:
        """End a connection because of what it makes us keep; any thread may call this."""
        if descriptor in self.open:
            self._limit.note_cut_off(descriptor)
            self.shut(descriptor)

    @staticmethod
    def shut(descriptor: int) -> None:
        """Shut a connection down, which libzmq has no call for; it sees a connection that the peer
        closed."""
        with suppress(OSError), _borrowed(descriptor) as connection:
            connection.shutdown(plain_socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop watching; its owner closes the socket itself, before this."""
        self._monitor.close()


class ConnectionWatcher(ABC):
    """A thread that measures what arrives on connections: it looks at each once at first, and again when
    something arrives. Since that may go unnoticed, classes of it look at all every ``SWEEP_SECONDS``.

    The loop cannot do this: libzmq takes in what comes whatever the loop does, and the loop may be held up by
    a slow disk, or by libzmq itself.
    """

    def __init__(self, name: str) -> None:
        """``name`` is the thread's; it runs from :meth:`start` on."""
        self._epoll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._stop, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._stop)

    def _watch(self, descriptor: int) -> None:
        """Look at a connection now, and whenever something arrives, until its descriptor is closed."""
        # EPOLLOUT makes it ready at once: libzmq may have taken in already what came before this
        with suppress(OSError):  # it may have ended already
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def _run(self) -> None:
        while True:
            ready = self._epoll.poll(self._timeout())
            for descriptor, events in ready:
                if events & select.EPOLLOUT:  # the first look; over ipc, each message taken would be one too
                    with suppress(OSError):
                        self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLET)
            descriptors = [descriptor for descriptor, _ in ready]
            if self._stop in descriptors or self._look(descriptors):
                return

    def _timeout(self) -> float:
        """Seconds until :meth:`_look` is called though nothing has arrived; -1 for never."""
        return -1

    def _pause(self, seconds: float) -> bool:
        """Sleep, so that more arrives before the next look; returns whether the thread is to stop."""
        return bool(select.select([self._stop], [], [], seconds)[0])

    @abstractmethod
    def _look(self, descriptors: list[int]) -> bool:
        """Look at those on which something has arrived; returns whether the thread is to stop."""


@contextmanager
def _borrowed(descriptor: int) -> Iterator[plain_socket.socket]:
    """A connection of libzmq's as a socket, for the block; raises OSError if it has ended."""
    connection = plain_socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def heartbeat_rate(*, is_curve: bool) -> int:
    """How many bytes a second of each connection do not count, for the ZMTP heartbeats of one that stays for
    months: one a second has 9 bytes."""
    return _HEARTBEAT_RATE + (CURVE_OVERHEAD if is_curve else 0)


def address_of(descriptor: int) -> str | None:
    """The address and port of a connection's peer, ``ipc`` for one on this machine without either; None if it
    has ended."""
    try:
        with _borrowed(descriptor) as connection:
            return shown_address(connection.getpeername())
    except OSError:
        return None


def inode_of(descriptor: int) -> int | None:
    """What tells the connection apart that has this descriptor now; None if none has."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None


def bytes_acknowledged_and_received(descriptor: int) -> tuple[int, int] | None:
    """What the peer of a TCP connection has acknowledged, and what came from it, since the connection began;
    None if it is not TCP."""
    try:
        with _borrowed(descriptor) as connection:
            info = connection.getsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_INFO, _TCP_INFO_BYTES)
        acknowledged, received = _COUNTS.unpack_from(info, _COUNTS_AT)
    except (OSError, struct.error):
        return None
    return acknowledged, received


def queued_bytes(descriptor: int, direction: int) -> int:
    """What the system holds of a connection: ``termios.FIONREAD`` what arrived and was not read yet,
    ``TIOCOUTQ`` what the peer has not acknowledged yet. 0 if the connection has ended."""
    try:
        return int(_INT.unpack(fcntl.ioctl(descriptor, direction, bytes(_INT.size)))[0])
    except OSError:
        return 0
