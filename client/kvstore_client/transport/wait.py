"""What a generator that uses sockets yields where there is nothing to do but wait."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

from kvstore_core.connection_monitor import Socket

T = TypeVar("T")

_LONGEST_SECONDS = 86_400
"""Of one wait, since a poll counts milliseconds in 32 bits; after it comes the next wait."""


class SocketWait(NamedTuple):
    """Wait until a socket is ready for its flags, or for at most ``seconds``."""

    sockets: Sequence[tuple[Socket, int]]
    seconds: float

    def milliseconds(self) -> int:
        """The time in milliseconds, rounded up: a wait that ends too early would make the loop busy."""
        return max(0, int(min(self.seconds, _LONGEST_SECONDS) * 1000)) + 1


IoGenerator = Generator[SocketWait, None, T]
