"""What a worker counts, and in which cells of its row.

The request path is measured in microseconds, so counting is adding to a cell whose number was looked up
in one dictionary. Everything here runs in the hub's thread.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

from kvstore_core.errors import ERRORS
from kvstore_http import routes
from kvstore_http.metrics.shared_counters import CELLS, GAUGES, PID, Row, SharedCounters

OTHER = "other"
"""Stands for paths, methods and statuses that the table of routes does not have: what clients make up
must not make new series."""

DROP_REASONS = ("slow", "stalled", "no_room", "failed")
"""Why a stream was cut off, or not begun (``no_room``)."""

REQUEST_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUEST_OPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)

NANOSECONDS = 1_000_000_000


class Distribution(NamedTuple):
    """A histogram's place in a row: a cell for each bound, one for what is above all, and the sum.

    Values are counted in ``units`` to one of what the bounds are in.
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


class Series(NamedTuple):
    """What is counted of the requests of one method on one route."""

    statuses: int
    seconds: Distribution


def _pairs() -> list[tuple[str, str]]:
    pairs = [(method, path) for path, rows in routes.paths().items() for method in routes.methods_of(rows)]
    pairs += [(OTHER, path) for path in routes.paths()]
    pairs += [(method, OTHER) for method in sorted({method for method, _ in pairs})]
    return pairs


def _statuses() -> tuple[str, ...]:
    described = {response.status for endpoint in routes.ENDPOINTS for response in endpoint.responses}
    known = sorted(described | {row.status for row in ERRORS.values()} | {204, 416})
    return (*map(str, known), OTHER)


class _Layout:
    """Gives cells out, one after another."""

    def __init__(self) -> None:
        self.size = GAUGES

    def take(self, count: int = 1) -> int:
        at, self.size = self.size, self.size + count
        assert self.size <= CELLS  # noqa: S101 - found by whoever adds a measure
        return at

    def distribution(self, bounds: Sequence[float], units: int) -> Distribution:
        return Distribution(self.take(len(bounds) + 2), tuple(bounds), units)


IN_PROGRESS, CONNECTIONS, STREAMS, BACKLOG_BYTES, CATCHING_UP, STREAM_REFUSED_AT = range(PID + 1, PID + 7)

_layout = _Layout()
STREAMS_OPENED = _layout.take()
STREAMS_RESUMED = _layout.take()
STREAM_RESETS = _layout.take()
STREAM_EVENTS = _layout.take()
STREAM_BYTES = _layout.take()
STREAMS_DROPPED = {reason: _layout.take() for reason in DROP_REASONS}
STREAM_LAG = _layout.distribution(LAG_SECONDS, 1_000)
DAEMON_OPS = _layout.distribution(REQUEST_OPS, 1)
DAEMON_SECONDS = _layout.distribution(REQUEST_SECONDS, NANOSECONDS)
STATUSES = _statuses()
REQUESTS = {
    pair: Series(_layout.take(len(STATUSES)), _layout.distribution(REQUEST_SECONDS, NANOSECONDS))
    for pair in _pairs()
}
USED_CELLS = _layout.size

_REQUEST_LIMITS = next(iter(REQUESTS.values())).seconds.limits
_REQUEST_SUM = len(_REQUEST_LIMITS) + 1


class _Places(dict[tuple[str, str, str], tuple[int, int]]):
    """The cells of a request by route, method and status line: where its status is counted, and
    where its duration is. Holds no more than routes, methods and statuses can make."""

    def __missing__(self, key: tuple[str, str, str]) -> tuple[int, int]:
        route, method, status_line = key
        if (OTHER, route) not in REQUESTS and route != OTHER:
            route = OTHER
        is_known = (method, route) in REQUESTS
        series = REQUESTS[method if is_known else OTHER, route]
        status = status_line[:3] if status_line[:3] in STATUSES else OTHER
        found = (series.statuses + STATUSES.index(status), series.seconds.at)
        if is_known and status != OTHER:
            self[key] = found
        return found


class WorkerCounters:
    """One worker's counting."""

    def __init__(self, shared_counters: SharedCounters, number: int) -> None:
        self.shared_counters = shared_counters
        self._cells: Row = shared_counters.row(number)
        self._places = _Places()
        self._lag_limits = STREAM_LAG.limits
        self._seconds_limits = DAEMON_SECONDS.limits

    @classmethod
    def alone(cls) -> WorkerCounters:
        """Those of a process that is its own only worker."""
        shared_counters = SharedCounters(1)
        shared_counters.note_start(0, os.getpid())
        return cls(shared_counters, 0)

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """A request is about to be answered."""
        self._cells[IN_PROGRESS] += 1

    def end(self, route: str, method: str, status: str, took: int | None) -> None:
        """It was, with this status line, in ``took`` nanoseconds (None: how long says nothing)."""
        cells = self._cells
        cells[IN_PROGRESS] -= 1
        at, seconds = self._places[route, method, status]
        cells[at] += 1
        if took is not None:
            cells[seconds + bisect_left(_REQUEST_LIMITS, took)] += 1
            cells[seconds + _REQUEST_SUM] += took

    def connection_rejected(self, status: str) -> None:
        """A connection was answered with this status line before it sent a request."""
        self._cells[self._places[OTHER, OTHER, status][0]] += 1

    def connections_changed(self, by: int) -> None:
        """So many more connections are open."""
        self._cells[CONNECTIONS] += by

    # ── the daemon ──────────────────────────────────────────────────────────────────────────────

    def daemon_answered(self, ops: int, took: int) -> None:
        """A request of so many ops was answered after ``took`` nanoseconds."""
        cells = self._cells
        cells[DAEMON_OPS.at + bisect_left(REQUEST_OPS, ops)] += 1
        cells[DAEMON_OPS.sum_at] += ops
        cells[DAEMON_SECONDS.at + bisect_left(self._seconds_limits, took)] += 1
        cells[DAEMON_SECONDS.sum_at] += took

    # ── streams ─────────────────────────────────────────────────────────────────────────────────

    def stream_opened(self, *, is_resumed: bool) -> None:
        """A stream began; ``is_resumed``: where another one had ended."""
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
        """So many streams were told that they have no continuation."""
        self._cells[STREAM_RESETS] += count

    def note_streams(self, count: int) -> None:
        """So many streams are open."""
        self._cells[STREAMS] = count

    def note_catching_up(self, count: int) -> None:
        """So many of them have not yet been sent all that there is."""
        self._cells[CATCHING_UP] = count

    def note_backlog(self, most: int) -> None:
        """The stream that has most waiting has so many bytes."""
        self._cells[BACKLOG_BYTES] = most

    def sent(self, size: int, events: int = 0) -> None:
        """Bytes were given to streams, with so many events in them."""
        self._cells[STREAM_BYTES] += size
        self._cells[STREAM_EVENTS] += events

    def changes_sent(self, lag_ms: int) -> None:
        """Changes were sent to all who want them, so long after they were committed."""
        lag_ms = max(0, lag_ms)
        self._cells[STREAM_LAG.at + bisect_left(self._lag_limits, lag_ms)] += 1
        self._cells[STREAM_LAG.sum_at] += lag_ms
