"""The network between a test and the service: a relay whose connections a test breaks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 65_536


class Link:
    """Relays connections from :attr:`port` to ``target``, a port of this machine, until :meth:`close`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._flows = threading.Event()
        self._is_closed = False
        self._left: int | None = None
        self.connections = 0
        """How many have been made."""
        self.cuts = 0
        """How often :meth:`reset_after` has cut the connections."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flows.set()
        self._relays: list[threading.Thread] = []
        self._accepts = threading.Thread(target=self._accept, daemon=True)
        self._accepts.start()

    def close(self) -> None:
        """Break all connections, and take no more. None of its threads runs after it."""
        self._is_closed = True
        self._flows.set()
        _break(self._listener)
        self._listener.close()
        self._accepts.join()
        self.drop()
        for relay in self._relays:
            relay.join()

    def drop(self) -> None:
        """Cut every connection that is open, with whatever is under way in it. New ones are taken."""
        with self._lock:
            for end in self._open:
                _break(end)

    @contextmanager
    def stall(self) -> Iterator[None]:
        """Let nothing through while the block runs, in either direction: connections stay open and silent.
        What was sent meanwhile arrives afterwards."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    def reset_after(self, size: int | None) -> None:
        """Cut the connections once ``size`` more bytes have come from the service, in all of them together,
        and those ``size`` bytes were passed on. Happens once; None takes it back."""
        with self._lock:
            self._left = size

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self.connections += 1
            with self._lock:
                self._open |= {near, far}
            self._relays = [relay for relay in self._relays if relay.is_alive()]
            for ends in ((near, far, False), (far, near, True)):
                self._relays.append(threading.Thread(target=self._relay, args=ends, daemon=True))
                self._relays[-1].start()

    def _relay(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            self._pass_on(source, target, is_answer)
        _break(target)
        _break(source)
        with self._lock:
            self._open.discard(source)
        source.close()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        """Relay one direction of a connection, until it ends."""
        while data := source.recv(_CHUNK):
            self._flows.wait()
            passed = self._allowed(len(data)) if is_answer else len(data)
            target.sendall(data[:passed])
            if passed < len(data):  # the cut is due
                self.drop()

    def _allowed(self, size: int) -> int:
        """How many of ``size`` bytes are passed on before the cut, all if it is not due."""
        with self._lock:
            if self._left is None or size <= self._left:
                self._left = None if self._left is None else self._left - size
                return size
            allowed, self._left = self._left, None
            self.cuts += 1
            return allowed


def _break(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
