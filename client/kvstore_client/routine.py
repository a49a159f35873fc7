"""What a client does with its sockets, apart from how it waits for them.

It is written once, as generators: they use sockets without ever blocking and yield a :class:`Wait`
where there is nothing to do but wait. :func:`drive` waits with a poll; in :mod:`kvstore_client.aio` the
event loop runs meanwhile. Nothing else differs between the two forms of the client.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import NamedTuple, TypeVar

import zmq

T = TypeVar("T")
Socket = zmq.Socket[bytes]


class Wait(NamedTuple):
    """Until a socket is ready for its flags, or ``seconds`` have passed."""

    sockets: Sequence[tuple[Socket, int]]
    seconds: float

    def register(self, poller: zmq.Poller) -> int:
        """Tell ``poller`` the sockets; gives the time-out in milliseconds, never rounded down to a
        moment before the time has come, which would make the waiting busy."""
        for socket, flags in self.sockets:
            poller.register(socket, flags)
        return max(0, int(self.seconds * 1000)) + 1


Routine = Generator[Wait, None, T]


def drive(routine: Routine[T]) -> T:
    """Run a routine to its end, waiting in this thread. If the wait is interrupted, the routine is
    closed, which lets it leave its sockets in order."""
    with closing(routine):
        while True:
            try:
                wait = next(routine)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            poller = zmq.Poller()
            poller.poll(wait.register(poller))
