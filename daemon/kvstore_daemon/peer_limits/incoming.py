"""Bounds what peers can make the daemon keep before it is a request.

libzmq takes in the parts of a message until it is whole, however many there are, and ``REQUEST_QUEUE`` whole
messages of each peer, however large; it tells of neither. The system counts what comes on a connection, and
we count what was handed over to us: the difference is what libzmq keeps. Where that is too much, the loop
empties the socket, so that what is whole is gone; of the rest, the largest go.

Bytes are not all. A part of no bytes takes 2 on its way and 64 here, one of 40 in a packet of its own 18,000.
So what the process has from the system for itself is watched too, and compared with what can be explained.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress

from kvstore_core.process.logging import RateLimitedLog
from kvstore_daemon.peer_limits.connection_watcher import ConnectionWatcher, bytes_acknowledged_and_received
from kvstore_daemon.peer_limits.connections import Connections
from kvstore_daemon.peer_limits.peer import Peer
from kvstore_daemon.process_usage import private_bytes

log = logging.getLogger("kvstore.daemon")

TAKEN_IN_BYTES = 256 * 1024 * 1024
"""What libzmq may keep of requests that were not handed over to us, of all connections; two of the largest
parts, if that is more."""

UNEXPLAINED_BYTES = 256 * 1024 * 1024
"""What the process may have grown by that nothing accounts for: the bytes of requests and replies that we
know of do not."""

SMALL_BYTES = 1024
"""A connection of which no more is kept, or waits in the system, is looked at only when something comes on
it: handshakes are not handed over either."""

PAUSE_SECONDS = 0.025
"""From one look to the next: a busy daemon is looked at 40 times a second and not with each request."""

SHARE, LONGEST_PAUSE_SECONDS = 20, 0.2
"""A look that takes much of the processor, since there are thousands of connections, is followed by a pause
of so many times as long, up to this."""

EMPTY_SECONDS = 0.1
"""How long the loop may take to empty the socket: where more comes than it can receive, it never does."""

LET_GO_SECONDS, LAST_LET_GO_SECONDS = 0.5, 8.0
"""After a connection was closed: what libzmq kept of it is given back to the system then and,
since libzmq may need longer, a few times more at growing distances, up to this."""

PART_HEADER = 9
"""The most that a part has on its way in front of its bytes."""

_INT = struct.Struct("=i")


class _Connection:
    """What is known of one connection."""

    __slots__ = ("excused", "kept", "peer", "taken_in")

    def __init__(self) -> None:
        self.peer: Peer | None = None
        self.taken_in = 0
        """What libzmq has taken in since it began."""
        self.kept = 0
        """What of that it has not handed over to us, and is not excused."""
        self.excused = 0
        """What libzmq has handed over or done with though it was not counted, or, below 0, what was counted
        too much: ``PART_HEADER`` is more than most parts have."""

    def count(self, taken_in: int, peer: Peer | None) -> None:
        """Find out what is kept; ``peer`` is who has sent whole messages on it."""
        if peer is not self.peer:
            self.peer, self.excused = peer, 0
        self.taken_in = max(self.taken_in, taken_in)
        self.kept = self.taken_in - self.excused - (peer.handed_over if peer else 0)
        if self.kept < 0:
            self.excused += self.kept
            self.kept = 0


class IncomingLimit(ConnectionWatcher):
    """Watches the connections of the request address from a thread of its own.

    The loop tells of connections by :meth:`begin` and :meth:`end`. Where :meth:`fileno` is readable it is to
    :meth:`hear`, to receive all there is, refuse what there is no room for, and then to call :meth:`emptied`.
    """

    def __init__(self, connections: Connections, peer_of: Callable[[int], Peer | None], largest: int) -> None:
        """``largest`` is how many bytes a part may have."""
        super().__init__("incoming-limit")
        self.explained: Callable[[], int] = int
        """How many bytes of memory requests and replies are known to take."""
        self._limit = max(TAKEN_IN_BYTES, 2 * largest)
        self._connections = connections
        self._peer_of = peer_of
        self._known: dict[int, _Connection] = {}
        self._followed: dict[int, _Connection] = {}
        self._ended = 0
        self._is_behind = False
        self._question = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_asked = self._is_emptied = False
        self._asked_at = 0.0
        self._give_back_in = self._give_back_at = 0.0
        self._base = self._least = private_bytes()
        self._cut = RateLimitedLog(log)
        self.start()

    def close(self) -> None:
        """End the thread."""
        super().close()
        os.close(self._question)

    # ── for the loop ─────────────────────────────────────────────────────────────────────────────

    def begin(self, descriptor: int) -> None:
        """Watch a connection."""
        self._known[descriptor] = _Connection()
        self._watch(descriptor)

    def end(self, descriptor: int) -> None:
        """A connection has ended; what is whole of it is still to be received."""
        connection = self._known.pop(descriptor, None)
        if connection is not None:
            self._ended += connection.kept

    def fileno(self) -> int:
        """Readable when the socket is to be emptied, until :meth:`hear`."""
        return self._question

    def hear(self) -> None:
        """Make the descriptor quiet."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._question)

    def emptied(self) -> None:
        """All that was whole when :meth:`hear` was called was received."""
        self._ended = 0
        self._is_emptied = True

    # ── the thread ───────────────────────────────────────────────────────────────────────────────

    def _patience(self) -> float:
        if self._is_behind or self._is_asked:
            return PAUSE_SECONDS
        return self._give_back_in or -1

    def _look(self, descriptors: list[int]) -> bool:
        before, used = time.monotonic(), time.thread_time()
        self._measure({*descriptors, *self._followed})
        pause = SHARE * (time.thread_time() - used)
        if not self._is_over():
            self._is_asked = False
        elif not self._is_asked:
            self._is_asked, self._is_emptied, self._asked_at = True, False, before
            os.eventfd_write(self._question, 1)
        elif self._is_emptied or before - self._asked_at > EMPTY_SECONDS or self._all() > 2 * self._limit:
            self._is_asked = False
            self._relieve()
        if self._give_back_in and before >= self._give_back_at:
            _give_back()
            self._give_back_later(2 * self._give_back_in)
        return self._rest(min(max(PAUSE_SECONDS, pause), LONGEST_PAUSE_SECONDS))

    def _give_back_later(self, seconds: float) -> None:
        self._give_back_in = seconds if seconds <= LAST_LET_GO_SECONDS else 0.0
        self._give_back_at = time.monotonic() + seconds

    def _measure(self, descriptors: set[int]) -> None:
        self._is_behind = False
        for descriptor in descriptors:
            self._followed.pop(descriptor, None)
            connection = self._known.get(descriptor)
            counts = None if connection is None else bytes_acknowledged_and_received(descriptor)
            if connection is None or counts is None:
                continue
            waiting = _bytes_waiting(descriptor)
            self._is_behind |= waiting > 0
            connection.count(counts[1] - waiting, self._peer_of(descriptor))
            if connection.kept > SMALL_BYTES or waiting:
                self._followed[descriptor] = connection

    def _all(self) -> int:
        return self._ended + sum(connection.kept for connection in list(self._followed.values()))

    def _unexplained(self) -> int:
        used = private_bytes() - self._all() - self.explained()
        self._base = max(self._least, min(self._base, used))
        return used - self._base

    def _is_over(self) -> bool:
        return self._all() > self._limit or self._unexplained() > UNEXPLAINED_BYTES

    def _relieve(self) -> None:
        """Close the connections of which most is kept: at least a quarter of what is kept of the first."""
        if self._all() <= self._limit:
            # what others have left may be free by now, and only have to be given back
            _give_back()
            if not self._is_over():
                return
        most = sorted(self._known.items(), key=lambda known: -known[1].kept)
        largest = most[0][1].kept if most else 0
        if largest <= SMALL_BYTES:
            # there is nobody to blame: it is of another use, or the heap cannot give it back
            self._base += max(0, self._unexplained())
            return
        least = max(SMALL_BYTES, largest // 4)
        for descriptor, connection in most:
            if connection.kept < least:
                break
            self._cut_off(descriptor, connection.kept)

    def _cut_off(self, descriptor: int, kept: int) -> None:
        self._known.pop(descriptor, None)
        self._followed.pop(descriptor, None)
        self._connections.cut_off(descriptor)
        self._give_back_later(LET_GO_SECONDS)
        self._cut.warning(
            "closed a connection to the requests address: too much was kept of requests that are not whole, "
            "of this one %d bytes",
            kept,
        )


def _bytes_waiting(descriptor: int) -> int:
    """What has come on a connection and waits in the system."""
    try:
        return int(_INT.unpack(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(_INT.size)))[0])
    except OSError:
        return 0


def _give_back() -> None:
    """Give memory back to the system that is free in the C library's heap, as glibc does by itself only where
    nothing lies above it."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
