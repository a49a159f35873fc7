"""Bounds what subscriptions can make libzmq keep.

libzmq keeps some 50 bytes for each byte of a topic, takes subscriptions in as fast as they come, and does so
inside whatever call the publisher makes next: a flood of them holds that call, and its thread, for as long as
it lasts. So a second thread looks at what each connection has sent, and cuts off those that send too much. It
is woken by what arrives, which is next to nothing: a subscriber sends only its subscriptions.
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
"""What all open connections may have sent together: two thousand topics of the longest kind. Whenever one of
them ends, libzmq walks through all that the others subscribe to, which holds up the loop."""

HEARTBEAT_RATE = 16
"""Bytes a second of each connection that are not counted, for the heartbeats of one that stays for months."""

FEW_BYTES = 4 * 1024
"""A connection that has sent no more is not cut off for what others send."""

SWEEP_SECONDS = 2.0
"""How often all are looked at: epoll does not report what libzmq reads before epoll looks."""


class SubscriptionLimit(ConnectionWatcher):
    """Watches the connections of the changes address in its own thread."""

    def __init__(self, connections: Connections) -> None:
        super().__init__("subscription-limit")
        self._connections = connections
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
                self._counts[descriptor] = _Count(time.monotonic())
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
        self._connections.cut_off(descriptor)
        self._warned.warning(
            "closed the connection to the changes address with the most subscriptions: all together may take "
            "%d bytes",
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
