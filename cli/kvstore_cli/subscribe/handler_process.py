"""A user's command as a child process that never outlives this one.

Between the two is a minder, a process forked for each run. It leads its own session, so that neither Ctrl-C
nor a kill of our process group reaches it or the command. It gets SIGTERM from us, or from the kernel when we
are gone, even by SIGKILL. It then ends the command's process group, and exits once that is empty. Background
processes of a command that ended by itself (``server &``) are left alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

from kvstore_core.process.linux import adopt_orphans, end_with_parent

GRACE_SECONDS = 5
"""How long a command may take to end after SIGTERM: less than the 10 s that Docker gives us."""


def run(command: str, value: bytes, environment: Mapping[bytes, bytes]) -> int:
    """Run ``command`` with ``/bin/sh``, with ``value`` on its standard input; returns its exit status, or
    minus the signal that ended it.

    A signal, an exception or SIGKILL here first ends the command and its process group; a second exception
    does not wait for the grace period. The command has no terminal. Descriptors that are not close-on-exec
    stay open in the minder, and so until the command is gone.
    """
    source = os.memfd_create("value")
    report, said = os.pipe()
    with open(source, "wb", closefd=False) as file:
        file.write(value)
    os.lseek(source, 0, os.SEEK_SET)
    # block signals until the minder has its own handlers
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    us = os.getpid()
    minder = os.fork()
    if minder == 0:
        _mind(command, source, environment, said, us, held)
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
        # the minder was killed: do its work
        with suppress(ProcessLookupError, ValueError):
            os.killpg(int(leader), signal.SIGKILL)
        return -signal.SIGKILL
    return int(status)


_HELD = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGALRM}


def _end_minder(minder: int) -> None:
    """Make the minder end the command, and wait for it."""
    os.kill(minder, signal.SIGTERM)
    try:
        os.waitid(os.P_PID, minder, os.WEXITED | os.WNOWAIT)
    except BaseException:
        # a second interrupt: no grace period
        os.kill(minder, signal.SIGQUIT)
        raise


def _mind(
    command: str,
    source: int,
    environment: Mapping[bytes, bytes],
    said: int,
    parent: int,
    held: set[signal.Signals | int],
) -> NoReturn:
    try:
        os.setsid()
        # Ctrl-C and hangups are handled by the parent
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        adopt_orphans()
        child = os.fork()
        if child == 0:
            _become(command, source, environment, said, held, ignores_hangup=ignores_hangup)
        with suppress(OSError):  # both do it, since either may be first
            os.setpgid(child, child)
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGALRM):
            signal.signal(number, lambda number, _: _end(child, number))
        if not end_with_parent(parent):
            _end(child, signal.SIGQUIT)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        _, status = os.waitpid(child, 0)
        if _ending:
            _await_group(child)
        with suppress(OSError):  # the parent may be gone
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
    command: str,
    source: int,
    environment: Mapping[bytes, bytes],
    said: int,
    held: set[signal.Signals | int],
    *,
    ignores_hangup: bool,
) -> NoReturn:
    try:
        os.setpgid(0, 0)
        # not the minder: if it is killed, the parent must know the group of a command that runs
        with suppress(OSError):  # the parent may be gone
            os.write(said, b"%d\n" % os.getpid())
        os.dup2(source, 0)
        os.set_inheritable(0, True)  # it may have been 0 already
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if not ignores_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        os.execve("/bin/sh", ["/bin/sh", "-c", command], environment)  # noqa: S606 - it is the shell
    finally:
        os._exit(127)
