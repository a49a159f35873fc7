"""The wall clock, by which credentials end."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Its time, in milliseconds since the epoch. It may be set back."""
    return time.time_ns() // 1_000_000
