"""Checks of how long things take."""

from __future__ import annotations

from collections.abc import Iterator

from kvstore_cli.doctor.findings import Finding, ok, warning
from kvstore_cli.doctor.probe import Probe, by_query, percentile, percentiles

WRITES = 40
# etcd wants a sync within 10 ms; a commit here has two. One put in ten may have met something else.
_SLOW_MEDIAN_MS = 20.0
_SLOW_P90_MS = 100.0


def durable_writes(probe: Probe) -> Iterator[Finding]:
    """What a put takes beyond a get over the same way: the commit and its syncs."""
    key = probe.key("disk")
    puts: list[float] = []
    gets: list[float] = []
    for number in range(WRITES):
        puts.append(probe.store(key, b"%d" % number).seconds)
        gets.append(probe.ask("GET", by_query(key)).seconds)
    (put_median, put_p99), (get_median, get_p99) = percentiles(puts), percentiles(gets)
    commit = max(0.0, round(put_median - get_median, 2))
    figures = {
        "writes": WRITES,
        "put_p50_ms": put_median,
        "put_p99_ms": put_p99,
        "get_p50_ms": get_median,
        "get_p99_ms": get_p99,
    }
    message = (
        f"{WRITES} puts one after another: p50 {put_median} ms, p99 {put_p99} ms, "
        f"which is {commit} ms more than a get (p50 {get_median} ms)"
    )
    if commit > _SLOW_MEDIAN_MS or percentile(puts, 90) > _SLOW_P90_MS:
        yield warning("slow_disk", f"{message}: the disk is slow to sync", **figures)
    else:
        yield ok(message, **figures)
