"""What a worker counts: 64-bit counters in memory that the parent of the workers shares with them.

The parent makes the memory before it forks: a row of cells for each worker, and one for itself. Only one
thread writes a row, so there is no lock. Any worker can read all rows, so whichever is asked answers for all.
A worker that is started again goes on in the row of the one before it, so a count never goes back.
Counting is on the path of every request, so it is adding to a cell whose number one dictionary gives.

prometheus_client's own way for several processes is a file for each: it takes several times as long for each
request, and leaves the files of workers that are long gone.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import NamedTuple

CELLS_PER_WORKER = 16 * 1024
"""The size of a row. Pages that are never written take no memory."""

GAUGES = 16
"""The first cells of a row are gauges: they are 0 while the worker does not run."""

PID = 0
_RESTARTS = 0

OTHER = "other"
"""The label of unknown routes, methods and statuses: what clients make up must not make new series."""

REFUSAL_REASONS = ("missing", "unknown", "expired", "revoked", "not_granted", "in_address", "cross_site")
"""Why a request was refused: by its credential (``missing``: there was none), or by what it is granted."""

DROP_REASONS = ("slow", "stalled", "no_room", "failed", "kicked")
"""Why a stream was cut off (``kicked``: by an operator), or not begun (``no_room``)."""

REQUEST_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUEST_OPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)

NANOSECONDS = 1_000_000_000


class HistogramCells(NamedTuple):
    """The cells of a histogram: one for each bound, one for what is above all of them, and the sum.

    Values are counted in integers, ``units`` of which make one of the bounds' unit.
    """

    at: int
    bounds: tuple[float, ...]
    units: int

    @property
    def limits(self) -> list[int]:
        """The bounds in the units that values are counted in."""
        return [round(bound * self.units) for bound in self.bounds]

    @property
    def sum_at(self) -> int:
        """The cell of the sum."""
        return self.at + len(self.bounds) + 1


class _Layout:
    """Gives out the cells from ``size`` on."""

    def __init__(self, size: int) -> None:
        self.size = size

    def take(self, count: int = 1) -> int:
        at, self.size = self.size, self.size + count
        assert self.size <= CELLS_PER_WORKER  # noqa: S101 - for new metrics
        return at

    def histogram(self, bounds: Sequence[float], units: int) -> HistogramCells:
        return HistogramCells(self.take(len(bounds) + 2), tuple(bounds), units)


IN_PROGRESS, CONNECTIONS, STREAMS, BACKLOG_BYTES, CATCHING_UP, STREAM_REFUSED_AT = range(PID + 1, PID + 7)
CERTIFICATE_ENDS_AT, CERTIFICATE_REFUSED = range(PID + 7, PID + 9)

_layout = _Layout(GAUGES)
STREAMS_OPENED = _layout.take()
STREAMS_RESUMED = _layout.take()
STREAM_RESETS = _layout.take()
STREAM_EVENTS = _layout.take()
STREAM_BYTES = _layout.take()
STREAM_CONFLATED = _layout.take()
STREAMS_DROPPED = {reason: _layout.take() for reason in DROP_REASONS}
HANDSHAKES_FAILED = _layout.take()
WAITS_TIMED_OUT = _layout.take()
ACCESS_REFUSED = {reason: _layout.take() for reason in REFUSAL_REASONS}
STREAM_LAG = _layout.histogram(LAG_SECONDS, 1_000)
DAEMON_OPS = _layout.histogram(REQUEST_OPS, 1)
DAEMON_SECONDS = _layout.histogram(REQUEST_SECONDS, NANOSECONDS)
FIXED_CELLS = _layout.size
"""Of a row: all but those of requests."""

_LAG_LIMITS = STREAM_LAG.limits
_SECONDS_LIMITS = DAEMON_SECONDS.limits  # requests have the buckets of REQUEST_SECONDS, too
_SECONDS_SUM = len(_SECONDS_LIMITS) + 1


class SharedCounters:
    """The rows of ``workers`` workers and of their parent. Make it before the first fork."""

    def __init__(self, workers: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, (workers + 1) * CELLS_PER_WORKER * 8)).cast("q")
        self._started = [False] * workers
        self._parent = self.row(workers)
        self.workers = [self.row(number) for number in range(workers)]

    def row(self, number: int) -> memoryview:
        """The cells (signed integers) of worker ``number``: only that worker may write them while it runs."""
        return self._cells[number * CELLS_PER_WORKER : (number + 1) * CELLS_PER_WORKER]

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

    @property
    def certificate_ends_at(self) -> int | None:
        """When the certificate in use ends, in seconds since 1970; None without TLS. Between two looks at the
        files workers may have different ones: then when the first of them ends."""
        return min(filter(None, (row[CERTIFICATE_ENDS_AT] for row in self.workers)), default=None)


class RequestSeries(NamedTuple):
    """The cells of one method's requests to one route: the first of their statuses, and the histogram."""

    statuses: int
    seconds: HistogramCells


class RequestCells(dict[tuple[str, str, str], tuple[int, int]]):
    """The cells in which a request is counted, by route, method and status line: that of its status, and the
    first of its duration.

    ``methods`` are the methods of each route. What is not among them, or among ``statuses``, counts as OTHER,
    so there are no more entries than routes, methods and statuses make.
    """

    def __init__(self, methods: Mapping[str, Sequence[str]], statuses: Iterable[int]) -> None:
        super().__init__()
        self.statuses = (*map(str, sorted(statuses)), OTHER)
        labels = [(method, route) for route, known in methods.items() for method in known]
        labels += [(OTHER, route) for route in methods]
        labels += [(method, OTHER) for method in sorted({OTHER, *(method for method, _ in labels)})]
        layout = _Layout(FIXED_CELLS)
        self.series = {
            pair: RequestSeries(
                layout.take(len(self.statuses)), layout.histogram(REQUEST_SECONDS, NANOSECONDS)
            )
            for pair in labels
        }
        self.end = layout.size

    def __missing__(self, key: tuple[str, str, str]) -> tuple[int, int]:
        route, method, status_line = key
        if (OTHER, route) not in self.series:
            route = OTHER
        is_known = (method, route) in self.series
        series = self.series[method if is_known else OTHER, route]
        status = status_line[:3] if status_line[:3] in self.statuses else OTHER
        found = (series.statuses + self.statuses.index(status), series.seconds.at)
        if is_known and status != OTHER:
            self[key] = found
        return found


class WorkerCounters:
    """What worker ``number`` counts, requests in ``request_cells``."""

    def __init__(
        self, shared_counters: SharedCounters, number: int, request_cells: RequestCells | None = None
    ) -> None:
        self.shared_counters = shared_counters
        self.number = number
        self.request_cells = RequestCells({}, ()) if request_cells is None else request_cells
        self._cells = shared_counters.row(number)

    @classmethod
    def alone(cls) -> WorkerCounters:
        """The counters of a process that is its only worker."""
        shared_counters = SharedCounters(1)
        shared_counters.note_start(0, os.getpid())
        return cls(shared_counters, 0)

    def request_begun(self) -> None:
        """A request is about to be answered."""
        self._cells[IN_PROGRESS] += 1

    def request_ended(self, route: str, method: str, status: str, took: int | None) -> None:
        """It was, with this status line, in ``took`` nanoseconds (None: the client decided how long)."""
        cells = self._cells
        cells[IN_PROGRESS] -= 1
        at, seconds = self.request_cells[route, method, status]
        cells[at] += 1
        if took is not None:
            cells[seconds + bisect_left(_SECONDS_LIMITS, took)] += 1
            cells[seconds + _SECONDS_SUM] += took

    def wait_timed_out(self) -> None:
        """What a request waited for did not come in its time; it counts as ended too."""
        self._cells[WAITS_TIMED_OUT] += 1

    def connection_rejected(self, status: str) -> None:
        """A connection was answered with this status line before it sent a request."""
        self._cells[self.request_cells[OTHER, OTHER, status][0]] += 1

    def connections_changed(self, by: int) -> None:
        """``by`` more connections are open."""
        self._cells[CONNECTIONS] += by

    def handshake_failed(self) -> None:
        """A TLS handshake failed, or took too long."""
        self._cells[HANDSHAKES_FAILED] += 1

    def note_certificate(self, ends_at: float, *, is_refused: bool) -> None:
        """The certificate in use ends then, in seconds since 1970; ``is_refused`` says that its files hold
        another, which cannot be used."""
        self._cells[CERTIFICATE_ENDS_AT] = int(ends_at)
        self._cells[CERTIFICATE_REFUSED] = is_refused

    def daemon_answered(self, ops: int, took: int) -> None:
        """The daemon answered a request of so many ops after ``took`` nanoseconds."""
        cells = self._cells
        cells[DAEMON_OPS.at + bisect_left(REQUEST_OPS, ops)] += 1
        cells[DAEMON_OPS.sum_at] += ops
        cells[DAEMON_SECONDS.at + bisect_left(_SECONDS_LIMITS, took)] += 1
        cells[DAEMON_SECONDS.sum_at] += took

    def access_refused(self, reason: str) -> None:
        """A request was refused for one of ``REFUSAL_REASONS``."""
        self._cells[ACCESS_REFUSED[reason]] += 1

    def stream_opened(self, *, is_resumed: bool) -> None:
        """A stream began, if ``is_resumed`` where another one had ended."""
        self._cells[STREAMS_OPENED] += 1
        self._cells[STREAMS_RESUMED] += is_resumed

    def stream_dropped(self, reason: str) -> None:
        """A stream was cut off for one of ``DROP_REASONS``."""
        self._cells[STREAMS_DROPPED[reason]] += 1

    def stream_refused(self) -> None:
        """There was no room for a stream."""
        self.stream_dropped("no_room")
        self._cells[STREAM_REFUSED_AT] = int(monotonic())

    def streams_reset(self, count: int) -> None:
        """So many streams had to start over."""
        self._cells[STREAM_RESETS] += count

    def note_streams(self, count: int) -> None:
        """So many streams are open."""
        self._cells[STREAMS] = count

    def note_catching_up(self, count: int) -> None:
        """So many of them have not been sent all changes yet."""
        self._cells[CATCHING_UP] = count

    def note_backlog(self, most: int) -> None:
        """So many bytes wait for the stream that is furthest behind."""
        self._cells[BACKLOG_BYTES] = most

    def sent(self, size: int, events: int = 0) -> None:
        """Bytes were given to streams, with so many events in them."""
        self._cells[STREAM_BYTES] += size
        self._cells[STREAM_EVENTS] += events

    def conflated(self, events: int) -> None:
        """A stream was sent something newer instead of so many events."""
        self._cells[STREAM_CONFLATED] += events

    def changes_sent(self, lag_ms: int) -> None:
        """Changes were sent to all streams that want them, so long after they were committed."""
        lag_ms = max(0, lag_ms)
        self._cells[STREAM_LAG.at + bisect_left(_LAG_LIMITS, lag_ms)] += 1
        self._cells[STREAM_LAG.sum_at] += lag_ms
