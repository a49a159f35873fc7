"""``kvstore serve``: whatever is killed, the service comes back or nothing of it stays."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.servers import Serve, clean_environment, free_port, wait_until
from support.session import call

pytestmark = pytest.mark.slow

Kvstore = Any


def processes_of(folder: Path) -> dict[int, list[str]]:
    """The command lines of the running processes that were started in ``folder``, by process id."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            started_in = (entry / "cwd").readlink()
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # gone meanwhile
            continue
        if started_in == folder and state != "Z":
            found[int(entry.name)] = command
    return found


def parent_of(pid: int) -> int:
    """The process id of a process' parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(serve: Serve, name: str) -> list[int]:
    """The process, and the processes made from it, that run the daemon or the facade."""
    return sorted(
        pid
        for pid, command in processes_of(serve.folder).items()
        if "kvstore_cli.serve.child" in command and name in command
    )


def leader(serve: Serve, name: str) -> int:
    """The child of the parent that runs the daemon or the facade."""
    return next(pid for pid in children(serve, name) if parent_of(pid) == serve.pid)


def works(offline: Kvstore, url: str, value: str) -> None:
    """Whether a value can be stored and read."""
    wait_until(
        lambda: offline("put", "k", value, "--url", url).returncode == 0, what="the service takes a write"
    )
    assert offline.out("get", "k", "--raw", "--url", url) == value.encode()


def ended(serve: Serve, seconds: int = 20) -> int:
    """Its exit status, once it and all that it has started are gone."""
    assert serve.process is not None
    status = serve.process.wait(seconds)
    serve.kill()
    wait_until(lambda: not processes_of(serve.folder), what="all processes are gone", every=0.1)
    return status


@pytest.fixture(autouse=True)
def _no_orphans(tmp_path: Path) -> Iterator[None]:
    yield
    left = {pid: command for folder in tmp_path.iterdir() for pid, command in processes_of(folder).items()}
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_everything_cleanly(
    start_serve: Callable[..., Serve], offline: Kvstore, number: signal.Signals
) -> None:
    serve = start_serve(workers=2)
    works(offline, serve.url, "v")
    assert f"browser  {serve.url}/\n" in serve.stderr
    assert f"curl {serve.url}/v1/kv/greeting" in serve.stderr
    shown = r"^  shell +(export .*\n.*put greeting hello\n.*get greeting)$"
    shell = re.search(shown, serve.stderr, re.MULTILINE)
    assert shell is not None
    tried = subprocess.run(
        ["sh", "-ec", shell[1]],
        env=clean_environment(serve.folder),
        capture_output=True,
        text=True,
        check=True,
    )
    assert tried.stdout.splitlines()[-1] == "hello"
    assert str(serve.data) in serve.stderr
    serve.signal(number)
    assert serve.process is not None
    assert serve.process.wait(20) == 0
    assert not processes_of(serve.folder)
    assert "Traceback" not in serve.stderr
    serve.kill()


def test_under_nohup_it_outlives_the_terminal(tmp_path: Path, offline: Kvstore) -> None:
    class Unhangable(Serve):
        wrapper = ("nohup",)

    ends = dict.fromkeys(("requests", "changes"), "tcp://127.0.0.1:0")
    serve = Unhangable(tmp_path, {"data": tmp_path / "data", "http": "127.0.0.1:0", "workers": 1, **ends})
    serve.start()
    try:
        serve.signal(signal.SIGHUP)
        serve.signal(signal.SIGUSR1)  # comes after it, and is told when it was heeded
        wait_until(lambda: "the log level is now" in serve.stderr, what="it has seen both")
        works(offline, serve.url, "v")
    finally:
        serve.stop()


def test_the_facade_is_stopped_before_the_daemon(start_serve: Callable[..., Serve]) -> None:
    serve = start_serve(workers=1)
    facade, daemon = leader(serve, "http"), leader(serve, "daemon")
    os.kill(facade, signal.SIGSTOP)
    serve.signal(signal.SIGTERM)
    wait_until(lambda: "kvstore serve: stopping" in serve.stderr, what="it stops")
    assert daemon in processes_of(serve.folder)
    os.kill(facade, signal.SIGCONT)
    assert ended(serve) == 0


def test_a_second_signal_does_not_wait(start_serve: Callable[..., Serve]) -> None:
    serve = start_serve(workers=1)
    os.kill(leader(serve, "http"), signal.SIGSTOP)
    serve.signal(signal.SIGINT)
    wait_until(lambda: "kvstore serve: stopping" in serve.stderr, what="it stops")
    serve.signal(signal.SIGINT)
    assert ended(serve) == 0
    assert "a second signal came" in serve.stderr


@pytest.mark.parametrize(("name", "label"), [("daemon", "the daemon"), ("http", "the HTTP facade")])
def test_a_killed_child_is_started_again_on_the_same_addresses(
    start_serve: Callable[..., Serve], offline: Kvstore, name: str, label: str
) -> None:
    serve = start_serve(
        workers=2, http="127.0.0.1:0", requests="tcp://127.0.0.1:0", changes="tcp://127.0.0.1:0"
    )
    works(offline, serve.url, "before")
    killed = children(serve, name)
    os.kill(leader(serve, name), signal.SIGKILL)
    wait_until(lambda: f"{label} was ended by SIGKILL; starting it again" in serve.stderr, what="it is said")
    works(offline, serve.url, "after")
    assert not set(killed) & set(children(serve, name))


def test_a_child_that_cannot_be_started_for_a_while_takes_nothing_else_with_it(
    start_serve: Callable[..., Serve], offline: Kvstore
) -> None:
    serve = start_serve(workers=1)
    facade = leader(serve, "http")
    soft, hard = resource.prlimit(serve.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(serve.pid, resource.RLIMIT_NOFILE, (3, hard))
    os.kill(leader(serve, "daemon"), signal.SIGKILL)
    news = "the daemon could not be started (Too many open files); starting it again in"
    wait_until(lambda: serve.stderr.count(news) >= 2, what="it is tried more than once")
    resource.prlimit(serve.pid, resource.RLIMIT_NOFILE, (soft, hard))
    works(offline, serve.url, "v")
    assert leader(serve, "http") == facade
    assert "Traceback" not in serve.stderr


def test_a_data_file_that_cannot_be_read_is_named_with_advice_and_not_tried_for_ever(
    start_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    serve = start_serve(workers=1, data=tmp_path / "data")
    for number in range(4):
        assert call(serve.url, "PUT", f"/v1/kv/{number}", bytes(300_000)).status == 201
    os.truncate(tmp_path / "data" / "lmdb" / "data.mdb", 8192)
    address = urlsplit(serve.url)
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(b"GET /v1/kv/0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_until(lambda: "the daemon was ended by SIGBUS" in serve.stderr, what="the signal is named")
    assert "kvstore check" in serve.stderr
    assert "Fatal Python error: Bus error" in serve.stderr
    assert "/lmdb_store/" in serve.stderr, "it says where in the engine that was"
    assert ended(serve, 60) == 1
    assert "restore a backup" in serve.stderr
    assert "5 times in a row; stopping" in serve.stderr


def test_a_killed_worker_does_not_end_the_service(
    start_serve: Callable[..., Serve], offline: Kvstore
) -> None:
    serve = start_serve(workers=2)
    main = leader(serve, "http")
    workers = [pid for pid in children(serve, "http") if pid != main]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    works(offline, serve.url, "v")


@pytest.mark.parametrize("also", [(), ("http",), ("daemon",), ("http", "daemon")])
def test_a_killed_parent_leaves_no_orphan(start_serve: Callable[..., Serve], also: tuple[str, ...]) -> None:
    serve = start_serve(workers=2)
    victims = [serve.pid, *(leader(serve, name) for name in also)]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    assert ended(serve) == -signal.SIGKILL


def test_what_is_killed_can_be_started_again_at_once_and_has_what_it_acknowledged(
    start_serve: Callable[..., Serve], offline: Kvstore
) -> None:
    serve = start_serve(workers=2)
    for round_ in range(3):
        works(offline, serve.url, f"{round_}")
        # what was made from it is still there, with its lock and its addresses
        serve.kill()
        serve.start()
        assert offline.out("get", "k", "--raw", "--url", serve.url) == b"%d" % round_


def test_a_port_or_a_store_that_is_in_use_ends_it_with_the_reason(
    start_serve: Callable[..., Serve], offline: Kvstore
) -> None:
    serve = start_serve(workers=1)
    address, free = serve.url.removeprefix("http://"), f"127.0.0.1:{free_port()}"
    for http, data, taken, label in (
        (address, str(offline.folder / "d"), address, "the HTTP facade"),
        (free, str(serve.data), str(serve.data), "the daemon"),
    ):
        ends = ("--requests", "tcp://127.0.0.1:0", "--changes", "tcp://127.0.0.1:0")
        done = offline("serve", *ends, "--http", http, "--data", data)
        said = done.stderr.decode()
        assert (done.returncode, taken in said, "Traceback" in said) == (1, True, False), said
        assert f"{label} did not start, the reason is above" in said


def test_a_restarted_child_keeps_its_settings_whatever_happened_to_the_file(
    start_serve: Callable[..., Serve], offline: Kvstore, tmp_path: Path
) -> None:
    file = tmp_path / "kvstore.toml"
    file.write_text('max-value-bytes = "2k"\n')
    serve = start_serve(workers=1, config=file)
    file.write_text("no toml")
    os.kill(leader(serve, "daemon"), signal.SIGKILL)
    works(offline, serve.url, "v")
    status = offline.lines("status", "--json", "--url", serve.url)[0]
    assert status["limits"]["value_bytes"] == 2048
