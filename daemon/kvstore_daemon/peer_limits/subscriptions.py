"""Bounds what those who subscribe can make the daemon keep.

libzmq keeps some 50 bytes for each byte of a topic, takes subscriptions in as fast as they come, and does
so inside whatever call the publisher makes next: a flood of them holds that call, and its thread, for as
long as it lasts. So a thread of its own looks at what each connection has sent, and closes those that send
too much. It is woken by what arrives, which is next to nothing: a subscriber only says what it wants.
"""

from __future__ import annotations

import logging
import select
import time

from kvstore_core.process.logging import RateLimitedLog
from kvstore_daemon.peer_limits.connection_watcher import ConnectionWatcher, bytes_acknowledged_and_received
from kvstore_daemon.peer_limits.connections import Connections

log = logging.getLogger("kvstore.daemon")

TOPICS_BYTES = 1024 * 1024
"""What the connections that are there may have sent together: two thousand topics of the longest kind.
Whenever one of them ends, libzmq walks through all that the others subscribe to, which takes it a seventh
of a second for a megabyte."""

HEARTBEAT_RATE = 16
"""Bytes a second of each connection that are not counted, for the heartbeats of one that stays for months."""

FEW_BYTES = 4 * 1024
"""A connection that has sent no more is not closed for what others send."""

SWEEP_SECONDS = 2.0
"""How often all are looked at: of what libzmq takes in before epoll looks for itself, epoll says nothing."""


class SubscriptionLimit(ConnectionWatcher):
    """Watches the connections of the changes address."""

    def __init__(self, connections: Connections) -> None:
        super().__init__("subscription-limit")
        self._connections = connections
        self._monitor = connections.fileno()
        self._epoll.register(self._monitor, select.EPOLLIN)
        self._counts: dict[int, _Count] = {}
        self._all = 0.0
        self._sweep_at = 0.0
        self._cut = RateLimitedLog(log)
        self.start()

    def _patience(self) -> float:
        return max(0.0, self._sweep_at - time.monotonic()) if self._counts else -1

    def _look(self, descriptors: list[int]) -> bool:
        for descriptor in descriptors:
            if descriptor != self._monitor:
                self._look_at(descriptor)
        self._take()
        if time.monotonic() >= self._sweep_at:
            for descriptor in list(self._counts):
                self._look_at(descriptor)
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
        return False

    def _take(self) -> None:
        """Take note of connections."""
        begun, ended = self._connections.take()
        for descriptor in ended:
            self._forget(descriptor)
        for descriptor in begun:
            if descriptor in self._connections.open:
                self._counts[descriptor] = _Count(time.monotonic())
                self._watch(descriptor)

    def _look_at(self, descriptor: int) -> None:
        count = self._counts.get(descriptor)
        numbers = None if count is None else bytes_acknowledged_and_received(descriptor)
        if count is None or numbers is None:
            return
        self._all += count.add(numbers[1], time.monotonic())
        while self._all > TOPICS_BYTES:
            largest = max(self._counts, key=lambda each: self._counts[each].bytes)
            if self._counts[largest].bytes <= FEW_BYTES:
                return
            self._cut_off(largest)

    def _forget(self, descriptor: int) -> None:
        count = self._counts.pop(descriptor, None)
        if count is not None:
            self._all -= count.bytes

    def _cut_off(self, descriptor: int) -> None:
        self._forget(descriptor)
        self._connections.cut_off(descriptor)
        self._cut.warning(
            "closed the connection to the changes address on which most was subscribed to: all together may "
            "send %d bytes",
            TOPICS_BYTES,
        )


class _Count:
    """The bytes of one connection that count."""

    def __init__(self, now: float) -> None:
        self.bytes = 0.0
        self._received = 0
        self._at = now

    def add(self, received: int, now: float) -> float:
        """``received`` bytes have come since the connection began; returns how many more count now."""
        before = self.bytes
        self.bytes = max(0.0, before - (now - self._at) * HEARTBEAT_RATE) + received - self._received
        self._received, self._at = received, now
        return self.bytes - before
