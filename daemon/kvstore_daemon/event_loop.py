"""The daemon's one loop: descriptors, timers and signals, on epoll.

epoll and not ``zmq.Poller``: a poller asks every socket on every turn, before and after it sleeps,
while epoll names those that have something.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from types import FrameType, TracebackType
from typing import Any, Self

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
    """Waits for descriptors, timers and signals and runs their callbacks, all in one thread."""

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
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
        self._fire_timers()

    def _patience(self) -> float:
        due = [timer.at for timer in self._timers if timer.at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else -1

    def _fire_timers(self) -> None:
        now = time.monotonic()
        for timer in self._timers:
            if timer.at is not None and timer.at <= now:
                timer.fire()

    def close(self) -> None:
        """Let go of the epoll descriptor. What was watched stays open."""
        self._epoll.close()


class Signals:
    """Turns signals into a readable descriptor for as long as the ``with`` block runs.

    ``received`` stays set once one of those came that end the loop. For others, :meth:`drain` makes a call
    with the signal's number. The handlers do nothing else: code that runs between two bytecodes of a
    commit's bookkeeping must not touch it.
    """

    def __init__(
        self, ending: Iterable[signal.Signals], others: Mapping[int, Callable[[int], None]] | None = None
    ) -> None:
        self._ending = tuple(ending)
        self._others = dict(others or {})
        self._previous: dict[signal.Signals, Any] = {}
        self.received: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._previous_wakeup = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in self._ending:
            self._previous[number] = signal.signal(number, self._note)
        for other in self._others:
            self._previous[signal.Signals(other)] = signal.signal(other, _told_by_descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)

    def fileno(self) -> int:
        """Readable after a signal came, until :meth:`drain`."""
        return self._read_fd

    def drain(self) -> None:
        """Make the descriptor quiet again, and make the calls that are due; ``received`` stays."""
        for number in os.read(self._read_fd, 4096):
            if number in self._others:
                self._others[number](number)


def _told_by_descriptor(_number: int, _frame: FrameType | None) -> None:
    """Without a handler the signal would end the process, and the descriptor would not tell of it."""
