"""What open streams, idle connections and the facade's own work cost a GET."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from kvstore_bench import servers, workload
from kvstore_bench.load.streams import Streams
from kvstore_bench.rows import http
from kvstore_bench.rows.http import KVSTORE, Front, front, measured
from kvstore_bench.samples import Sample
from kvstore_bench.stage import Stage
from kvstore_bench.workload import KEYS, KvstoreHttp, key

STREAMS = 5_000
IDLE = 2_000

NO_STREAMS = "no streams"
WITH_STREAMS = f"{STREAMS:,} open streams"
NO_IDLE = "no idle connections"
WITH_IDLE = f"{IDLE:,} idle connections"
CONSTANT = "the same server, a constant"

CASE = {"32 connections, 100 B": 32}


def _gets() -> list[bytes]:
    return [KvstoreHttp.get(key(number)) for number in workload.spread(KEYS, KEYS)]


def get_beside_streams(stage: Stage) -> Iterator[Sample]:
    """GETs while so many event streams are open on the same workers, and without."""
    with front(stage, KVSTORE, with_keys=True) as server:
        for contender, count in stage.turns(((NO_STREAMS, 0), (WITH_STREAMS, STREAMS))):
            with Streams(server.port, b"~") as streams:
                streams.open(count, KvstoreHttp.watch("elsewhere/"), b"event: sync")
                yield from measured(stage, contender, server, _gets(), CASE)


def idle_connections(stage: Stage) -> Iterator[Sample]:
    """GETs beside connections that have made one request each and are kept alive, and without."""
    with front(stage, KVSTORE, with_keys=True) as server:
        for contender, count in stage.turns(((NO_IDLE, 0), (WITH_IDLE, IDLE))):
            with _kept_alive(server.port, count):
                yield from measured(stage, contender, server, _gets(), CASE)


@contextmanager
def _kept_alive(port: int, count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for number in range(count):
            sock = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=30)))
            sock.sendall(KvstoreHttp.get(key(number)))
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        yield


def facade_overhead(stage: Stage) -> Iterator[Sample]:
    """A GET through the facade to the daemon, and a constant from the same server and router."""
    for workers in (servers.WORKERS,) if stage.quick else (1, servers.WORKERS):
        case = {f"{workers} worker{'s' * (workers > 1)}, 32 connections": 32}
        for contender in stage.turns((KVSTORE, CONSTANT)):
            with _facade(stage, contender, workers) as server:
                yield from measured(stage, contender, server, _gets(), case)


@contextmanager
def _facade(stage: Stage, contender: str, workers: int) -> Iterator[Front]:
    with stage.scratch() as folder:
        if contender == CONSTANT:
            with servers.constant(folder, workers=workers) as peer:
                yield Front(peer.port, (peer.process,), KvstoreHttp)
        else:
            with servers.kvstore(folder, workers=workers) as ours:
                http.preload.kvstore(ours.requests, KEYS)
                yield Front(ours.port, (ours.process,), KvstoreHttp)
