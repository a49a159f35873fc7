"""What the servers log: JSON for programs, text for people, and no harm from a reader that stops."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore_cli.serve.logging_setup import BACKLOG_BYTES, JsonFormatter, Stderr, TextFormatter
from kvstore_client import Client, KvError, commands
from support.patience import PATIENCE_SECONDS
from support.servers import (
    Daemon,
    Facade,
    Serve,
    Service,
    clean_environment,
    flags,
    free_port,
    kvstore_command,
    wait_until,
)

pytestmark = pytest.mark.slow

TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) \S+: ")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def entries(said: str) -> list[dict[str, Any]]:
    """The lines of a log, each of which has to be a JSON object with all that is promised."""
    found = [json.loads(line) for line in said.splitlines()]
    for entry in found:
        assert TIME.fullmatch(entry["time"]), entry
        assert entry["level"] in ("debug", "info", "warning", "error", "critical"), entry
        assert entry["part"] in ("daemon", "http", "serve"), entry
        assert type(entry["pid"]) is int
        assert type(entry["message"]) is str
        assert type(entry["logger"]) is str
    return found


def entry_with(said: str, words: str) -> dict[str, Any]:
    """The one line whose message holds ``words``."""
    [entry] = [entry for entry in entries(said) if words in entry["message"]]
    return entry


# ── the servers ──────────────────────────────────────────────────────────────────────────────────


def test_serve_writes_nothing_but_json_lines_from_start_to_end(start_serve: Callable[..., Serve]) -> None:
    serve = start_serve(log_format="json", log_level="debug", workers=2)
    ready = entry_with(serve.stderr, "kvstore daemon: ready")
    assert ready["message"] == (
        f"kvstore daemon: ready, requests {serve.requests}, changes {serve.changes}, data {serve.data}"
    )
    assert (ready["requests"], ready["changes"]) == (serve.requests, serve.changes)
    assert (ready["part"], ready["level"], ready["data"]) == ("daemon", "info", str(serve.data))
    assert entry_with(serve.stderr, "kvstore http: ready")["url"] == serve.url
    announced = wait_until(lambda: "kvstore serve: ready" in serve.stderr and serve.stderr)
    assert entry_with(announced, "kvstore serve: ready")["data"] == str(serve.data)
    os.kill(ready["pid"], signal.SIGKILL)
    wait_until(lambda: serve.stderr.count("kvstore daemon: ready") == 2, what="the daemon is back")
    serve.stop()
    assert entry_with(serve.stderr, "the daemon was ended by SIGKILL")["level"] == "warning"
    assert entry_with(serve.stderr, "kvstore serve: stopping")["level"] == "info"


def test_a_worker_says_which_one_it_is(daemon: Daemon, start_facade: Callable[..., Facade]) -> None:
    daemon.stop()
    facade = start_facade(daemon, log_format="json", workers=2, daemon_timeout="200ms")

    def numbers() -> set[int]:
        subprocess.run(["curl", "-s", f"{facade.url}/readyz"], check=True, capture_output=True)
        return {entry["worker"] for entry in entries(facade.stderr) if "worker" in entry}

    wait_until(lambda: numbers() == {0, 1}, what="both workers have missed the daemon")


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("command", ["daemon", "http"])
def test_why_a_server_cannot_start_is_one_line(
    shared_service: Service, tmp_path: Path, command: str, log_format: str
) -> None:
    taken = {
        "daemon": ["--data", str(shared_service.daemon.data)],
        "http": ["--http", shared_service.url.removeprefix("http://")],
    }
    done = subprocess.run(
        kvstore_command(command, *taken[command], "--log-format", log_format, "--log-level", "error"),
        capture_output=True,
        env=clean_environment(tmp_path, KVSTORE_REQUESTS=f"tcp://127.0.0.1:{free_port()}"),
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    message = line
    if log_format == "json":
        [entry] = entries(line)
        assert entry["level"] == "error"
        message = entry["message"]
    assert message.startswith(f"kvstore {command}: ")


def test_auto_is_text_on_a_terminal_and_json_elsewhere(tmp_path: Path) -> None:
    ends = [f"--{name}=tcp://127.0.0.1:0" for name in ("requests", "changes")]
    command = kvstore_command("daemon", "--data", str(tmp_path / "data"), *ends)
    for read_end, write_end, start in (
        (*pty.openpty(), b"kvstore daemon: ready, "),
        (*os.pipe(), b'{"time":"'),
    ):
        with subprocess.Popen(command, stderr=write_end, env=clean_environment(tmp_path)) as process:
            os.close(write_end)
            said = b""
            while not said.endswith(b"\n"):
                said += os.read(read_end, 65536)
            process.terminate()
        os.close(read_end)
        assert said.startswith(start), said
        assert process.returncode == 0


def test_a_daemon_whose_stderr_is_closed_runs_on(tmp_path: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    line = kvstore_command(
        "daemon", "--data", str(tmp_path / "data"), "--requests", endpoint, "--changes", "tcp://127.0.0.1:0"
    )
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *line]
    with (
        subprocess.Popen(shell, env=clean_environment(tmp_path), stdin=subprocess.DEVNULL) as process,
        Client(endpoint, timeout=PATIENCE_SECONDS) as client,
    ):
        client.put("k", b"v")
        assert client.get("k").value == b"v"
        process.terminate()
    assert process.returncode == 0


# ── the log level at run time ────────────────────────────────────────────────────────────────────


def levels(server: Daemon | Facade | Serve) -> list[str]:
    """The levels that a server says it went to."""
    return re.findall(r"the log level is now (\w+)", server.stderr)


def test_a_daemon_says_more_after_sigusr1_and_as_much_as_before_after_sigusr2(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon(log_level="warning")
    with Client(daemon.requests) as client:
        for number, level in enumerate(("info", "debug", "debug"), 1):
            client.put(f"quiet-{number}", b"")
            daemon.signal(signal.SIGUSR1)
            wait_until(lambda n=number: len(levels(daemon)) == n)  # type: ignore[misc]
            assert levels(daemon)[-1] == level
        client.put("seen", b"canary")
        wait_until(lambda: "answered put seen" in daemon.stderr)
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: levels(daemon)[-1] == "warning")
        client.put("unseen", b"")
        assert "unseen" not in daemon.stderr
        assert "quiet-1" not in daemon.stderr
        assert "canary" not in daemon.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_facade_passes_its_level_on_to_its_workers(
    shared_service: Service, start_facade: Callable[..., Facade], workers: int
) -> None:
    facade = start_facade(shared_service, workers=workers, log_level="error", log_format="json")

    def debugging() -> set[int]:
        """The workers that write debug lines."""
        subprocess.run(["curl", "-s", f"{facade.url}/livez"], check=True, capture_output=True)
        return {line["worker"] for line in entries(facade.stderr) if line["level"] == "debug"}

    for number in range(1, 4):
        facade.signal(signal.SIGUSR1)
        wait_until(lambda n=number: len(levels(facade)) == n)  # type: ignore[misc]
    assert levels(facade) == ["warning", "info", "debug"]
    wait_until(lambda: debugging() == set(range(workers)), what="all workers say more")


def test_serve_passes_the_signals_on_to_both_parts(start_serve: Callable[..., Serve]) -> None:
    serve = start_serve(workers=2)
    serve.signal(signal.SIGUSR1)
    wait_until(lambda: levels(serve) == ["debug", "debug"])
    assert "kvstore daemon: the log level is now debug" in serve.stderr
    assert "kvstore http: the log level is now debug" in serve.stderr
    serve.signal(signal.SIGUSR2)
    wait_until(lambda: levels(serve) == ["debug", "debug", "info", "info"])


def test_a_part_that_is_started_again_gets_the_signals_once_it_is_ready(
    start_serve: Callable[..., Serve],
) -> None:
    serve = start_serve(log_format="json", log_level="error")

    def gone_to(part: str) -> list[str]:
        return re.findall(rf"kvstore {part}: the log level is now (\w+)", serve.stderr)

    os.kill(entry_with(serve.stderr, "kvstore daemon: ready")["pid"], signal.SIGKILL)
    wait_until(lambda: "starting it again" in serve.stderr)
    steps = ["warning", "info", "debug"]
    for number in range(1, 4):
        serve.signal(signal.SIGUSR1)
        # one at a time: of two that are pending the system delivers one
        for part in ("http", "daemon"):
            wait_until(lambda n=number, of=part: gone_to(of) == steps[:n])  # type: ignore[misc]


def test_a_slow_commit_is_said_once_in_a_while_with_the_ids_of_its_requests(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon(slow_commit="1ms", log_format="json")
    value = bytes(1024 * 1024)
    with Client(daemon.requests, timeout=PATIENCE_SECONDS) as client:
        for _ in range(3):
            client.batch([commands.put(f"k{number}", value) for number in range(15)])
    said = entry_with(daemon.stderr, "a commit took")
    assert said["level"] == "warning"
    assert said["seconds"] >= 0.001
    assert said["count"] == 1


# ── one line ─────────────────────────────────────────────────────────────────────────────────────


def record_of(message: str, error: Exception | None = None, **extra: Any) -> logging.LogRecord:
    record = logging.makeLogRecord({"msg": "%s", "args": (message,), "levelname": "ERROR", **extra})
    if error is not None:
        record.exc_info = (type(error), error, None)
    return record


ANYTHING = st.text(st.characters(codec=None), max_size=50)


@given(message=ANYTHING, error=ANYTHING, extra=st.integers() | ANYTHING)
def test_a_json_line_is_one_line_that_says_it_all(message: str, error: str, extra: Any) -> None:
    line = JsonFormatter("daemon").format(record_of(message, ValueError(error), extra=extra))
    assert line.isprintable() or not any(end in line for end in "\n\r")
    entry = json.loads(line)
    assert entry["message"] == message
    assert entry["extra"] == extra
    assert entry["exception"] == f"ValueError: {error}" if error else "ValueError"


@given(message=ANYTHING)
def test_a_text_line_is_one_line_without_control_characters(message: str) -> None:
    line = TextFormatter().format(record_of(message))
    assert TEXT_LINE.match(line)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)


# ── a reader that stops ──────────────────────────────────────────────────────────────────────────


@settings(max_examples=15)
@given(size=st.integers(30, 10_000))  # a time, a level and a name are 30
def test_nothing_waits_for_a_pipe_that_nobody_reads(size: int) -> None:
    reading, writing = os.pipe()
    stderr = Stderr(writing)
    line = b"x" * size + b"\n"
    count = (BACKLOG_BYTES + 200_000) // len(line)
    for _ in range(count):
        stderr.write(line)
    assert stderr.take_lost() == 0, "it is said when somebody reads again"
    got = b""
    while len(got) < BACKLOG_BYTES - size:
        got += os.read(reading, 1 << 20)
    stderr.flush(30)
    os.set_blocking(reading, False)
    while True:
        try:
            got += os.read(reading, 1 << 20)
        except BlockingIOError:
            break
    lines = got.splitlines(keepends=True)
    assert set(lines) == {line}, "lines stay whole"
    assert len(lines) + stderr.take_lost() == count
    os.close(reading)
    stderr.write(line)
    os.close(writing)


def read_until_quiet(reading: int) -> bytes:
    """What a pipe holds, and what still comes while somebody reads."""
    got = b""
    while select.select([reading], [], [], 2)[0]:
        piece = os.read(reading, 1 << 20)
        if not piece:
            break
        got += piece
    return got


@pytest.mark.parametrize("command", ["daemon", "http", "serve"])
def test_a_service_whose_log_nobody_reads_goes_on_and_says_so_later(tmp_path: Path, command: str) -> None:
    url, requests = f"127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"
    options = {"requests": requests, "changes": f"tcp://127.0.0.1:{free_port()}", "log_level": "debug"}
    options |= {} if command == "http" else {"data": tmp_path / "data"}
    options |= {} if command == "daemon" else {"http": url, "workers": 1}
    reading, writing = os.pipe()
    line = kvstore_command(command, *flags(options))
    with (
        subprocess.Popen(line, stderr=writing, env=clean_environment(tmp_path)) as process,
        ExitStack() as ending,
    ):
        os.close(writing)
        ending.callback(process.kill)
        said = b""
        while f"kvstore {command}: ready".encode() not in said:
            said += os.read(reading, 65536)

        def ask(count: int, size: int = 500) -> None:
            """Requests whose debug lines have ``size`` bytes and more; a key has 511 at most."""
            if command == "daemon":
                with Client(requests, timeout=PATIENCE_SECONDS) as client:
                    for number in range(count):
                        with pytest.raises(KvError, match="no such key"):
                            client.get(f"{number}-{'k' * 500}")
            else:
                with closing(HTTPConnection(url, timeout=PATIENCE_SECONDS)) as connection:
                    for number in range(count):
                        connection.request(
                            "GET", f"/livez?{number}{'k' * size}", headers={"User-Agent": "u" * size}
                        )
                        assert connection.getresponse().read()

        ask(2400) if command == "daemon" else ask(800, 2000)
        said += read_until_quiet(reading)
        ask(1)
        said += read_until_quiet(reading)
        lines = entries(said[: said.rindex(b"\n") + 1].decode())
        assert any("lines of the log were left out here" in line["message"] for line in lines)
        os.close(reading)
        ask(100)
        process.terminate()
        assert process.wait(30) == 0


def test_after_a_fork_the_child_writes_its_own_lines_only(tmp_path: Path) -> None:
    program = (
        "import os\nfrom kvstore_cli.serve.logging_setup import Stderr\n"
        "r, w = os.pipe()\ns = Stderr(w)\n"
        "for n in range(5000): s.write(b'parent %d\\n' % n + b'x' * 100 + b'\\n')\n"
        "pid = os.fork()\n"
        "if not pid:\n    s.write(b'child\\n'); s.flush(30); os._exit(0)\n"
        "got = b''\n"
        "while b'child' not in got or b'parent 4999' not in got: got += os.read(r, 65536)\n"
        "os.waitpid(pid, 0)\n"
        "assert got.count(b'parent') == 5000, got.count(b'parent')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr.decode()
