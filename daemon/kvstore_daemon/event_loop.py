"""The daemon's one loop: descriptors and timers, on epoll.

epoll and not ``zmq.Poller``: a poller asks every socket on every turn, before and after it sleeps,
while epoll names those that have something.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable

Callback = Callable[[], None]


class Timer:
    """A callback that is due at a time of the loop's clock; ``None`` while it is not set.

    It is cleared before the callback runs, so that the callback may set it again.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self.at: float | None = None

    def set(self, delay: float) -> None:
        """Fire ``delay`` seconds from now, instead of whenever it was due before."""
        self.at = time.monotonic() + delay

    def fire(self) -> None:
        """Clear the timer and run its callback."""
        self.at = None
        self._callback()


class Loop:
    """Waits for descriptors and timers and runs their callbacks, all in one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[Timer] = []

    def watch(self, fd: int, callback: Callback) -> None:
        """Run ``callback`` on every turn in which ``fd`` is readable."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def timer(self, callback: Callback) -> Timer:
        """A new timer, not set yet."""
        timer = Timer(callback)
        self._timers.append(timer)
        return timer

    def turn(self, *, wait: bool) -> None:
        """Run what is ready. With ``wait``, sleep until something is or a timer is due."""
        for fd, _ in self._epoll.poll(self._patience() if wait else 0):
            self._callbacks[fd]()
        now = time.monotonic()
        for timer in self._timers:
            if timer.at is not None and timer.at <= now:
                timer.fire()

    def _patience(self) -> float:
        due = [timer.at for timer in self._timers if timer.at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else -1

    def close(self) -> None:
        """Let go of the epoll descriptor. What was watched stays open."""
        self._epoll.close()
