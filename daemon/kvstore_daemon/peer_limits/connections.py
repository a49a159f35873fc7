"""Who is connected to a socket. ØMQ keeps its peers to itself; a monitor tells of their connections."""

from __future__ import annotations

import logging
import socket as plain_socket
import struct
from collections import deque
from contextlib import suppress

import zmq

from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog
from kvstore_daemon.process_usage import max_files, open_files

log = logging.getLogger("kvstore.daemon")

SPARE_FILES = 48
"""Descriptors that are not for connections: the sockets themselves with their threads take 15 of them, the
rest is for a backup, for status, and for connections that are closed as soon as they were accepted."""

FEWEST_CONNECTIONS = 8
"""With room for fewer the daemon does not start."""

_ACCEPTED, _ENDED = int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)
_EVENT = struct.Struct("=HI")
_NOBLOCK = int(zmq.NOBLOCK)


class ConnectionLimit:
    """How many connections may be open to the sockets of the daemon together.

    Without it, they would take the last descriptor. libzmq cannot accept the next one then, and tries to
    without a pause: a whole core is spent on it, and nothing is said.
    """

    def __init__(self) -> None:
        """Measure it; to be called once everything is open but the sockets.

        Raises ``unavailable`` where the limit of open files leaves no room for clients.
        """
        self._files = max_files()
        taken = (open_files() or 0) + SPARE_FILES
        self.limit = self._files - taken
        """The most connections there may be."""
        if self.limit < FEWEST_CONNECTIONS:
            raise KvError(
                "unavailable",
                f"{self._files} open files are allowed, which leaves no room for clients: allow at least "
                f"{taken + FEWEST_CONNECTIONS} (ulimit -n, LimitNOFILE=)",
            )
        self.cut_off: deque[int] = deque()
        """For each connection that was cut off and not counted yet, its descriptor; any thread may add."""
        self._watched: list[Connections] = []
        self._refused = RateLimitedLog(log)

    def add(self, connections: Connections) -> None:
        """Count these too."""
        self._watched.append(connections)

    @property
    def taken(self) -> int:
        """How many connections are open."""
        return sum(len(each.open) for each in self._watched)

    def tell(self, name: str) -> None:
        """Log, now and then, that a connection to the address called ``name`` was refused."""
        self._refused.warning(
            "closed a new connection to the %s address: %d connections are open, as many as there is room "
            "for with %d open files: raise that limit (ulimit -n, LimitNOFILE=)",
            name,
            self.limit,
            self._files,
        )


class Connections:
    """The connections of one bound socket, each named by its descriptor in this process.

    libzmq tells of a connection before it hands over what came on it, and of its end before the system
    can give the descriptor to the next one. So after :meth:`take`, ``open`` holds every connection that
    anything was received from and that has not ended, except those beyond the :class:`ConnectionLimit`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
        name: str,
        room: ConnectionLimit,
    ) -> None:
        """Watch ``socket``, which is not bound yet; ``name`` is its own in this context."""
        self._name, self._room = name, room
        address = f"inproc://connections-of-{name}"
        socket.monitor(address, _ACCEPTED | _ENDED)
        self._monitor = context.socket(zmq.PAIR)
        # no limit: libzmq's thread would wait for room, and everything with it
        self._monitor.rcvhwm = 0
        self._monitor.linger = 0
        self._monitor.connect(address)
        self.open: set[int] = set()
        room.add(self)
        # the descriptor tells of nothing before the socket was once found to be empty
        self.take()

    def fileno(self) -> int:
        """The descriptor to watch; edge-triggered, and consumed by any call."""
        return self._monitor.fileno()

    def take(self) -> tuple[list[int], list[int]]:
        """Take note of what happened since the last call; returns the connections that began and those
        that ended. One may be in both: ``open`` says what came last. Of more connections than there is room
        for, the newest are closed."""
        begun, ended = self._receive()
        while begun and self._room.taken > self._room.limit:
            newest = begun.pop()
            if newest in self.open:
                self._shut(newest)
                # it counts no more, and nothing that comes on it is heard
                self.open.discard(newest)
                self._room.tell(self._name)
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
                self.open.add(descriptor)
                begun.append(descriptor)
            else:
                self.open.discard(descriptor)
                ended.append(descriptor)

    def cut_off(self, descriptor: int) -> None:
        """End a connection, because of what it makes us keep; any thread may ask for it."""
        if descriptor in self.open:
            self._room.cut_off.append(descriptor)
            self._shut(descriptor)

    @staticmethod
    def _shut(descriptor: int) -> None:
        """libzmq, which has no call for it, finds the connection closed by the other side."""
        with suppress(OSError):
            connection = plain_socket.socket(fileno=descriptor)
            try:
                connection.shutdown(plain_socket.SHUT_RDWR)
            finally:
                connection.detach()

    def close(self) -> None:
        """Stop watching; the socket itself is its owner's to close, before this."""
        self._monitor.close()
