"""What is Linux's alone: the servers need it, the client and the commands that ask a server do not."""

from __future__ import annotations

import ctypes  # here, and not where it is called: a child just forked may lack what an import takes
import errno
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def require_linux() -> None:
    """Raise OSError, with a sentence for a person, on a system that the servers do not run on: they
    wait with epoll, and read what processes take from ``/proc``."""
    if sys.platform != "linux":
        raise OSError(
            errno.ENOSYS,
            f"kvstore's servers need Linux, and this is {sys.platform}; run them in a container, for "
            "example: the Python client and the client commands work here",
        )


def end_with_parent(parent: int, ending: signal.Signals = signal.SIGTERM) -> bool:
    """Have the kernel send this process ``ending`` when ``parent`` ends, however it ends. False if it has
    ended already: nothing will be sent then.

    Elsewhere than on Linux nothing is sent ever, and a SIGKILL of the parent leaves this process running.
    """
    _prctl(_PR_SET_PDEATHSIG, ending)
    return os.getppid() == parent


def adopt_orphans() -> None:
    """Become the parent, in place of init, of what processes started by this one leave running."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)
