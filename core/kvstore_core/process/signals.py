"""Signals, as something that a loop waits for beside its sockets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import Self


class Signals:
    """A descriptor that is readable after a signal came, for as long as the ``with`` block runs.

    :meth:`drain` calls ``on_signal`` with each signal that came. Nothing else is done: a handler runs between
    any two bytecodes and must not touch what they work on.

    The ``ending`` signals end the process, which does so by leaving the block; later ones are ignored, since
    they would replace its exit status. ``others`` do not end it. For the main thread.
    """

    def __init__(
        self, ending: Iterable[int], others: Iterable[int], on_signal: Callable[[signal.Signals], None]
    ) -> None:
        self._ending = tuple(ending)
        self._others = tuple(others)
        self._on_signal = on_signal

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (*self._ending, *self._others):
            signal.signal(number, _noted_by_descriptor)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._ending:
            signal.signal(number, signal.SIG_IGN)
        self._close()

    def _close(self) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._read_end)
        os.close(self._write_end)

    def fileno(self) -> int:
        """Readable after a signal came, until :meth:`drain`."""
        return self._read_end

    def drain(self) -> None:
        """Call ``on_signal`` with what came since the last call, in order."""
        with suppress(BlockingIOError):
            for number in os.read(self._read_end, 4096):
                self._on_signal(signal.Signals(number))

    def fork(self) -> int:
        """As ``os.fork``. In the child, which has no part in this object any more, ``ending`` signals end it
        until it has handlers of its own, and ``others`` do nothing. None is lost in between."""
        handled = (*self._ending, *self._others)
        held_before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        try:
            pid = os.fork()
            if not pid:
                self._close()
                for number in self._ending:
                    signal.signal(number, signal.SIG_DFL)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held_before)


class Terminal:
    """The terminal, if any, from which the process was started: it tells the two meanings of SIGHUP apart.

    A terminal that goes away sends it to what runs there, which is to end. An administrator sends it to a
    service that is to read its files again. Make it early: what counts is whether there was a terminal then,
    and that SIGHUP was not ignored, as under nohup.
    """

    def __init__(self) -> None:
        self._was_there = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    @property
    def has_hung_up(self) -> bool:
        """Whether it is gone."""
        return self._was_there and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def signal_name(number: int) -> str:
    """``SIGKILL``, or ``signal 40``: most of the real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _noted_by_descriptor(_number: int, _frame: FrameType | None) -> None:
    """Without a handler the signal would not reach the descriptor."""
