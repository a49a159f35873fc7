"""A TCP relay that loses connections, for everything that must survive that."""

from __future__ import annotations

import socket
from typing import Self

from kvstore_contrib.testing.link import Link

_CHUNK = 65_536


class CuttingProxy(Link):
    """Relays connections to a port of this machine. ``cut`` breaks all that are open, with whatever is
    under way in them, and ``swallow`` lets them live but passes nothing on any more; with
    ``cut_after_bytes`` a connection also breaks by itself after that many bytes in one direction, each as
    it is set when the connection begins."""

    def __init__(self, target: str, cut_after_bytes: int | None = None) -> None:
        self.cut_after_bytes = cut_after_bytes
        self._swallowed: set[socket.socket] = set()
        super().__init__(int(target.rpartition(":")[2]))
        self.endpoint = f"tcp://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> None:
        """Break every open connection."""
        self.drop()

    def swallow(self) -> None:
        """Drop all that comes on the connections that are open now, as a router does that forgot them."""
        with self._lock:
            self._swallowed |= self._open

    def _pass_on(self, source: socket.socket, target: socket.socket, _: bool) -> None:
        left = self.cut_after_bytes
        while (left is None or left > 0) and (data := source.recv(_CHUNK if left is None else left)):
            if source not in self._swallowed:
                target.sendall(data)
            left = None if left is None else left - len(data)
