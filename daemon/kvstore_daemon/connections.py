"""Who is connected to a socket. ØMQ keeps its peers to itself; a monitor tells of their connections."""

from __future__ import annotations

import socket as plain_socket
import struct
from contextlib import suppress

import zmq

_ACCEPTED, _ENDED = int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)
_EVENT = struct.Struct("=HI")
_NOBLOCK = int(zmq.NOBLOCK)


class Connections:
    """The connections of one bound socket, each named by its descriptor in this process.

    libzmq tells of a connection before it hands over what came on it, and of its end before the system
    can give the descriptor to the next one. So after :meth:`take`, ``open`` holds every connection that
    anything was received from and that has not ended.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], name: str) -> None:
        """Watch ``socket``, which is not bound yet; ``name`` is its own in this context."""
        address = f"inproc://connections-of-{name}"
        socket.monitor(address, _ACCEPTED | _ENDED)
        self._monitor = context.socket(zmq.PAIR)
        # no limit: libzmq's thread would wait for room, and everything with it
        self._monitor.rcvhwm = 0
        self._monitor.linger = 0
        self._monitor.connect(address)
        self.open: set[int] = set()
        # the descriptor tells of nothing before the socket was once found to be empty
        self.take()

    def fileno(self) -> int:
        """The descriptor to watch; edge-triggered, and consumed by any call."""
        return self._monitor.fileno()

    def take(self) -> tuple[list[int], list[int]]:
        """Take note of what happened since the last call; returns the connections that began and those
        that ended. One may be in both: ``open`` says what came last."""
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
        """End a connection: libzmq, which has no call for it, finds it closed by the other side."""
        if descriptor in self.open:
            with suppress(OSError):
                connection = plain_socket.socket(fileno=descriptor)
                try:
                    connection.shutdown(plain_socket.SHUT_RDWR)
                finally:
                    connection.detach()

    def close(self) -> None:
        """Stop watching; the socket itself is its owner's to close, before this."""
        self._monitor.close()
