"""What ``/metrics`` shows: the facade's counters and the daemon's status, as Prometheus' metric families.

``CATALOGUE`` is the one table of metrics. ``docs/monitoring.md`` lists the same ones, and a test compares
both with what a service exposes.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial, reduce
from itertools import accumulate
from operator import getitem
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from kvstore_http.metrics import counters as c
from kvstore_http.metrics.counters import HistogramCells, SharedCounters, WorkerCounters

Labels = Sequence[str]
Histogram = tuple[Sequence[float], Sequence[int], float]
"""Bounds, counts (one more than bounds), and the sum of the values."""

Sample = tuple[Labels, float | Histogram | None]
Samples = Iterable[Sample]


class MetricInfo(NamedTuple):
    """One metric; a counter's name ends in ``_total``, as it is exposed. ``read`` gives the values with their
    labels: of the facade, of the daemon's status, or of all processes."""

    kind: str
    name: str
    meaning: str
    read: Callable[[Any], Samples]
    labels: tuple[str, ...] = ()


COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

WRITE_REFUSALS = ("store_full", "internal", "unavailable")
"""The error codes with which all writes may be refused."""


# ── values of the facade ─────────────────────────────────────────────────────────────────────────


class _Facade:
    """What all workers have counted, and when whose credentials end."""

    def __init__(self, worker: WorkerCounters, ends: Mapping[str, int]) -> None:
        self.ends = ends
        self.shared = worker.shared_counters
        self.requests = worker.request_cells
        self.cells = self.shared.totals(self.requests.end)

    def histogram(self, place: HistogramCells) -> Histogram:
        counts = self.cells[place.at : place.at + len(place.bounds) + 1]
        return place.bounds, counts, self.cells[place.sum_at] / place.units


def _one(value: float | Histogram | None) -> Samples:
    return [((), value)]


def _cell(cell: int) -> Callable[[_Facade], Samples]:
    return lambda facade: _one(facade.cells[cell])


def _measured(place: HistogramCells) -> Callable[[_Facade], Samples]:
    return lambda facade: _one(facade.histogram(place))


def _streams_dropped(facade: _Facade) -> Samples:
    return [((reason,), facade.cells[cell]) for reason, cell in c.STREAMS_DROPPED.items()]


def _access_refused(facade: _Facade) -> Samples:
    return [((reason,), facade.cells[cell]) for reason, cell in c.ACCESS_REFUSED.items()]


def _access_ends(facade: _Facade) -> Samples:
    return [((name,), at / 1000) for name, at in facade.ends.items()]


def _request_counts(facade: _Facade) -> Iterator[Sample]:
    """Only what has happened: most methods of most routes are never asked for, or with one status."""
    for (method, route), series in facade.requests.series.items():
        for at, status in enumerate(facade.requests.statuses, series.statuses):
            if facade.cells[at]:
                yield (method, route, status), facade.cells[at]


def _request_seconds(facade: _Facade) -> Iterator[Sample]:
    for labels, series in facade.requests.series.items():
        measured = facade.histogram(series.seconds)
        if any(measured[1]):
            yield labels, measured


# ── values of the daemon's status ────────────────────────────────────────────────────────────────

Status = Mapping[str, Any]


def _status(*path: str) -> Callable[[Status], Samples]:
    return lambda status: _one(reduce(getitem, path, status))  # type: ignore[arg-type]


def _eviction(field: str) -> Callable[[Status], Samples]:
    """A field of what is said of the cache; nothing where there is none."""
    return lambda status: _one(None if status["eviction"] is None else status["eviction"][field])


def _time(field: str) -> Callable[[Status], Samples]:
    return lambda status: _one(_seconds(status[field]))


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _commits(field: str) -> Callable[[Status], Samples]:
    def read(status: Status) -> Samples:
        histogram = status["commits"][field]
        return _one((histogram["bounds"], histogram["counts"], histogram["sum"]))

    return read


def _build(status: Status) -> Samples:
    return [([str(status[name]) for name in CATALOGUE["kvstore_build_info"].labels], 1)]


def _refusals(status: Status) -> Samples:
    refusal = (status["writes_refused"] or {}).get("code")
    reasons = sorted({*WRITE_REFUSALS, *([refusal] if refusal else [])})
    return [((reason,), int(reason == refusal)) for reason in reasons]


def _operations(status: Status) -> Samples:
    return [((op,), count) for op, count in status["counters"]["operations_by_name"].items()]


# ── values of the cluster, where one keeps the store ─────────────────────────────────────────────

Cluster = Mapping[str, Any]
OF_MEMBER = ("member",)
ALARMS = ("CORRUPT", "NOSPACE")


def _members(field: str) -> Callable[[Cluster], Samples]:
    """A field of each member, by its endpoint: its name is not known while it is away."""
    return lambda cluster: [((member["endpoint"],), member[field]) for member in cluster["members"]]


def _versions(cluster: Cluster) -> Samples:
    return [
        ((member["endpoint"], member["name"], member["version"]), 1)
        for member in cluster["members"]
        if member["version"]
    ]


def _alarms(cluster: Cluster) -> Samples:
    raised = {alarm["alarm"] for alarm in cluster["alarms"]}
    return [((alarm,), int(alarm in raised)) for alarm in sorted({*ALARMS, *raised})]


def _offsets(cluster: Cluster) -> Samples:
    return [((node,), ahead / 1000) for node, ahead in cluster["clocks"].items()]


# ── values of processes ──────────────────────────────────────────────────────────────────────────

Processes = Mapping[str, Mapping[str, float]]
OF_PROCESS = ("process",)

_TICKS = os.sysconf("SC_CLK_TCK")


def _process(field: str) -> Callable[[Processes], Samples]:
    return lambda processes: [((name,), used[field]) for name, used in processes.items() if field in used]


def _processes(shared: SharedCounters, status: Status | None) -> Processes:
    """What the system says of each process; workers see each other, the daemon may be on another machine."""
    found = {f"worker-{number}": _usage(pid) for number, pid in shared.pids().items()}
    if status is None:
        return found
    started_at = _seconds(status["started_at"])
    return {"daemon": {**status["process"], "started_at": started_at}, **found}


def _usage(pid: int) -> dict[str, float]:
    """What a process uses, named as in the daemon's status, and when it started, in seconds since 1970;
    without what cannot be read, as when it has just ended. From ``/proc/PID`` alone: a confined service sees
    no more of ``/proc`` (``ProcSubset=pid``), and there prometheus_client's collector has nothing."""
    found: dict[str, float] = {}
    with suppress(OSError):
        found.update(_usage_of(pid))
    return found


def _usage_of(pid: int) -> Iterator[tuple[str, float]]:
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - a third of the time that Path takes
        fields = file.read().rpartition(b")")[2].split()  # proc(5) counts from 1; the first here is number 3
    user, system, started, virtual, resident = (int(fields[number - 3]) for number in (14, 15, 22, 23, 24))
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / _TICKS
    yield "cpu_seconds", (user + system) / _TICKS
    yield "started_at", round(time.time() - age, 2)
    yield "virtual_bytes", virtual
    yield "resident_bytes", resident * resource.getpagesize()
    yield "open_files", len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    yield "max_files", resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]


# ── the metrics ──────────────────────────────────────────────────────────────────────────────────


_counter = partial(MetricInfo, COUNTER)
_gauge = partial(MetricInfo, GAUGE)
_histogram = partial(MetricInfo, HISTOGRAM)

_FACADE = (
    _counter(
        "kvstore_http_requests_total",
        "Requests that were answered, refused ones too.",
        _request_counts,
        ("method", "route", "status"),
    ),
    _histogram(
        "kvstore_http_request_duration_seconds",
        "Time from a request's arrival until its answer was given to the network. Not for event "
        "streams, answers sent as they are read, and requests that ask to wait.",
        _request_seconds,
        ("method", "route"),
    ),
    _counter(
        "kvstore_http_waits_timed_out_total",
        "Requests answered with 504 that had asked to wait for something (until): it did not come in time.",
        _cell(c.WAITS_TIMED_OUT),
    ),
    _gauge("kvstore_http_requests_in_progress", "Requests that are being answered.", _cell(c.IN_PROGRESS)),
    _gauge("kvstore_http_connections", "Open connections, without event streams.", _cell(c.CONNECTIONS)),
    _gauge("kvstore_http_streams", "Open event streams.", _cell(c.STREAMS)),
    _gauge(
        "kvstore_http_streams_catching_up",
        "Of them, those that have not been sent all that there is: they catch up, or wait for the daemon.",
        _cell(c.CATCHING_UP),
    ),
    _counter("kvstore_http_streams_opened_total", "Event streams that began.", _cell(c.STREAMS_OPENED)),
    _counter(
        "kvstore_http_streams_resumed_total",
        "Event streams that began where another had ended.",
        _cell(c.STREAMS_RESUMED),
    ),
    _counter(
        "kvstore_http_streams_dropped_total",
        "Event streams that were cut off because their reader was slow or stalled, something failed "
        "or an operator kicked it, or refused for want of room.",
        _streams_dropped,
        ("reason",),
    ),
    _counter(
        "kvstore_http_stream_resets_total",
        "Event streams that had to start over: the log no longer reached back to where they were.",
        _cell(c.STREAM_RESETS),
    ),
    _counter(
        "kvstore_http_stream_events_total",
        "Events given to streams, one for each stream.",
        _cell(c.STREAM_EVENTS),
    ),
    _counter(
        "kvstore_http_stream_events_conflated_total",
        "Events left out of streams that asked for the latest, since a newer one of their key was sent.",
        _cell(c.STREAM_CONFLATED),
    ),
    _counter("kvstore_http_stream_bytes_total", "Bytes given to streams.", _cell(c.STREAM_BYTES)),
    _histogram(
        "kvstore_http_stream_lag_seconds",
        "Time from a commit's beginning until its changes were sent to the streams that want them.",
        _measured(c.STREAM_LAG),
    ),
    _gauge(
        "kvstore_http_stream_backlog_bytes",
        "What waits for the stream that is furthest behind, as of the last second.",
        lambda facade: _one(facade.shared.highest(c.BACKLOG_BYTES)),
    ),
    _histogram(
        "kvstore_http_daemon_request_ops", "Operations in one request to the daemon.", _measured(c.DAEMON_OPS)
    ),
    _histogram(
        "kvstore_http_daemon_request_duration_seconds",
        "Time from sending a request to the daemon until its reply.",
        _measured(c.DAEMON_SECONDS),
    ),
    _counter(
        "kvstore_http_tls_handshakes_failed_total",
        "TLS handshakes that failed or took too long.",
        _cell(c.HANDSHAKES_FAILED),
    ),
    _gauge(
        "kvstore_tls_certificate_expires_at_seconds",
        "When the TLS certificate in use ends; not there without TLS.",
        lambda facade: _one(facade.shared.certificate_ends_at),
    ),
    _counter(
        "kvstore_access_refused_total",
        "Requests refused for their credential, or for what it is not granted.",
        _access_refused,
        ("reason",),
    ),
    _gauge(
        "kvstore_access_expires_at_seconds",
        "When the last credential of an identity ends; not there for one that has one without end.",
        _access_ends,
        ("name",),
    ),
    _gauge(
        "kvstore_http_workers", "Worker processes that run.", lambda facade: _one(len(facade.shared.pids()))
    ),
    _counter(
        "kvstore_http_worker_restarts_total",
        "Workers started to replace one that ended.",
        lambda facade: _one(facade.shared.restarts),
    ),
)

_UP = _gauge(
    "kvstore_up",
    "1 if the daemon answers, 0 if not: then nothing else is known of it.",
    lambda status: _one(int(status is not None)),
)

_DAEMON = (
    _gauge(
        "kvstore_build_info",
        "Always 1; the labels say what runs.",
        _build,
        ("version", "protocol", "engine", "sync"),
    ),
    _gauge("kvstore_start_time_seconds", "When the daemon was started.", _time("started_at")),
    _gauge("kvstore_keys", "Keys.", _status("keys")),
    _gauge("kvstore_expiring_keys", "Keys that have a time to live.", _status("expiring_keys")),
    _gauge("kvstore_data_bytes", "What the records take in the store.", _status("data_bytes")),
    _gauge("kvstore_revision", "The newest revision.", _status("revision")),
    _gauge("kvstore_log_events", "Events that are kept.", _status("log_events")),
    _gauge("kvstore_log_bytes", "What they take.", _status("log_bytes")),
    _gauge(
        "kvstore_log_floor_revision", "The revision from which on a subscriber can resume.", _status("floor")
    ),
    _gauge(
        "kvstore_log_oldest_timestamp_seconds",
        "When the oldest event that is kept happened.",
        _time("oldest_event_at"),
    ),
    _gauge(
        "kvstore_store_used_bytes", "What the store holds: records, log and indexes.", _status("store_bytes")
    ),
    _gauge(
        "kvstore_store_file_bytes",
        "The size of its file, with room inside that is free.",
        _status("file_bytes"),
    ),
    _gauge(
        "kvstore_store_max_bytes", "What the store may hold (--max-store-bytes).", _status("max_store_bytes")
    ),
    _gauge(
        "kvstore_evictable_records",
        "Records of the cache, below --evict-prefix; not there without one, nor are the next four.",
        _eviction("records"),
    ),
    _gauge("kvstore_evictable_bytes", "What they take.", _eviction("bytes")),
    _gauge("kvstore_evictable_max_bytes", "What they may take (--evict-bytes).", _eviction("max_bytes")),
    _counter(
        "kvstore_evictions_total",
        "Records evicted to make room for others, or for the whole store.",
        _eviction("evicted_records"),
    ),
    _counter("kvstore_evicted_bytes_total", "What they took.", _eviction("evicted_bytes")),
    _gauge(
        "kvstore_journal_bytes",
        "What was committed since the last checkpoint, about.",
        _status("journal_bytes"),
    ),
    _gauge("kvstore_overlay_bytes", "The most that is kept in memory of it.", _status("overlay_bytes")),
    _gauge(
        "kvstore_backup_bytes",
        "What the backup that is kept for another machine takes of the disk.",
        _status("backup_bytes"),
    ),
    _gauge("kvstore_disk_bytes", "The size of the file system that the store is on.", _status("disk_bytes")),
    _gauge("kvstore_disk_free_bytes", "What is free there.", _status("disk_free_bytes")),
    _gauge("kvstore_writes_refused", "1 if writes are refused, 0 if not.", _refusals, ("reason",)),
    _counter("kvstore_requests_total", "Requests that the daemon received.", _status("counters", "requests")),
    _counter(
        "kvstore_requests_refused_total",
        "Requests that it answered with an error as a whole.",
        _status("counters", "requests_refused"),
    ),
    _gauge("kvstore_requests_pending", "Requests that it has not answered yet.", _status("pending")),
    _counter(
        "kvstore_requests_dropped_total",
        "Requests whose sender had gone before they were done.",
        _status("counters", "requests_dropped"),
    ),
    _gauge(
        "kvstore_replies_untaken_bytes",
        "Bytes of replies that peers have not read yet.",
        _status("untaken_bytes"),
    ),
    _counter(
        "kvstore_peers_cut_off_total",
        "Connections closed because they took too much memory.",
        _status("counters", "peers_cut_off"),
    ),
    _counter(
        "kvstore_subscribers_kicked_total",
        "Connections of native subscribers that an operator ended.",
        _status("counters", "subscribers_kicked"),
    ),
    _counter("kvstore_operations_total", "Operations that it was asked for.", _operations, ("op",)),
    _counter("kvstore_commits_total", "Commits that changed something.", _status("commits", "count")),
    _counter(
        "kvstore_commit_requests_total", "Requests that took part in them.", _status("commits", "requests")
    ),
    _histogram("kvstore_commit_ops", "Writes in one commit.", _commits("ops")),
    _histogram(
        "kvstore_commit_duration_seconds",
        "Time that a commit took, from its beginning until it was durable.",
        _commits("seconds"),
    ),
    _histogram(
        "kvstore_sync_duration_seconds", "Time that the disk took for a sync.", _commits("sync_seconds")
    ),
    _histogram(
        "kvstore_checkpoint_duration_seconds",
        "Time that it took to put a full file of the journal into LMDB.",
        _commits("checkpoint_seconds"),
    ),
    _gauge(
        "kvstore_last_commit_timestamp_seconds",
        "When the newest event that is kept happened.",
        _time("newest_event_at"),
    ),
    _counter(
        "kvstore_expiries_total", "Keys that expired, evicted ones too.", _status("counters", "expiries")
    ),
    _counter(
        "kvstore_changes_published_total",
        "Events that were committed and published.",
        _status("counters", "changes_published"),
    ),
    _counter(
        "kvstore_clock_steps_total",
        "How often the machine's clock was found to have been set.",
        _status("clock", "steps"),
    ),
    _gauge("kvstore_connections", "Connections to the daemon.", _status("connections")),
    _gauge(
        "kvstore_connections_max",
        "How many there may be, by its limit of open files.",
        _status("max_connections"),
    ),
    _gauge(
        "kvstore_subscriptions",
        "Different topics that native subscribers and workers follow.",
        _status("subscriptions"),
    ),
)

_CLUSTER = (
    _gauge(
        "kvstore_etcd_member_healthy",
        "1 if the member answered a linearizable read at the last look, 0 if not.",
        _members("healthy"),
        OF_MEMBER,
    ),
    _gauge("kvstore_etcd_member_leader", "1 if the member leads.", _members("leader"), OF_MEMBER),
    _gauge(
        "kvstore_etcd_member_info",
        "Always 1; the labels say what runs.",
        _versions,
        ("member", "name", "version"),
    ),
    _gauge(
        "kvstore_etcd_database_bytes",
        "The size of the member's database, with room inside that is free.",
        _members("db_bytes"),
        OF_MEMBER,
    ),
    _gauge(
        "kvstore_etcd_database_used_bytes",
        "What of it is in use.",
        _members("db_used_bytes"),
        OF_MEMBER,
    ),
    _gauge(
        "kvstore_etcd_database_quota_bytes",
        "How large it may get: as the member says, from etcd 3.6 on, or quota= in --engine.",
        _members("quota_bytes"),
        OF_MEMBER,
    ),
    _gauge("kvstore_etcd_alarm", "1 if etcd has the alarm.", _alarms, ("alarm",)),
    _counter(
        "kvstore_etcd_rotations_total",
        "How often the daemon turned to another member, as one did not answer.",
        _status("rotations"),
    ),
    _gauge(
        "kvstore_mirror_age_seconds",
        "How long ago the mirror was last known to have all that was committed.",
        lambda cluster: _one(cluster["mirror"]["lag_ms"] / 1000),
    ),
    _gauge(
        "kvstore_mirror_lag_revisions",
        "How many revisions it is known to lack.",
        _status("mirror", "lag_revisions"),
    ),
    _counter(
        "kvstore_mirror_rebuilds_total",
        "How often it was made: at a first start, and where it could not be continued or was wrong.",
        _status("mirror", "rebuilds"),
    ),
    _gauge(
        "kvstore_clock_offset_seconds",
        "By how much the clock of another daemon is ahead of this one's; below 0, behind it.",
        _offsets,
        ("node",),
    ),
)

_PROCESSES = (
    _counter("process_cpu_seconds_total", "CPU time.", _process("cpu_seconds"), OF_PROCESS),
    _gauge(
        "process_resident_memory_bytes",
        "Memory, mapped pages of the store included.",
        _process("resident_bytes"),
        OF_PROCESS,
    ),
    _gauge("process_virtual_memory_bytes", "Address space.", _process("virtual_bytes"), OF_PROCESS),
    _gauge("process_start_time_seconds", "When the process was started.", _process("started_at"), OF_PROCESS),
    _gauge("process_open_fds", "Open file descriptors.", _process("open_files"), OF_PROCESS),
    _gauge("process_max_fds", "How many may be open.", _process("max_files"), OF_PROCESS),
)

CATALOGUE: dict[str, MetricInfo] = {
    row.name: row for row in (*_FACADE, _UP, *_DAEMON, *_CLUSTER, *_PROCESSES)
}


class MetricsCollector:
    """A collector of prometheus_client; ``status`` is the daemon's, None if it does not answer. ``ends`` says
    when the last credential of an identity ends, in milliseconds."""

    def __init__(self, worker: WorkerCounters, status: Status | None, ends: Mapping[str, int]) -> None:
        self._worker = worker
        self._ends = ends
        self._status = status

    def collect(self) -> list[Metric]:
        """All families, of all workers, as of now."""
        facade, status = _Facade(self._worker, self._ends), self._status
        processes = _processes(facade.shared, status)
        return [
            *(_family(row, facade) for row in _FACADE),
            _family(_UP, status),
            *(_family(row, status) for row in _DAEMON if status is not None),
            *(_family(row, status["cluster"]) for row in _CLUSTER if status is not None),
            *(_family(row, processes) for row in _PROCESSES),
        ]


_FAMILIES: dict[str, Callable[..., Any]] = {
    COUNTER: CounterMetricFamily,
    GAUGE: GaugeMetricFamily,
    HISTOGRAM: HistogramMetricFamily,
}


def _family(row: MetricInfo, source: Any) -> Metric:
    family = _FAMILIES[row.kind](row.name, row.meaning, labels=row.labels)
    # without a cluster there is nothing to tell of one
    for labels, value in () if source is None and row in _CLUSTER else row.read(source):
        if isinstance(value, tuple):
            bounds, counts, total = value
            limits = [*map(floatToGoString, bounds), "+Inf"]
            family.add_metric(labels, list(zip(limits, accumulate(counts), strict=True)), total)
        elif value is not None:
            family.add_metric(labels, value)
    return family  # type: ignore[no-any-return]
