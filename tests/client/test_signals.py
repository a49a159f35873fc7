"""Signals that a loop waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from support.servers import wait_until

BEGIN = """
import os, select, signal, sys, time
from kvstore_core.process.signals import Signals

ENDING, OTHERS = (signal.SIGTERM, signal.SIGINT), (signal.SIGUSR1, signal.SIGCHLD)
came = []
"""


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_signals_wake_a_loop_and_arrive_in_order() -> None:
    said = run("""
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
    said = run("""
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
    said = run("""
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
