"""Signals that end a command which has to clean up first."""

from __future__ import annotations

import signal
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise SystemExit, so that the command cleans up as after Ctrl-C.

    Only the first counts: a shell and the system may both send one, and the second must not interrupt the
    cleanup. A signal that is ignored from the start, as under nohup, stays ignored."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, _frame: Any) -> None:
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)
