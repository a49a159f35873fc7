"""What workers count in the memory that they share, against plain dictionaries."""

from __future__ import annotations

import os
import subprocess
import sys
from bisect import bisect_left
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kvstore_http.app import request_cells
from kvstore_http.metrics.counters import OTHER, REQUEST_SECONDS, SharedCounters, WorkerCounters
from kvstore_http.metrics.exposition import MetricsCollector

WORKERS = 3
NANOSECONDS = 1_000_000_000

CELLS = request_cells()
REQUESTS, STATUSES = CELLS.series, CELLS.statuses

routes = st.sampled_from([*{route for _, route in REQUESTS}, "/made-up"])
methods = st.sampled_from(["GET", "PUT", "HEAD", "OPTIONS", "PROPFIND", "", "get"])
statuses = st.sampled_from(["200 OK", "201 Created", "404 Not Found", "503 Service Unavailable", "599 What"])
durations = st.none() | st.integers(0, 20 * NANOSECONDS)
requests = st.lists(st.tuples(st.integers(0, WORKERS - 1), routes, methods, statuses, durations), max_size=60)


def series(route: str, method: str) -> tuple[str, str]:
    """The labels under which a request is counted."""
    route = route if any(known == route for _, known in REQUESTS) else OTHER
    return (method if (method, route) in REQUESTS else OTHER), route


@given(requests, st.lists(st.integers(0, WORKERS - 1), max_size=5))
def test_the_sum_over_all_workers_is_what_happened_whoever_was_restarted(
    happened: list[tuple[int, str, str, str, int | None]], restarted: list[int]
) -> None:
    shared_counters = SharedCounters(WORKERS)
    workers = []
    for number in range(WORKERS):
        shared_counters.note_start(number, 1)
        workers.append(WorkerCounters(shared_counters, number, CELLS))
    counts: Counter[tuple[str, str, str]] = Counter()
    buckets: Counter[tuple[str, str, float]] = Counter()
    sums: Counter[tuple[str, str]] = Counter()
    for at, (number, route, method, status, took) in enumerate(happened):
        workers[number].request_begun()
        if at < len(restarted):  # in the middle of a request, as a crash is
            gone = restarted[at]
            shared_counters.note_end(gone)
            shared_counters.note_start(gone, 2)
            workers[gone] = WorkerCounters(shared_counters, gone, CELLS)
            if gone == number:
                continue
        workers[number].request_ended(route, method, status, took)
        labels = series(route, method)
        counts[*labels, status[:3] if status[:3] in STATUSES else OTHER] += 1
        if took is not None:
            bound = (*REQUEST_SECONDS, float("inf"))[bisect_left(REQUEST_SECONDS, took / NANOSECONDS)]
            buckets[*labels, bound] += 1
            sums[labels] += took
    cells = shared_counters.totals(CELLS.end)
    for (method, route), cell in REQUESTS.items():
        found = {status: cells[cell.statuses + at] for at, status in enumerate(STATUSES)}
        assert found == {status: counts[method, route, status] for status in STATUSES}
        counted = cells[cell.seconds.at : cell.seconds.at + len(REQUEST_SECONDS) + 1]
        assert counted == [buckets[method, route, bound] for bound in (*REQUEST_SECONDS, float("inf"))]
        assert cells[cell.seconds.sum_at] == sums[method, route]
    assert shared_counters.restarts == min(len(restarted), len(happened))


def test_what_is_the_case_now_ends_with_the_worker_and_what_happened_stays() -> None:
    shared_counters = SharedCounters(2)
    for number in range(2):
        shared_counters.note_start(number, os.getpid())
    first, second = (WorkerCounters(shared_counters, number) for number in range(2))
    for worker, count in ((first, 3), (second, 4)):
        worker.request_begun()
        worker.connections_changed(count)
        worker.note_streams(count)
        worker.note_backlog(1000 * count)
        worker.stream_opened(is_resumed=True)
    shared_counters.note_end(1)
    shown = {
        sample.name: sample.value
        for family in MetricsCollector(first, None, {}).collect()
        for sample in family.samples
        if not sample.labels
    }
    assert shown["kvstore_http_requests_in_progress"] == 1
    assert shown["kvstore_http_connections"] == shown["kvstore_http_streams"] == 3
    assert shown["kvstore_http_stream_backlog_bytes"] == 3000
    assert shown["kvstore_http_workers"] == 1
    assert shown["kvstore_http_streams_opened_total"] == shown["kvstore_http_streams_resumed_total"] == 2


FORKING = """
import os
import subprocess
import sys
from kvstore_http.metrics import counters
from kvstore_http.metrics.counters import SharedCounters

def count(number):
    worker = counters.WorkerCounters(shared_counters, number)
    for _ in range(1000):
        worker.sent(10, 1)
    os._exit(0)

shared_counters = SharedCounters(2)
pids = [os.fork() or count(number) for number in range(2)]
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
cells = shared_counters.totals(counters.FIXED_CELLS)
print(cells[counters.STREAM_EVENTS], cells[counters.STREAM_BYTES])
"""


def test_the_memory_is_shared_with_processes_that_are_forked() -> None:
    # in a process of its own, since one with threads had better not fork
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2000", "20000"]
