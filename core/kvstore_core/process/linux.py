"""Where kvstore runs: the servers on Linux, the client and the commands that ask a server anywhere."""

from __future__ import annotations

import errno
import sys


def require_linux() -> None:
    """Raise OSError, with a sentence for a person, on a system that the servers do not run on: they
    wait with epoll, and read what processes take from ``/proc``."""
    if sys.platform != "linux":
        raise OSError(
            errno.ENOSYS,
            f"kvstore's servers run on Linux, and this is {sys.platform}; run them in a container, for "
            "example: the Python client and the commands that ask a server work here as well",
        )
