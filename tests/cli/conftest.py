"""Fixtures of the command line's tests: running it as a process, and a service with a script."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support import Service, kvstore_command
from support.servers import clean_environment
from support.stand_in import stand_in
from support.warm import warm_command

RUN_SECONDS = 45


class CommandLine:
    """Runs ``kvstore`` in a folder of its own, against one service."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder = folder
        self.environment = clean_environment(folder, **({"KVSTORE_URL": url} if url else {}))
        self.find_in(Path(kvstore_command()[0]).parent)

    def __call__(
        self, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end."""
        return warm_command(*kvstore_command()).run(
            arguments,
            stdin=stdin,
            cwd=self.folder,
            env={**self.environment, **(env or {})},
            timeout=RUN_SECONDS,
        )

    def find_in(self, binaries: Path) -> None:
        """Have shells find the command in that folder."""
        self.environment["PATH"] = f"{binaries}:{os.environ['PATH']}"

    def out(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """What it prints; it has to succeed."""
        done = self(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def lines(self, *arguments: str, stdin: bytes = b"") -> list[Any]:
        """The JSON lines that it prints; it has to succeed."""
        return [json.loads(line) for line in self.out(*arguments, stdin=stdin).splitlines()]

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> Running:
        """Start it and leave it running."""
        return Running(kvstore_command(*arguments), self.folder, {**self.environment, **(env or {})})


class Running:
    """A command that was started and goes on, its output in files."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        number = len(list(folder.glob("*.out")))
        self.out_path, self.err_path = folder / f"{number}.out", folder / f"{number}.err"
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def stdout(self) -> bytes:
        """What it printed so far."""
        return self.out_path.read_bytes()

    @property
    def stderr(self) -> str:
        """What it said so far."""
        return self.err_path.read_text(encoding="utf-8", errors="replace")

    def lines(self) -> list[Any]:
        """The whole JSON lines that it printed so far."""
        return [json.loads(line) for line in self.stdout.split(b"\n")[:-1]]

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(RUN_SECONDS)

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


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


@pytest.fixture(scope="module")
def completing(kvstore: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """``kvstore`` for shells in which much is completed: what they find is the stand-in."""
    folder = tmp_path_factory.mktemp("bin")
    with stand_in(folder):
        kvstore.find_in(folder)
        yield kvstore


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Play = Callable[[http.server.BaseHTTPRequestHandler], None]


@dataclass
class Script:
    """A service that answers the first request as the first entry says, and so on; the last entry
    answers all that follow."""

    url: str
    plays: list[Play] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def on_request(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Note the request and play the next entry. Each connection has a thread of its own."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.seen.append(Seen(handler.command, handler.path, dict(handler.headers), body))
        self.plays[min(len(self.seen), len(self.plays)) - 1](handler)


@pytest.fixture
def script() -> Iterator[Script]:
    """A service that behaves as the test says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            playing.on_request(self)

        do_PUT = do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    playing = Script(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield playing
    server.shutdown()
    thread.join()
    server.server_close()
