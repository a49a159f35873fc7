"""Telling subscribers: how many deliveries a second, how soon, and with how much memory.

The load generator is this process. It makes changes in bursts and begins the next burst when every
subscriber has all of the last, so no contender can drop or put off anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from statistics import median
from typing import Any, NamedTuple, Protocol

from kvstore_bench import servers
from kvstore_bench.load.streams import Streams, Writer
from kvstore_bench.processes import Process, Usage, memory_bytes
from kvstore_bench.results import Load, Sample, rate
from kvstore_bench.rows.native import percentiles
from kvstore_bench.servers import resp
from kvstore_bench.stage import Stage
from kvstore_bench.workload import SMALL, EtcdHttp, KvstoreHttp, key

KVSTORE = "kvstore, SSE"
KVSTORE_NATIVE = "kvstore, SUB sockets"
ETCD = "etcd watch, its gateway"
REDIS = "Redis pub/sub"

PREFIX = "key:"
VALUE = b"x" * (SMALL - 1) + b"~"
BASE64_VALUE = b"xx?" + b"x" * (SMALL - 3)
"""The one '?' that ends a group of three becomes the one '/' of its base64."""

CONNECTIONS = 10


class Changes(Protocol):
    """Makes changes to one key."""

    def send(self, changes: int) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class Channel(NamedTuple):
    """How one contender is subscribed to and written to; see Streams and Writer."""

    process: Process
    port: int
    hello: bytes
    opened: bytes
    token: bytes
    writer: Callable[[], Changes]
    last: bytes = b""


@contextmanager
def _sse(stage: Stage) -> Iterator[Channel]:
    with stage.scratch() as folder, servers.kvstore(folder) as server:
        put = KvstoreHttp.put(key(1), VALUE)
        yield _over_http(server, KvstoreHttp.watch(PREFIX), b"event: sync", b"~", put)


@contextmanager
def _etcd(stage: Stage) -> Iterator[Channel]:
    with stage.scratch() as folder, servers.etcd(folder) as server:
        put = EtcdHttp.put(key(1), BASE64_VALUE)
        yield _over_http(server, EtcdHttp.watch(PREFIX), b'"created":true', b"/", put)


def _over_http(
    server: servers.Kvstore | servers.Peer, hello: bytes, opened: bytes, token: bytes, put: bytes
) -> Channel:
    def writer() -> Changes:
        return Writer(server.port, put, b"HTTP/1.1 ", CONNECTIONS)

    return Channel(server.process, server.port, hello, opened, token, writer)


@contextmanager
def _native(stage: Stage) -> Iterator[Channel]:
    with stage.scratch() as folder, servers.kvstore_daemon(folder) as server:
        yield Channel(
            server.process,
            int(server.changes.rpartition(":")[2]),
            GREETING,
            b"READY",
            b"~",
            lambda: _NativeWriter(server.requests),
            _subscription(PREFIX.encode()),
        )


@contextmanager
def _redis(stage: Stage) -> Iterator[Channel]:
    with stage.scratch() as folder, servers.redis(folder) as server:
        yield Channel(
            server.process,
            server.port,
            resp("SUBSCRIBE", key(1)),
            b"subscribe",
            b"~",
            lambda: Writer(server.port, resp("PUBLISH", key(1), VALUE), b"\n"),
        )


GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
"""What a SUB socket begins with (ZMTP 3.0, NULL mechanism), for reading without libzmq: a thousand sockets
of it in one process would cost more than the publisher does."""


def _subscription(prefix: bytes) -> bytes:
    """What it sends once the greeting was answered, to be subscribed to ``prefix``; it is not answered."""
    command = b"\x05READY" + b"\x0bSocket-Type" + len(b"SUB").to_bytes(4, "big") + b"SUB"
    topic = b"\x01" + prefix
    return b"\x04" + bytes([len(command)]) + command + b"\x00" + bytes([len(topic)]) + topic


class _NativeWriter:
    """Puts of one request, each with an event of its own."""

    def __init__(self, requests: str) -> None:
        import zmq

        self._context: Any = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.connect(requests)

    def send(self, changes: int) -> None:
        import orjson

        op = {"op": "put", "key": key(1), "size": len(VALUE)}
        self._socket.send_multipart([orjson.dumps({"v": 1, "ops": [op] * changes}), VALUE * changes])

    def finish(self) -> None:
        assert b'"error"' not in self._socket.recv_multipart()[0]

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextmanager
def _subscribed(channel: Channel, subscribers: int) -> Iterator[tuple[Streams, Changes]]:
    """So many subscribers that have all had an event, and a writer."""
    with Streams(channel.port, channel.token) as streams, closing(channel.writer()) as writer:
        streams.open(subscribers, channel.hello, channel.opened, channel.last)
        while not all(streams.counts.values()):
            writer.send(1)
            writer.finish()
            streams.read(1)
        streams.drain()
        yield streams, writer


# ── how many ─────────────────────────────────────────────────────────────────────────────────────

BURSTS = {1_000: 50, 5_000: 10}
"""Changes in a burst by the number of subscribers."""


def sse_deliveries(stage: Stage) -> Iterator[Sample]:
    """Server-sent events, and etcd's watches over its gateway."""
    for contender, channel_of in stage.turns(((KVSTORE, _sse), (ETCD, _etcd))):
        with channel_of(stage) as channel:
            for subscribers in BURSTS:
                yield from _deliveries(stage, contender, channel, subscribers)


def native_deliveries(stage: Stage) -> Iterator[Sample]:
    """SUB sockets and Redis's pub/sub. Redis stores nothing of it; ours are durable puts."""
    for contender, channel_of in stage.turns(((KVSTORE_NATIVE, _native), (REDIS, _redis))):
        with channel_of(stage) as channel:
            yield from _deliveries(stage, contender, channel, 1_000)


def _deliveries(stage: Stage, contender: str, channel: Channel, subscribers: int) -> Iterator[Sample]:
    burst = BURSTS[subscribers]
    empty = memory_bytes(channel.process)
    with _subscribed(channel, subscribers) as (streams, writer):
        usage, load_before, began = Usage(channel.process), time.process_time(), time.monotonic()
        while (seconds := time.monotonic() - began) < stage.seconds:
            writer.send(burst)
            streams.read_until(streams.total + burst * subscribers)
            writer.finish()
        done = Load(streams.total, seconds, usage.seconds(), time.process_time() - load_before)
        case = f"{subscribers:,} subscribers"
        yield rate(case, contender, done, unit="deliveries/s", generator="the reader")
        memory = memory_bytes(channel.process)
        each = (memory - empty) / subscribers
        yield Sample(f"memory with {case}", contender, memory / 1e6, "MB", less_is_better=True)
        yield Sample(f"memory for each of {case}", contender, each / 1e3, "kB", less_is_better=True)


# ── how soon ─────────────────────────────────────────────────────────────────────────────────────

PUTS_A_SECOND = {1: 200, 1_000: 20}
"""How many puts are timed for each second of the stage, by the number of subscribers."""


def event_latency(stage: Stage) -> Iterator[Sample]:
    """From before a put is sent until a subscriber has read its event, every subscriber counted."""
    ways = ((KVSTORE, _sse), (ETCD, _etcd), (KVSTORE_NATIVE, _native), (REDIS, _redis))
    for contender, channel_of in stage.turns(ways):
        with channel_of(stage) as channel:
            for subscribers, puts in PUTS_A_SECOND.items():
                with _subscribed(channel, subscribers) as (streams, writer):
                    taken, last = _latencies(streams, writer, puts * stage.seconds)
                case = _counted(subscribers)
                yield from percentiles(case, contender, taken)
                yield Sample(f"{case}, the last of them", contender, median(last), "µs", less_is_better=True)


def _counted(subscribers: int) -> str:
    return "1 subscriber" if subscribers == 1 else f"{subscribers:,} subscribers"


def _latencies(streams: Streams, writer: Changes, puts: int) -> tuple[list[float], list[float]]:
    """Microseconds of every delivery, and of the last delivery of each put."""
    taken: list[float] = []
    last: list[float] = []
    for _ in range(puts):
        before, wanted = time.monotonic(), streams.total + len(streams)
        writer.send(1)
        while streams.total < wanted:
            taken += [1e6 * (when - before) for when in streams.read(10)]
        last.append(taken[-1])
        writer.finish()
    return taken, last
