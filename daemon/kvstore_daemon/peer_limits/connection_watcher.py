"""A thread of its own that is woken by what arrives on connections, and measures it.

The loop cannot be the one: libzmq takes in what comes whatever the loop does, and the loop may be held up by
a slow disk, or by libzmq itself.
"""

from __future__ import annotations

import os
import select
import socket as plain_socket
import struct
import threading
from abc import ABC, abstractmethod
from contextlib import suppress

_TCP_INFO_BYTES = 136
_COUNTS = struct.Struct("=QQ")
_COUNTS_AT = 120
"""Where tcpi_bytes_acked and tcpi_bytes_received stand in struct tcp_info (Linux 4.1)."""


class ConnectionWatcher(ABC):
    """Watches descriptors: each is looked at once at first, and when something has come since."""

    def __init__(self, name: str) -> None:
        """``name`` is the thread's; it runs from :meth:`start` on."""
        self._epoll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._stop, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._stop)

    def _watch(self, descriptor: int) -> None:
        """Look at a connection once now, and when something comes, until its descriptor is closed."""
        # that it can be written to has it looked at now: what came before, libzmq may have taken in already
        with suppress(OSError):  # it may have ended already
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def _run(self) -> None:
        while True:
            descriptors = [descriptor for descriptor, _ in self._epoll.poll(self._patience())]
            if self._stop in descriptors or self._look(descriptors):
                return

    def _patience(self) -> float:
        """Seconds until :meth:`_look` is to be called though nothing has come; -1 for never."""
        return -1

    def _rest(self, seconds: float) -> bool:
        """Let things come together for a while; whether the thread is to end."""
        return bool(select.select([self._stop], [], [], seconds)[0])

    @abstractmethod
    def _look(self, descriptors: list[int]) -> bool:
        """Look at those on which something has come; whether the thread is to end."""


def bytes_acknowledged_and_received(descriptor: int) -> tuple[int, int] | None:
    """What the other side of a TCP connection has taken, and what came from it, since it began; None of one
    that is none."""
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
