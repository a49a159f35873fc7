"""What open streams, idle connections and the facade's own work cost a GET."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from kvstore_bench import preload, servers, workload
from kvstore_bench.load.streams import Streams, Writer
from kvstore_bench.results import Sample
from kvstore_bench.rows.http import KVSTORE, Front, front, measured
from kvstore_bench.stage import Stage
from kvstore_bench.workload import KEYS, SMALL, KvstoreHttp, key, value

STREAMS = 5_000
IDLE = 2_000
ELSEWHERE = "elsewhere/"
CHANGE_SECONDS = 0.5

NO_STREAMS = "no streams"
WITH_STREAMS = f"{STREAMS:,} open streams"
WITH_EVENTS = f"{STREAMS:,} streams with events"
NO_IDLE = "no idle connections"
WITH_IDLE = f"{IDLE:,} idle connections"
CONSTANT = "the same server, a constant"

CASE = {"32 connections, 100 B": 32}


def _gets() -> list[bytes]:
    return [KvstoreHttp.get(key(number)) for number in workload.spread(KEYS, KEYS)]


def get_beside_streams(stage: Stage) -> Iterator[Sample]:
    """GETs while so many event streams are open on the same workers, and without; and while all of the
    streams are told of two changes a second."""
    with front(stage, KVSTORE, with_keys=True) as server:
        for contender in stage.turns((NO_STREAMS, WITH_STREAMS, WITH_EVENTS)):
            with Streams(server.port, b"~") as streams:
                streams.open(
                    0 if contender == NO_STREAMS else STREAMS, KvstoreHttp.watch(ELSEWHERE), b"event: sync"
                )
                with _changes(server.port, streams, are_made=contender == WITH_EVENTS):
                    yield from measured(stage, contender, server, _gets(), CASE)


@contextmanager
def _changes(port: int, streams: Streams, *, are_made: bool) -> Iterator[None]:
    """A thread that makes a change now and then, and reads all streams until they have it."""
    stop = threading.Event()

    def work() -> None:
        put = KvstoreHttp.put(ELSEWHERE + "key", value(SMALL - 1) + b"~")
        with closing(Writer(port, put, b"HTTP/1.1 ")) as writer:
            while not stop.wait(CHANGE_SECONDS):
                writer.send(1)
                streams.read_until(streams.total + len(streams))
                writer.finish()

    thread = threading.Thread(target=work)
    if are_made:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if are_made:
            thread.join()


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
                preload.kvstore(ours.requests, KEYS)
                yield Front(ours.port, (ours.process,), KvstoreHttp)
