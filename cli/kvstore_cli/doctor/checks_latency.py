"""Checks of latency."""

from __future__ import annotations

from collections.abc import Iterator

from kvstore_cli.doctor.findings import Finding, ok, warning
from kvstore_cli.doctor.probe import Probe, by_query, percentiles

WRITES = 40
# what etcd requires of a disk
_SLOW_SYNC_MS = 10.0
_SLOW_COMMIT_MS = 20.0


def durable_writes(probe: Probe) -> Iterator[Finding]:
    """How much longer a put takes than a get, and how much of that is the disk, by the daemon's own
    figures of its commits."""
    key = probe.key("disk")
    puts: list[float] = []
    gets: list[float] = []
    before = _syncs(probe)
    for number in range(WRITES):
        puts.append(probe.store(key, b"%d" % number).seconds)
        gets.append(probe.ask("GET", by_query(key)).seconds)
    after = _syncs(probe)
    (put_median, put_p99), (get_median, get_p99) = percentiles(puts), percentiles(gets)
    commits, synced = after[0] - before[0], after[1] - before[1]
    sync = round(synced / commits * 1000, 2) if commits else None
    extra = max(0.0, round(put_median - get_median, 2))
    message = (
        f"{WRITES} sequential puts: p50 {put_median} ms, p99 {put_p99} ms, {extra} ms more than a get "
        f"(p50 {get_median} ms)" + ("" if sync is None else f"; the disk took {sync} ms for each commit")
    )
    figures = {
        "writes": WRITES,
        "put_p50_ms": put_median,
        "put_p99_ms": put_p99,
        "get_p50_ms": get_median,
        "get_p99_ms": get_p99,
        "sync_ms": sync,
    }
    if sync is not None and sync > _SLOW_SYNC_MS:
        yield warning("slow_disk", message, **figures)
    elif extra > _SLOW_COMMIT_MS:
        yield warning("slow_writes" if sync is not None else "slow_disk", message, **figures)
    else:
        yield ok(message, **figures)


def _syncs(probe: Probe) -> tuple[int, float]:
    """The number of commits since the daemon started, and the seconds that their syncs took; zeros from a
    daemon that does not report them or does not wait for syncs."""
    commits = probe.ask("GET", "/v1/status").json().get("commits", {})
    return commits.get("count", 0), commits.get("sync_seconds", {}).get("sum", 0.0)
