"""Waiting for ZeroMQ sockets in an asyncio event loop.

A socket has a file descriptor that becomes readable when its state may have changed; what the state is
then stands in its ``EVENTS``, and reading those is what makes the descriptor quiet again. The loop
watches the descriptor from the first wait until the socket is closed: to begin and end that with every
wait, as zmq.asyncio does, costs more than all else that a call does.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import zmq

from kvstore_client.transport import forks
from kvstore_client.transport.sans_io import Wait
from kvstore_core.connection_monitor import Socket

_NO_READERS = (
    "this event loop cannot watch sockets, as Windows' ProactorEventLoop cannot; run the program with "
    "asyncio.SelectorEventLoop, for example asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)"
)


class Watch:
    """What the event loop knows of a socket, and who waits for it: one task at a time."""

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
        # also where nobody waits: the descriptor would stay readable
        is_ready = self.is_ready(self._flags)
        if is_ready and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self) -> None:
        """The socket is about to be closed, or another loop takes over."""
        # the child of a fork shares the parent's epoll set: to leave it there would deafen the parent
        if self._generation == forks.generation():
            self.loop.remove_reader(self._descriptor)


class WatchedSocket(zmq.Socket[bytes]):
    """A socket that an event loop watches once :meth:`watch` was called."""

    _watch: Watch | None = None

    def watch(self, loop: asyncio.AbstractEventLoop) -> Watch:
        """The watch of ``loop``; that of an earlier loop ends."""
        if self._watch is None or self._watch.loop is not loop:
            self._end_watch()
            self._watch = Watch(self, loop)
        return self._watch

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def close(self, linger: int | None = None) -> None:
        """End the watch first, since the number of a closed descriptor is soon that of another."""
        self._end_watch()
        super().close(linger)


class WatchedContext(zmq.Context[Socket]):
    """Makes watched sockets."""

    _socket_class: Any = WatchedSocket


async def until_ready(wait: Wait) -> None:
    """Return when one of the sockets, made by a WatchedContext, is ready or the time is over."""
    loop = asyncio.get_running_loop()
    watches = [(cast(WatchedSocket, socket).watch(loop), flags) for socket, flags in wait.sockets]
    waiter = loop.create_future()
    for watch, flags in watches:
        # what became ready before is not told again
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
