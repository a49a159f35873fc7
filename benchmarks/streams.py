"""Measures open event streams on one facade worker: its memory, how long until the last stream has a
change, and what is left for other requests.

    python benchmarks/streams.py --streams 5000

It starts a daemon and a facade of their own in a temporary folder, opens the streams from this one
process, and needs ``wrk`` for the requests beside them. The time to the last stream includes this
process reading all of them. Figures depend on the machine; compare only those of one run.
"""

from __future__ import annotations

import argparse
import re
import resource
import select
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

KEY = "benchmark"
DESCRIPTORS = 200
"""How many more than one for each stream either side needs."""


def main() -> None:
    """Measure and print."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), arguments.streams) as (port, pid):
        put(port, b"first")
        quiet = throughput(port, arguments)
        memory = resident_kib(pid)
        streams = Streams(port, arguments.streams, arguments.query)
        grown = resident_kib(pid)
        print(f"{len(streams)} streams on one worker")
        print(
            f"memory of the worker: {memory / 1024:.1f} MiB before, {grown / 1024:.1f} MiB with the streams"
        )
        print(f"memory of one stream: {(grown - memory) / len(streams):.2f} KiB")
        report_latency(port, streams, arguments.puts)
        report_rate(port, streams, arguments.burst)
        print(f"GET, {arguments.connections} connections, without streams: {quiet:,.0f}/s")
        print(f"GET beside the idle streams: {throughput(port, arguments):,.0f}/s")
        with writing(port, streams, arguments.interval) as written:
            busy = throughput(port, arguments)
        deliveries = len(written) * len(streams) / arguments.seconds
        print(
            f"GET beside a put every {arguments.interval:g} s, {deliveries:,.0f} deliveries/s: {busy:,.0f}/s"
        )
        print(f"memory of the worker in the end: {resident_kib(pid) / 1024:.1f} MiB")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=5_000)
    parser.add_argument("--query", default="", help="of /v1/subscribe, for example values=0")
    parser.add_argument("--puts", type=int, default=20, help="puts whose way to the last stream is timed")
    parser.add_argument("--burst", type=int, default=100, help="puts in a row, for deliveries/s")
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between puts beside wrk")
    parser.add_argument("--connections", type=int, default=32, help="of wrk")
    parser.add_argument("--seconds", type=int, default=5, help="of each run of wrk")
    return parser.parse_args()


@contextmanager
def service(folder: Path, streams: int) -> Iterator[tuple[int, int]]:
    """A daemon and a facade with one worker; gives the port and the worker's process id."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < streams + DESCRIPTORS:
        raise SystemExit(f"{streams} streams need as many descriptors; the limit is {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    any_port = "tcp://127.0.0.1:0"
    daemon, ready = start("daemon", "--data", str(folder), "--requests", any_port, "--changes", any_port)
    found = re.search(r"requests (\S+), changes (\S+),", ready)
    assert found, ready
    endpoints = ["--requests", found[1], "--changes", found[2]]
    limits = ["--max-streams", str(streams + 1), "--workers", "1"]
    facade, ready = start("http", "--http", "127.0.0.1:0", *endpoints, *limits)
    found = re.search(r"http://127.0.0.1:(\d+)", ready)
    assert found, ready
    try:
        yield int(found[1]), facade.pid
    finally:
        for process in (facade, daemon):
            process.terminate()
            process.wait()


def start(*command: str) -> tuple[subprocess.Popen[str], str]:
    """Start a kvstore server; gives the process and its ready line."""
    kvstore = Path(sysconfig.get_path("scripts")) / "kvstore"
    process = subprocess.Popen([kvstore, *command], stderr=subprocess.PIPE, text=True, bufsize=1)
    assert process.stderr is not None
    return process, process.stderr.readline()


def put(port: int, value: bytes) -> None:
    """Store ``value`` and return when it is acknowledged."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("PUT", f"/v1/kv/{KEY}", value)
    assert connection.getresponse().status in (200, 201)
    connection.close()


class Streams:
    """Open streams, read by one epoll set."""

    def __init__(self, port: int, count: int, query: str) -> None:
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        request = f"GET /v1/subscribe?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), timeout=60)
            sock.sendall(request)
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._poll.register(sock.fileno(), select.EPOLLIN)
        self.wait_for(b"event: sync", 1)

    def __len__(self) -> int:
        return len(self._sockets)

    def wait_for(self, mark: bytes, times: int) -> None:
        """Read until every stream has had ``mark`` so many times."""
        missing = dict.fromkeys(self._sockets, times)
        tails = dict.fromkeys(self._sockets, b"")
        while missing:
            for fd, _ in self._poll.poll(60):
                data = tails[fd] + self._sockets[fd].recv(65536)
                assert len(data) > len(tails[fd]), "a stream was ended"
                tails[fd] = data[-len(mark) + 1 :]
                if fd in missing:
                    missing[fd] -= data.count(mark)
                    if missing[fd] <= 0:
                        del missing[fd]


def report_latency(port: int, streams: Streams, puts: int) -> None:
    """Time single puts until every stream has the event."""
    from_put, from_answer = [], []
    for number in range(puts):
        value = b"single-%06d" % number
        times: list[float] = [time.perf_counter()]
        thread = threading.Thread(
            target=lambda v=value, t=times: (put(port, v), t.append(time.perf_counter()))
        )
        thread.start()
        streams.wait_for(value, 1)
        last = time.perf_counter()
        thread.join()
        from_put.append(last - times[0])
        from_answer.append(last - times[1])
    print(f"from sending a put to the last stream's event: {milliseconds(from_put)}")
    print(f"from its answer to the last stream's event: {milliseconds(from_answer)}")


def timed_put(port: int, value: bytes, answered: list[float]) -> None:
    """Put, and note when the answer came."""
    put(port, value)
    answered.append(time.perf_counter())


def milliseconds(times: Sequence[float]) -> str:
    """Median and worst."""
    return f"median {median(times) * 1e3:.0f} ms, worst of {len(times)} {max(times) * 1e3:.0f} ms"


def report_rate(port: int, streams: Streams, burst: int) -> None:
    """Time many puts, as fast as one client sends them, until every stream has all events."""

    def put_all() -> None:
        for number in range(burst):
            put(port, b"burst-%06d" % number)

    began = time.perf_counter()
    thread = threading.Thread(target=put_all)
    thread.start()
    streams.wait_for(b'"value":"burst-', burst)
    seconds = time.perf_counter() - began
    thread.join()
    print(f"{burst} puts in a row to all streams: {burst * len(streams) / seconds:,.0f} deliveries/s")


@contextmanager
def writing(port: int, streams: Streams, interval: float) -> Iterator[Sequence[int]]:
    """Put every ``interval`` seconds, and read all streams, while the body runs."""
    done = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not done.wait(interval):
            value = b"beside-%06d" % len(written)
            put(port, value)
            streams.wait_for(value, 1)
            written.append(1)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield written
    finally:
        done.set()
        thread.join()


def throughput(port: int, arguments: argparse.Namespace) -> float:
    """GETs per second, as wrk sees them."""
    url = f"http://127.0.0.1:{port}/v1/kv/{KEY}"
    command = ["wrk", "-t", "1", "-c", str(arguments.connections), "-d", f"{arguments.seconds}s", url]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in report, report
    found = re.search(r"Requests/sec:\s+([\d.]+)", report)
    assert found, report
    return float(found[1])


def resident_kib(pid: int) -> int:
    """The process's resident memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


if __name__ == "__main__":
    main()
