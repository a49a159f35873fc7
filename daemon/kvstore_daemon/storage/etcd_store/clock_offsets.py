"""How far the clocks of other daemons are from this one's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

WARN_MS = 500
"""From here on an operator is warned: a key expires by the clock of whichever daemon looks first."""

_WINDOW_SECONDS = 60.0
_KEPT_SECONDS = 3600.0
_MOST_NODES = 64

_ENOUGH = 3
"""A delay makes a clock seem to be behind, and nothing makes one seem to be ahead: so it takes some samples
to believe the former."""


@dataclass(slots=True)
class _Samples:
    """The smallest delay since ``began``, and that of the window before; the number of samples in both."""

    began: float
    least: int
    before: int | None = None
    number: int = 1


class ClockOffsets:
    """Compares the time that a daemon wrote into a change with the time at which the change came here.

    What a change takes to come is in the difference, so the smallest of the last one to two minutes is taken:
    the error is then what the quickest one took, some milliseconds. One thread notes, any may ask.
    """

    def __init__(self, node: str = "", seconds: Callable[[], float] = time.monotonic) -> None:
        """``node`` names this daemon, whose own changes say nothing."""
        self._node = node
        self._seconds = seconds
        self._lock = threading.Lock()
        self._nodes: dict[str, _Samples] = {}
        """In the order in which their windows began: the first is the one to forget."""

    def note(self, node: str, written_at: int, arrived_at: int) -> None:
        """A change that ``node`` wrote at ``written_at`` came at ``arrived_at``, both in milliseconds by the
        wall clock of each. Only for changes that come as they are made, not for those of a catch-up."""
        if node == self._node:
            return
        now, delay = self._seconds(), arrived_at - written_at
        with self._lock:
            known = self._nodes.get(node)
            if known is not None and now - known.began < _WINDOW_SECONDS:
                known.least = min(known.least, delay)
                known.number += 1
                return
            new = _Samples(now, delay)
            if known is not None and now - known.began < 2 * _WINDOW_SECONDS:
                new.before, new.number = known.least, known.number + 1
            self._nodes.pop(node, None)
            self._nodes[node] = new
            if len(self._nodes) > _MOST_NODES:
                del self._nodes[next(iter(self._nodes))]

    def lead(self) -> int:
        """By how many milliseconds this daemon's clock is ahead of the one that is the furthest behind; 0
        where none is behind by so much that an operator is warned."""
        behind = -min(self.ahead().values(), default=0)
        return behind if behind > WARN_MS else 0

    def ahead(self) -> dict[str, int]:
        """By how many milliseconds each daemon's clock is ahead of this one's (below 0: behind it), of those
        that changed something within the last hour."""
        now, offsets = self._seconds(), {}
        with self._lock:
            for node, known in self._nodes.items():
                least = known.least if known.before is None else min(known.least, known.before)
                if now - known.began < _KEPT_SECONDS and (least <= 0 or known.number >= _ENOUGH):
                    offsets[node] = -least
        return offsets
