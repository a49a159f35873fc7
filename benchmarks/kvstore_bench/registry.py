"""The table of what is measured, against what, and how far ahead we want to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvstore_bench.results import Sample
from kvstore_bench.rows import cluster, command, connections, digest, http, native, size, streams
from kvstore_bench.stage import Stage
from kvstore_bench.workload import keys_label


class Goal(NamedTuple):
    """``ours`` is to be ``at_least`` so many times as good as ``rival``; None: the ratio is only stated.

    All three names may be patterns (``fnmatch``). Of several contenders that fit, the best in each case
    stands for them. ``label`` names the ratio where a row has several.
    """

    ours: str
    rival: str
    at_least: float | None
    cases: str = "*"
    label: str = ""


class Row(NamedTuple):
    """One row. ``at_least`` is the goals in words."""

    measure: Callable[[Stage], Iterator[Sample]]
    what: str
    against: str
    at_least: str
    goals: tuple[Goal, ...]

    @property
    def name(self) -> str:
        return self.measure.__name__


ROWS: tuple[Row, ...] = (
    Row(
        http.http_get,
        "HTTP GET, 32 and 128 connections, 2 workers",
        "etcd's HTTP gateway; webdis with Redis",
        "5 times; 0.9",
        (
            Goal(http.KVSTORE, http.ETCD, 5.0, label="etcd"),
            Goal(http.KVSTORE, http.WEBDIS_EVERYSEC, 0.9, label="webdis"),
        ),
    ),
    Row(
        http.http_token,
        "HTTP GET with a token",
        "the same with access off",
        "0.8",
        (Goal(http.ASKED, http.KVSTORE, 0.8),),
    ),
    Row(
        http.http_put,
        "HTTP durable PUT, 32 and 128 connections",
        "etcd's HTTP gateway; webdis with Redis `appendfsync always`",
        "2 times; 0.6",
        (
            Goal(http.KVSTORE, http.ETCD, 2.0, label="etcd"),
            Goal(http.KVSTORE, http.WEBDIS_ALWAYS, 0.6, label="webdis, Redis always"),
            Goal(http.KVSTORE, http.WEBDIS_EVERYSEC, None, label="webdis, Redis everysec"),
        ),
    ),
    Row(
        http.http_batch,
        "HTTP batch of 100 ops",
        "etcd transactions of 100 over its gateway",
        "2 times for puts, 3 for gets",
        (
            Goal(http.KVSTORE, http.ETCD, 2.0, "*puts*", "puts"),
            Goal(http.KVSTORE, http.ETCD, 3.0, "*gets*", "gets"),
        ),
    ),
    Row(
        native.native_puts,
        "native durable puts, 32 clients with one op a request",
        "etcd through its fastest Python client; Redis `appendfsync always` through redis-py",
        "1.5 times; 0.6",
        (
            Goal("kvstore, *Client", "etcd, *", 1.5, "32 clients, *", "etcd"),
            Goal("kvstore, *Client", "Redis always, redis-py*", 0.6, "32 clients, *", "Redis always"),
            Goal("kvstore, *Client", "Redis everysec, redis-py*", None, "*", "Redis everysec"),
            Goal(
                native.KVSTORE_SOCKETS,
                f"Redis always, {native.REDIS_BENCHMARK}",
                None,
                "32 clients, *",
                "bare sockets, redis-benchmark",
            ),
        ),
    ),
    Row(
        digest.digest_cost,
        "the digest's part of a put of 100 B, CPU",
        "2 µs",
        "ahead",
        (
            Goal(digest.KVSTORE, digest.AIM, 1.0, "the digest's part*", "2 µs"),
            Goal(digest.KVSTORE, digest.WITHOUT, None, "a put*", "without it"),
        ),
    ),
    Row(
        native.native_gets,
        "native gets, 1,000 at once",
        "redis-py with pipelines; redis-benchmark -P",
        "1.1 times redis-py",
        (
            Goal(native.KVSTORE_CLIENT, "redis-py pipeline", 1.1, native.MANY, "redis-py"),
            Goal(native.KVSTORE_CLIENT, "redis-py MGET", None, native.MANY, "redis-py MGET"),
            Goal(
                native.KVSTORE_SOCKETS,
                f"{native.REDIS_BENCHMARK} -P",
                None,
                "*",
                "bare sockets, redis-benchmark",
            ),
        ),
    ),
    Row(
        native.round_trip,
        "one native get, round trip",
        "redis-py",
        "0.8",
        (
            Goal(native.KVSTORE_CLIENT, native.REDIS_PY, 0.8, "p50"),
            Goal(native.KVSTORE_CLIENT, native.REDIS_PY, None, "p99", "redis-py, p99"),
            Goal(native.KVSTORE_CLIENT, native.GATEWAY, None, "p50", "etcd"),
        ),
    ),
    Row(
        native.curve,
        "native get through CURVE",
        "the same with access off",
        "0.8",
        (Goal(native.KVSTORE_CURVE, native.KVSTORE_CLIENT, 0.8),),
    ),
    Row(
        streams.sse_deliveries,
        "SSE deliveries a second to 1,000 and 5,000 subscribers",
        "etcd watchers over its gateway",
        "5 times, with less memory",
        (
            Goal(streams.KVSTORE, streams.ETCD, 5.0, "[0-9]*", "deliveries"),
            Goal(streams.KVSTORE, streams.ETCD, 1.0, "memory with*", "memory"),
            Goal(streams.KVSTORE, streams.ETCD, None, "memory for each*"),
        ),
    ),
    Row(
        streams.native_deliveries,
        "deliveries to 1,000 native subscribers",
        "Redis pub/sub",
        "not slower than half",
        (
            Goal(streams.KVSTORE_NATIVE, streams.REDIS, 0.5, "[0-9]*"),
            Goal(streams.KVSTORE_NATIVE, streams.REDIS, None, "memory*", "Redis pub/sub, memory"),
        ),
    ),
    Row(
        streams.event_latency,
        "put-to-event latency, 1 and 1,000 subscribers, p50 and p99",
        "etcd watch over its gateway",
        "1.1 times for one, p50; else ahead",
        (
            Goal(streams.KVSTORE, streams.ETCD, 1.1, "1 subscriber, p50", "one, p50"),
            Goal(streams.KVSTORE, streams.ETCD, 1.0, "1 subscriber, p99", "one, p99"),
            Goal(streams.KVSTORE, streams.ETCD, 1.0, "1,000 subscribers, p[59][09]", "1,000"),
            Goal(streams.KVSTORE, streams.ETCD, None, "*, the last*"),
            Goal(streams.KVSTORE_NATIVE, streams.REDIS, None, "*", "native, Redis pub/sub"),
        ),
    ),
    Row(
        connections.get_beside_streams,
        "HTTP GET while 5,000 streams are open",
        "itself without them",
        "0.9",
        (
            Goal(connections.WITH_STREAMS, connections.NO_STREAMS, 0.9),
            Goal(connections.WITH_EVENTS, connections.NO_STREAMS, None),
        ),
    ),
    Row(
        native.get_beside_writers,
        "get p99 while 32 clients write at full speed",
        "itself idle; an idle daemon on a machine as busy",
        "0.5; 0.9",
        (
            Goal(native.BESIDE_MANY, native.IDLE, 0.5, "a get, p99", "idle"),
            Goal(native.BESIDE_MANY, native.ELSEWHERE, 0.9, "a get, p99", "as busy"),
            Goal(native.BESIDE_ONE, native.IDLE, None, "a get, p99", "one client"),
            Goal(native.BESIDE_HUNDREDS, native.IDLE, None, "a get, p99", "puts by the 100"),
            Goal(native.BESIDE_BULK, native.IDLE, None, "a get, p99", "puts by the 10,000"),
        ),
    ),
    Row(
        size.start_and_memory,
        "time to start with 10 million keys; memory with 1 million",
        "Redis with AOF; etcd",
        "ahead of both in start time",
        (
            Goal(size.KVSTORE, size.REDIS, 1.0, f"start with {keys_label(size.STARTED)}", "start, Redis"),
            Goal(size.KVSTORE, size.ETCD, 1.0, f"start with {keys_label(size.STARTED)}", "start, etcd"),
            Goal(size.KVSTORE, size.REDIS, None, "memory*", "memory, Redis"),
            Goal(size.KVSTORE, size.ETCD, None, "memory*", "memory, etcd"),
        ),
    ),
    Row(
        size.scale,
        "throughput at 10^3, 10^5 and 10^7 keys",
        "itself at 10^3",
        "0.85; puts at 10^5 0.9",
        (
            Goal(keys_label(size.MIDDLE), keys_label(size.SMALLEST), 0.85, "*[gG][eE][tT]*", "gets at 10^5"),
            Goal(keys_label(size.STARTED), keys_label(size.SMALLEST), 0.85, "*[gG][eE][tT]*", "gets at 10^7"),
            Goal(keys_label(size.MIDDLE), keys_label(size.SMALLEST), 0.9, "*puts*", "puts at 10^5"),
            Goal(keys_label(size.STARTED), keys_label(size.SMALLEST), 0.85, "*puts*", "puts at 10^7"),
        ),
    ),
    Row(
        connections.facade_overhead,
        "HTTP GET through the facade",
        "the same falcon route on the same server answering a constant",
        "0.75",
        (Goal(http.KVSTORE, connections.CONSTANT, 0.75),),
    ),
    Row(
        command.cli_get,
        "`kvstore get` from the shell, whole process",
        "etcdctl",
        "0.4",
        (
            Goal(command.KVSTORE, command.ETCDCTL, 0.4, "wall clock"),
            Goal(command.KVSTORE, command.PYTHON, None, "wall clock", command.PYTHON),
        ),
    ),
    Row(
        connections.idle_connections,
        "HTTP GET beside 2,000 idle keep-alive connections",
        "itself without them",
        "0.9",
        (Goal(connections.WITH_IDLE, connections.NO_IDLE, 0.9),),
    ),
    Row(
        cluster.cluster_puts,
        "puts by the hundred over an etcd of three",
        "Txns of 100 puts from the same client",
        "0.8",
        (
            Goal("kvstore, *", cluster.ETCD, 0.8, "100 puts*"),
            Goal("kvstore, *", cluster.ETCD, None, "* clients*", "single puts"),
        ),
    ),
    Row(
        cluster.cluster_gets,
        "gets over an etcd: stale, and current on one idle member",
        "kvstore on one machine; 1.5 ms",
        "0.9; ahead",
        (
            Goal(cluster.KVSTORE, cluster.LMDB, 0.9, "stale*", "stale"),
            Goal(cluster.KVSTORE, cluster.AIM, 1.0, "current, one member, p50", "current"),
            Goal(cluster.KVSTORE, cluster.ETCD, None, "current*", "etcd's own"),
        ),
    ),
    Row(
        cluster.cluster_events,
        "put-to-event latency over an etcd of three, p50",
        "kvstore on one machine",
        "0.2",
        (
            Goal(cluster.KVSTORE, cluster.LMDB, 0.2, f"put to event, {cluster.IDLE}, p50"),
            Goal(cluster.ELSEWHERE, cluster.KVSTORE, None, "put to event*"),
        ),
    ),
    Row(
        cluster.cluster_memory,
        "memory of a daemon with the mirror of an etcd",
        "kvstore on one machine",
        "0.5",
        (Goal(cluster.KVSTORE, cluster.LMDB, 0.5, "*files not counted"),),
    ),
)


def chosen(names: str) -> list[Row]:
    """The rows of a list with commas, all of them for an empty one; raises ValueError for a name that
    is none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = set(wanted) - {row.name for row in ROWS}
    if unknown:
        raise ValueError(
            f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in ROWS)}"
        )
    return [row for row in ROWS if not wanted or row.name in wanted]
