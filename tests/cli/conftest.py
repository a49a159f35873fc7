"""Fixtures of the command line's tests: running it as a process, and a service with a script."""

from __future__ import annotations

import ast
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.command_line import CommandLine, Running
from support.scripted import Script, scripted
from support.servers import Service, run_kvstore


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """``start(kvstore, "subscribe", ...)``: a running command, killed when the test ends."""
    started: list[Running] = []

    def begin(kvstore: CommandLine, *arguments: str, env: dict[str, str] | None = None) -> Running:
        started.append(kvstore.start(*arguments, env=env))
        return started[-1]

    yield begin
    for running in started:
        running.end()


@pytest.fixture
def offline(tmp_path: Path) -> CommandLine:
    """The command line with nothing configured, not even a service."""
    return CommandLine(tmp_path, None)


@pytest.fixture(scope="module")
def kvstore(shared_service: Service, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """The command line against the module's service."""
    return CommandLine(tmp_path_factory.mktemp("shell"), shared_service.facade.url)


# A stand-in for ``kvstore`` in shells, which start it some three hundred times. Of a line it prints the
# words, each with a NUL behind it, as the shell passed them. Asked for completions, or for the script that
# asks for them, it has the command run in a process that has already started.
_PROGRAM = """\
#!/bin/sh
if [ -z "$_KVSTORE_COMPLETE" ] && [ "$1" != completion ]; then
    printf '%s\\0' "$@"
else
    exec {python} -IS {asks} "$@"
fi
"""
_ASKS = """\
import _socket, os, sys
asking = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
asking.connect({address!r})
asking.sendall(repr((sys.argv[1:], dict(os.environ), os.getcwd())).encode())
asking.shutdown(_socket.SHUT_WR)
while answer := asking.recv(65536):
    os.write(1, answer)
"""


class _Answer(socketserver.StreamRequestHandler):
    """Runs the command as the stand-in was called, and gives it what the command printed."""

    def handle(self) -> None:
        words, environment, folder = ast.literal_eval(self.rfile.read().decode())
        # for the shell; the command takes its words for UTF-8 under any
        del environment["LC_ALL"]
        done = run_kvstore(*words, env=environment, cwd=folder)
        self.wfile.write(done.stdout)


@contextmanager
def stand_in(folder: Path) -> Iterator[None]:
    """A ``folder`` with the stand-in."""
    address = f"\0kvstore-tests{folder}"[-100:]
    with socketserver.UnixStreamServer(address, _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        program, asks = folder / "kvstore", folder / "asks.py"
        asks.write_text(_ASKS.format(address=address))
        program.write_text(_PROGRAM.format(python=sys.executable, asks=asks))
        program.chmod(0o755)
        yield
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def completing(kvstore: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """``kvstore`` for shells in which much is completed: what they find is the stand-in."""
    folder = tmp_path_factory.mktemp("bin")
    with stand_in(folder):
        kvstore.find_in(folder)
        yield kvstore


@pytest.fixture
def script() -> Iterator[Script]:
    """A service that behaves as the test says."""
    with scripted() as script:
        yield script
