"""Measures the daemon by itself, over ZeroMQ: latency of a get, durable puts, gets in one request.

    python benchmarks/daemon.py --responders 512 --seconds 3

It starts a daemon of its own in a temporary folder (``--folder`` puts it on another disk) and every
client in a process of its own. Figures depend on the machine; compare only those of one run.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import orjson
import zmq

READY = re.compile(r"ready, requests (\S+), changes (\S+),")
BATCH_KEYS = 1_000
VALUE = b"v" * 100


@contextmanager
def daemon(arguments: argparse.Namespace) -> Iterator[str]:
    """A daemon with a store of its own; gives its request address."""
    kvstore = Path(sysconfig.get_path("scripts")) / "kvstore"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        command = [kvstore, "daemon", "--data", folder, "--requests", "tcp://127.0.0.1:0"]
        command += ["--changes", "tcp://127.0.0.1:0", "--responders", str(arguments.responders)]
        process = subprocess.Popen(
            [*command, "--sync", arguments.sync], stderr=subprocess.PIPE, text=True, bufsize=1
        )
        try:
            assert process.stderr is not None
            found = READY.search(process.stderr.readline())
            assert found, "the daemon did not start"
            yield found[1]
        finally:
            process.terminate()
            process.wait()


def connect(endpoint: str, kind: int = zmq.REQ) -> zmq.Socket[bytes]:
    """A socket of a context of its own, as a client process has it."""
    socket = zmq.Context().socket(kind)
    socket.rcvtimeo = 30_000
    socket.linger = 0
    socket.connect(endpoint)
    return socket


def request(*ops: dict[str, Any]) -> bytes:
    """Frame 1 of a request."""
    return orjson.dumps({"v": 1, "ops": ops})


def call(socket: zmq.Socket[bytes], *frames: bytes) -> dict[str, Any]:
    """One round trip; fails on an error."""
    socket.send_multipart(frames)
    reply: dict[str, Any] = orjson.loads(socket.recv_multipart()[0])
    assert "error" not in reply, reply
    return reply


# ── clients, each in a process of its own ────────────────────────────────────────────────────────


def write_singles(endpoint: str, sockets: int, stop: Event, counts: Any) -> None:
    """``sockets`` REQ sockets, each with one durable put outstanding at any time."""
    poller, pool = zmq.Poller(), [connect(endpoint) for _ in range(sockets)]
    for number, socket in enumerate(pool):
        poller.register(socket, zmq.POLLIN)
        socket.send_multipart([_put(f"w/{number}"), VALUE])
    done = 0
    while not stop.is_set():
        for socket, _ in poller.poll(1000):
            socket.recv_multipart()
            done += 1
            socket.send_multipart([_put(f"w/{done % 5000}"), VALUE])
    counts.put(done)


def write_batches(endpoint: str, ops: int, stop: Event, counts: Any) -> None:
    """One REQ socket that puts ``ops`` keys with each request."""
    socket, done = connect(endpoint), 0
    header = request(*({"op": "put", "key": f"b/{n}", "size": len(VALUE)} for n in range(ops)))
    while not stop.is_set():
        call(socket, header, VALUE * ops)
        done += ops
    counts.put(done)


def read_batches(endpoint: str, gets: int, stop: Event, counts: Any) -> None:
    """One DEALER with two requests of ``gets`` gets on their way, replies not decoded."""
    socket, done = connect(endpoint, zmq.DEALER), 0
    header = request(*({"op": "get", "key": f"k/{n:04}"} for n in range(gets)))
    for _ in range(2):
        socket.send_multipart([b"", header])
    while not stop.is_set():
        socket.recv_multipart()
        done += gets
        socket.send_multipart([b"", header])
    counts.put(done)


def _put(key: str) -> bytes:
    return request({"op": "put", "key": key, "size": len(VALUE)})


# ── figures ──────────────────────────────────────────────────────────────────────────────────────


class Load:
    """Client processes that run until :meth:`stop`, which says how many ops a second they did."""

    def __init__(self, target: Any, endpoint: str, size: int, processes: int = 1) -> None:
        self._stop, self._counts = mp.Event(), mp.Queue()
        arguments = (endpoint, size, self._stop, self._counts)
        self._processes = [mp.Process(target=target, args=arguments) for _ in range(processes)]
        for process in self._processes:
            process.start()
        time.sleep(0.5)
        self._started = time.monotonic()

    def stop(self) -> float:
        """End the processes. The half second of their start counts too, so this is a little high."""
        self._stop.set()
        seconds = time.monotonic() - self._started + 0.5
        done = sum(self._counts.get() for _ in self._processes)
        for process in self._processes:
            process.join()
        return done / seconds


def get_latencies(endpoint: str, seconds: float) -> list[float]:
    """Microseconds of one round trip after another, a get of one key each."""
    socket, header = connect(endpoint), request({"op": "get", "key": "k/0001"})
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        call(socket, header)
        taken.append((time.perf_counter() - before) * 1e6)
    return taken


def show_latency(name: str, endpoint: str, seconds: float, load: Load | None = None) -> None:
    """Print median and p99 of a get, and what the load beside it did."""
    taken = get_latencies(endpoint, seconds)
    beside = f", {load.stop():9,.0f} puts/s beside" if load else ""
    p99 = quantiles(taken, n=100)[98]
    print(f"get, {name:32} median {median(taken):7.0f} us, p99 {p99:8.0f} us{beside}", flush=True)


def show_rate(name: str, load: Load, seconds: float) -> None:
    """Print how many ops a second a load does by itself."""
    time.sleep(seconds)
    print(f"{name:37} {load.stop():11,.0f}/s", flush=True)


def prepare(endpoint: str) -> None:
    """Store what will be read."""
    ops = [{"op": "put", "key": f"k/{n:04}", "size": len(VALUE)} for n in range(BATCH_KEYS)]
    call(connect(endpoint), request(*ops), VALUE * BATCH_KEYS)


def measure(endpoint: str, seconds: float) -> None:
    """Print all figures."""
    prepare(endpoint)
    show_latency("idle", endpoint, seconds)
    for writers in (1, 32):
        load = Load(write_singles, endpoint, writers)
        show_latency(f"{writers} writers of single puts", endpoint, seconds, load)
    for ops in (100, 10_000):
        load = Load(write_batches, endpoint, ops)
        show_latency(f"1 writer of {ops:,} puts a request", endpoint, seconds, load)
    show_latency("idle again", endpoint, seconds)
    show_rate("durable puts, 32 REQ clients", Load(write_singles, endpoint, 16, processes=2), seconds)
    show_rate("puts, 10,000 in one request", Load(write_batches, endpoint, 10_000), seconds)
    show_rate("gets, 1,000 in one request", Load(read_batches, endpoint, BATCH_KEYS), seconds)


def main() -> int:
    """Measure one configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--responders", type=int, default=512, help="REP sockets of the daemon")
    parser.add_argument("--sync", default="always", choices=("always", "interval", "none"))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--folder", help="where the store is made, and removed again")
    arguments = parser.parse_args()
    with daemon(arguments) as endpoint:
        print(f"responders {arguments.responders}, sync {arguments.sync}", flush=True)
        measure(endpoint, arguments.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
