"""Signals that end a command which has something to undo first."""

from __future__ import annotations

import signal
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def end_on_signals() -> None:
    """From now on SIGTERM, and SIGHUP of a terminal that was closed, end the command as Ctrl-C does: what
    it began is undone. They do it once: a shell and the system both send one, and the second must not
    end the undoing. One that was ignored from the start, as under nohup, stays so."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, _frame: Any) -> None:
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)
