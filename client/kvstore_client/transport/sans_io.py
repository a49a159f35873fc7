"""What a client does with its sockets, apart from how it waits for them.

It is written once, as generators: they use sockets without ever blocking and yield a :class:`Wait`
where there is nothing to do but wait. :func:`drive` waits with a poll; in :mod:`kvstore_client.aio` the
event loop runs meanwhile. Nothing else differs between the two forms of the client.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

import zmq

from kvstore_core.connection_monitor import Socket

T = TypeVar("T")

_LONGEST_SECONDS = 86_400
"""Of one wait, since a poll counts milliseconds in 32 bits; who waits for longer, waits again."""


class Wait(NamedTuple):
    """Until a socket is ready for its flags, or ``seconds`` have passed."""

    sockets: Sequence[tuple[Socket, int]]
    seconds: float

    def milliseconds(self) -> int:
        """The time in milliseconds, never rounded down to a moment before it has come, which would
        make the waiting busy."""
        return max(0, int(min(self.seconds, _LONGEST_SECONDS) * 1000)) + 1


Routine = Generator[Wait, None, T]


def drive(routine: Routine[T]) -> T:
    """Run a routine to its end, waiting in this thread. If the wait is interrupted, the routine is
    closed, which lets it leave its sockets in order."""
    try:
        while True:
            wait = next(routine)
            zmq.zmq_poll(wait.sockets, wait.milliseconds())
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    finally:
        routine.close()
