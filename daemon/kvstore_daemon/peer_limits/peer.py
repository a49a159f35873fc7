"""The peers of the request address: what each has asked for, and what it has not taken yet."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from kvstore_daemon.requests.pending_request import PendingRequest
    from kvstore_daemon.requests.router_socket import RequestMessage

UNKNOWN = -1
"""Instead of a descriptor: libzmq does not say by which connection a message came from a peer that speaks an
older ZMTP than 3.0. What waits for such a peer could not be bounded, so nothing is done for it."""

WINDOW_BYTES = 8 * 1024 * 1024
"""Of replies that a peer has not taken, beyond which nothing more is done for it."""

MARK_BYTES = 64 * 1024
"""So much may be on its way to a peer without being counted: libzmq is asked to tell when it has let go of
a frame only once in so many bytes. Frames leave in the order in which they were sent, so that one frame
tells of all before it."""

REPLY_OVERHEAD = 128
"""What libzmq keeps for a reply beside its bytes."""


class Peer:
    """One connection to the request address; used by the loop's thread only."""

    __slots__ = (
        "_marks",
        "_unmarked",
        "descriptor",
        "handed_over",
        "identity",
        "in_turn",
        "is_gone",
        "making",
        "reading",
        "reads_next",
        "stuck_since",
        "untaken",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, identity: bytes, descriptor: int) -> None:
        self.identity = identity
        self.descriptor = descriptor
        self.is_gone = False
        self.handed_over = 0
        """The bytes of what was received from it, as they were on their way, or a little more."""
        self.waiting: deque[RequestMessage] = deque()
        """Requests that nothing was done for yet."""
        self.waiting_bytes = 0
        self.reading: deque[PendingRequest] = deque()
        """Those whose reads have begun and did not fit into a slice."""
        self.reads_next = False
        self.in_turn = False
        """Whether its turn will come, or it is set aside until it has taken some replies."""
        self.making = 0
        """The bytes of replies in the making."""
        self.untaken = 0
        """Of replies that were sent, the bytes that libzmq still holds, as far as :meth:`settle` knows."""
        self.stuck_since = 0.0
        """When it last took something, or had nothing to take."""
        self._marks: deque[tuple[zmq.MessageTracker, int]] = deque()
        self._unmarked = 0

    def has_work(self) -> bool:
        """Whether something that it asked for is to be done."""
        return bool(self.waiting or self.reading)

    def wants_mark(self, size: int) -> bool:
        """Note that ``size`` bytes are being sent; whether their last frame is to be marked."""
        self._unmarked += size + REPLY_OVERHEAD
        return self._unmarked >= MARK_BYTES

    def mark(self, tracker: zmq.MessageTracker) -> int:
        """Count what was sent since the last mark as not taken; returns how much that is."""
        size, self._unmarked = self._unmarked, 0
        if not self._marks:
            self.stuck_since = time.monotonic()
        self._marks.append((tracker, size))
        self.untaken += size
        return size

    def settle(self) -> int:
        """Find out what was taken since the last call, and return how much."""
        taken, marks = 0, self._marks
        while marks and marks[0][0].done:
            taken += marks.popleft()[1]
        if taken:
            self.untaken -= taken
            self.stuck_since = time.monotonic()
        return taken
