"""A client's connections."""

from __future__ import annotations

import threading

from kvstore_client.transport import forks
from kvstore_client.transport.connection import SOCKETS, Connection, RequestBody
from kvstore_client.transport.contexts import OwningContext
from kvstore_core.access.login_file import CurveKeys
from kvstore_core.errors import KvError


def pool_timeout(seconds: float, body: RequestBody) -> KvError:
    """The error of a call for which no connection became free in time."""
    details = {"outcome": "none"} if body.writes else {}
    message = f"other calls of this client used all of its connections for {seconds:g} s"
    return KvError("timed_out", message, **details)


class PoolBase:
    """Up to ``size`` connections to ``endpoint``, with ``keys`` if it takes some, and the context that makes
    their sockets; the idle one used last is used next. Raises ValueError if ``endpoint`` is not one.

    To take an idle connection and to keep one needs no lock, since the list's ``pop`` and ``append`` are
    atomic. Closing the pool leaves connections in use to the calls that use them.
    """

    _context_class: type[OwningContext]

    def __init__(self, endpoint: str, size: int, keys: CurveKeys | None = None) -> None:
        self.endpoint = endpoint
        self._keys = keys
        self.is_closed = False
        self._size = size
        self._open()

    def _open(self) -> None:
        self._context = self._context_class()
        self._context.max_sockets *= SOCKETS
        self._lock = threading.Lock()
        self._made = 1
        try:
            self._idle = [Connection(self._context, self.endpoint, self._keys)]
        except (ValueError, KvError):
            self._context.term()
            raise
        # last, since other threads take it as the sign that the rest is there
        self._generation = forks.generation()

    def _replace_inherited(self) -> None:
        """Have connections of this process in place of those of the one that it was forked from."""
        forks.leave_to_parent(self._context, self._idle)
        self._open()

    def _idle_or_new(self) -> Connection:
        if self.is_closed:
            raise RuntimeError("the client is closed")
        try:
            return self._idle.pop()
        except IndexError:
            with self._lock:
                connection = Connection(self._context, self.endpoint, self._keys)
                self._made += 1
            return connection

    def _keep(self, connection: Connection) -> None:
        """Have a connection among the idle ones again."""
        if connection.generation != self._generation:
            forks.leave_to_parent(connection)
            return
        self._idle.append(connection)
        if self.is_closed:
            self._close_idle()

    def close(self) -> None:
        """Close the idle connections now and each other one when its call is over."""
        self.is_closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        if self._generation != forks.generation():
            return
        with self._lock:
            while self._idle:
                self._idle.pop().close()
                self._made -= 1
            if self._made == 0:
                self._context.term()
