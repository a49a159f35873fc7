"""Each client library as the one operation on a key that a row repeats.

Every function here is a context manager that connects and gives the operation. Libraries are
imported when they are used: those of the peers are there only where ``make bench`` has set up.
"""

from __future__ import annotations

import http.client
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

from kvstore_bench.load.clients import AsyncOperation, Operation, Start, Tally, Work, tally
from kvstore_bench.workload import KEYS, EtcdHttp, key, spread

REPLY_MS = 30_000

GETS = 1_000
"""Gets in one request or pipeline."""
PUTS = 10_000
"""Puts in one request or pipeline."""


def imported(*modules: str) -> None:
    """Import modules before the clients are forked, instead of once in each of them."""
    for module in modules:
        __import__(module)


# ── one operation a request ──────────────────────────────────────────────────────────────────────


@contextmanager
def kvstore_put(requests: str, data: bytes) -> Iterator[Operation]:
    from kvstore_client import Client

    with Client(requests, timeout=30) as client:
        yield lambda name: client.put(name, data)


@contextmanager
def kvstore_get(requests: str, login: Path | None = None) -> Iterator[Operation]:
    from kvstore_client import Client

    with Client(requests, timeout=30, login=login) as client:
        yield client.get


@asynccontextmanager
async def kvstore_put_async(requests: str, data: bytes) -> AsyncIterator[AsyncOperation]:
    from kvstore_client import AsyncClient

    async with AsyncClient(requests, timeout=30) as client:
        yield lambda name: client.put(name, data)


@contextmanager
def redis_set(port: int, data: bytes) -> Iterator[Operation]:
    with _redis(port) as client:
        yield lambda name: client.set(name, data)


@contextmanager
def redis_get(port: int) -> Iterator[Operation]:
    with _redis(port) as client:
        yield client.get


def _redis(port: int) -> Any:
    import redis

    return closing(redis.Redis(port=port, single_connection_client=True))


@asynccontextmanager
async def redis_set_async(port: int, data: bytes, connections: int) -> AsyncIterator[AsyncOperation]:
    """``connections``: the size of a pool; 0 for one connection without a pool."""
    import redis.asyncio

    how = {"max_connections": connections} if connections else {"single_connection_client": True}
    async with redis.asyncio.Redis(port=port, **how) as client:
        yield lambda name: client.set(name, data)


@asynccontextmanager
async def aetcd_put(port: int, data: bytes) -> AsyncIterator[AsyncOperation]:
    import aetcd

    async with aetcd.Client(host="127.0.0.1", port=port, connect_wait_timeout=60) as client:
        yield lambda name: client.put(name.encode(), data)


@contextmanager
def gateway_put(port: int, data: bytes) -> Iterator[Operation]:
    with _gateway(port) as post:
        yield lambda name: post("/v3/kv/put", EtcdHttp.put(name, data))


@contextmanager
def gateway_get(port: int) -> Iterator[Operation]:
    with _gateway(port) as post:
        yield lambda name: post("/v3/kv/range", EtcdHttp.get(name))


@contextmanager
def _gateway(port: int) -> Iterator[Callable[[str, bytes], None]]:
    """etcd over its gateway, by the HTTP client that costs the least CPU of those in Python: posts the body
    of a request."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:

        def post(path: str, request: bytes) -> None:
            connection.request("POST", path, request.partition(b"\r\n\r\n")[2])
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status

        yield post


# ── many operations a request ────────────────────────────────────────────────────────────────────


def _repeated(connect: Callable[[], Any], size: int) -> Work:
    """A client that does ``size`` operations with each call."""

    def work(_number: int, start: Start) -> Tally:
        with connect() as call:
            call()
            span, done = start(), 0
            while time.monotonic() < span.end:
                call()
                done += size
            return tally(done, span)

    return work


def _names() -> list[str]:
    return [key(number) for number in spread(GETS, KEYS)]


def kvstore_get_many(requests: str) -> Work:
    """``Client.batch`` of gets, every record decoded."""
    from kvstore_client import commands

    return _batches(requests, [commands.get(name) for name in _names()])


def kvstore_put_many(requests: str, data: bytes, size: int = PUTS) -> Work:
    """``Client.batch`` of independent puts."""
    from kvstore_client import commands

    return _batches(requests, [commands.put(key(number), data) for number in range(size)])


def _batches(requests: str, batch: list[Any]) -> Work:
    @contextmanager
    def connect() -> Iterator[Callable[[], object]]:
        from kvstore_client import Client

        with Client(requests, timeout=30) as client:
            yield lambda: client.batch(batch)

    return _repeated(connect, len(batch))


def redis_get_many(port: int) -> Work:
    """A pipeline of GETs."""
    names = _names()

    def fill(pipeline: Any) -> None:
        for name in names:
            pipeline.get(name)

    return _pipelines(port, fill, GETS)


def redis_mget(port: int) -> Work:
    """One MGET, the command that Redis has for it."""

    @contextmanager
    def connect() -> Iterator[Callable[[], object]]:
        names = _names()
        with _redis(port) as client:
            yield lambda: client.mget(names)

    return _repeated(connect, GETS)


def redis_put_many(port: int, data: bytes) -> Work:
    """A pipeline of SETs."""

    def fill(pipeline: Any) -> None:
        for number in range(PUTS):
            pipeline.set(key(number), data)

    return _pipelines(port, fill, PUTS)


def _pipelines(port: int, fill: Callable[[Any], None], size: int) -> Work:
    @contextmanager
    def connect() -> Iterator[Callable[[], object]]:
        with _redis(port) as client:

            def call() -> object:
                pipeline = client.pipeline(transaction=False)
                fill(pipeline)
                return pipeline.execute()

            yield call

    return _repeated(connect, size)


# ── over a cluster ───────────────────────────────────────────────────────────────────────────────

GROUP = 100
"""Puts in one batch, and in one Txn."""


def _group(client: int, number: int) -> list[str]:
    """The names of one group: of eight clients no two have any in common."""
    first = (number % 10 * 8 + client % 8) * GROUP
    return [key(each) for each in range(first, first + GROUP)]


def etcd_txns(address: str, data: bytes, under_way: int) -> Work:
    """Txns of 100 puts through the client that the daemon has too, from so many threads."""

    def work(_number: int, start: Start) -> Tally:
        from kvstore_daemon.storage.etcd_store.connection import api

        with _cluster(address) as cluster:

            def put(client: int, number: int) -> None:
                request = api.TxnRequest()
                for name in _group(client, number):
                    api.add_put(request.success, name.encode(), data)
                cluster.call(api.TXN, request, 30)

            def repeat(client: int) -> int:
                for done in itertools.count():
                    if time.monotonic() > span.end:
                        return done
                    put(client, done)
                raise AssertionError("unreachable")

            put(0, 0)
            with ThreadPoolExecutor(under_way) as pool:
                span = start()
                return tally(GROUP * sum(pool.map(repeat, range(under_way))), span)

    return work


@contextmanager
def etcd_get(address: str) -> Iterator[Operation]:
    """A linearizable range of one key through the client that the daemon has too."""
    from kvstore_daemon.storage.etcd_store.connection import api

    with _cluster(address) as cluster:
        yield lambda name: cluster.call(api.RANGE, api.RangeRequest(key=name.encode()), 30)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    from kvstore_daemon.storage.etcd_store.connection.address import parse_address
    from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster

    with closing(Cluster(parse_address(address))) as cluster:
        yield cluster


def kvstore_groups(requests: str, data: bytes) -> Work:
    """``Client.batch`` of 100 independent puts, one batch after another."""

    def work(client: int, start: Start) -> Tally:
        from kvstore_client import Client, commands

        batches = [[commands.put(name, data) for name in _group(client, number)] for number in range(10)]
        with Client(requests, timeout=30) as store:
            store.batch(batches[0])
            span, done = start(), 0
            while time.monotonic() < span.end:
                store.batch(batches[done % 10])
                done += 1
            return tally(done * GROUP, span)

    return work


def sockets_groups(requests: str, data: bytes, under_way: int) -> Work:
    """A DEALER with so many requests of 100 puts under way, replies not decoded."""
    groups = [_group(client, number) for number in range(10) for client in range(8)]

    def headers() -> list[bytes]:
        return [_header(*({"op": "put", "key": n, "size": len(data)} for n in names)) for names in groups]

    return _dealer(requests, headers, under_way=under_way, size=GROUP, values=data * GROUP)


# ── bare ZeroMQ sockets: what the daemon can do when its clients cost next to nothing ────────────


def _header(*ops: dict[str, Any]) -> bytes:
    import orjson

    return orjson.dumps({"v": 1, "ops": ops})


def sockets_put(requests: str, data: bytes, clients: int, *, total: int = KEYS) -> Work:
    """REQ sockets in one process, each with one put under way at any time, on keys out of ``total``."""

    def work(number: int, start: Start) -> Tally:
        import zmq

        names = [key(each) for each in spread(5_000, total)[number::2]]
        headers = [_header({"op": "put", "key": name, "size": len(data)}) for name in names]
        with _Sockets(requests, clients) as sockets:
            poller, done = zmq.Poller(), 0
            for sock in sockets:
                sock.send_multipart([headers[0], data])
                sock.recv_multipart()
                poller.register(sock, zmq.POLLIN)
            span = start()
            for sock in sockets:
                sock.send_multipart([headers[0], data])
            while time.monotonic() < span.end:
                for sock, _ in poller.poll(REPLY_MS):
                    sock.recv_multipart()
                    done += 1
                    sock.send_multipart([headers[done % len(headers)], data])
            return tally(done, span)

    return work


def sockets_get_many(requests: str, *, total: int = KEYS, **fields: Any) -> Work:
    """A DEALER with two requests of 1,000 gets under way, replies not decoded. The requests ask for
    20,000 of the ``total`` keys in turn; ``fields`` are further ones of each get."""

    def headers() -> list[bytes]:
        names = [key(number) for number in spread(20 * GETS, total)]
        parts = [names[first : first + GETS] for first in range(0, len(names), GETS)]
        return [_header(*({"op": "get", "key": name, **fields} for name in part)) for part in parts]

    return _dealer(requests, headers, under_way=2, size=GETS)


def sockets_get_singles(requests: str, **fields: Any) -> Work:
    """A DEALER with 256 requests of one get under way, replies not decoded."""

    def headers() -> list[bytes]:
        return [_header({"op": "get", "key": name, **fields}) for name in _names()]

    return _dealer(requests, headers, under_way=256, size=1)


def _dealer(
    requests: str, headers_of: Callable[[], list[bytes]], *, under_way: int, size: int, values: bytes = b""
) -> Work:
    def work(_number: int, start: Start) -> Tally:
        import zmq

        headers = headers_of()
        with _Sockets(requests, 1, kind=zmq.DEALER) as (sock,):
            for header in headers[:under_way]:
                sock.send_multipart([b"", header, values])
            span, done = start(), 0
            while time.monotonic() < span.end:
                sock.recv_multipart()
                done += 1
                sock.send_multipart([b"", headers[done % len(headers)], values])
            return tally(done * size, span)

    return work


@contextmanager
def socket_get(requests: str, **fields: Any) -> Iterator[Operation]:
    """One REQ socket, the reply decoded and nothing more."""
    import orjson

    with _Sockets(requests, 1) as (sock,):

        def get(name: str) -> object:
            sock.send(_header({"op": "get", "key": name, **fields}))
            return orjson.loads(sock.recv_multipart()[0])

        yield get


class _Sockets:
    def __init__(self, requests: str, count: int, kind: int | None = None) -> None:
        import zmq

        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets = [self._context.socket(zmq.REQ if kind is None else kind) for _ in range(count)]
        for sock in self._sockets:
            sock.linger = 0
            sock.rcvtimeo = REPLY_MS
            sock.connect(requests)

    def __enter__(self) -> list[Any]:
        return self._sockets

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)
