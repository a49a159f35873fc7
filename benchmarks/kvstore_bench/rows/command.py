"""``kvstore get`` as a whole process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

from kvstore_bench import preload, servers
from kvstore_bench.processes import environment
from kvstore_bench.results import Sample
from kvstore_bench.stage import Stage
from kvstore_bench.workload import key

KVSTORE = "kvstore get"
PYTHON = "python -c pass"
CURL = "curl"
ETCDCTL = "etcdctl get"
REDIS_CLI = "redis-cli get"

RUNS, QUICK_RUNS = 20, 10


def cli_get(stage: Stage) -> Iterator[Sample]:
    """Median of some runs, taken in turn; the others' own commands beside it for comparison."""
    with (
        stage.scratch() as folder,
        servers.kvstore(folder) as ours,
        servers.redis(folder) as redis,
        servers.etcd(folder) as etcd,
    ):
        preload.kvstore(ours.requests, 10)
        preload.redis(redis.port, 10)
        preload.etcd(etcd.port, 10)
        commands = {
            KVSTORE: [servers.kvstore_program(), "get", key(1), "--url", ours.url],
            PYTHON: [sys.executable, "-c", "pass"],
            CURL: ["curl", "-s", f"{ours.url}/v1/kv/{key(1)}"],
            ETCDCTL: ["etcdctl", "--endpoints", f"http://127.0.0.1:{etcd.port}", "get", key(1)],
            REDIS_CLI: ["redis-cli", "-p", str(redis.port), "get", key(1)],
        }
        yield from _timed(
            {name: line for name, line in commands.items() if shutil.which(line[0])},
            QUICK_RUNS if stage.quick else RUNS,
            {**environment(folder), "ETCDCTL_API": "3"},
        )


def _timed(commands: dict[str, list[str]], runs: int, env: dict[str, str]) -> Iterator[Sample]:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, line in commands.items():
            taken[name].append(_run(line, env))
    for name, each in taken.items():
        yield Sample("wall clock", name, 1e3 * median(wall for wall, _ in each), "ms", less_is_better=True)
        yield Sample("CPU", name, 1e3 * median(cpu for _, cpu in each), "ms", less_is_better=True)


def _run(line: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Seconds by the clock, and of CPU."""
    before = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    _, status, used = os.wait4(process.pid, 0)
    taken = time.monotonic() - before
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{line} ended with status {process.returncode}"
    return taken, used.ru_utime + used.ru_stime
