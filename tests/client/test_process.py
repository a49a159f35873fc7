"""What servers need of the system: how their parent judges their silence, their logs, their signals."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys

import pytest

from kvstore_core.process.logging import LogLevel, RateLimitedLog, request_extra
from kvstore_core.process.supervision import KILL_TICKS, LATE_TICKS, START_TICKS, STUCK_TICKS, Liveness
from support.servers import wait_until


def ticks(liveness: Liveness, count: int) -> list[signal.Signals | None]:
    return [liveness.tick() for _ in range(count)]


def test_a_process_that_beats_is_never_late() -> None:
    liveness = Liveness()
    for _ in range(STUCK_TICKS):
        assert not liveness.beat()
        assert liveness.tick() is None
        assert not liveness.is_late


def test_a_silent_process_is_late_then_aborted_then_killed() -> None:
    liveness = Liveness()
    liveness.beat()
    assert ticks(liveness, LATE_TICKS) == [None] * LATE_TICKS
    assert not liveness.is_late
    liveness.tick()
    assert liveness.is_late
    assert liveness.has_become_late
    assert ticks(liveness, STUCK_TICKS - LATE_TICKS - 1)[-1] == signal.SIGABRT
    assert not liveness.has_become_late
    assert ticks(liveness, KILL_TICKS + 2) == [None, signal.SIGKILL, signal.SIGKILL, signal.SIGKILL]


def test_a_late_process_that_beats_again_is_as_good_as_before() -> None:
    liveness = Liveness()
    liveness.beat()
    ticks(liveness, LATE_TICKS + 1)
    assert liveness.beat()
    assert not liveness.is_late
    assert set(ticks(liveness, STUCK_TICKS - 1)) == {None}


@pytest.mark.parametrize("was_ready", [False, True])
def test_a_process_that_begins_has_longer_until_it_is_ready(was_ready: bool) -> None:
    liveness = Liveness()
    if was_ready:
        liveness.beat()
    liveness.started()
    assert not liveness.is_ready
    said = ticks(liveness, START_TICKS)
    assert set(said[:-1]) == {None}
    assert said[-1] == signal.SIGABRT
    assert not liveness.is_late


def test_of_many_lines_one_in_a_while_is_logged_and_counts_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limited = RateLimitedLog(logging.getLogger("kvstore.test"), 0.2)
    limited.error("%(what)s", {"what": "100%"}, extra={"what": "it"})
    left_out = 0
    while len(caplog.records) == 1:
        limited.warning("%s is full", "100%")
        left_out += 1
    first, second = caplog.records
    assert (first.getMessage(), first.levelno, vars(first)["what"]) == ("100%", logging.ERROR, "it")
    assert left_out > 1
    assert second.getMessage() == f"100% is full ({left_out - 1} more since the last such line)"
    assert second.levelno == logging.WARNING
    wait_until(lambda: limited.warning("again") or len(caplog.records) > 2)  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("request_id", "extra"),
    [
        (None, None),
        ("a", {"request_id": "a"}),
        ([None, None], None),
        (["a", None, "a"], {"request_id": "a"}),
        (["b", None, "a"], {"request_id": ["b", "a"]}),
    ],
)
def test_a_line_names_each_request_once(request_id: str | list[str | None] | None, extra: object) -> None:
    assert request_extra(request_id) == extra


@pytest.mark.parametrize("configured", ["debug", "info", "warning", "error"])
def test_the_level_goes_down_step_by_step_and_back_at_once(
    configured: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    before = root.level

    def changed(number: signal.Signals) -> str:
        caplog.clear()
        level.change(number)
        said, _, name = caplog.messages[0].rpartition(" ")
        assert said == "kvstore test: the log level is now"
        assert root.level == getattr(logging, name.upper())
        return name

    try:
        level = LogLevel("test", configured)
        assert changed(signal.SIGUSR2) == configured
        steps = [changed(signal.SIGUSR1) for _ in range(4)]
        order = ["error", "warning", "info", "debug"]
        expected = order[order.index(configured) + 1 :] or ["debug"]
        assert steps == (expected + ["debug"] * 4)[:4]
        assert changed(signal.SIGUSR2) == configured
    finally:
        root.setLevel(before)


PROGRAM = """
import logging, os, signal
from kvstore_core.process.logging import LogLevel

level = LogLevel("test", "error")
go, wake = os.pipe()
child = os.fork()
if child == 0:
    os.read(go, 1)
    level.follow()
    os._exit(logging.getLogger().level)
level.change(signal.SIGUSR2)
for _ in range(3):
    level.change(signal.SIGUSR1)
os.write(wake, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_follows_however_many_signals_it_missed() -> None:
    # in a process without threads, which alone may fork
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) == logging.DEBUG


BEGIN = """
import os, select, signal, sys, time
from kvstore_core.process.signals import Signals

ENDING, OTHERS = (signal.SIGTERM, signal.SIGINT), (signal.SIGUSR1, signal.SIGCHLD)
came = []
"""


def run_with_signals(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_signals_wake_a_loop_and_arrive_in_order() -> None:
    said = run_with_signals("""
with Signals(ENDING, OTHERS, came.append) as signals:
    signals.drain()
    assert not came and not select.select([signals], [], [], 0)[0]
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.raise_signal(number)
    assert select.select([signals], [], [], 60)[0]
    signals.drain()
    assert not select.select([signals], [], [], 0)[0]
print(*(number.name for number in came))
""")
    assert said == "SIGUSR1 SIGINT SIGTERM SIGUSR1\n"


def test_a_signal_that_comes_again_does_not_take_the_place_of_the_exit_status() -> None:
    program = """
with Signals(ENDING, OTHERS, came.append) as signals:
    print("ready", flush=True)
    select.select([signals], [], [])
    signals.drain()
sys.exit(7)
"""
    with subprocess.Popen([sys.executable, "-c", BEGIN + program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"

        def has_ended() -> bool:
            os.kill(process.pid, signal.SIGTERM)  # it is unreaped, so the number is its own
            return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

        wait_until(has_ended, every=0)
        assert process.wait() == 7


def test_a_forked_child_is_ended_by_what_ends_its_parent_and_by_nothing_else() -> None:
    said = run_with_signals("""
with Signals(ENDING, OTHERS, came.append) as signals:
    child = signals.fork()
    if not child:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    signals.drain()
    print(*(number.name for number in came))
""")
    assert said == f"{-signal.SIGTERM}\nSIGCHLD\n"


def test_a_signal_that_comes_while_a_child_is_forked_is_the_child_s() -> None:
    # sent before the child has its first turn: the parent's handler, which it still has then, would lose it
    said = run_with_signals("""
real_fork = os.fork
def fork():
    child = real_fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
    return child
os.fork = fork
with Signals(ENDING, OTHERS, came.append) as signals:
    child = signals.fork()
    if not child:
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert said == f"{-signal.SIGTERM}\n"
