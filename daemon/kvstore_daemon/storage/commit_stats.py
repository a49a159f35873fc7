"""Counts and histograms of commits, kept by the thread that makes them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

SECONDS = (1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Histogram:
    """How many values were at or below each bound and above the one before it.

    One thread counts. Another may read at any time; its copy may lack the value that is being counted.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def count(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def as_json(self) -> dict[str, Any]:
        """``bounds``, ``counts`` (one more than there are bounds, the last for values above all of them) and
        the ``sum`` of the values."""
        return {"bounds": self.bounds, "counts": self.counts.copy(), "sum": round(self.total, 9)}


class CommitStats:
    """The commits since the engine was opened. The engine's writing thread counts.

    ``requests`` is the number of their requests, ``ops`` the number of writes of each commit, ``seconds`` the
    time from its beginning until it was durable, and ``sync_seconds`` the disk's part of that, which commits
    that were under way together share. If commits are not synced one by one, ``sync_seconds`` are those of
    the syncs that follow. ``checkpoint_seconds`` is how long each checkpoint took.
    """

    __slots__ = ("checkpoint_seconds", "ops", "requests", "seconds", "sync_seconds")

    def __init__(self) -> None:
        self.requests = 0
        self.ops = Histogram(SIZES)
        self.seconds = Histogram(SECONDS)
        self.sync_seconds = Histogram(SECONDS)
        self.checkpoint_seconds = Histogram(SECONDS)

    def count(self, requests: int, ops: int, seconds: float) -> None:
        """Count one commit."""
        self.requests += requests
        self.ops.count(ops)
        self.seconds.count(seconds)

    def as_json(self) -> dict[str, Any]:
        """The number of commits and of their requests, and the histograms."""
        ops = self.ops.as_json()
        return {
            "count": sum(ops["counts"]),
            "requests": self.requests,
            "ops": ops,
            "seconds": self.seconds.as_json(),
            "sync_seconds": self.sync_seconds.as_json(),
            "checkpoint_seconds": self.checkpoint_seconds.as_json(),
        }
