"""Bounds what is kept of changes that subscribers have not taken.

libzmq counts the messages that wait for a subscriber, not their bytes, and reports neither. It keeps each
message once, for all subscribers that it waits for. So what all of them can make it keep is what was
published since the slowest of them last kept up; a subscriber that is too far behind is cut off. Nothing is
lost by that: it can read the changes from the log."""

from __future__ import annotations

import logging
import select
import termios

from kvstore_core.process.logging import RateLimitedLog
from kvstore_daemon.peer_limits.connection_watcher import bytes_acknowledged_and_received, queued_bytes
from kvstore_daemon.peer_limits.connections import Connections

log = logging.getLogger("kvstore.daemon")

BEHIND_BYTES = 64 * 1024 * 1024
"""How far a subscriber may be behind; four of the largest values, if that is more."""

LOOK_BYTES = 4 * 1024 * 1024
"""How much is published from one look at the subscribers to the next."""

EVENT_BYTES = 512
"""About what an event takes beside its value."""


class SlowSubscribers:
    """Watches how subscribers keep up; used by the loop's thread only."""

    def __init__(self, connections: Connections, largest: int) -> None:
        """``largest`` is how many bytes a value may have."""
        self._limit = max(BEHIND_BYTES, 4 * largest)
        self._connections = connections
        self._published = 0
        self._look_at = LOOK_BYTES
        self._behind: dict[int, tuple[int, int]] = {}
        """For each connection whose buffers were full at the last look, as of the first such look: what had
        been published, and what of it the system had taken."""
        self._warned = RateLimitedLog(log)

    def published(self, size: int) -> None:
        """Note that a value of ``size`` bytes was published; now and then, cut off those too far behind."""
        self._published += size + EVENT_BYTES
        if self._published >= self._look_at:
            self._look_at = self._published + LOOK_BYTES
            self._look()

    def _look(self) -> None:
        behind = {}
        for descriptor in _full(set(self._connections.open)):
            taken = _taken(descriptor)
            then, taken_then = self._behind.get(descriptor, (self._published - LOOK_BYTES, taken))
            if self._published - then - (taken - taken_then) > self._limit:
                self._cut_off(descriptor)
            else:
                behind[descriptor] = then, taken_then
        self._behind = behind

    def _cut_off(self, descriptor: int) -> None:
        self._connections.cut_off(descriptor)
        self._warned.warning(
            "closed a connection to the changes address: the subscriber is more than %d bytes behind",
            self._limit,
        )


def _full(descriptors: set[int]) -> list[int]:
    """Those of the connections to which nothing can be written now."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLOUT)
    return sorted(descriptors.difference(descriptor for descriptor, _ in poll.poll(0)))


def _taken(descriptor: int) -> int:
    """What the system has taken so far to be sent on a connection; 0 if it is not TCP."""
    counts = bytes_acknowledged_and_received(descriptor)
    return 0 if counts is None else counts[0] + queued_bytes(descriptor, termios.TIOCOUTQ)
