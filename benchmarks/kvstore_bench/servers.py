"""The contenders' servers: each on loopback, on random ports, with its data in a given folder."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kvstore_bench.processes import Process, answers, free_port, running

WORKERS = 2

ETCD_QUOTA_BYTES = 32 * 1024**3
ETCD_TXN_OPS = 10_000
"""Both only for loading many keys; neither changes what is measured."""


class Kvstore(NamedTuple):
    """``kvstore serve``, or ``kvstore daemon`` with ``port`` 0."""

    process: Process
    port: int
    requests: str
    changes: str

    @property
    def url(self) -> str:
        """Where the facade answers."""
        return f"http://127.0.0.1:{self.port}"


class Peer(NamedTuple):
    """A server that answers on one port."""

    process: Process
    port: int


def kvstore_program() -> str:
    """The command of this environment."""
    return str(Path(sysconfig.get_path("scripts")) / "kvstore")


def kvstore(folder: Path, *access: str, workers: int = WORKERS) -> AbstractContextManager[Kvstore]:
    """The whole service with its defaults, synced on every commit; ``access`` as for the daemon."""
    port = free_port()
    http = ["--http", f"127.0.0.1:{port}", "--workers", str(workers), *access]
    return _kvstore(folder, "serve", http, "kvstore http: ready", port)


def kvstore_daemon(folder: Path, *options: str) -> AbstractContextManager[Kvstore]:
    """The daemon alone, synced on every commit, with these options. While access is on,
    ``data/facade.key`` in ``folder`` is a login file for it."""
    return _kvstore(folder, "daemon", list(options), "kvstore daemon: ready", 0)


@contextmanager
def _kvstore(folder: Path, part: str, other: list[str], ready: str, port: int) -> Iterator[Kvstore]:
    requests, changes = f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"
    command = [kvstore_program(), part, "--data", str(folder / "data"), *other]
    with running([*command, "--requests", requests, "--changes", changes], folder, "kvstore") as process:
        process.wait_until(lambda: ready in process.output())
        yield Kvstore(process, port, requests, changes)


@contextmanager
def constant(folder: Path, *, workers: int = WORKERS) -> Iterator[Peer]:
    """The facade's server with a route that answers a constant."""
    port = free_port()
    command = ["env", f"PYTHONPATH={Path(__file__).parents[1]}", sys.executable]
    command += ["-m", "kvstore_bench.constant", str(port), str(workers)]
    with running(command, folder, "constant") as process:
        process.wait_until(lambda: "ready" in process.output())
        yield Peer(process, port)


@contextmanager
def etcd(folder: Path) -> Iterator[Peer]:
    """One member of its own, synced on every commit, as etcd always is."""
    with etcd_cluster(folder, 1) as cluster:
        yield Peer(cluster.processes[0], cluster.ports[0])


class EtcdCluster(NamedTuple):
    """Members that are one cluster."""

    processes: tuple[Process, ...]
    ports: tuple[int, ...]

    @property
    def address(self) -> str:
        """What ``--engine`` takes."""
        return f"etcd://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/bench"


@contextmanager
def etcd_cluster(folder: Path, size: int = 3) -> Iterator[EtcdCluster]:
    """Members with etcd's defaults but for what loading needs, all on this machine."""
    ports = tuple(free_port() for _ in range(size))
    peers = [f"http://127.0.0.1:{free_port()}" for _ in range(size)]
    names = ",".join(f"etcd{number}={peer}" for number, peer in enumerate(peers))
    with ExitStack() as stack:
        processes = []
        for number, (port, peer) in enumerate(zip(ports, peers, strict=True)):
            command = ["etcd", "--name", f"etcd{number}", "--data-dir", str(folder / f"etcd{number}")]
            command += ["--logger", "zap", "--log-level", "error", "--initial-cluster", names]
            command += _flags("client-urls", f"http://127.0.0.1:{port}", "listen", "advertise")
            command += _flags("peer-urls", peer, "listen", "initial-advertise")
            command += ["--quota-backend-bytes", str(ETCD_QUOTA_BYTES), "--max-txn-ops", str(ETCD_TXN_OPS)]
            processes.append(stack.enter_context(running(command, folder, f"etcd{number}")))
        for process, port in zip(processes, ports, strict=True):
            process.wait_until(partial(_is_etcd_ready, port))
        yield EtcdCluster(tuple(processes), ports)


def _flags(name: str, address: str, *prefixes: str) -> list[str]:
    return [word for prefix in prefixes for word in (f"--{prefix}-{name}", address)]


def _is_etcd_ready(port: int) -> bool:
    """Whether a linearizable read is answered; before there is a leader none is."""
    if not answers(port):
        return False
    from kvstore_bench.workload import EtcdHttp

    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(EtcdHttp.get("key"))
        try:
            return b" 200 " in connection.recv(65536)
        except TimeoutError:
            return False


@contextmanager
def redis(folder: Path, appendfsync: str = "everysec") -> Iterator[Peer]:
    """Redis with its append-only file."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--appendonly", "yes", "--appendfsync", appendfsync, "--save", ""]
    command += ["--enable-debug-command", "no", "--maxclients", "15000"]
    with running(command, folder, "redis") as process:
        process.wait_until(lambda: _is_redis_ready(port))
        yield Peer(process, port)


def _is_redis_ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(resp("PING"))
            return connection.recv(65536).startswith(b"+PONG")
    except OSError:
        return False


def resp(*words: str | bytes) -> bytes:
    """A Redis command as it is sent."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


@contextmanager
def webdis(folder: Path, redis_port: int) -> Iterator[Peer]:
    """webdis in front of a Redis, with as many threads as the facade has workers."""
    port = free_port()
    settings = {
        "redis_host": "127.0.0.1",
        "redis_port": redis_port,
        "http_host": "127.0.0.1",
        "http_port": port,
        "threads": WORKERS,
        "pool_size": 20,
        "http_max_request_size": 1 << 20,
        "daemonize": False,
        "database": 0,
        "verbosity": 0,
        "logfile": str(folder / "webdis.messages"),
    }
    (folder / "webdis.json").write_text(json.dumps(settings))
    with running(["webdis", str(folder / "webdis.json")], folder, "webdis") as process:
        process.wait_until(lambda: answers(port))
        yield Peer(process, port)


# ── versions ─────────────────────────────────────────────────────────────────────────────────────

_VERSIONS = {
    "etcd": (["etcd", "--version"], r"etcd Version: (\S+)"),
    "Redis": (["redis-server", "--version"], r"v=(\S+)"),
    "webdis": (["dpkg-query", "-W", "-f", "${Version}", "webdis"], r"(\S+)"),
    "wrk": (["wrk", "--version"], r"wrk (?:debian/)?(\S+)"),
    "kvstore": ([kvstore_program(), "--version"], r"kvstore (.+)"),  # which build it is, too
}


def versions() -> dict[str, str]:
    """What each program says of its version; "missing" where it cannot be asked."""
    return {name: _version(*how) for name, how in _VERSIONS.items()}


def _version(command: list[str], pattern: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "missing"
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"
