"""One key over HTTP, and a hundred in one request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from kvstore_bench import preload, servers, workload
from kvstore_bench.load import wrk
from kvstore_bench.processes import Process
from kvstore_bench.results import Sample, rate
from kvstore_bench.stage import Stage
from kvstore_bench.workload import LARGE, LARGE_KEYS, SMALL, EtcdHttp, KvstoreHttp, WebdisHttp, key, value

KVSTORE = "kvstore"
ASKED = "kvstore with a token"
ETCD = "etcd's gateway"
WEBDIS_ALWAYS = "webdis, Redis always"
WEBDIS_EVERYSEC = "webdis, Redis everysec"

CONNECTIONS = (32, 128)
BATCH = 100


class Front(NamedTuple):
    """A service that answers HTTP: its port, its processes, and its requests."""

    port: int
    processes: tuple[Process, ...]
    routes: Any


@contextmanager
def front(stage: Stage, contender: str, *, with_keys: bool) -> Iterator[Front]:
    """The contender's service, with the keys that will be read if asked for."""
    count = workload.KEYS if with_keys else 0
    with stage.scratch() as folder, ExitStack() as stack:
        if contender == KVSTORE:
            ours = stack.enter_context(servers.kvstore(folder))
            preload.kvstore(ours.requests, count, with_large=with_keys)
            yield Front(ours.port, (ours.process,), KvstoreHttp)
        elif contender == ETCD:
            etcd = stack.enter_context(servers.etcd(folder))
            preload.etcd(etcd.port, count, with_large=with_keys)
            yield Front(etcd.port, (etcd.process,), EtcdHttp)
        else:
            redis = stack.enter_context(servers.redis(folder, contender.rpartition(" ")[2]))
            preload.redis(redis.port, count, with_large=with_keys)
            webdis = stack.enter_context(servers.webdis(folder, redis.port))
            yield Front(webdis.port, (redis.process, webdis.process), WebdisHttp)


def measured(
    stage: Stage,
    contender: str,
    server: Front,
    requests: Sequence[bytes],
    cases: dict[str, int],
    *,
    operations: int = 1,
    unit: str = "requests/s",
) -> Iterator[Sample]:
    """A sample for each case, which is a number of connections, of requests of so many operations."""
    with wrk.replay(stage, requests) as file:
        wrk.warm(server.port, file, max(cases.values()), stage.warm_seconds)
        for case, connections in cases.items():
            done = wrk.load(server.port, file, connections, stage.seconds, *server.processes)
            done = done._replace(operations=done.operations * operations)
            yield rate(case, contender, done, unit=unit, generator="wrk")


def sizes(stage: Stage) -> tuple[int, ...]:
    """Large values too, but in a quick run."""
    return (SMALL,) if stage.quick else (SMALL, LARGE)


def cases_of(size: int) -> dict[str, int]:
    """The numbers of connections by the names of the cases."""
    return {f"{count} connections, {workload.label(size)}": count for count in CONNECTIONS}


def http_get(stage: Stage) -> Iterator[Sample]:
    """Values of 10,000 keys, and of 1,000 keys with large ones."""
    names = {
        SMALL: [key(number) for number in workload.spread(workload.KEYS, workload.KEYS)],
        LARGE: [preload.large(number) for number in workload.spread(LARGE_KEYS, LARGE_KEYS)],
    }
    for contender in stage.turns((KVSTORE, ETCD, WEBDIS_EVERYSEC)):
        with front(stage, contender, with_keys=True) as server:
            for size in sizes(stage):
                requests = [server.routes.get(name) for name in names[size]]
                yield from measured(stage, contender, server, requests, cases_of(size))


def http_token(stage: Stage) -> Iterator[Sample]:
    """Small values of 10,000 keys, by somebody who has to show a token, and by anybody."""
    names = [key(number) for number in workload.spread(workload.KEYS, workload.KEYS)]
    for contender in stage.turns((KVSTORE, ASKED)):
        access = ("--access", "required") if contender == ASKED else ()
        with stage.scratch() as folder, servers.kvstore(folder, *access) as server:
            login = token = None
            if access:
                login = folder / "data/facade.key"
                token = (folder / "data/admin.token").read_text().strip()
            preload.kvstore(server.requests, workload.KEYS, login=login)
            requests = [KvstoreHttp.get(name, token) for name in names]
            ours = Front(server.port, (server.process,), KvstoreHttp)
            yield from measured(stage, contender, ours, requests, cases_of(SMALL))


def http_put(stage: Stage) -> Iterator[Sample]:
    """Each request is one put, acknowledged when it is on disk (but for Redis with everysec)."""
    stated = (WEBDIS_ALWAYS,) if stage.quick else (WEBDIS_ALWAYS, WEBDIS_EVERYSEC)
    for contender in stage.turns((KVSTORE, ETCD, *stated)):
        with front(stage, contender, with_keys=False) as server:
            for size in sizes(stage):
                names = [key(number) for number in workload.spread(workload.count_of(size), workload.KEYS)]
                requests = [server.routes.put(name, value(size)) for name in names]
                yield from measured(stage, contender, server, requests, cases_of(size))


def http_batch(stage: Stage) -> Iterator[Sample]:
    """A hundred puts or gets in each request; the puts are one transaction, all or none of them."""
    batches = [[key(BATCH * number + each) for each in range(BATCH)] for number in range(100)]
    for contender in stage.turns((KVSTORE, ETCD)):
        with front(stage, contender, with_keys=True) as server:
            puts = [server.routes.put_many(names, value(SMALL)) for names in batches]
            gets = [server.routes.get_many(names) for names in batches]
            for what, requests in (("puts", puts), ("gets", gets)):
                cases = {f"32 connections, {BATCH} {what} of 100 B": 32}
                yield from measured(
                    stage, contender, server, requests, cases, operations=BATCH, unit="operations/s"
                )
