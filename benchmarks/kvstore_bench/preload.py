"""Filling the stores, each by the fastest way that its server offers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from kvstore_bench.servers import resp
from kvstore_bench.workload import LARGE, LARGE_KEYS, SMALL, key, value

BATCH = 10_000
ETCD_BATCH = 1_000
ETCD_TASKS = 8


def _batches(first: int, end: int, size: int) -> Iterator[range]:
    for start in range(first, end, size):
        yield range(start, min(start + size, end))


def large(number: int) -> str:
    """The key ``number`` of those with large values."""
    return "large" + key(number)[5:]


def kvstore(requests: str, count: int, *, with_large: bool = False, login: Path | None = None) -> None:
    """``count`` keys with small values, and the ones with large values if asked for. ``login`` is the login
    file where access is on."""
    import orjson
    import zmq

    from kvstore_core.access.login_file import login_for
    from kvstore_core.curve import apply_curve

    def send(names: list[str], size: int) -> None:
        ops = [{"op": "put", "key": name, "size": size} for name in names]
        sock.send_multipart([orjson.dumps({"v": 1, "ops": ops}), value(size) * len(names)])
        reply = orjson.loads(sock.recv_multipart()[0])
        assert "error" not in reply, reply
        assert not any("error" in result for result in reply["results"]), reply["results"][0]

    with zmq.Context() as context, context.socket(zmq.REQ) as sock:
        apply_curve(sock, login_for(login, requests).keys)
        sock.connect(requests)
        for part in _batches(0, count, BATCH):
            send([key(number) for number in part], SMALL)
        if with_large:
            send([large(number) for number in range(LARGE_KEYS)], LARGE)


def redis(port: int, count: int, *, with_large: bool = False) -> None:
    """The same by pipelines of SET."""
    with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
        for part in _batches(0, count, BATCH):
            _pipeline(connection, [resp("SET", key(number), value(SMALL)) for number in part])
        if with_large:
            _pipeline(connection, [resp("SET", large(n), value(LARGE)) for n in range(LARGE_KEYS)])


def _pipeline(connection: socket.socket, commands: list[bytes]) -> None:
    connection.sendall(b"".join(commands))
    left = len(commands)
    while left:
        data = connection.recv(1 << 20)
        assert data, "Redis closed the connection"
        assert b"-" not in data, data[:200]
        left -= data.count(b"\n")


def redis_settled(port: int) -> None:
    """Wait until no rewrite of the append-only file is under way."""
    busy = b"aof_rewrite_in_progress:1"
    while True:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(resp("INFO", "persistence"))
            if busy not in connection.recv(65536):
                return
        time.sleep(0.2)


def etcd(port: int, count: int, *, with_large: bool = False) -> None:
    """The same by transactions over gRPC, several under way at a time."""
    asyncio.run(_etcd(port, count, with_large))


async def _etcd(port: int, count: int, with_large: bool) -> None:
    import aetcd

    async with aetcd.Client(host="127.0.0.1", port=port, timeout=600, connect_wait_timeout=60) as client:

        async def put(names: list[str], size: int) -> None:
            puts = [client.transactions.put(name.encode(), value(size)) for name in names]
            await client.transaction(compare=[], success=puts, failure=[])

        async def work(parts: Iterator[range]) -> None:
            for part in parts:
                await put([key(number) for number in part], SMALL)

        parts = _batches(0, count, ETCD_BATCH)
        await asyncio.gather(*(work(parts) for _ in range(ETCD_TASKS)))
        if with_large:
            for part in _batches(0, LARGE_KEYS, 100):
                await put([large(number) for number in part], LARGE)
