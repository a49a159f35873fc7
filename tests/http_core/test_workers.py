"""The facade as processes: readiness, crashes, orphans, stopping, and the daemon's absence."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kvstore_core.errors import KvError
from kvstore_http.server.listen import bind
from support.servers import Daemon, Facade, children, clean_environment, flags, kvstore_command, wait_until
from support.session import Answer, assert_problem, call, connect
from support.streams import open_stream


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def get(url: str, target: str) -> Answer:
    return call(url, "GET", target)


def put(url: str, key: str, value: bytes = b"v") -> Answer:
    return call(url, "PUT", f"/v1/kv/{key}", value)


def test_every_worker_accepts_connections(daemon: Daemon, start_facade: Callable[..., Facade]) -> None:
    facade = start_facade(daemon, workers=2)
    workers = children(facade.pid)
    assert len(workers) == 2
    kept = []

    def all_have_one() -> bool:
        kept.append(connect(facade.url))
        return all(has_accepted(pid, facade.url) for pid in workers)

    wait_until(all_have_one, what="both workers have a connection")
    for each in kept:
        each.close()


def has_accepted(pid: int, url: str) -> bool:
    """Whether the process has a connection on the service's port."""
    mine = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    return any(f"socket:[{inode}]" in mine for inode in connections(url))


def connections(url: str) -> list[str]:
    """The inodes of the service's ends of its connections; "0" while one is not yet accepted."""
    port = f":{urlsplit(url).port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [line[9] for line in lines if line[1].endswith(port) and line[3] == "01"]


def test_a_worker_that_is_killed_is_started_again_and_said(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, workers=2)
    victim, other = children(facade.pid)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(workers := children(facade.pid)) == 2 and victim not in workers)
    assert other in children(facade.pid)
    assert f"(pid {victim}) was ended by SIGKILL; starting another" in facade.stderr
    for number in range(30):  # whichever worker they meet, also the one that is still starting
        assert put(facade.url, f"k{number}").status == 201


def test_a_worker_that_keeps_dying_is_started_ever_more_slowly(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, workers=2)
    steady = children(facade.pid)[1]
    for _ in range(3):
        victim = wait_until(lambda: [pid for pid in children(facade.pid) if pid != steady])[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda pid=victim: f"(pid {pid}) was ended" in facade.stderr)  # type: ignore[misc]
    delays = [line.split()[-2] for line in facade.stderr.splitlines() if "starting another" in line]
    assert delays == ["0.2", "0.4", "0.8"]


def test_no_worker_outlives_a_parent_that_is_killed(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, workers=2)
    workers = children(facade.pid)
    facade.kill()
    wait_until(lambda: not any(map(is_there, workers)), what="the workers are gone")


def test_a_request_in_flight_is_answered_before_the_facade_stops(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, workers=2)
    put(facade.url, "k")
    answers: list[Answer] = []

    def wait_for_change() -> None:
        answers.append(get(facade.url, "/v1/kv/k?wait=60s"))

    waiting = [threading.Thread(target=wait_for_change) for _ in range(8)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: len(connections(facade.url)) >= len(waiting))
    facade.stop()
    for thread in waiting:
        thread.join()
    assert [answer.status for answer in answers] == [200] * len(waiting)
    assert all(answer.headers["connection"] == "close" for answer in answers)


def test_requests_that_arrive_with_the_signal_are_answered_before_the_facade_stops(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, workers=1)
    put(facade.url, "k")
    request = b"GET /v1/kv/k HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with contextlib.ExitStack() as stack:
        # more than the loop takes in one turn, so that some are unread when it hears of the signal
        connections = [stack.enter_context(connect(facade.url)) for _ in range(300)]
        for connection in connections:
            connection.sendall(request)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        os.kill(facade.pid, signal.SIGSTOP)
        for connection in connections:
            connection.sendall(request)
        os.kill(facade.pid, signal.SIGTERM)
        os.kill(facade.pid, signal.SIGCONT)
        for connection in connections:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        facade.stop()


def test_clients_that_stand_still_do_not_keep_the_facade_from_stopping(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, workers=2)
    half = connect(facade.url)
    half.sendall(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    idle = connect(facade.url)
    deaf = [open_stream(facade.url, "") for _ in range(4)]
    for number in range(60):
        assert put(facade.url, f"k{number}", b"x" * 200_000).status == 201
    facade.stop()
    for each in (half, idle, *deaf):
        each.close()


def test_ready_without_a_daemon_and_answering_503_at_once_until_it_comes(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    daemon.stop()
    facade = start_facade(daemon, daemon_timeout="300ms")
    assert get(facade.url, "/livez").status == 200
    for _ in range(50):  # only the first of them waits for the daemon
        assert_problem(get(facade.url, "/v1/kv/k"), "unavailable")
    problem = assert_problem(put(facade.url, "k"), "unavailable")
    assert "outcome" not in problem, "a write that was never sent is not in doubt"
    assert get(facade.url, "/v1/subscribe").status == 503
    daemon.start()
    wait_until(lambda: get(facade.url, "/v1/kv/k").status == 404)
    # a disk may take longer than the facade waits here
    wait_until(lambda: put(facade.url, "k").status in (200, 201))
    open_stream(facade.url, "").close()


def test_the_log_says_once_that_the_daemon_went_and_once_that_it_is_back(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    daemon.stop()
    facade = start_facade(daemon, daemon_timeout="300ms")
    for _ in range(5):
        assert get(facade.url, "/readyz").status == 503
    daemon.start()
    wait_until(lambda: get(facade.url, "/readyz").status == 200)
    went, back = [line for line in facade.stderr.splitlines() if "WARNING" in line]
    assert f"the daemon at {daemon.requests} cannot be reached" in went
    assert f"the daemon at {daemon.requests} answers again" in back
    for line in (went, back):
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING ", line)


def test_a_write_that_was_under_way_when_the_daemon_went_says_that_it_may_have_happened(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, daemon_timeout="300ms")
    wait_until(lambda: put(facade.url, "k").status in (200, 201))  # a disk may take longer than that
    daemon.signal(signal.SIGSTOP)
    answer = put(facade.url, "k")
    daemon.signal(signal.SIGCONT)
    assert assert_problem(answer, "unavailable")["outcome"] == "unknown"
    wait_until(lambda: put(facade.url, "k").status == 200)


@pytest.mark.parametrize("first_has", [1, 2])
@pytest.mark.parametrize("second_has", [1, 2])
def test_an_address_that_another_facade_has_ends_the_facade_with_one_line(
    daemon: Daemon, start_facade: Callable[..., Facade], tmp_path: Path, first_has: int, second_has: int
) -> None:
    taken = urlsplit(start_facade(daemon, workers=first_has).url).netloc
    options = {"http": taken, "workers": second_has, "requests": daemon.requests, "changes": daemon.changes}
    options["log_format"] = "text"
    done = subprocess.run(
        kvstore_command("http", *flags(options)),
        capture_output=True,
        env=clean_environment(tmp_path),
        timeout=60,
    )
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert line.startswith(f"kvstore http: cannot listen on {taken}: address in use")
    assert "--http" in line


@pytest.mark.parametrize("workers", [1, 2])
def test_a_facade_starts_again_at_once_where_connections_were_open(
    daemon: Daemon, start_facade: Callable[..., Facade], workers: int
) -> None:
    facade = start_facade(daemon, workers=workers)
    open_ones = [connect(facade.url) for _ in range(8)]
    facade.restart()
    assert get(facade.url, "/livez").status == 200
    for each in open_ones:
        each.close()


def test_of_facades_that_claim_an_address_at_once_one_gets_it() -> None:
    with closing(bind("127.0.0.1:0", 1)[0][0]) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def try_it() -> list[socket.socket]:
        barrier.wait()
        try:
            return [sock for [sock] in bind(address, 2)]
        except KvError:
            return []

    for _ in range(50):
        barrier = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            claims = [claim.result() for claim in [pool.submit(try_it) for _ in range(4)]]
        assert sum(1 for claim in claims if claim) == 1
        for sock in (sock for claim in claims for sock in claim):
            sock.close()


def test_port_0_gives_all_workers_one_free_port(daemon: Daemon, start_facade: Callable[..., Facade]) -> None:
    facade = start_facade(daemon, workers=2, http="127.0.0.1:0")
    assert urlsplit(facade.url).port
    assert {get(facade.url, "/livez").status for _ in range(20)} == {200}


def test_the_facade_listens_on_ipv6(daemon: Daemon, start_facade: Callable[..., Facade]) -> None:
    facade = start_facade(daemon, http="[::1]:0")
    assert facade.url.startswith("http://[::1]:")
    assert get(facade.url, "/livez").status == 200


# ── the parent of the workers ────────────────────────────────────────────────────────────────────

PARENT = """
import logging, os, resource, signal, sys, time
from kvstore_core.process.logging import LogLevel
from kvstore_core.process.sd_notify import Notifier
from kvstore_http.workers.parent import Workers

def ready(): print("ready", flush=True)

logging.getLogger().setLevel("ERROR")
level = LogLevel("http", "error")
"""
"""Begins a program that has workers of its own."""

HAS_NO_ROOM = """
if os.geteuid() == 0:
    os.setuid(61234)  # root has no limit
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
asked = os.pipe()

def serve(number, parent):
    parent.ready({})
    return os.read(asked[0], 1)[0]  # whoever is first; the other waits

def say(line):
    print(line, flush=True)
    if "could not be started" in line:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))

def ready():
    sys.meta_path.clear()  # where nothing can be started, no file may open either
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    os.write(asked[1], bytes([7]))

class SharedCounters:
    def __init__(self): self.starts = 0
    def note_end(self, number): pass
    def note_start(self, number, pid):
        self.starts += 1
        if self.starts == 3:
            os.kill(os.getpid(), signal.SIGTERM)

sys.exit(Workers(2, serve, say, Notifier(), ready, level.change, SharedCounters()).run())
"""

STARTS_SLOWLY = """
def serve(number, parent):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.kill(os.getppid(), signal.SIGUSR1)
    signal.sigwait({signal.SIGUSR1})  # passed on, and lost since nobody follows yet
    signal.signal(signal.SIGUSR1, lambda *_: level.follow())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    parent.ready({})
    while logging.getLogger().level != logging.WARNING:
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGTERM)
    while True:
        signal.pause()  # one that ended might be seen before the signal is, and started again

sys.exit(Workers(1, serve, print, Notifier(), ready, level.change).run())
"""


def run_parent(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PARENT + program], capture_output=True, text=True, timeout=60
    )


def test_a_worker_that_cannot_be_started_for_a_while_takes_nothing_else_with_it() -> None:
    done = run_parent(HAS_NO_ROOM)
    assert done.returncode == 0, done.stderr
    ended, refused = done.stdout.splitlines()
    assert re.fullmatch(r"worker \d \(pid \d+\) ended with status 7; starting another in 0.2 s", ended)
    assert re.fullmatch(
        r"worker \d could not be started \(Resource temporarily unavailable\); starting another in 0.4 s",
        refused,
    )


def test_a_worker_that_starts_while_the_log_level_changes_follows_once_it_is_ready() -> None:
    done = run_parent(STARTS_SLOWLY)
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr


IS_ENDED_BY_A_NAMELESS_SIGNAL = """
def serve(number, parent):
    parent.ready({})
    os.kill(os.getpid(), signal.SIGRTMIN + 5)

def say(line):
    print(line, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

sys.exit(Workers(1, serve, say, Notifier(), ready, level.change).run())
"""


def test_a_signal_without_a_name_that_ends_a_worker_does_not_end_its_parent() -> None:
    done = run_parent(IS_ENDED_BY_A_NAMELESS_SIGNAL)
    assert done.returncode == 0, done.stderr
    is_ready, ended = done.stdout.splitlines()
    assert is_ready == "ready"
    how = f"was ended by signal {signal.SIGRTMIN + 5}; starting another in 0.2 s"
    assert re.fullmatch(rf"worker 0 \(pid \d+\) {how}", ended)
