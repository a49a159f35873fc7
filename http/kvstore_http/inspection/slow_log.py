"""The last requests of a worker that took long, for operators."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any

from kvstore_core.limits import SLOW_KEPT
from kvstore_core.wall_clock import now_ms


class SlowLog:
    """The last ``SLOW_KEPT`` requests of worker ``number`` that took ``least_ms`` or longer (0: none is
    kept). What describes one is bounded by who notes it."""

    def __init__(self, least_ms: int, number: int = 0) -> None:
        self.ns = least_ms * 1_000_000 or inf
        self._number = number
        self._kept: deque[dict[str, Any]] = deque(maxlen=SLOW_KEPT)

    def note(self, described: dict[str, Any]) -> None:
        """Keep a request that has just ended, instead of the oldest where there is no more room."""
        self._kept.append({"time": now_ms(), **described, "worker": self._number})

    def shown(self, limit: int) -> dict[str, Any]:
        """The last ``limit`` of them, the newest first."""
        newest = list(self._kept)[-limit:]
        return {"requests": newest[::-1]}
