"""What programs with a client library get: durable puts, many gets, and one get after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from functools import partial
from statistics import median, quantiles

from kvstore_bench import preload, servers
from kvstore_bench.load import clients, libraries, redis_benchmark
from kvstore_bench.load.clients import AsyncOperation, Operation, Work
from kvstore_bench.processes import Process
from kvstore_bench.results import Sample, rate
from kvstore_bench.stage import Stage
from kvstore_bench.workload import KEYS, LARGE, SMALL, label, value

Connect = Callable[[], AbstractAsyncContextManager[AsyncOperation]]
Family = Callable[[Stage], Iterator[Sample]]

CLIENTS = 32
PROCESSES = 2
LOAD_CORES = 2

KVSTORE_CLIENT = "kvstore, Client"
KVSTORE_ASYNC = "kvstore, AsyncClient"
KVSTORE_SOCKETS = "kvstore, bare sockets"
KVSTORE_CURVE = "kvstore, Client through CURVE"
KVSTORE_SHARED = "kvstore, one AsyncClient"
AETCD = "etcd, aetcd"
AETCD_SHARED = "etcd, one aetcd"
GATEWAY = "etcd, its gateway by http.client"
REDIS_PY = "redis-py"
REDIS_ASYNC = "redis-py asyncio"
REDIS_SHARED = "redis-py asyncio, one pool"
REDIS_BENCHMARK = "redis-benchmark"


@contextmanager
def kvstore(stage: Stage, count: int = 0) -> Iterator[servers.Kvstore]:
    """The daemon alone, with ``count`` keys."""
    with stage.scratch() as folder, servers.kvstore_daemon(folder) as server:
        preload.kvstore(server.requests, count)
        yield server


@contextmanager
def redis(stage: Stage, appendfsync: str = "everysec", count: int = 0) -> Iterator[servers.Peer]:
    """Redis with ``count`` keys."""
    with stage.scratch() as folder, servers.redis(folder, appendfsync) as server:
        preload.redis(server.port, count)
        yield server


@contextmanager
def etcd(stage: Stage, count: int = 0) -> Iterator[servers.Peer]:
    """etcd with ``count`` keys."""
    with stage.scratch() as folder, servers.etcd(folder) as server:
        preload.etcd(server.port, count)
        yield server


def measured(
    stage: Stage, case: str, contender: str, works: Sequence[Work], server: Process, unit: str
) -> Sample:
    """The rate of some clients."""
    done = clients.run(works, stage.seconds, server)
    cores = min(len(works), LOAD_CORES)
    return rate(case, contender, done.load(), load_cores=cores, unit=unit, generator="the clients")


# ── puts ─────────────────────────────────────────────────────────────────────────────────────────


def native_puts(stage: Stage) -> Iterator[Sample]:
    """32 clients with one put under way each; and one client with 10,000 puts a request.

    The clients are either 32 processes with a blocking client each, or two processes with 16 in an
    event loop, or with 16 tasks that share a client and its connections; of each contender the best
    of these counts.
    """
    libraries.imported("kvstore_client.client", "kvstore_client.aio", "redis", "redis.asyncio", "aetcd")
    always, everysec = (partial(_redis_puts, appendfsync=how) for how in ("always", "everysec"))
    families: tuple[Family, ...] = (_kvstore_puts, _etcd_puts, always, everysec)
    for family in stage.turns(families):
        yield from family(stage)


def _sizes(stage: Stage) -> dict[str, bytes]:
    sizes = (SMALL,) if stage.quick else (SMALL, LARGE)
    return {f"{CLIENTS} clients, {label(size)}": value(size) for size in sizes}


def _in_loops(connect: Connect, *, shared: bool) -> list[Work]:
    return [clients.concurrent(connect, CLIENTS // PROCESSES, shared=shared)] * PROCESSES


BULK = f"one client, {libraries.PUTS:,} puts of 100 B a request"
PUTS = "puts/s"


def _kvstore_puts(stage: Stage) -> Iterator[Sample]:
    with kvstore(stage) as server:
        put, put_async = libraries.kvstore_put, libraries.kvstore_put_async
        for case, data in _sizes(stage).items():
            works = [clients.blocking(partial(put, server.requests, data))] * CLIENTS
            yield measured(stage, case, KVSTORE_CLIENT, works, server.process, PUTS)
            connect = partial(put_async, server.requests, data)
            for name, shared in ((KVSTORE_ASYNC, False), (KVSTORE_SHARED, True)):
                yield measured(stage, case, name, _in_loops(connect, shared=shared), server.process, PUTS)
            works = [libraries.sockets_put(server.requests, data, CLIENTS // PROCESSES)] * PROCESSES
            yield measured(stage, case, KVSTORE_SOCKETS, works, server.process, PUTS)
        works = [libraries.kvstore_put_many(server.requests, value(SMALL))]
        yield measured(stage, BULK, KVSTORE_CLIENT, works, server.process, PUTS)


def _etcd_puts(stage: Stage) -> Iterator[Sample]:
    with etcd(stage) as server:
        for case, data in _sizes(stage).items():
            connect = partial(libraries.aetcd_put, server.port, data)
            for name, shared in ((AETCD, False), (AETCD_SHARED, True)):
                yield measured(stage, case, name, _in_loops(connect, shared=shared), server.process, PUTS)
            works = [clients.blocking(partial(libraries.gateway_put, server.port, data))] * CLIENTS
            yield measured(stage, case, GATEWAY, works, server.process, PUTS)


def _redis_puts(stage: Stage, appendfsync: str) -> Iterator[Sample]:
    name = f"Redis {appendfsync}, "
    with redis(stage, appendfsync) as server:
        for case, data in _sizes(stage).items():
            works = [clients.blocking(partial(libraries.redis_set, server.port, data))] * CLIENTS
            yield measured(stage, case, name + REDIS_PY, works, server.process, PUTS)
            if appendfsync == "always" or not stage.quick:
                for who, shared in ((REDIS_ASYNC, False), (REDIS_SHARED, True)):
                    size = CLIENTS // PROCESSES if shared else 0
                    connect = partial(libraries.redis_set_async, server.port, data, size)
                    works = _in_loops(connect, shared=shared)
                    yield measured(stage, case, name + who, works, server.process, PUTS)
            done = redis_benchmark.load(
                server.process,
                server.port,
                "set",
                operations=20_000 * stage.seconds,
                clients=CLIENTS,
                pipeline=1,
                size=len(data),
                keys=KEYS,
            )
            yield rate(case, name + REDIS_BENCHMARK, done, unit=PUTS, generator=REDIS_BENCHMARK)
        works = [libraries.redis_put_many(server.port, value(SMALL))]
        yield measured(stage, BULK, name + REDIS_PY, works, server.process, PUTS)


# ── gets ─────────────────────────────────────────────────────────────────────────────────────────

GETS = "gets/s"
MANY = f"{PROCESSES} clients, {libraries.GETS:,} gets of 100 B at once"
SINGLES = f"{PROCESSES} clients, 256 requests of one get under way"


def native_gets(stage: Stage) -> Iterator[Sample]:
    """Gets by the thousand: in one request for kvstore, in a pipeline for Redis."""
    libraries.imported("kvstore_client.client", "redis")
    for family in stage.turns((_kvstore_gets, _redis_gets)):
        yield from family(stage)


def _kvstore_gets(stage: Stage) -> Iterator[Sample]:
    with kvstore(stage, KEYS) as server:
        ways = (
            (MANY, KVSTORE_CLIENT, libraries.kvstore_get_many),
            (MANY, KVSTORE_SOCKETS, libraries.sockets_get_many),
            (SINGLES, KVSTORE_SOCKETS, libraries.sockets_get_singles),
        )
        for case, contender, way in ways:
            works = [way(server.requests)] * PROCESSES
            yield measured(stage, case, contender, works, server.process, GETS)


def _redis_gets(stage: Stage) -> Iterator[Sample]:
    with redis(stage, count=KEYS) as server:
        ways = (("redis-py pipeline", libraries.redis_get_many), ("redis-py MGET", libraries.redis_mget))
        for contender, way in ways:
            works = [way(server.port)] * PROCESSES
            yield measured(stage, MANY, contender, works, server.process, GETS)
        for case, pipeline in ((MANY, libraries.GETS), (SINGLES, 256)):
            done = redis_benchmark.load(
                server.process,
                server.port,
                "get",
                operations=1_000_000 * stage.seconds,
                clients=PROCESSES,
                pipeline=pipeline,
                size=SMALL,
                keys=KEYS,
            )
            yield rate(case, f"{REDIS_BENCHMARK} -P", done, unit=GETS, generator=REDIS_BENCHMARK)


# ── one after another ────────────────────────────────────────────────────────────────────────────


def percentiles(case: str, contender: str, taken: Sequence[float]) -> Iterator[Sample]:
    """The median and the 99th percentile of latencies in microseconds."""
    prefix = f"{case}, " if case else ""
    yield Sample(f"{prefix}p50", contender, median(taken), "µs", less_is_better=True)
    yield Sample(f"{prefix}p99", contender, quantiles(taken, n=100)[98], "µs", less_is_better=True)


def round_trip(stage: Stage) -> Iterator[Sample]:
    """One client that waits for each get before it sends the next."""
    libraries.imported("kvstore_client.client", "redis")
    for family in stage.turns((_kvstore_round_trip, _redis_round_trip, _etcd_round_trip)):
        yield from family(stage)


def _kvstore_round_trip(stage: Stage) -> Iterator[Sample]:
    ways = ((KVSTORE_CLIENT, libraries.kvstore_get), (KVSTORE_SOCKETS, libraries.socket_get))
    with kvstore(stage, KEYS) as server:
        for contender, way in ways:
            yield from _timed(stage, contender, partial(way, server.requests), server.process)


def _redis_round_trip(stage: Stage) -> Iterator[Sample]:
    with redis(stage, count=KEYS) as server:
        yield from _timed(stage, REDIS_PY, partial(libraries.redis_get, server.port), server.process)


def _etcd_round_trip(stage: Stage) -> Iterator[Sample]:
    with etcd(stage, KEYS) as server:
        yield from _timed(stage, GATEWAY, partial(libraries.gateway_get, server.port), server.process)


def curve(stage: Stage) -> Iterator[Sample]:
    """One get after another: with access off, and through CURVE."""
    libraries.imported("kvstore_client.client")
    for contender in stage.turns((KVSTORE_CLIENT, KVSTORE_CURVE)):
        access = ("--access", "required") if contender == KVSTORE_CURVE else ()
        with stage.scratch() as folder, servers.kvstore_daemon(folder, *access) as server:
            login = folder / "data/facade.key" if access else None
            preload.kvstore(server.requests, KEYS, login=login)
            get = partial(libraries.kvstore_get, server.requests, login)
            done = clients.run([clients.blocking(get)], stage.seconds, server.process)
            yield rate("one client", contender, done.load(), unit=GETS, generator="the client")


def _timed(
    stage: Stage, contender: str, connect: Callable[[], AbstractContextManager[Operation]], server: Process
) -> Iterator[Sample]:
    done = clients.run([clients.blocking(connect, timed=True)], stage.seconds, server)
    yield from percentiles("", contender, done.tallies[0].taken)


# ── gets beside writers ──────────────────────────────────────────────────────────────────────────

IDLE = "idle"
BESIDE_ONE = "beside 1 client, one put a request"
BESIDE_MANY = f"beside {CLIENTS} clients, one put a request"
BESIDE_HUNDREDS = "beside 1 client, 100 puts a request"
ELSEWHERE = f"an idle daemon, {CLIENTS} clients at another one"
BESIDE_BULK = f"beside 1 client, {libraries.PUTS:,} puts a request"


def get_beside_writers(stage: Stage) -> Iterator[Sample]:
    """One client that gets, alone and while others write as fast as they can, to the same daemon or to
    another one that has the cores as busy."""
    libraries.imported("kvstore_client.client")
    for contender in stage.turns((IDLE, BESIDE_ONE, BESIDE_MANY, BESIDE_HUNDREDS, BESIDE_BULK)):
        with kvstore(stage, KEYS) as server:
            yield from _beside(stage, server, server, contender)
    # What the machine does to a get while its cores are busy with somebody else's writes.
    with kvstore(stage, KEYS) as idle, kvstore(stage, KEYS) as busy:
        yield from _beside(stage, idle, busy, ELSEWHERE)


def _beside(
    stage: Stage, read: servers.Kvstore, written: servers.Kvstore, contender: str
) -> Iterator[Sample]:
    data = value(SMALL)
    half = libraries.sockets_put(written.requests, data, CLIENTS // PROCESSES)
    writers = {
        IDLE: [],
        BESIDE_ONE: [libraries.sockets_put(written.requests, data, 1)],
        BESIDE_MANY: [half] * PROCESSES,
        BESIDE_HUNDREDS: [libraries.kvstore_put_many(written.requests, data, 100)],
        BESIDE_BULK: [libraries.kvstore_put_many(written.requests, data)],
        ELSEWHERE: [half] * PROCESSES,
    }[contender]
    get = clients.blocking(partial(libraries.kvstore_get, read.requests), timed=True)
    done = clients.run([get, *writers], stage.seconds, read.process)
    reader, *others = done.tallies
    yield from percentiles("a get", contender, reader.taken)
    if others:
        puts = sum(each.operations / each.seconds for each in others)
        yield Sample("puts meanwhile", contender, puts, PUTS)
