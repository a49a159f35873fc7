"""A thread that is woken by what arrives on connections, and measures it.

The loop cannot do this: libzmq takes in what comes whatever the loop does, and the loop may be held up by a
slow disk, or by libzmq itself.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket as plain_socket
import struct
import threading
from abc import ABC, abstractmethod
from contextlib import suppress

_TCP_INFO_BYTES = 136
_INT = struct.Struct("=i")
_COUNTS = struct.Struct("=QQ")
_COUNTS_AT = 120
"""The offset of tcpi_bytes_acked and tcpi_bytes_received in struct tcp_info (Linux 4.1)."""


class ConnectionWatcher(ABC):
    """Watches descriptors: looks at each once at first, and again when something arrives."""

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


def bytes_acknowledged_and_received(descriptor: int) -> tuple[int, int] | None:
    """What the peer of a TCP connection has acknowledged, and what came from it, since the connection began;
    None if it is not TCP."""
    try:
        connection = plain_socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        info = connection.getsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_INFO, _TCP_INFO_BYTES)
        acknowledged, received = _COUNTS.unpack_from(info, _COUNTS_AT)
    except (OSError, struct.error):
        return None
    finally:
        connection.detach()
    return acknowledged, received


def queued_bytes(descriptor: int, direction: int) -> int:
    """What the system holds of a connection: ``termios.FIONREAD`` what arrived and was not read yet,
    ``TIOCOUTQ`` what the peer has not acknowledged yet. 0 if the connection has ended."""
    try:
        return int(_INT.unpack(fcntl.ioctl(descriptor, direction, bytes(_INT.size)))[0])
    except OSError:
        return 0
