"""64-bit counters in memory that the parent of the workers shares with them.

The parent makes the memory before it forks: a row of cells for each worker, and one for itself. Only one
thread writes a row, so there is no lock. Any worker can read all rows, so whichever is asked answers for all.
A worker that is started again goes on in the row of the one before it, so a count never goes back.

prometheus_client's own way for several processes is a file for each: it takes several times as long for each
request, and leaves the files of workers that are long gone.
"""

from __future__ import annotations

import mmap

CELLS_PER_WORKER = 16 * 1024
"""The size of a row. Pages that are never written take no memory."""

GAUGES = 8
"""The first cells of a row are gauges: they are 0 while the worker does not run."""

PID = 0
_RESTARTS = 0

Row = memoryview
"""The cells of a row, signed integers."""


class SharedCounters:
    """The rows of ``workers`` workers and of their parent. Make it before the first fork."""

    def __init__(self, workers: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, (workers + 1) * CELLS_PER_WORKER * 8)).cast("q")
        self._started = [False] * workers
        self._parent = self.row(workers)
        self.workers = [self.row(number) for number in range(workers)]

    def row(self, number: int) -> Row:
        """The row of worker ``number``, which only that worker may write while it runs."""
        return self._cells[number * CELLS_PER_WORKER : (number + 1) * CELLS_PER_WORKER]

    # ── for the parent ──────────────────────────────────────────────────────────────────────────

    def note_start(self, number: int, pid: int) -> None:
        """Worker ``number`` runs."""
        self.workers[number][PID] = pid
        self._parent[_RESTARTS] += self._started[number]
        self._started[number] = True

    def note_end(self, number: int) -> None:
        """Worker ``number`` does not run any more."""
        row = self.workers[number]
        for gauge in range(GAUGES):
            row[gauge] = 0

    # ── for readers ─────────────────────────────────────────────────────────────────────────────

    @property
    def restarts(self) -> int:
        """How often a worker was started in place of one that had ended."""
        return self._parent[_RESTARTS]

    def pids(self) -> dict[int, int]:
        """The process ids of the workers that run, by their numbers."""
        return {number: row[PID] for number, row in enumerate(self.workers) if row[PID]}

    def totals(self, count: int) -> list[int]:
        """The first ``count`` cells, summed over all workers."""
        rows = [row[:count].tolist() for row in self.workers]
        return rows[0] if len(rows) == 1 else list(map(sum, zip(*rows, strict=True)))

    def highest(self, cell: int) -> int:
        """The highest value that a worker has in ``cell``."""
        return max(row[cell] for row in self.workers)
