"""Bounds what peers can make libzmq keep before it is a request.

libzmq takes in the parts of a message until it is whole, however many there are, and ``REQUEST_QUEUE`` whole
messages of each peer, however large; it reports neither. The system counts what arrives on a connection, and
we count what was handed over to us: the difference is what libzmq keeps. Where that is too much, the loop
drains the socket, so that whole messages are gone; of the rest, the largest are cut off.

Counting bytes is not enough: a part of no bytes takes 2 on the wire and 64 in memory, and a part of 40 bytes
in a packet of its own takes 18,000. So the memory of the process is watched too, and compared with what can
be accounted for."""

from __future__ import annotations

import ctypes
import logging
import os
import termios
import time
from collections.abc import Callable
from contextlib import suppress

from kvstore_core.process.logging import RateLimitedLog
from kvstore_daemon.peer_limits.connections import (
    CURVE_OVERHEAD,
    SWEEP_SECONDS,
    Connections,
    ConnectionWatcher,
    bytes_acknowledged_and_received,
    heartbeat_rate,
    queued_bytes,
)
from kvstore_daemon.peer_limits.peer import Peer
from kvstore_daemon.process_usage import private_bytes

log = logging.getLogger("kvstore.daemon")

KEPT_BYTES = 256 * 1024 * 1024
"""What libzmq may keep of requests that were not handed over to us, of all connections; two of the largest
parts, if that is more."""

UNACCOUNTED_BYTES = 256 * 1024 * 1024
"""What the process may have grown by that the known bytes of requests and replies do not account for."""

SMALL_BYTES = 1024
"""A connection of which no more is kept, or waits in the system, is looked at only when something arrives on
it, and with all others now and then: handshakes are not handed over either."""

PAUSE_SECONDS = 0.025
"""From one look to the next: a busy daemon is looked at 40 times a second and not with each request."""

SHARE, LONGEST_PAUSE_SECONDS = 20, 0.2
"""With thousands of connections a look takes much of the processor; the pause after it is so many times as
long, up to this."""

DRAIN_SECONDS = 0.1
"""How long the loop may take to drain the socket: where more comes than it can receive, it never does."""

TRIM_SECONDS, LAST_TRIM_SECONDS = 0.5, 8.0
"""After a connection was cut off, what libzmq kept of it is given back to the system this much later and,
since libzmq may need longer, a few times more at growing intervals, up to the second."""

_PART_HEADER = 9


def part_header(*, is_curve: bool) -> int:
    """The most that a part has on the wire beside its bytes."""
    return _PART_HEADER + (CURVE_OVERHEAD if is_curve else 0)


class _Incoming:
    """What is known of one connection."""

    __slots__ = ("_at", "_heartbeat_rate", "excused", "kept", "peer", "taken_in")

    def __init__(self, now: float, heartbeat_rate: int) -> None:
        self._at = now
        self._heartbeat_rate = heartbeat_rate
        self.peer: Peer | None = None
        self.taken_in = 0
        """What libzmq has taken in since it began."""
        self.kept = 0
        """What of that was not handed over to us, and is not excused."""
        self.excused = 0
        """What libzmq has handed over or processed though it was not counted, or, below 0, what was counted
        too much: ``part_header`` is more than most parts have."""

    def count(self, taken_in: int, peer: Peer | None, now: float) -> None:
        """Find out what is kept; ``peer`` has sent whole messages on this connection."""
        if peer is not self.peer:
            self.peer, self.excused = peer, 0
        self.excused += int((now - self._at) * self._heartbeat_rate)
        self._at = now
        self.taken_in = max(self.taken_in, taken_in)
        self.kept = self.taken_in - self.excused - (peer.handed_over if peer else 0)
        if self.kept < 0:
            self.excused += self.kept
            self.kept = 0


class IncomingLimit(ConnectionWatcher):
    """Watches the connections of the requests address in its own thread.

    The loop reports connections by :meth:`begin` and :meth:`end`. When :meth:`fileno` is readable, the loop
    calls :meth:`clear`, receives all there is, refuses what there is no room for, and calls :meth:`drained`.
    """

    def __init__(
        self,
        connections: Connections,
        peer_of: Callable[[int], Peer | None],
        largest: int,
        *,
        is_curve: bool,
    ) -> None:
        """``largest`` is how many bytes a part may have."""
        super().__init__("incoming-limit")
        self._heartbeat_rate = heartbeat_rate(is_curve=is_curve)
        self.accounted_bytes: Callable[[], int] = int
        """How many bytes of memory requests and replies are known to take."""
        self._limit = max(KEPT_BYTES, 2 * largest)
        self._connections = connections
        self._peer_of = peer_of
        self._known: dict[int, _Incoming] = {}
        self._tracked: dict[int, _Incoming] = {}
        self._kept_of_ended = 0
        self._has_unread = False
        self._drain = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_draining = self._is_drained = False
        self._drain_began_at = 0.0
        self._trim_in = self._trim_at = self._sweep_at = 0.0
        self._base = self._least = private_bytes()
        self._warned = RateLimitedLog(log)
        self.start()

    def close(self) -> None:
        """Stop the thread."""
        super().close()
        os.close(self._drain)

    # ── for the loop ─────────────────────────────────────────────────────────────────────────────

    def begin(self, descriptor: int) -> None:
        """Watch a connection."""
        self._known[descriptor] = _Incoming(time.monotonic(), self._heartbeat_rate)
        self._watch(descriptor)

    def end(self, descriptor: int) -> None:
        """A connection has ended; its whole messages are still to be received."""
        connection = self._known.pop(descriptor, None)
        if connection is not None:
            self._kept_of_ended += connection.kept

    def fileno(self) -> int:
        """Readable when the socket is to be drained, until :meth:`clear`."""
        return self._drain

    def clear(self) -> None:
        """Make the descriptor unreadable."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._drain)

    def drained(self) -> None:
        """All messages that were whole at the last :meth:`clear` were received."""
        self._kept_of_ended = 0
        self._is_drained = True

    # ── the thread ───────────────────────────────────────────────────────────────────────────────

    def _timeout(self) -> float:
        if self._has_unread or self._is_draining:
            return PAUSE_SECONDS
        waits = [self._trim_in] if self._trim_in else []
        if self._known:
            waits.append(max(0.0, self._sweep_at - time.monotonic()))
        return min(waits, default=-1)

    def _look(self, descriptors: list[int]) -> bool:
        now, used = time.monotonic(), time.thread_time()
        looked_at = {*descriptors, *self._tracked}
        if now >= self._sweep_at:
            looked_at.update(list(self._known))  # a copy: the loop changes it meanwhile
            self._sweep_at = now + SWEEP_SECONDS
        self._measure(looked_at)
        pause = SHARE * (time.thread_time() - used)
        if not self._is_over():
            self._is_draining = False
        elif not self._is_draining:
            self._is_draining, self._is_drained, self._drain_began_at = True, False, now
            os.eventfd_write(self._drain, 1)
        elif self._is_drained or now - self._drain_began_at > DRAIN_SECONDS or self._kept() > 2 * self._limit:
            self._is_draining = False
            self._cut_off_largest()
        if self._trim_in and now >= self._trim_at:
            _trim_heap()
            self._trim_later(2 * self._trim_in)
        return self._pause(min(max(PAUSE_SECONDS, pause), LONGEST_PAUSE_SECONDS))

    def _trim_later(self, seconds: float) -> None:
        self._trim_in = seconds if seconds <= LAST_TRIM_SECONDS else 0.0
        self._trim_at = time.monotonic() + seconds

    def _measure(self, descriptors: set[int]) -> None:
        self._has_unread = False
        for descriptor in descriptors:
            self._tracked.pop(descriptor, None)
            connection = self._known.get(descriptor)
            counts = None if connection is None else bytes_acknowledged_and_received(descriptor)
            if connection is None or counts is None:
                continue
            unread = queued_bytes(descriptor, termios.FIONREAD)
            self._has_unread |= unread > 0
            connection.count(counts[1] - unread, self._peer_of(descriptor), time.monotonic())
            if connection.kept > SMALL_BYTES or unread:
                self._tracked[descriptor] = connection

    def _kept(self) -> int:
        return self._kept_of_ended + sum(connection.kept for connection in list(self._tracked.values()))

    def _unaccounted(self) -> int:
        used = private_bytes() - self._kept() - self.accounted_bytes()
        self._base = max(self._least, min(self._base, used))
        return used - self._base

    def _is_over(self) -> bool:
        return self._kept() > self._limit or self._unaccounted() > UNACCOUNTED_BYTES

    def _cut_off_largest(self) -> None:
        """Cut off the connection of which most is kept, and all of which at least a quarter of that is."""
        if self._kept() <= self._limit:
            # what closed connections kept may be free by now, and only has to be given back
            _trim_heap()
            if not self._is_over():
                return
        by_kept = sorted(self._known.items(), key=lambda known: -known[1].kept)
        largest = by_kept[0][1].kept if by_kept else 0
        if largest <= SMALL_BYTES:
            # no connection is to blame: the memory is used otherwise, or the heap cannot give it back
            self._base += max(0, self._unaccounted())
            return
        least = max(SMALL_BYTES, largest // 4)
        for descriptor, connection in by_kept:
            if connection.kept < least:
                break
            self._cut_off(descriptor, connection.kept)

    def _cut_off(self, descriptor: int, kept: int) -> None:
        self._known.pop(descriptor, None)
        self._tracked.pop(descriptor, None)
        self._connections.cut_off(descriptor)
        self._trim_later(TRIM_SECONDS)
        self._warned.warning(
            "closed a connection to the requests address: incomplete requests took too much memory, "
            "this one %d bytes",
            kept,
        )


def _trim_heap() -> None:
    """Give free memory of the C library's heap back to the system. glibc does so by itself only for memory at
    the top of the heap."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
