"""Waiting in an asyncio event loop.

A ZeroMQ socket has a file descriptor that becomes readable when its state may have changed; the state
itself is in its ``EVENTS``, and reading those makes the descriptor quiet again. The loop watches the
descriptor from the first wait until the socket is closed: to begin and end that with every wait, as
zmq.asyncio does, costs more than the rest of a call.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar, cast

import zmq

from kvstore_client.transport import forks
from kvstore_client.transport.connection import Connection, RequestBody
from kvstore_client.transport.contexts import OwningContext
from kvstore_client.transport.pool import PoolBase, pool_timeout
from kvstore_client.transport.wait import IoGenerator, SocketWait
from kvstore_core.connection_monitor import Socket
from kvstore_core.wire import Reply

T = TypeVar("T")

sleep = asyncio.sleep

_NO_READERS = (
    "this event loop cannot watch sockets, as Windows' ProactorEventLoop cannot; run the program with "
    "asyncio.SelectorEventLoop, for example asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)"
)


class SocketWatch:
    """An event loop's registration of a socket, and the one task that waits for it, if any."""

    def __init__(self, socket: Socket, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._generation = forks.generation()
        self._socket = socket
        self._descriptor = socket.fileno()
        self._flags = 0
        self._waiter: asyncio.Future[None] | None = None
        try:
            loop.add_reader(self._descriptor, self._changed)
        except NotImplementedError:
            raise RuntimeError(_NO_READERS) from None

    def is_ready(self, flags: int) -> bool:
        """Whether the socket is ready for one of ``flags`` now."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & flags)

    def expect(self, flags: int, waiter: asyncio.Future[None]) -> None:
        """Let ``waiter`` know when the socket is ready."""
        self._flags = flags
        self._waiter = waiter

    def _changed(self) -> None:
        # even when no task waits: the descriptor would stay readable
        is_ready = self.is_ready(self._flags)
        if is_ready and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self) -> None:
        """The socket is about to be closed, or another loop takes over."""
        # the child of a fork shares the parent's epoll set: to unregister there would deafen the parent
        if self._generation == forks.generation():
            self.loop.remove_reader(self._descriptor)


class AsyncSocket(zmq.Socket[bytes]):
    """A socket that an event loop watches once :meth:`watch` was called."""

    _watch: SocketWatch | None = None

    def watch(self, loop: asyncio.AbstractEventLoop) -> SocketWatch:
        """The registration in ``loop``; that in an earlier loop ends."""
        if self._watch is None or self._watch.loop is not loop:
            self._end_watch()
            self._watch = SocketWatch(self, loop)
        return self._watch

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def close(self, linger: int | None = None) -> None:
        """Unregister first, since the number of a closed descriptor is soon used again."""
        self._end_watch()
        super().close(linger)


class AsyncContext(OwningContext):
    """Makes sockets that an event loop can watch."""

    _socket_class: Any = AsyncSocket


async def _until_ready(wait: SocketWait) -> None:
    """Return when one of the sockets, made by an AsyncContext, is ready or the time is over."""
    loop = asyncio.get_running_loop()
    watches = [(cast(AsyncSocket, socket).watch(loop), flags) for socket, flags in wait.sockets]
    waiter = loop.create_future()
    for watch, flags in watches:
        # the descriptor does not become readable again for what is ready already
        if watch.is_ready(flags):
            return
        watch.expect(flags, waiter)
    timer = loop.call_later(max(0.0, wait.seconds), _wake, waiter)
    try:
        await waiter
    finally:
        timer.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def drive(generator: IoGenerator[T]) -> T:
    """Run ``generator`` to its end. If the task is cancelled, the generator is closed, so that it leaves
    its sockets in order."""
    try:
        while True:
            try:
                wait = next(generator)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            await _until_ready(wait)
    finally:
        generator.close()


async def exchange(connection: Connection, body: RequestBody, seconds: float) -> Reply:
    """The reply to a request over ``connection``; raises as :meth:`Connection.call` does."""
    return await drive(connection.call(body, seconds))


class AsyncConnectionPool(PoolBase):
    """The connections of a client that the tasks of one event loop at a time share."""

    _context_class = AsyncContext
    _loop: asyncio.AbstractEventLoop | None = None

    async def take(self, seconds: float, body: RequestBody) -> Connection:
        """A connection for one call, to be given back. Waits while all are in use, and raises
        ``timed_out`` after ``seconds``."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._generation != forks.generation():
            self._move_to(loop)
        slots = self._slots
        if slots.locked():
            await self._wait_for_slot(slots, seconds, body)
        else:
            await slots.acquire()
        try:
            connection = self._idle_or_new()
        except BaseException:
            slots.release()
            raise
        connection.slots = slots
        return connection

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Be used in this event loop from now on."""
        if self._generation != forks.generation():
            self._replace_inherited()
        elif self._loop is not None and self._loop is not loop and self._loop.is_running():
            raise RuntimeError("this client is used in another event loop that still runs; make one for each")
        self._loop = loop
        self._slots = asyncio.BoundedSemaphore(self._size)

    async def _wait_for_slot(self, slots: asyncio.Semaphore, seconds: float, body: RequestBody) -> None:
        try:
            async with asyncio.timeout(seconds):
                await slots.acquire()
        except TimeoutError as error:
            raise pool_timeout(seconds, body) from error

    def give_back(self, connection: Connection) -> None:
        """The call is over, however it ended."""
        self._keep(connection)
        connection.slots.release()
