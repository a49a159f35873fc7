"""What becomes of speed, memory and the time to start as the store grows."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kvstore_bench import preload, servers, workload
from kvstore_bench.load import libraries
from kvstore_bench.processes import memory_bytes
from kvstore_bench.results import Sample
from kvstore_bench.rows import http, native
from kvstore_bench.rows.http import Front
from kvstore_bench.stage import Stage
from kvstore_bench.workload import SMALL, EtcdHttp, KvstoreHttp, key, keys_label, value

KVSTORE = "kvstore"
REDIS = "Redis, its AOF"
ETCD = "etcd"

STARTED = 10_000_000
FILLED = 1_000_000

SMALLEST, MIDDLE = 1_000, 100_000


class _Store(NamedTuple):
    """How a contender is started on a folder, filled, and asked for a key; ``answer`` is in what it says."""

    serve: Callable[[Path], AbstractContextManager[Any]]
    fill: Callable[[Any, int], None]
    get: Callable[[str], bytes]
    answer: bytes = value(SMALL)


def _fill_redis(server: servers.Peer, count: int) -> None:
    preload.redis(server.port, count)
    preload.redis_settled(server.port)


def _ask(port: int, request: bytes, wanted: bytes) -> None:
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        while wanted not in found:
            data = connection.recv(65536)
            assert data, f"not the value, but {found[:300]!r}"
            found += data


STORES = {
    KVSTORE: _Store(servers.kvstore, lambda it, count: preload.kvstore(it.requests, count), KvstoreHttp.get),
    REDIS: _Store(servers.redis, _fill_redis, partial(servers.resp, "GET")),
    ETCD: _Store(
        servers.etcd,
        lambda it, count: preload.etcd(it.port, count),
        EtcdHttp.get,
        workload.base64(value(SMALL)).encode(),
    ),
}


def _filled(stage: Stage, contender: str, count: int) -> tuple[Path, tuple[float, float]]:
    """A folder with so many keys, and how many MB the server had in memory after filling it: with the
    pages of its files, and without."""
    store = STORES[contender]

    def make(folder: Path) -> tuple[float, float]:
        with store.serve(folder) as server:
            store.fill(server, count)
            process = server.process
            return memory_bytes(process) / 1e6, memory_bytes(process, anonymous=True) / 1e6

    return stage.keep(f"{contender.split(',')[0]}-{count}", make)


def start_and_memory(stage: Stage) -> Iterator[Sample]:
    """Memory right after so many keys were stored; seconds from starting the service on so many until
    the first get is answered. Files are in the page cache for all of them."""
    filled, started = min(FILLED, stage.largest), min(STARTED, stage.largest)
    for contender, store in stage.turns(list(STORES.items())):
        if stage.round == 0:
            _, (memory, private) = _filled(stage, contender, filled)
            case = f"memory with {keys_label(filled)}"
            yield Sample(case, contender, memory, "MB", less_is_better=True)
            yield Sample(f"{case}, files not counted", contender, private, "MB", less_is_better=True)
        folder, _ = _filled(stage, contender, started)
        before = time.monotonic()
        with store.serve(folder) as server:
            _ask(server.port, store.get(key(started // 2)), store.answer)
            taken = time.monotonic() - before
        yield Sample(f"start with {keys_label(started)}", contender, taken, "s", less_is_better=True)


def scale(stage: Stage) -> Iterator[Sample]:
    """The same work on stores of different sizes, keys chosen at random from the whole store."""
    libraries.imported("kvstore_client.client")
    for count in stage.turns(sorted({SMALLEST, MIDDLE, max(stage.largest, MIDDLE)})):
        folder, _ = _filled(stage, KVSTORE, count)
        with servers.kvstore(folder) as server:
            yield from _at_size(stage, server, count)


def _at_size(stage: Stage, server: servers.Kvstore, count: int) -> Iterator[Sample]:
    contender = keys_label(count)
    front = Front(server.port, (server.process,), KvstoreHttp)
    gets = [KvstoreHttp.get(key(number)) for number in workload.spread(20_000, count)]
    yield from http.measured(stage, contender, front, gets, {"HTTP GET, 32 connections": 32})
    works = [libraries.sockets_get_many(server.requests, total=count)] * native.PROCESSES
    case = f"native gets, {libraries.GETS:,} a request"
    yield native.measured(stage, case, contender, works, server.process, native.GETS)
    works = [libraries.sockets_put(server.requests, value(SMALL), 16, total=count)] * native.PROCESSES
    yield native.measured(stage, "native puts, 32 clients", contender, works, server.process, native.PUTS)
