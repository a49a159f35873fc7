"""A TCP relay that loses connections, for everything that must survive that."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class CuttingProxy:
    """Relays connections to a port of this machine. ``cut`` breaks all that are open, with whatever is
    under way in them, and ``swallow`` lets them live but passes nothing on any more; with
    ``cut_after_bytes`` a connection also breaks by itself after that many bytes in one direction, each as
    it is set when the connection begins."""

    def __init__(self, target: str, cut_after_bytes: int | None = None) -> None:
        self._target = ("127.0.0.1", int(target.rpartition(":")[2]))
        self.cut_after_bytes = cut_after_bytes
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._swallowed: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        _break(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def cut(self) -> None:
        """Break every open connection."""
        with self._lock:
            for end in self._open:
                _break(end)

    def swallow(self) -> None:
        """Drop all that comes on the connections that are open now, as a router does that forgot them."""
        with self._lock:
            self._swallowed |= self._open

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self.connections += 1
            with self._lock:
                self._open |= {near, far}
            self._start(self._relay, near, far)
            self._start(self._relay, far, near)

    def _relay(self, source: socket.socket, target: socket.socket) -> None:
        left = self.cut_after_bytes
        with suppress(OSError):
            while (left is None or left > 0) and (data := source.recv(65536 if left is None else left)):
                if source not in self._swallowed:
                    target.sendall(data)
                left = None if left is None else left - len(data)
        _break(target)
        _break(source)
        with self._lock:
            self._open.discard(source)
            self._swallowed.discard(source)
        source.close()


def _break(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
