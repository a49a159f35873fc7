"""A peer of the requests address: what came from it, and which replies it has not taken yet."""

from __future__ import annotations

import time
from collections import deque

import zmq

UNKNOWN = -1
"""Instead of a descriptor: libzmq does not say on which connection a message came if the peer speaks ZMTP
older than 3.0. What waits for such a peer could not be bounded, so its requests are refused."""

WINDOW_BYTES = 8 * 1024 * 1024
"""Of replies that a peer has not taken; beyond it, its next requests wait."""

MARK_BYTES = 64 * 1024
"""How much may be on its way to a peer without being counted: only one frame in so many bytes is tracked.
Frames leave in the order in which they were sent, so a tracked frame speaks for all before it."""

REPLY_OVERHEAD = 128
"""What libzmq keeps for a reply beside its bytes."""


class Peer:
    """One connection to the requests address. Only the loop's thread changes it."""

    __slots__ = (
        "_marks",
        "_unmarked",
        "descriptor",
        "handed_over",
        "identity",
        "is_gone",
        "stuck_since",
        "untaken",
        "user_id",
    )

    def __init__(self, identity: bytes, descriptor: int, user_id: str = "") -> None:
        self.identity = identity
        self.user_id = user_id
        """The CURVE public key that it has shown to have; empty while access is off."""
        self.descriptor = descriptor
        self.is_gone = False
        self.handed_over = 0
        """The bytes received from it, as they were on the wire, or a little more."""
        self.untaken = 0
        """The bytes of replies that libzmq still holds, as of the last :meth:`count_taken`."""
        self.stuck_since = 0.0
        """When it last took something, or had nothing to take."""
        self._marks: deque[tuple[zmq.MessageTracker, int]] = deque()
        self._unmarked = 0

    def wants_mark(self, size: int) -> bool:
        """Note that ``size`` bytes are being sent; returns whether their last frame is to be tracked."""
        self._unmarked += size + REPLY_OVERHEAD
        return self._unmarked >= MARK_BYTES

    def mark(self, tracker: zmq.MessageTracker) -> int:
        """Count what was sent since the last mark as not taken; returns how many bytes that is."""
        size, self._unmarked = self._unmarked, 0
        if not self._marks:
            self.stuck_since = time.monotonic()
        self._marks.append((tracker, size))
        self.untaken += size
        return size

    def count_taken(self) -> int:
        """Find out what was taken since the last call; returns how many bytes that is."""
        taken, marks = 0, self._marks
        while marks and marks[0][0].done:
            taken += marks.popleft()[1]
        if taken:
            self.untaken -= taken
            self.stuck_since = time.monotonic()
        return taken
