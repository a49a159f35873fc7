"""The daemon over a cluster of etcd: three members, all on this machine and its one disk, so each figure is
a floor of what three machines do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from kvstore_bench import preload, servers
from kvstore_bench.load import clients, libraries
from kvstore_bench.load.clients import Start, Tally, Work, tally
from kvstore_bench.processes import memory_bytes
from kvstore_bench.results import Sample, rate
from kvstore_bench.rows.native import GETS, KVSTORE_CLIENT, KVSTORE_SOCKETS, PROCESSES, PUTS, percentiles
from kvstore_bench.stage import Stage
from kvstore_bench.workload import KEYS, SMALL, keys_label, value

KVSTORE = "kvstore over etcd"
ETCD = "etcd, the daemon's own client"
LMDB = "kvstore on one machine"
AIM = "an aim of 1.5 ms"

MEMBERS = 3
SEQUENTIAL = "100 puts a request, one after another"
UNDER_WAY = 8
TOGETHER = f"100 puts a request, {UNDER_WAY} under way"
SINGLES = "{} clients, one put a request"
CLIENTS = (32, 128)


class Node(NamedTuple):
    """A daemon, and the cluster that it is over."""

    daemon: servers.Kvstore
    etcd: servers.EtcdCluster


@contextmanager
def node(stage: Stage, count: int = 0, members: int = MEMBERS) -> Iterator[Node]:
    """A daemon over a cluster of its own, with ``count`` keys."""
    with (
        stage.scratch() as folder,
        servers.etcd_cluster(folder, members) as cluster,
        servers.kvstore_daemon(folder, "--engine", cluster.address) as daemon,
    ):
        preload.kvstore(daemon.requests, count)
        yield Node(daemon, cluster)


# ── puts ─────────────────────────────────────────────────────────────────────────────────────────


def cluster_puts(stage: Stage) -> Iterator[Sample]:
    """Puts by the hundred: through the daemon, and through the client that it has, in the same cluster; and
    single puts of many clients, which the daemon gathers."""
    libraries.imported("kvstore_client.client")
    data = value(SMALL)
    for family in stage.turns((_daemon_puts, _etcd_puts)):
        with node(stage) as both:
            yield from family(stage, both, data)


def _daemon_puts(stage: Stage, both: Node, data: bytes) -> Iterator[Sample]:
    to = both.daemon.requests
    group, sockets = libraries.kvstore_groups(to, data), partial(libraries.sockets_groups, to, data)
    ways: list[tuple[str, str, list[Work]]] = [
        (SEQUENTIAL, KVSTORE_CLIENT, [group]),
        (SEQUENTIAL, KVSTORE_SOCKETS, [sockets(1)]),
        (TOGETHER, KVSTORE_CLIENT, [group] * UNDER_WAY),
        (TOGETHER, KVSTORE_SOCKETS, [sockets(UNDER_WAY)]),
    ]
    for count in CLIENTS:
        works = [libraries.sockets_put(to, data, count // PROCESSES)] * PROCESSES
        ways.append((SINGLES.format(count), KVSTORE_SOCKETS, works))
    processes = both.daemon.process, *both.etcd.processes
    for case, contender, works in ways:
        done = clients.run(works, stage.seconds, *processes)
        cores = min(len(works), PROCESSES)
        yield rate(case, contender, done.load(), load_cores=cores, unit=PUTS, generator="the clients")


def _etcd_puts(stage: Stage, both: Node, data: bytes) -> Iterator[Sample]:
    both.daemon.process.stop()
    for case, under_way in ((SEQUENTIAL, 1), (TOGETHER, UNDER_WAY)):
        works = [libraries.etcd_txns(both.etcd.address, data, under_way)]
        done = clients.run(works, stage.seconds, *both.etcd.processes)
        sample = rate(case, ETCD, done.load(), unit=PUTS, generator="the client")
        yield sample
    for count in CLIENTS:
        yield sample._replace(case=SINGLES.format(count))


# ── gets ─────────────────────────────────────────────────────────────────────────────────────────

STALE_MANY = f"stale, {PROCESSES} clients, {libraries.GETS:,} gets of 100 B at once"
STALE_SINGLES = f"stale, {PROCESSES} clients, 256 requests of one get under way"


def cluster_gets(stage: Stage) -> Iterator[Sample]:
    """Gets that may be stale, which the mirror answers, beside those of a daemon without a cluster; and one
    get after another that is current, which asks etcd first, with nothing else going on."""
    libraries.imported("kvstore_client.client")
    for contender in stage.turns((KVSTORE, LMDB)):
        if contender == KVSTORE:
            with node(stage, KEYS) as both:
                yield from _stale_gets(stage, contender, both.daemon)
        else:
            with stage.scratch() as folder, servers.kvstore_daemon(folder) as daemon:
                preload.kvstore(daemon.requests, KEYS)
                yield from _stale_gets(stage, contender, daemon)
    for members in (1, MEMBERS):
        with node(stage, KEYS, members) as both:
            yield from _current_gets(stage, both, "one member" if members == 1 else f"{members} members")


def _stale_gets(stage: Stage, contender: str, daemon: servers.Kvstore) -> Iterator[Sample]:
    ways = (
        (STALE_MANY, libraries.sockets_get_many(daemon.requests, stale=True)),
        (STALE_SINGLES, libraries.sockets_get_singles(daemon.requests, stale=True)),
    )
    for case, work in ways:
        done = clients.run([work] * PROCESSES, stage.seconds, daemon.process)
        yield rate(case, contender, done.load(), load_cores=PROCESSES, unit=GETS, generator="the clients")


def _current_gets(stage: Stage, both: Node, where: str) -> Iterator[Sample]:
    ways = (
        (KVSTORE, partial(libraries.socket_get, both.daemon.requests)),
        (ETCD, partial(libraries.etcd_get, both.etcd.address)),
    )
    for contender, connect in ways:
        done = clients.run([clients.blocking(connect, timed=True)], stage.seconds, both.daemon.process)
        yield from percentiles(f"current, {where}", contender, done.tallies[0].taken)
    yield Sample(f"current, {where}, p50", AIM, 1_500, "µs", less_is_better=True)


# ── events ───────────────────────────────────────────────────────────────────────────────────────

IDLE, LOADED = "idle", f"beside {UNDER_WAY} requests of 100 puts under way"


def cluster_events(stage: Stage) -> Iterator[Sample]:
    """From before a put is sent until its event has come, at the daemon that was asked and at another; and
    from the answer until the event at the other, which is how far its mirror lags."""
    libraries.imported("kvstore_client.client")
    with (
        node(stage) as both,
        stage.scratch() as folder,
        servers.kvstore_daemon(folder, "--engine", both.etcd.address) as other,
    ):
        for load in (IDLE, LOADED):
            for name, daemon in ((KVSTORE, both.daemon), (ELSEWHERE, other)):
                works = [echoed(both.daemon.requests, daemon)]
                if load == LOADED:
                    works.append(libraries.sockets_groups(both.daemon.requests, value(SMALL), UNDER_WAY))
                done = clients.run(works, stage.seconds, daemon.process)
                taken = done.tallies[0].taken
                half = len(taken) // 2
                yield from percentiles(f"put to event, {load}", name, taken[:half])
                yield from percentiles(f"answer to event, {load}", name, taken[half:])
    with stage.scratch() as folder, servers.kvstore_daemon(folder) as alone:
        done = clients.run([echoed(alone.requests, alone)], stage.seconds, alone.process)
        taken = done.tallies[0].taken
        yield from percentiles(f"put to event, {IDLE}", LMDB, taken[: len(taken) // 2])


ELSEWHERE = "kvstore over etcd, at another daemon"


def echoed(requests: str, followed: servers.Kvstore) -> Work:
    """Puts one key after another at one daemon and waits for each event at another. ``taken`` holds for each
    the microseconds from before the put, and then for each those from its answer, 0 where the event was
    there first."""

    def work(_number: int, start: Start) -> Tally:
        from kvstore_client import Client, Subscription

        subscription = partial(Subscription, followed.requests, followed.changes, keys=["echo"], since=0)
        whole: list[float] = []
        lags: list[float] = []
        with Client(requests, timeout=30) as store, subscription() as events:
            _until(events, store.put("echo", b"0").revision)
            span = start()
            while (before := time.monotonic()) < span.end:
                revision = store.put("echo", b"0").revision
                answered = time.monotonic()
                came = _until(events, revision)
                whole.append(1e6 * (came - before))
                lags.append(1e6 * (came - answered))
            return tally(len(whole), span, [*whole, *lags])

    return work


def _until(events: object, revision: int) -> float:
    while True:
        item = events.next(timeout=30)  # type: ignore[attr-defined]
        if getattr(item, "revision", 0) >= revision:
            return time.monotonic()


# ── memory ───────────────────────────────────────────────────────────────────────────────────────

STORED: Sequence[int] = (100_000, 1_000_000)


def cluster_memory(stage: Stage) -> Iterator[Sample]:
    """Memory of a daemon with a mirror, and of one without a cluster, right after so many keys were
    stored. Only once a run."""
    if stage.round:
        return
    for count in (count for count in STORED if count <= stage.largest):
        case = f"memory with {keys_label(count)}"
        with node(stage, count) as both:
            yield from _memory(case, KVSTORE, both.daemon)
        with stage.scratch() as folder, servers.kvstore_daemon(folder) as daemon:
            preload.kvstore(daemon.requests, count)
            yield from _memory(case, LMDB, daemon)


def _memory(case: str, contender: str, daemon: servers.Kvstore) -> Iterator[Sample]:
    whole, private = (memory_bytes(daemon.process, anonymous=how) / 1e6 for how in (False, True))
    yield Sample(case, contender, whole, "MB", less_is_better=True)
    yield Sample(f"{case}, files not counted", contender, private, "MB", less_is_better=True)
