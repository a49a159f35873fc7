"""One child of ``kvstore serve``, with real processes in the place of daemon and facade."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kvstore_cli.serve.supervisor import Part, ServiceSupervisor
from kvstore_core.process.logging import LEVELS
from kvstore_core.process.sd_notify import Notice, NoticeSocket, Notifier
from support.manager import notifier_on
from support.servers import wait_until

SPEAKS = """
import os, signal, socket, subprocess, sys
parent = socket.socket(fileno=int(sys.argv[1]))
def say(line):
    print(line, file=sys.stderr, flush=True)
"""


class Scripted(Part):
    """A child that runs a few lines of Python."""

    script = ""

    def command(self, notices: int) -> list[str]:
        return [sys.executable, "-c", SPEAKS + self.script, str(notices)]


@contextmanager
def running(script: str) -> Iterator[Scripted]:
    child = Scripted("scripted", "the script", {}, ())
    child.script = script
    child.start()
    try:
        yield child
    finally:
        if child.is_running:
            child.clear_away()
        child.notices.close()


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What children wrote, as it would go to standard error."""
    lines: list[bytes] = []
    monkeypatch.setattr("kvstore_cli.serve.supervisor.write_through", lines.append)
    return lines


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def pid_of(child: Part) -> int:
    return int(child.who.rpartition(" ")[2].rstrip(")"))


# ── its end ──────────────────────────────────────────────────────────────────────────────────────


def test_a_child_that_has_ended_keeps_its_number_until_its_group_is_ended() -> None:
    with running("sys.exit(7)") as child:
        pid = pid_of(child)
        wait_until(lambda: child.has_ended, what="it has ended")
        child.signal(signal.SIGTERM)
        assert child.has_ended
        assert state_of(pid) == "Z"
        assert child.clear_away() == 7
        assert not Path(f"/proc/{pid}").exists()


def test_the_last_words_of_a_child_are_handed_on_though_another_holds_its_stderr_open(
    handed_on: list[bytes],
) -> None:
    # setsid: out of the group that is ended
    script = """
holder = subprocess.Popen(["setsid", "sleep", "600"])
parent.send(f"STATUS={holder.pid}".encode())
sys.stderr.write("whole\\nlast words")
"""
    with running(script) as child:
        try:
            wait_until(lambda: child.has_ended, what="it has ended")
        finally:
            [notice] = child.notices.read(())
            holder = int(notice.status or 0)
        wait_until(lambda: Path(f"/proc/{holder}/comm").read_text() == "sleep\n", what="setsid has run")
        child.clear_away()
        assert Path(f"/proc/{holder}").exists()
        os.kill(holder, signal.SIGKILL)
    assert b"".join(handed_on) == b"whole\nlast words\n"


# ── the log level ────────────────────────────────────────────────────────────────────────────────


def test_a_child_gets_the_level_that_was_asked_for_however_many_signals_came_at_once(
    handed_on: list[bytes],
) -> None:
    # it gets no signal while it is stopped: of those that wait then, the system makes one of each kind
    script = """
level = {signal.SIGUSR1, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, level)
parent.send(b"WATCHDOG=1")
os.kill(os.getpid(), signal.SIGSTOP)
while True:
    say(signal.sigwait(level).name)
    parent.send(b"WATCHDOG=1")
"""
    with running(script) as child:
        pid = pid_of(child)
        for _ in range(100):
            child.change_level(signal.SIGUSR1)
        assert len(child._level_signals) == len(LEVELS) - 1
        wait_until(lambda: state_of(pid) == "T", what="it is stopped")

        def taken() -> list[bytes]:
            if list(child.notices.read(())):
                child.liveness.beat()
                child.note_work()
            child.relay()
            return b"".join(handed_on).splitlines()

        assert taken() == []  # and it has the first, now that it is ready
        child.change_level(signal.SIGUSR2)
        for _ in range(100):
            child.change_level(signal.SIGUSR1)
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: len(taken()) >= 5, what="it has had them all")
        # back to what is configured, and then as talkative as can be
        assert taken() == [b"SIGUSR1", b"SIGUSR2", *[b"SIGUSR1"] * 3]


# ── what it says ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "said",
    [
        "READY=1",
        "READY=1\nX_KVSTORE_ADDRESSES=",
        "READY=1\nX_KVSTORE_ADDRESSES={",
        "READY=1\nX_KVSTORE_ADDRESSES=" + "[" * 60_000,
        'READY=1\nX_KVSTORE_ADDRESSES=["requests", "changes"]',
        'READY=1\nX_KVSTORE_ADDRESSES={"requests": "tcp://a"}',
        'READY=1\nX_KVSTORE_ADDRESSES={"requests": "tcp://a", "changes": 1}',
        "MAINPID=1",
        "",
        "\0=\n=",
    ],
)
def test_what_is_no_message_of_a_child_is_left_out(said: str) -> None:
    where = {"requests": "tcp://a", "changes": "tcp://b"}
    with closing(NoticeSocket()) as notices, notifier_on(notices) as child:
        child._send(said)
        child.ready(where)
        child._send(said)
        child.beat()
        assert list(notices.read(("requests", "changes"))) == [Notice(where=where), Notice()]


def test_no_facade_is_started_for_a_daemon_that_becomes_ready_while_all_stops() -> None:
    supervisor = ServiceSupervisor({}, {"tls_cert": None}, lambda _: None, Notifier())
    daemon, facade = supervisor.children
    with closing(supervisor.selector), closing(daemon.notices), closing(facade.notices):
        supervisor.ending_signals = 1
        with notifier_on(daemon.notices) as child:
            child.ready({"requests": "tcp://127.0.0.1:1", "changes": "tcp://127.0.0.1:2"})
        supervisor._listen(daemon)
        assert facade.start_at is None
        assert list(daemon.notices.read(())) == []
