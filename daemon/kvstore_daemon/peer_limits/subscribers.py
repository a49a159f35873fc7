"""Bounds what subscribers can make libzmq keep: subscriptions, and changes that they have not taken.

libzmq keeps some 50 bytes for each byte of a topic, takes subscriptions in as fast as they come, and does so
inside whatever call the publisher makes next: a flood of them holds that call, and its thread, for as long as
it lasts. So a second thread looks at what each connection has sent, and cuts off those that send too much. It
is woken by what arrives, which is next to nothing: a subscriber sends only its subscriptions.

libzmq counts the messages that wait for a subscriber, not their bytes, and reports neither. It keeps each
message once, for all subscribers that it waits for. So what all of them can make it keep is what was
published since the slowest of them last kept up; a subscriber that is too far behind is cut off. Nothing is
lost by that: it can read the changes from the log.
"""

from __future__ import annotations

import logging
import select
import termios
import time

from kvstore_core.process.logging import RateLimitedLog
from kvstore_daemon.peer_limits.connections import (
    SWEEP_SECONDS,
    Connections,
    ConnectionWatcher,
    address_of,
    bytes_acknowledged_and_received,
    heartbeat_rate,
    queued_bytes,
)

log = logging.getLogger("kvstore.daemon")

TOPICS_BYTES = 1024 * 1024
"""What all open connections may have sent together: two thousand topics of the longest kind. Whenever one of
them ends, libzmq walks through all that the others subscribe to, which holds up the loop."""

FEW_BYTES = 4 * 1024
"""A connection that has sent no more is not cut off for what others send."""

BEHIND_BYTES = 64 * 1024 * 1024
"""How far a subscriber may be behind; four of the largest values, if that is more."""

LOOK_BYTES = 4 * 1024 * 1024
"""How much is published from one look at the subscribers to the next."""

EVENT_BYTES = 512
"""About what an event takes beside its value."""


class SubscriptionLimit(ConnectionWatcher):
    """Watches the connections of the changes address in its own thread."""

    def __init__(self, connections: Connections, *, is_curve: bool) -> None:
        super().__init__("subscription-limit")
        self._connections = connections
        self._heartbeat_rate = heartbeat_rate(is_curve=is_curve)
        self._monitor = connections.fileno()
        self._epoll.register(self._monitor, select.EPOLLIN)
        self._counts: dict[int, _Count] = {}
        self._total = 0.0
        self._sweep_at = 0.0
        self._warned = RateLimitedLog(log)
        self.start()

    def _timeout(self) -> float:
        return max(0.0, self._sweep_at - time.monotonic()) if self._counts else -1

    def _look(self, descriptors: list[int]) -> bool:
        for descriptor in descriptors:
            if descriptor != self._monitor:
                self._look_at(descriptor)
        self._note_connections()
        if time.monotonic() >= self._sweep_at:
            for descriptor in list(self._counts):
                self._look_at(descriptor)
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
        return False

    def _note_connections(self) -> None:
        begun, ended = self._connections.take()
        for descriptor in ended:
            self._forget(descriptor)
        for descriptor in begun:
            if descriptor in self._connections.open:
                self._counts[descriptor] = _Count(time.monotonic(), self._heartbeat_rate)
                self._watch(descriptor)

    def _look_at(self, descriptor: int) -> None:
        count = self._counts.get(descriptor)
        numbers = None if count is None else bytes_acknowledged_and_received(descriptor)
        if count is None or numbers is None:
            return
        self._total += count.add(numbers[1], time.monotonic())
        while self._total > TOPICS_BYTES:
            largest = max(self._counts, key=lambda each: self._counts[each].bytes)
            if self._counts[largest].bytes <= FEW_BYTES:
                return
            self._cut_off(largest)

    def _forget(self, descriptor: int) -> None:
        count = self._counts.pop(descriptor, None)
        if count is not None:
            self._total -= count.bytes

    def _cut_off(self, descriptor: int) -> None:
        self._forget(descriptor)
        peer = address_of(descriptor) or "one that has ended"
        self._connections.cut_off(descriptor)
        self._warned.warning(
            "closed the connection of %s to the changes address, the one with the most subscriptions: all "
            "together may take %d bytes",
            peer,
            TOPICS_BYTES,
        )


class _Count:
    """The bytes of one connection that count."""

    def __init__(self, now: float, heartbeat_rate: int) -> None:
        self.bytes = 0.0
        self._heartbeat_rate = heartbeat_rate
        self._received = 0
        self._at = now

    def add(self, received: int, now: float) -> float:
        """``received`` bytes have come since the connection began; returns how many more count now."""
        before = self.bytes
        self.bytes = max(0.0, before - (now - self._at) * self._heartbeat_rate) + received - self._received
        self._received, self._at = received, now
        return self.bytes - before


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
            taken = bytes_taken(descriptor)
            then, taken_then = self._behind.get(descriptor, (self._published - LOOK_BYTES, taken))
            if self._published - then - (taken - taken_then) > self._limit:
                self._cut_off(descriptor)
            else:
                behind[descriptor] = then, taken_then
        self._behind = behind

    def _cut_off(self, descriptor: int) -> None:
        peer = address_of(descriptor) or "one that has ended"
        self._connections.cut_off(descriptor)
        self._warned.warning(
            "closed the connection of %s to the changes address: the subscriber is more than %d bytes behind",
            peer,
            self._limit,
        )


def _full(descriptors: set[int]) -> list[int]:
    """Those of the connections to which nothing can be written now."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLOUT)
    return sorted(descriptors.difference(descriptor for descriptor, _ in poll.poll(0)))


def bytes_taken(descriptor: int) -> int:
    """What the system has taken so far to be sent on a connection; 0 if it is not TCP."""
    counts = bytes_acknowledged_and_received(descriptor)
    return 0 if counts is None else counts[0] + queued_bytes(descriptor, termios.TIOCOUTQ)
