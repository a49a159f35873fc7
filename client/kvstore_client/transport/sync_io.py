"""Waiting in the calling thread."""

from __future__ import annotations

import queue
import time
from typing import TypeVar

import zmq

from kvstore_client.transport import forks
from kvstore_client.transport.connection import Connection, RequestBody
from kvstore_client.transport.contexts import OwningContext
from kvstore_client.transport.pool import PoolBase, pool_timeout
from kvstore_client.transport.wait import IoGenerator
from kvstore_core.wire import Reply

T = TypeVar("T")

sleep = time.sleep

Context = OwningContext


def drive(generator: IoGenerator[T]) -> T:
    """Run ``generator`` to its end. If the wait is interrupted, the generator is closed, so that it
    leaves its sockets in order."""
    try:
        while True:
            wait = next(generator)
            zmq.zmq_poll(wait.sockets, wait.milliseconds())
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    finally:
        generator.close()


def exchange(connection: Connection, body: RequestBody, seconds: float) -> Reply:
    """The reply to a request over ``connection``; raises as :meth:`Connection.call` does."""
    answer = connection.call_at_once(body, seconds)
    return answer if isinstance(answer, Reply) else drive(answer)


class ConnectionPool(PoolBase):
    """The connections of a client that threads may share."""

    _context_class = Context

    def _open(self) -> None:
        # a token for each call that may be under way: a semaphore is written in Python, and slower
        self._slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self._size):
            self._slots.put(None)
        super()._open()

    def take(self, seconds: float, body: RequestBody) -> Connection:
        """A connection for one call, to be given back. Waits while all are in use, and raises
        ``timed_out`` after ``seconds``."""
        if self._generation != forks.generation():
            with forks.lock:
                if self._generation != forks.generation():
                    self._replace_inherited()
        slots = self._slots
        try:
            slots.get(timeout=seconds)
        except queue.Empty as error:
            raise pool_timeout(seconds, body) from error
        try:
            connection = self._idle_or_new()
        except BaseException:
            slots.put(None)
            raise
        connection.slots = slots
        return connection

    def give_back(self, connection: Connection) -> None:
        """The call is over, however it ended."""
        self._keep(connection)
        connection.slots.put(None)
