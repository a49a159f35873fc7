"""The figures of ``kvstore top``, from two readings of ``/metrics``, and the thread that takes these."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

from kvstore_cli.top.prometheus_text import Interval, Reading
from kvstore_core.errors import KvError

Figures = dict[str, Any]

_CPU_SECONDS = 4
_REQUESTS = "kvstore_http_requests_total"
_REQUEST_SECONDS = "kvstore_http_request_duration_seconds"


def overview(before: Reading, after: Reading, earlier: Reading) -> Figures:
    """Rates are per second, times in seconds, sizes in bytes. What is unknown is None.

    CPU time is measured from ``earlier``, some seconds ago: the daemon updates it once a second.
    """
    interval = Interval(before, after)
    (build, _), *_ = [*after.samples("kvstore_build_info"), ({}, 0)]
    started = after.value("kvstore_start_time_seconds")
    refused = [labels["reason"] for labels, value in after.samples("kvstore_writes_refused") if value]
    now = time.time()
    return {
        "time": stamp(now),
        "seconds": round(interval.seconds, 3),
        "daemon_up": after.value("kvstore_up") != 0,
        "version": build.get("version"),
        "sync": build.get("sync"),
        "uptime": None if started is None else max(0.0, now - started),
        "writes_refused": refused[0] if refused else None,
        "revision": _whole(after.value("kvstore_revision")),
        "keys": _whole(after.value("kvstore_keys")),
        "expiring_keys": _whole(after.value("kvstore_expiring_keys")),
        "data_bytes": _whole(after.value("kvstore_data_bytes")),
        "http": _http(interval, after),
        "streams": _streams(interval, after),
        "daemon": _daemon(interval, after),
        "commits": _commits(interval),
        "log": _log(after, now),
        "store": {
            name: _whole(after.value(f"kvstore_{name}"))
            for name in ("store_used_bytes", "store_max_bytes", "store_file_bytes", "disk_free_bytes")
        },
        "processes": _processes(Interval(earlier, after), after),
    }


def stamp(moment: float) -> str:
    """A moment as ``2026-01-31T12:00:00Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def _http(interval: Interval, after: Reading) -> Figures:
    by_class = {"2": 0.0, "3": 0.0, "4": 0.0, "5": 0.0}
    for (status,), rate in interval.rates(_REQUESTS, "status").items():
        by_class[status[0]] = by_class.get(status[0], 0.0) + rate
    return {
        "requests": interval.rate(_REQUESTS),
        "refused": by_class["4"],
        "failed": by_class["5"],
        "p50": interval.quantile(_REQUEST_SECONDS, 0.5),
        "p99": interval.quantile(_REQUEST_SECONDS, 0.99),
        "in_progress": _whole(after.value("kvstore_http_requests_in_progress")),
        "connections": _whole(after.value("kvstore_http_connections")),
        "workers": _whole(after.value("kvstore_http_workers")),
        "routes": _routes(interval),
    }


def _routes(interval: Interval) -> list[Figures]:
    """The routes, the busiest first."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for (method, route, status), rate in interval.rates(_REQUESTS, "method", "route", "status").items():
        found.setdefault((method, route), {})[status] = rate
    routes = [
        {
            "method": method,
            "route": route,
            "requests": sum(statuses.values()),
            "statuses": dict(sorted(statuses.items())),
            "p50": interval.quantile(_REQUEST_SECONDS, 0.5, method=method, route=route),
            "p99": interval.quantile(_REQUEST_SECONDS, 0.99, method=method, route=route),
        }
        for (method, route), statuses in found.items()
    ]
    return sorted(routes, key=lambda row: (-row["requests"], row["route"], row["method"]))


def _streams(interval: Interval, after: Reading) -> Figures:
    lag = "kvstore_http_stream_lag_seconds"
    dropped = interval.rates("kvstore_http_streams_dropped_total", "reason")
    return {
        "open": _whole(after.value("kvstore_http_streams")),
        "events": interval.rate("kvstore_http_stream_events_total"),
        "bytes": interval.rate("kvstore_http_stream_bytes_total"),
        "lag_p50": interval.quantile(lag, 0.5),
        "lag_p99": interval.quantile(lag, 0.99),
        "backlog_bytes": _whole(after.value("kvstore_http_stream_backlog_bytes")),
        "opened": interval.rate("kvstore_http_streams_opened_total"),
        "resumed": interval.rate("kvstore_http_streams_resumed_total"),
        "resets": interval.rate("kvstore_http_stream_resets_total"),
        "dropped": interval.rate("kvstore_http_streams_dropped_total"),
        "dropped_for": {reason: rate for (reason,), rate in dropped.items()},
    }


def _daemon(interval: Interval, after: Reading) -> Figures:
    by_name = interval.rates("kvstore_operations_total", "op")
    seconds = "kvstore_http_daemon_request_duration_seconds"
    return {
        "requests": interval.rate("kvstore_requests_total"),
        "pending": _whole(after.value("kvstore_requests_pending")),
        "operations": interval.rate("kvstore_operations_total"),
        "operations_by_name": {op: by_name[op,] for (op,) in sorted(by_name, key=lambda op: -by_name[op])},
        "facade_ops_per_request": interval.mean("kvstore_http_daemon_request_ops"),
        "facade_p50": interval.quantile(seconds, 0.5),
        "facade_p99": interval.quantile(seconds, 0.99),
        "subscriptions": _whole(after.value("kvstore_subscriptions")),
        "published": interval.rate("kvstore_changes_published_total"),
        "expired": interval.rate("kvstore_expiries_total"),
    }


def _commits(interval: Interval) -> Figures:
    commit, sync = "kvstore_commit_duration_seconds", "kvstore_sync_duration_seconds"
    return {
        "commits": interval.rate("kvstore_commits_total"),
        "writes_per_commit": interval.mean("kvstore_commit_ops"),
        "p50": interval.quantile(commit, 0.5),
        "p99": interval.quantile(commit, 0.99),
        "sync_p50": interval.quantile(sync, 0.5),
        "sync_p99": interval.quantile(sync, 0.99),
    }


def _log(after: Reading, now: float) -> Figures:
    oldest = after.value("kvstore_log_oldest_timestamp_seconds")
    return {
        "events": _whole(after.value("kvstore_log_events")),
        "bytes": _whole(after.value("kvstore_log_bytes")),
        "floor_revision": _whole(after.value("kvstore_log_floor_revision")),
        "reaches_back": None if oldest is None else max(0.0, now - oldest),
    }


def _processes(interval: Interval, after: Reading) -> dict[str, Figures]:
    """CPU in cores, memory in bytes, of the daemon and of each worker."""
    memory = {
        labels["process"]: value
        for labels, value in after.samples("process_resident_memory_bytes")
        if "process" in labels
    }
    cpu = {
        labels["process"]: increase / interval.seconds
        for labels, increase in interval.increases("process_cpu_seconds_total")
        if "process" in labels
    }
    return {name: {"cpu": cpu.get(name), "memory_bytes": _whole(memory[name])} for name in sorted(memory)}


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


class Sample(NamedTuple):
    """The result of one sample: figures, or why there are none."""

    shown: Figures | None
    error: KvError | None


class Sampler:
    """Calls ``fetch`` for the text of ``/metrics`` every ``seconds``, in a thread, so that a service that
    hangs does not block the screen. ``samples`` is the queue of results; ``wakeup`` is a file descriptor
    that is readable when there are some, and need not be read."""

    def __init__(self, fetch: Callable[[], bytes], seconds: float) -> None:
        self._fetch = fetch
        self._seconds = seconds
        self._readings: deque[Reading] = deque()
        self.samples: SimpleQueue[Sample] = SimpleQueue()
        self.wakeup, self._wake = os.pipe()
        os.set_blocking(self._wake, False)

    def begin(self) -> None:
        """Take the first reading, which rates start from, and continue in the background. Raises the KvError
        of the first request."""
        self._readings.append(self._read())
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    def _read(self) -> Reading:
        text = self._fetch()
        try:
            return Reading(text.decode(), time.monotonic())
        except ValueError as error:
            raise KvError("internal", f"cannot parse /metrics: {error}") from error

    def _run(self) -> None:
        """Run in the thread."""
        due = time.monotonic()
        while True:
            # intervals that were missed are skipped
            due = max(due + self._seconds, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            self.samples.put(self._sample())
            with suppress(BlockingIOError):  # the pipe is full of wake-ups that were not read
                os.write(self._wake, b"!")

    def _sample(self) -> Sample:
        try:
            after = self._read()
        except KvError as error:
            return Sample(None, error)
        readings = self._readings
        while len(readings) > 1 and readings[1].at <= after.at - _CPU_SECONDS:
            readings.popleft()
        shown = overview(readings[-1], after, readings[0])
        readings.append(after)
        return Sample(shown, None)
