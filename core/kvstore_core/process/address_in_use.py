"""Waiting for an address or a lock that a process is about to release."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from kvstore_core.errors import KvError

IN_USE_SECONDS = 3.0
"""The parts of a service whose parent was killed end by themselves, in less than this."""

_PAUSE_SECONDS = 0.05
_IN_USE = {errno.EADDRINUSE, errno.EWOULDBLOCK}

Got = TypeVar("Got")


def patiently(take: Callable[[], Got], seconds: float = IN_USE_SECONDS) -> Got:
    """The result of ``take``, which is called again for up to ``seconds`` while it raises a KvError whose
    cause says that an address, or a lock, is in use. Blocks meanwhile; for the start of a server."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return take()
        except KvError as error:
            if getattr(error.__cause__, "errno", None) not in _IN_USE or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_SECONDS)
