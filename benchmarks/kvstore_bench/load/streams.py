"""Thousands of streams read by one process: an epoll loop that counts one byte of each delivery.

The same loop reads server-sent events, etcd's watch responses, Redis's messages and ZeroMQ's frames,
so no contender's subscriber is cheaper than another's. Each delivery holds the contender's token once
and nothing else that is sent does, so that it does not matter where a read cuts the stream.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Self

BUFFER_BYTES = 256 * 1024
GATHER_SECONDS = 0.005
"""A pause between two rounds of reading: a stream that was sent several events is read once."""
QUIET_SECONDS = 0.3
PATIENCE_SECONDS = 60.0


class Streams:
    """Connections to one port, on each of which deliveries are counted by the ``token`` they hold."""

    def __init__(self, port: int, token: bytes) -> None:
        self._port = port
        self._token = token
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._buffer = bytearray(BUFFER_BYTES)
        self.counts: dict[int, int] = {}
        self.total = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._poll.close()

    def __len__(self) -> int:
        return len(self._sockets)

    def open(self, count: int, hello: bytes, opened: bytes, last: bytes = b"") -> None:
        """Open ``count`` more streams, a few hundred at once: each sends ``hello``, is open once the
        answer holds ``opened``, and then sends ``last``."""
        for first in range(0, count, 200):
            fresh = [self._connect(hello) for _ in range(first, min(count, first + 200))]
            for sock in fresh:
                _read_until(sock, opened)
                sock.sendall(last)
                sock.setblocking(False)
                self._sockets[sock.fileno()] = sock
                self.counts[sock.fileno()] = 0
                self._poll.register(sock.fileno(), select.EPOLLIN)

    def _connect(self, hello: bytes) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_SECONDS)
        sock.sendall(hello)
        return sock

    def read(self, seconds: float) -> list[float]:
        """Wait up to ``seconds`` for anything, read each stream that has something once, and give for
        each that had a delivery when it was read, by the monotonic clock."""
        found: list[float] = []
        for fd, _ in self._poll.poll(seconds, len(self._sockets)):
            size = self._sockets[fd].recv_into(self._buffer)
            if not size:
                raise RuntimeError(f"a stream was ended by the server after {self.counts[fd]} deliveries")
            if came := self._buffer.count(self._token, 0, size):
                self.counts[fd] += came
                self.total += came
                found.append(time.monotonic())
        return found

    def read_until(self, total: int) -> None:
        """Read until all streams together have had ``total`` deliveries."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.total < total:
            self.read(1)
            if self.total < total:
                time.sleep(GATHER_SECONDS)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{total - self.total} of {total} deliveries did not come")

    def drain(self) -> None:
        """Read until nothing has come for a while, and begin to count anew."""
        while self.read(QUIET_SECONDS):
            pass
        self.counts = dict.fromkeys(self.counts, 0)
        self.total = 0


def _read_until(sock: socket.socket, wanted: bytes) -> None:
    found = b""
    while wanted not in found:
        data = sock.recv(65536)
        if not data:
            raise RuntimeError(f"a stream was refused: {found[:300]!r}")
        found += data


class Writer:
    """A few connections over which changes are made, from the thread that reads the streams.

    ``request`` is sent for each change and its answer holds ``answer`` once.
    """

    def __init__(self, port: int, request: bytes, answer: bytes, connections: int = 1) -> None:
        self._request = request
        self._answer = answer
        self._wanted = [0] * connections
        self._sockets = [
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
            for _ in range(connections)
        ]
        for sock in self._sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    def send(self, changes: int) -> None:
        """Spread so many changes over the connections; those of one go out together."""
        for number, sock in enumerate(self._sockets):
            mine = len(range(number, changes, len(self._sockets)))
            self._wanted[number] += mine
            sock.sendall(self._request * mine)

    def finish(self) -> None:
        """Wait until everything is answered."""
        for number, sock in enumerate(self._sockets):
            while self._wanted[number] > 0:
                data = sock.recv(1 << 20)
                if not data:
                    raise RuntimeError("the server closed a connection for writing")
                self._wanted[number] -= data.count(self._answer)
