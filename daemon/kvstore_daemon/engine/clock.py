"""The wall clock that records are stamped with and expire by."""

from __future__ import annotations

import time
from collections.abc import Callable


def wall_clock() -> Callable[[], int]:
    """A clock of milliseconds since the epoch that never runs backwards while the process lives.

    When the machine's clock is set back it stands still until the time is reached again: an expired
    record must not come back to life. Any thread may call it.
    """
    latest = 0

    def now() -> int:
        nonlocal latest
        latest = max(latest, time.time_ns() // 1_000_000)
        return latest

    return now
