"""A command of the user's as a child that never outlives us.

Between us and the command stands a minder, a process forked for this one run. It leads a session of its
own, so that neither Ctrl-C nor a kill of our process group reaches it or the command, and it gets a
SIGTERM from us, or from the kernel when we are gone, SIGKILL included. It then ends the command's whole
process group and goes when nothing of it is left. What the command had put behind itself when it ended
well (``server &``) is let be.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

from kvstore_core.process.linux import adopt_orphans, end_with_parent

GRACE_SECONDS = 5
"""How long a command may take to end after SIGTERM; what gives us 10 s, as Docker does, has not to wait."""


def run(command: str, value: bytes, environment: Mapping[bytes, bytes]) -> int:
    """Run ``command`` with ``/bin/sh``, with ``value`` on its standard input; its exit status, or minus the
    signal that ended it.

    However this is left, by a signal, an exception or SIGKILL, the command and its process group are ended
    first; a second exception does not wait for them to end well. It has no terminal to ask on. What of ours
    is not closed on exec stays open in the minder, hence until the command is gone.
    """
    import ctypes  # noqa: F401 - needed after the fork, and loaded once

    source = os.memfd_create("value")
    report, said = os.pipe()
    _write_all(source, value)
    os.lseek(source, 0, os.SEEK_SET)
    # a signal for us must not find the minder before it has its own way with them
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    us = os.getpid()
    minder = os.fork()
    if minder == 0:
        _mind(["/bin/sh", "-c", command], source, environment, said, us, held)
    os.close(source)
    os.close(said)
    leader = status = b""
    with open(report, "rb") as heard:  # noqa: PTH123 - it is open already
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            leader = heard.readline()
            status = heard.readline()
        finally:
            try:
                if not status:
                    _end_minder(minder)
            finally:
                os.waitpid(minder, 0)
    if not status:
        # somebody killed the minder: its place is ours
        with suppress(ProcessLookupError, ValueError):
            os.killpg(int(leader), signal.SIGKILL)
        return -signal.SIGKILL
    return int(status)


_HELD = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGALRM}


def _end_minder(minder: int) -> None:
    """Have the minder end the command, and wait until it has."""
    os.kill(minder, signal.SIGTERM)
    try:
        os.waitid(os.P_PID, minder, os.WEXITED | os.WNOWAIT)
    except BaseException:
        # whoever is in such a hurry gives no grace
        os.kill(minder, signal.SIGQUIT)
        raise


def _mind(
    program: list[str],
    source: int,
    environment: Mapping[bytes, bytes],
    said: int,
    parent: int,
    held: set[signal.Signals | int],
) -> NoReturn:
    try:
        os.setsid()
        # Ctrl-C and the end of a terminal are for our parent to hear
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        adopt_orphans()
        child = os.fork()
        if child == 0:
            _become(program, source, environment, held, ignores_hangup=ignores_hangup)
        with suppress(OSError):  # whoever is first, it or we
            os.setpgid(child, child)
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGALRM):
            signal.signal(number, lambda number, _: _end(child, number))
        if not end_with_parent(parent):
            _end(child, signal.SIGQUIT)
        with suppress(OSError):  # nobody reads it where the parent is gone
            os.write(said, b"%d\n" % child)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        _, status = os.waitpid(child, 0)
        if _ending:
            _await_group(child)
        with suppress(OSError):
            os.write(said, b"%d\n" % os.waitstatus_to_exitcode(status))
    finally:
        os._exit(0)


_ending: list[int] = []


def _end(group: int, number: int) -> None:
    """SIGTERM asks the group to end, an alarm or SIGQUIT makes it."""
    _ending.append(number)
    with suppress(ProcessLookupError):
        if number == signal.SIGTERM:
            os.killpg(group, signal.SIGTERM)
            os.killpg(group, signal.SIGCONT)  # one that is stopped would not hear it
            signal.alarm(GRACE_SECONDS)
        else:
            os.killpg(group, signal.SIGKILL)


def _await_group(group: int) -> None:
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def _become(
    program: list[str],
    source: int,
    environment: Mapping[bytes, bytes],
    held: set[signal.Signals | int],
    *,
    ignores_hangup: bool,
) -> NoReturn:
    try:
        os.setpgid(0, 0)
        os.dup2(source, 0)
        os.set_inheritable(0, True)  # it may have been 0 already
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if not ignores_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        os.execve(program[0], program, environment)  # noqa: S606 - it is the shell
    finally:
        os._exit(127)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
