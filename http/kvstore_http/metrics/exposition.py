"""What ``/metrics`` shows: the facade's counters and the daemon's status, as Prometheus' metric families.

``CATALOGUE`` is the one table of names. ``docs/monitoring.md`` lists the same ones, and a test compares
both with what a service exposes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from kvstore_http.metrics import counters
from kvstore_http.metrics.counters import HistogramCells, RequestCells, WorkerCounters
from kvstore_http.metrics.process_stats import usage
from kvstore_http.metrics.shared_counters import SharedCounters

Labels = Sequence[str]
Histogram = tuple[Sequence[float], Sequence[int], float]
"""Bounds, counts (one more than bounds), and the sum of the values."""


class MetricInfo(NamedTuple):
    """One metric. A counter's name ends in ``_total``, as it is exposed."""

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()


COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

_FACADE = (
    MetricInfo(
        "kvstore_http_requests_total",
        COUNTER,
        "Requests that were answered, refused ones too.",
        ("method", "route", "status"),
    ),
    MetricInfo(
        "kvstore_http_request_duration_seconds",
        HISTOGRAM,
        "Time from a request's arrival until its answer was given to the network. Not for event streams, "
        "answers sent as they are read, and requests that ask to wait.",
        ("method", "route"),
    ),
    MetricInfo("kvstore_http_requests_in_progress", GAUGE, "Requests that are being answered."),
    MetricInfo("kvstore_http_connections", GAUGE, "Open connections, without event streams."),
    MetricInfo("kvstore_http_streams", GAUGE, "Open event streams."),
    MetricInfo(
        "kvstore_http_streams_catching_up",
        GAUGE,
        "Of them, those that have not been sent all that there is: they catch up, or wait for the daemon.",
    ),
    MetricInfo("kvstore_http_streams_opened_total", COUNTER, "Event streams that began."),
    MetricInfo(
        "kvstore_http_streams_resumed_total", COUNTER, "Event streams that began where another had ended."
    ),
    MetricInfo(
        "kvstore_http_streams_dropped_total",
        COUNTER,
        "Event streams that were cut off because their reader was slow or stalled or something failed, or "
        "refused for want of room.",
        ("reason",),
    ),
    MetricInfo(
        "kvstore_http_stream_resets_total",
        COUNTER,
        "Event streams that had to start over: the log no longer reached back to where they were.",
    ),
    MetricInfo("kvstore_http_stream_events_total", COUNTER, "Events given to streams, one for each stream."),
    MetricInfo("kvstore_http_stream_bytes_total", COUNTER, "Bytes given to streams."),
    MetricInfo(
        "kvstore_http_stream_lag_seconds",
        HISTOGRAM,
        "Time from a commit's beginning until its changes were sent to the streams that want them.",
    ),
    MetricInfo(
        "kvstore_http_stream_backlog_bytes",
        GAUGE,
        "What waits for the stream that is furthest behind, as of the last second.",
    ),
    MetricInfo("kvstore_http_daemon_request_ops", HISTOGRAM, "Operations in one request to the daemon."),
    MetricInfo(
        "kvstore_http_daemon_request_duration_seconds",
        HISTOGRAM,
        "Time from sending a request to the daemon until its reply.",
    ),
    MetricInfo("kvstore_http_workers", GAUGE, "Worker processes that run."),
    MetricInfo("kvstore_http_worker_restarts_total", COUNTER, "Workers started to replace one that ended."),
)

_DAEMON = (
    MetricInfo("kvstore_up", GAUGE, "1 if the daemon answers, 0 if not: then nothing else is known of it."),
    MetricInfo(
        "kvstore_build_info",
        GAUGE,
        "Always 1; the labels say what runs.",
        ("version", "protocol", "engine", "sync"),
    ),
    MetricInfo("kvstore_start_time_seconds", GAUGE, "When the daemon was started."),
    MetricInfo("kvstore_keys", GAUGE, "Keys."),
    MetricInfo("kvstore_expiring_keys", GAUGE, "Keys that have a time to live."),
    MetricInfo("kvstore_data_bytes", GAUGE, "What the records take in the store."),
    MetricInfo("kvstore_revision", GAUGE, "The newest revision."),
    MetricInfo("kvstore_log_events", GAUGE, "Events that are kept."),
    MetricInfo("kvstore_log_bytes", GAUGE, "What they take."),
    MetricInfo("kvstore_log_floor_revision", GAUGE, "The revision from which on a subscriber can resume."),
    MetricInfo("kvstore_log_oldest_timestamp_seconds", GAUGE, "When the oldest event that is kept happened."),
    MetricInfo("kvstore_store_used_bytes", GAUGE, "What the store holds: records, log and indexes."),
    MetricInfo("kvstore_store_file_bytes", GAUGE, "The size of its file, with room inside that is free."),
    MetricInfo("kvstore_store_max_bytes", GAUGE, "What the store may hold (--max-store-bytes)."),
    MetricInfo("kvstore_disk_bytes", GAUGE, "The size of the file system that the store is on."),
    MetricInfo("kvstore_disk_free_bytes", GAUGE, "What is free there."),
    MetricInfo("kvstore_writes_refused", GAUGE, "1 if writes are refused, 0 if not.", ("reason",)),
    MetricInfo("kvstore_requests_total", COUNTER, "Requests that the daemon received."),
    MetricInfo(
        "kvstore_requests_refused_total", COUNTER, "Requests that it answered with an error as a whole."
    ),
    MetricInfo("kvstore_requests_pending", GAUGE, "Requests that it has not answered yet."),
    MetricInfo(
        "kvstore_requests_dropped_total", COUNTER, "Requests whose sender had gone before they were done."
    ),
    MetricInfo("kvstore_replies_untaken_bytes", GAUGE, "Bytes of replies that peers have not read yet."),
    MetricInfo(
        "kvstore_peers_cut_off_total", COUNTER, "Connections closed because they took too much memory."
    ),
    MetricInfo("kvstore_operations_total", COUNTER, "Operations that it was asked for.", ("op",)),
    MetricInfo("kvstore_commits_total", COUNTER, "Commits that changed something."),
    MetricInfo("kvstore_commit_requests_total", COUNTER, "Requests that took part in them."),
    MetricInfo("kvstore_commit_ops", HISTOGRAM, "Writes in one commit."),
    MetricInfo(
        "kvstore_commit_duration_seconds",
        HISTOGRAM,
        "Time that a commit took, from its beginning until it was durable.",
    ),
    MetricInfo("kvstore_sync_duration_seconds", HISTOGRAM, "Time that the disk took for a sync."),
    MetricInfo(
        "kvstore_last_commit_timestamp_seconds", GAUGE, "When the newest event that is kept happened."
    ),
    MetricInfo("kvstore_expiries_total", COUNTER, "Keys that expired."),
    MetricInfo("kvstore_changes_published_total", COUNTER, "Events that were committed and published."),
    MetricInfo(
        "kvstore_clock_steps_total", COUNTER, "How often the machine's clock was found to have been set."
    ),
    MetricInfo("kvstore_connections", GAUGE, "Connections to the daemon."),
    MetricInfo("kvstore_connections_max", GAUGE, "How many there may be, by its limit of open files."),
    MetricInfo(
        "kvstore_subscriptions", GAUGE, "Different topics that native subscribers and workers follow."
    ),
)

_PROCESSES = (
    MetricInfo("process_cpu_seconds_total", COUNTER, "CPU time.", ("process",)),
    MetricInfo(
        "process_resident_memory_bytes", GAUGE, "Memory, mapped pages of the store included.", ("process",)
    ),
    MetricInfo("process_virtual_memory_bytes", GAUGE, "Address space.", ("process",)),
    MetricInfo("process_start_time_seconds", GAUGE, "When the process was started.", ("process",)),
    MetricInfo("process_open_fds", GAUGE, "Open file descriptors.", ("process",)),
    MetricInfo("process_max_fds", GAUGE, "How many may be open.", ("process",)),
)

CATALOGUE: dict[str, MetricInfo] = {row.name: row for row in (*_FACADE, *_DAEMON, *_PROCESSES)}

WRITE_REFUSALS = ("store_full", "internal")
"""The error codes with which all writes may be refused."""


class FixedCollector:
    """A collector of prometheus_client for families that have been made."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        """The families."""
        return self._families


def collector(worker: WorkerCounters, status: Mapping[str, Any] | None) -> FixedCollector:
    """A collector of all families, of all workers; ``status`` is the daemon's, None if it does not answer."""
    shared_counters = worker.shared_counters
    facade = _facade(shared_counters, worker.request_cells)
    return FixedCollector([*facade, *_daemon(status), *_processes(shared_counters, status)])


# ── making families ──────────────────────────────────────────────────────────────────────────────


def _gauge(name: str, *samples: tuple[Labels, float | None]) -> Metric:
    row = CATALOGUE[name]
    family = GaugeMetricFamily(name, row.meaning, labels=row.labels)
    for labels, value in samples:
        if value is not None:
            family.add_metric(labels, value)
    return family


def _counter(name: str, *samples: tuple[Labels, float]) -> Metric:
    row = CATALOGUE[name]
    family = CounterMetricFamily(name, row.meaning, labels=row.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _histogram(name: str, *samples: tuple[Labels, Histogram]) -> Metric:
    row = CATALOGUE[name]
    family = HistogramMetricFamily(name, row.meaning, labels=row.labels)
    for labels, (bounds, counts, total) in samples:
        limits = [*map(floatToGoString, bounds), "+Inf"]
        family.add_metric(labels, list(zip(limits, accumulate(counts), strict=True)), total)
    return family


# ── the facade ───────────────────────────────────────────────────────────────────────────────────


def _facade(shared_counters: SharedCounters, request_cells: RequestCells) -> Iterator[Metric]:
    cells = shared_counters.totals(request_cells.end)

    def histogram(place: HistogramCells) -> Histogram:
        counts = cells[place.at : place.at + len(place.bounds) + 1]
        return place.bounds, counts, cells[place.sum_at] / place.units

    yield from _requests(cells, request_cells, histogram)
    for name, cell in (
        ("kvstore_http_requests_in_progress", counters.IN_PROGRESS),
        ("kvstore_http_connections", counters.CONNECTIONS),
        ("kvstore_http_streams", counters.STREAMS),
        ("kvstore_http_streams_catching_up", counters.CATCHING_UP),
    ):
        yield _gauge(name, ((), cells[cell]))
    for name, cell in (
        ("kvstore_http_streams_opened_total", counters.STREAMS_OPENED),
        ("kvstore_http_streams_resumed_total", counters.STREAMS_RESUMED),
        ("kvstore_http_stream_resets_total", counters.STREAM_RESETS),
        ("kvstore_http_stream_events_total", counters.STREAM_EVENTS),
        ("kvstore_http_stream_bytes_total", counters.STREAM_BYTES),
    ):
        yield _counter(name, ((), cells[cell]))
    dropped = counters.STREAMS_DROPPED.items()
    yield _counter(
        "kvstore_http_streams_dropped_total", *(((reason,), cells[cell]) for reason, cell in dropped)
    )
    for name, place in (
        ("kvstore_http_stream_lag_seconds", counters.STREAM_LAG),
        ("kvstore_http_daemon_request_ops", counters.DAEMON_OPS),
        ("kvstore_http_daemon_request_duration_seconds", counters.DAEMON_SECONDS),
    ):
        yield _histogram(name, ((), histogram(place)))
    yield _gauge("kvstore_http_stream_backlog_bytes", ((), shared_counters.highest(counters.BACKLOG_BYTES)))
    yield _gauge("kvstore_http_workers", ((), len(shared_counters.pids())))
    yield _counter("kvstore_http_worker_restarts_total", ((), shared_counters.restarts))


def _requests(
    cells: list[int], request_cells: RequestCells, histogram: Callable[[HistogramCells], Histogram]
) -> Iterator[Metric]:
    """Only what has happened: most methods of most routes are never asked for, or with one status."""
    counts: list[tuple[Labels, float]] = []
    seconds: list[tuple[Labels, Histogram]] = []
    for (method, route), series in request_cells.series.items():
        for at, status in enumerate(request_cells.statuses, series.statuses):
            if cells[at]:
                counts.append(((method, route, status), cells[at]))
        measured = histogram(series.seconds)
        if any(measured[1]):
            seconds.append(((method, route), measured))
    yield _counter("kvstore_http_requests_total", *counts)
    yield _histogram("kvstore_http_request_duration_seconds", *seconds)


# ── the daemon ───────────────────────────────────────────────────────────────────────────────────


def _daemon(status: Mapping[str, Any] | None) -> Iterator[Metric]:
    yield _gauge("kvstore_up", ((), 0 if status is None else 1))
    if status is None:
        return
    labels = [str(status[name]) for name in CATALOGUE["kvstore_build_info"].labels]
    yield _gauge("kvstore_build_info", (labels, 1))
    yield from _state(status)
    refusal = (status["writes_refused"] or {}).get("code")
    reasons = sorted({*WRITE_REFUSALS, *([refusal] if refusal else [])})
    yield _gauge(
        "kvstore_writes_refused", *(((reason,), 1 if reason == refusal else 0) for reason in reasons)
    )
    yield from _work(status["counters"], status["commits"])
    yield _counter("kvstore_clock_steps_total", ((), status["clock"]["steps"]))


def _state(status: Mapping[str, Any]) -> Iterator[Metric]:
    for name, value in (
        ("kvstore_start_time_seconds", _seconds(status["started_at"])),
        ("kvstore_keys", status["keys"]),
        ("kvstore_expiring_keys", status["expiring_keys"]),
        ("kvstore_data_bytes", status["data_bytes"]),
        ("kvstore_revision", status["revision"]),
        ("kvstore_log_events", status["log_events"]),
        ("kvstore_log_bytes", status["log_bytes"]),
        ("kvstore_log_floor_revision", status["floor"]),
        ("kvstore_log_oldest_timestamp_seconds", _seconds(status["oldest_event_at"])),
        ("kvstore_store_used_bytes", status["store_bytes"]),
        ("kvstore_store_file_bytes", status["file_bytes"]),
        ("kvstore_store_max_bytes", status["max_store_bytes"]),
        ("kvstore_disk_bytes", status["disk_bytes"]),
        ("kvstore_disk_free_bytes", status["disk_free_bytes"]),
        ("kvstore_requests_pending", status["pending"]),
        ("kvstore_replies_untaken_bytes", status["untaken_bytes"]),
        ("kvstore_last_commit_timestamp_seconds", _seconds(status["newest_event_at"])),
        ("kvstore_connections", status["connections"]),
        ("kvstore_connections_max", status["max_connections"]),
        ("kvstore_subscriptions", status["subscriptions"]),
    ):
        yield _gauge(name, ((), value))


def _work(counters: Mapping[str, Any], commits: Mapping[str, Any]) -> Iterator[Metric]:
    for name, value in (
        ("kvstore_requests_total", counters["requests"]),
        ("kvstore_requests_refused_total", counters["requests_refused"]),
        ("kvstore_requests_dropped_total", counters["requests_dropped"]),
        ("kvstore_peers_cut_off_total", counters["peers_cut_off"]),
        ("kvstore_commits_total", commits["count"]),
        ("kvstore_commit_requests_total", commits["requests"]),
        ("kvstore_expiries_total", counters["expiries"]),
        ("kvstore_changes_published_total", counters["changes_published"]),
    ):
        yield _counter(name, ((), value))
    by_name = counters["operations_by_name"].items()
    yield _counter("kvstore_operations_total", *(((op,), count) for op, count in by_name))
    for name, histogram in (
        ("kvstore_commit_ops", commits["ops"]),
        ("kvstore_commit_duration_seconds", commits["seconds"]),
        ("kvstore_sync_duration_seconds", commits["sync_seconds"]),
    ):
        yield _histogram(name, ((), (histogram["bounds"], histogram["counts"], histogram["sum"])))


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


# ── processes ────────────────────────────────────────────────────────────────────────────────────

_OF_DAEMON = {
    "process_cpu_seconds_total": "cpu_seconds",
    "process_resident_memory_bytes": "resident_bytes",
    "process_virtual_memory_bytes": "virtual_bytes",
    "process_open_fds": "open_files",
    "process_max_fds": "max_files",
}


def _processes(shared_counters: SharedCounters, status: Mapping[str, Any] | None) -> Iterator[Metric]:
    """What the system says of each process; workers see each other, the daemon may be on another machine."""
    found: dict[str, list[tuple[Labels, float]]] = {row.name: [] for row in _PROCESSES}
    if status is not None:
        process = {**status["process"], "start": _seconds(status["started_at"])}
        for name, field in (*_OF_DAEMON.items(), ("process_start_time_seconds", "start")):
            if field in process:
                found[name].append((("daemon",), process[field]))
    for number, pid in shared_counters.pids().items():
        for name, value in usage(pid).items():
            found[name].append(((f"worker-{number}",), value))
    for name, samples in found.items():
        make = _counter if CATALOGUE[name].kind == COUNTER else _gauge
        yield make(name, *samples)
