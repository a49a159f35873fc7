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

from kvstore_client.logs import Seldom
from kvstore_daemon.arrivals import Arrivals, bytes_acknowledged_and_received
from kvstore_daemon.connections import Connections

log = logging.getLogger(__name__)

CONNECTION_BYTES = 1024 * 1024
"""What one connection may send: more than a thousand topics of the longest kind."""

CONNECTION_RATE = 64
"""Bytes a second that are not counted, for the heartbeats of a connection that stays for months."""

ALL_BYTES = 4 * 1024 * 1024
"""What all connections together may send at once."""

ALL_RATE = 256 * 1024
"""Bytes a second that are not counted of all."""


class Doorkeeper(Arrivals):
    """Watches the connections of the changes address."""

    def __init__(self, connections: Connections) -> None:
        super().__init__("doorkeeper")
        self._connections = connections
        self._monitor = connections.fileno()
        self._epoll.register(self._monitor, select.EPOLLIN)
        self._began: dict[int, float] = {}
        self._received: dict[int, int] = {}
        self._all = 0.0
        self._all_at = time.monotonic()
        self._cut = Seldom()
        self.start()

    def _look(self, descriptors: list[int]) -> bool:
        for descriptor in descriptors:
            if descriptor != self._monitor:
                self._look_at(descriptor)
        self._take()
        return False

    def _take(self) -> None:
        """Take note of connections; what came on a new one before this is looked at too."""
        begun, ended = self._connections.take()
        for descriptor in ended:
            self._began.pop(descriptor, None)
            self._received.pop(descriptor, None)
        for descriptor in begun:
            if descriptor not in self._connections.open:
                continue
            self._began[descriptor] = time.monotonic()
            self._received[descriptor] = 0
            self._watch(descriptor)

    def _look_at(self, descriptor: int) -> None:
        began = self._began.get(descriptor)
        counts = None if began is None else bytes_acknowledged_and_received(descriptor)
        if began is None or counts is None:
            return
        _, received = counts
        now = time.monotonic()
        self._all = max(0.0, self._all - (now - self._all_at) * ALL_RATE)
        self._all += max(0, received - self._received[descriptor])
        self._all_at = now
        self._received[descriptor] = received
        if received > CONNECTION_BYTES + (now - began) * CONNECTION_RATE:
            self._cut_off(descriptor)
        elif self._all > ALL_BYTES:
            self._cut_off(max(self._received, key=self._received.__getitem__))

    def _cut_off(self, descriptor: int) -> None:
        self._all = max(0.0, self._all - self._received.pop(descriptor))
        del self._began[descriptor]
        self._connections.cut_off(descriptor)
        more = self._cut.turn()
        if more is not None:
            log.warning(
                "closed a connection to the changes address: too much was subscribed to on it; one may send "
                "%d bytes, all together %d%s",
                CONNECTION_BYTES,
                ALL_BYTES,
                more,
            )
