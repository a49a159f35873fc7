"""The facade on sockets that a service manager opened before it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.programs import require_program
from support.servers import (
    Daemon,
    Facade,
    children,
    clean_environment,
    free_port,
    kvstore_command,
    wait_until,
)
from support.session import call

pytestmark = pytest.mark.slow

# sd_listen_fds(3): the sockets are descriptors 3 and up, and LISTEN_PID is the process they are for.
HAND_OVER = """
import os, sys
given = [int(number) for number in sys.argv[1].split(",")]
for number, descriptor in enumerate([os.dup(each) for each in given]):
    os.dup2(descriptor, 3 + number)
    os.set_inheritable(3 + number, True)
os.environ |= {"LISTEN_FDS": str(len(given)), "LISTEN_PID": sys.argv[2].replace("self", str(os.getpid()))}
os.execv(sys.argv[3], sys.argv[3:])
"""
GET = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def hand_over(*sockets: socket.socket, pid: str = "self") -> list[str]:
    descriptors = ",".join(str(sock.fileno()) for sock in sockets)
    return [sys.executable, "-c", HAND_OVER, descriptors, pid]


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def start_on(
    daemon: Daemon, start_facade: Callable[..., Facade], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Facade]:
    """``start_on([socket], workers=2)``: a facade that is handed those sockets."""

    def start(sockets: list[socket.socket], pid: str = "self", **options: object) -> Facade:
        monkeypatch.setattr(Facade, "wrapper", hand_over(*sockets, pid=pid))
        monkeypatch.setattr(Facade, "passed_descriptors", [sock.fileno() for sock in sockets])
        return start_facade(daemon, **options)

    return start


def ask(sock: socket.socket) -> socket.socket:
    """A connection with a request on it, whether anybody accepts it yet or not."""
    connection = socket.create_connection(sock.getsockname()[:2])
    connection.settimeout(60)
    connection.sendall(GET)
    return connection


def answer(connection: socket.socket) -> bytes:
    with connection, connection.makefile("rb") as stream:
        return stream.readline().strip()


@pytest.mark.parametrize("workers", [1, 2])
def test_connections_that_come_while_the_facade_is_down_are_served_when_it_is_up(
    listening: socket.socket, start_on: Callable[..., Facade], workers: int
) -> None:
    early = [ask(listening) for _ in range(20)]
    facade = start_on([listening], workers=workers)
    assert urlsplit(facade.url).port == listening.getsockname()[1]
    assert {answer(each) for each in early} == {b"HTTP/1.1 200 OK"}
    facade.stop()
    between = [ask(listening) for _ in range(20)]
    facade.start()
    assert {answer(each) for each in between} == {b"HTTP/1.1 200 OK"}


def test_every_worker_accepts_and_one_that_crashed_is_replaced(
    listening: socket.socket, start_on: Callable[..., Facade]
) -> None:
    facade = start_on([listening], workers=2)
    for victim in children(facade.pid):
        others = [pid for pid in children(facade.pid) if pid != victim]
        os.kill(victim, signal.SIGSTOP)  # the other one has to do it, also if this one was woken first
        try:
            assert {answer(ask(listening)) for _ in range(20)} == {b"HTTP/1.1 200 OK"}
        finally:
            os.kill(victim, signal.SIGKILL)
        wait_until(lambda victim=victim: f"(pid {victim}) was ended by SIGKILL" in facade.stderr)  # type: ignore[misc]
        wait_until(lambda others=others: len(children(facade.pid)) > len(others))  # type: ignore[misc]
    assert {answer(ask(listening)) for _ in range(20)} == {b"HTTP/1.1 200 OK"}


def test_several_sockets_are_all_served(start_on: Callable[..., Facade], listening: socket.socket) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        start_on([listening, other], workers=2)
        for sock in (listening, other):
            assert answer(ask(sock)) == b"HTTP/1.1 200 OK"


def test_sockets_for_another_process_are_left_alone(
    listening: socket.socket, start_on: Callable[..., Facade]
) -> None:
    facade = start_on([listening], pid="1")
    assert urlsplit(facade.url).port != listening.getsockname()[1]
    assert call(facade.url, "GET", "/readyz").status == 200


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("udp", "is not a TCP socket"),
        ("unix", "is not a TCP socket"),
        ("silent", "does not listen"),
        ("open", "can be reached from other machines"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(kind: str, reason: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        if kind == "unix":
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        elif kind == "udp":
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        else:
            sock = stack.enter_context(socket.socket())
            sock.bind(("0.0.0.0" if kind == "open" else "127.0.0.1", 0))
        if kind == "open":
            sock.listen()
        done = subprocess.run(
            [*hand_over(sock), *kvstore_command("http")],
            pass_fds=[sock.fileno()],
            env=clean_environment(tmp_path),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_systemd_hands_its_socket_over_with_the_first_connection(daemon: Daemon, tmp_path: Path) -> None:
    activate = require_program("systemd-socket-activate")
    port = free_port()
    command = [activate, "-l", f"127.0.0.1:{port}"]
    command += kvstore_command("http", "--requests", daemon.requests, "--changes", daemon.changes)
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=clean_environment(tmp_path), stdout=log, stderr=log) as server,
    ):
        try:
            wait_until(lambda: b"Listening on" in (tmp_path / "log").read_bytes())
            assert call(f"http://127.0.0.1:{port}", "GET", "/readyz").status == 200
        finally:
            server.terminate()
    assert server.returncode == 0, (tmp_path / "log").read_text()
