"""What a service manager hears from the servers, over a real datagram socket."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kvstore_client import Client
from kvstore_core.process.sd_notify import NoticeSocket, Notifier
from support.manager import Manager, notifier_on
from support.servers import (
    Daemon,
    Facade,
    Serve,
    children,
    clean_environment,
    is_stopped,
    kvstore_command,
    wait_until,
)
from support.session import call

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    at_path, abstract = str(tmp_path / "notify"), f"@kvstore-test-{secrets.token_hex(8)}"
    with closing(Manager(at_path if request.param == "path" else abstract)) as manager:
        yield manager


@pytest.fixture
def one_manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(Manager(str(tmp_path / "notify"))) as manager:
        yield manager


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *descendants(child))]


def environment_of(pid: int) -> set[str]:
    """The names of the variables that a process was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {pair.partition(b"=")[0].decode() for pair in pairs}


def assert_whole_life(manager: Manager, pid: int) -> None:
    """READY first and once, then beats, then STOPPING last and once; all from the process itself."""
    said = manager.listen()
    assert said[0].startswith("READY=1\nSTATUS=")
    assert said[-1] == "STOPPING=1\nSTATUS=stopping"
    assert set(said[1:-1]) == {"WATCHDOG=1"}
    assert {sender for sender, _ in manager.heard} == {pid}


# ── a whole life ─────────────────────────────────────────────────────────────────────────────────


def test_the_daemon_is_ready_beats_and_stops(start_daemon: Callable[..., Daemon], manager: Manager) -> None:
    daemon = start_daemon(environment=manager.environment)
    status = manager.wait_for("READY=1")
    assert daemon.requests in status
    assert str(daemon.data) in status
    with Client(daemon.requests) as client:
        client.put("key", b"value")
    manager.wait_for("WATCHDOG=1", times=3)
    daemon.stop()
    assert_whole_life(manager, daemon.pid)


@pytest.mark.parametrize(("manager", "workers"), [("path", 1), ("abstract", 2)], indirect=["manager"])
def test_the_facade_is_ready_beats_and_stops(
    shared_daemon: Daemon, start_facade: Callable[..., Facade], manager: Manager, workers: int
) -> None:
    facade = start_facade(shared_daemon, workers=workers, environment=manager.environment)
    assert facade.url in manager.wait_for("READY=1")
    manager.wait_for("WATCHDOG=1", times=3)
    facade.stop()
    assert_whole_life(manager, facade.pid)


def test_the_facade_beats_while_the_daemon_is_away(
    daemon: Daemon, start_facade: Callable[..., Facade], one_manager: Manager
) -> None:
    facade = start_facade(daemon, environment=one_manager.environment, daemon_timeout="300ms")
    daemon.stop()
    assert call(facade.url, "GET", "/readyz").status == 503
    one_manager.wait_for("WATCHDOG=1", times=one_manager.count("WATCHDOG=1") + 3)


def test_serve_is_ready_when_both_parts_are_and_again_when_one_came_back(
    start_serve: Callable[..., Serve], one_manager: Manager
) -> None:
    serve = start_serve(workers=2, environment=one_manager.environment)
    ready = one_manager.wait_for("READY=1")
    assert urlsplit(serve.url).netloc in ready
    assert serve.requests in ready
    os.kill(children(serve.pid)[0], signal.SIGKILL)
    assert "the daemon was ended by SIGKILL" in one_manager.wait_for("STATUS=")
    one_manager.wait_for("READY=1", times=2)
    assert call(serve.url, "GET", "/readyz").status == 200
    one_manager.wait_for("WATCHDOG=1", times=3)
    serve.stop()
    assert one_manager.listen()[-1] == "STOPPING=1\nSTATUS=stopping"
    assert {sender for sender, _ in one_manager.heard} == {serve.pid}


@pytest.mark.parametrize("workers", [1, 2])
def test_ready_means_that_the_address_answers(
    shared_daemon: Daemon, start_facade: Callable[..., Facade], one_manager: Manager, workers: int
) -> None:
    facade = start_facade(shared_daemon, workers=workers, environment=one_manager.environment)
    # READY may come before `start` has seen the line on stderr, never after
    one_manager.wait_for("READY=1")
    assert call(facade.url, "GET", "/readyz").status == 200
    facade.stop()
    seen = one_manager.count("READY=1")
    facade.start()
    one_manager.wait_for("READY=1", times=seen + 1)
    assert call(facade.url, "GET", "/readyz").status == 200


def test_a_daemon_that_cannot_start_is_never_ready(
    shared_daemon: Daemon, one_manager: Manager, tmp_path: Path
) -> None:
    done = subprocess.run(
        kvstore_command("daemon", "--data", str(shared_daemon.data)),
        env=clean_environment(tmp_path, **one_manager.environment),
        capture_output=True,
    )
    assert done.returncode == 1
    assert b"is in use by" in done.stderr
    assert one_manager.listen() == []


# ── the watchdog ─────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_hangs_silences_the_facade_and_is_replaced(
    shared_daemon: Daemon, start_facade: Callable[..., Facade], one_manager: Manager
) -> None:
    facade = start_facade(shared_daemon, workers=2, environment=one_manager.environment)
    one_manager.wait_for("WATCHDOG=1")
    stuck, steady = children(facade.pid)
    os.kill(stuck, signal.SIGSTOP)
    wait_until(lambda: f"(pid {stuck}) hangs; ending it" in facade.stderr, timeout=120)
    before = one_manager.count("WATCHDOG=1")
    # the beats of the five seconds in which it was only late, and not those of the next fifteen
    assert before < 15
    wait_until(lambda: f"(pid {stuck}) was ended by SIG" in facade.stderr, timeout=120)
    one_manager.wait_for("WATCHDOG=1", times=before + 3)
    assert steady in children(facade.pid)
    assert stuck not in children(facade.pid)
    assert one_manager.count("READY=1") == 1
    assert {call(facade.url, "GET", "/readyz").status for _ in range(20)} == {200}


def test_a_facade_that_was_held_up_with_its_workers_takes_none_for_stuck(
    shared_daemon: Daemon, start_facade: Callable[..., Facade], one_manager: Manager
) -> None:
    facade = start_facade(shared_daemon, workers=2, environment=one_manager.environment)
    one_manager.wait_for("WATCHDOG=1")
    workers = children(facade.pid)
    for pid in (facade.pid, *workers):
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(is_stopped(pid) for pid in (facade.pid, *workers)))
    beats = one_manager.count("WATCHDOG=1")
    for pid in (facade.pid, *workers):
        os.kill(pid, signal.SIGCONT)
    one_manager.wait_for("WATCHDOG=1", times=beats + 3)
    assert children(facade.pid) == workers


def test_serve_names_ends_and_replaces_parts_that_hang(
    start_serve: Callable[..., Serve], one_manager: Manager
) -> None:
    serve = start_serve(workers=1, environment=one_manager.environment)
    one_manager.wait_for("WATCHDOG=1")
    hung = children(serve.pid)
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    for part, pid in zip(("the daemon", "the HTTP facade"), hung, strict=True):
        one_manager.wait_for(f"STATUS={part} (pid {pid}) has not said for 5 s that it works")
        one_manager.wait_for(f"STATUS={part} (pid {pid}) hangs; ending it")
        said_so = f"{part} (pid {pid}) hangs; ending it"
        wait_until(lambda line=said_so: line in serve.stderr, what=said_so)  # type: ignore[misc]
    one_manager.wait_for("READY=1", times=2)
    said = one_manager.listen()
    late = next(place for place, message in enumerate(said) if "has not said" in message)
    ended = max(place for place, message in enumerate(said) if "was ended by SIG" in message)
    # from then on it has nobody who hangs, however long they take to start
    assert "WATCHDOG=1" not in said[late:ended]
    assert call(serve.url, "GET", "/readyz").status == 200
    assert not set(hung) & set(children(serve.pid))
    one_manager.wait_for("WATCHDOG=1", times=one_manager.count("WATCHDOG=1") + 2)


def test_serve_leaves_a_part_alone_that_was_only_late(
    start_serve: Callable[..., Serve], one_manager: Manager
) -> None:
    serve = start_serve(workers=1, environment=one_manager.environment)
    parts = children(serve.pid)
    os.kill(parts[0], signal.SIGSTOP)
    one_manager.wait_for("STATUS=the daemon")
    os.kill(parts[0], signal.SIGCONT)
    one_manager.wait_for("READY=1", times=2)
    wait_until(lambda: f"the daemon (pid {parts[0]}) works again" in serve.stderr)
    assert children(serve.pid) == parts


def test_what_hung_says_where_when_the_watchdog_ends_it(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon()
    daemon._expected_to_run = False
    daemon.signal(signal.SIGABRT)
    assert daemon.process is not None
    assert daemon.process.wait(60) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in daemon.stderr
    assert re.search(r'File ".*/kvstore_daemon/main.py", line \d+ in _serve', daemon.stderr)
    assert re.search(r'File ".*/\w+_store/(?:\w+/)?\w+.py", line \d+ in run', daemon.stderr)


# ── the environment ──────────────────────────────────────────────────────────────────────────────


def test_no_child_inherits_the_managers_variables(
    start_serve: Callable[..., Serve], one_manager: Manager
) -> None:
    serve = start_serve(workers=2, environment=one_manager.environment)
    assert {"NOTIFY_SOCKET", "WATCHDOG_USEC"} <= environment_of(serve.pid)
    family = descendants(serve.pid)
    assert len(family) == 4  # daemon, facade, two workers
    for pid in family:
        assert not environment_of(pid) & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}


def test_a_manager_that_is_not_there_is_no_failure(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    nobody = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "30000000"}
    daemon = start_daemon(environment=nobody)
    facade = start_facade(daemon, environment=nobody)
    assert call(facade.url, "GET", "/readyz").status == 200
    facade.stop()
    daemon.stop()


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/" + "x" * 200, "@"])
def test_an_address_that_cannot_be_used_is_no_failure(address: str) -> None:
    notifier = Notifier(address, is_watched=True)
    notifier.ready({"url": "http://127.0.0.1:5000"})
    notifier.beat()
    notifier.stopping()


def test_a_status_stays_one_line(one_manager: Manager) -> None:
    Notifier(one_manager.address).status("two\nREADY=1 lines")
    assert one_manager.listen() == ["STATUS=two READY=1 lines"]


@pytest.mark.parametrize(
    ("environment", "beats"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 1),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 1),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
    ],
)
def test_beats_are_for_the_process_that_is_watched(
    one_manager: Manager, environment: dict[str, str], beats: int
) -> None:
    environ: dict[str, Any] = {"NOTIFY_SOCKET": one_manager.address, "HOME": "/", **environment}
    notifier = Notifier.from_environment(environ)
    assert environ == {"HOME": "/"}
    notifier.beat()
    assert len(one_manager.listen()) == beats


@pytest.mark.parametrize("said", [["beat"], ["stopping"], ["status", "well"]], ids="-".join)
@pytest.mark.parametrize("listener", ["manager", "parent"])
def test_only_ready_waits_for_one_who_is_busy(one_manager: Manager, said: list[str], listener: str) -> None:
    with closing(NoticeSocket()) as notices, notifier_on(notices) as child:
        notifier = child if listener == "parent" else Notifier(one_manager.address, is_watched=True)
        for _ in range(10_000):  # more than any queue of datagrams holds
            getattr(notifier, said[0])(*said[1:])
        heard = list(notices.read(())) if listener == "parent" else one_manager.listen()
        assert 0 < len(heard) < 10_000
