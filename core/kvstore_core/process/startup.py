"""What a server does before it takes requests: what it asks of the system and of Python, and how it waits
for an address or a lock that a process is about to release."""

from __future__ import annotations

import errno
import gc
import resource
import time
from collections.abc import Callable
from typing import TypeVar

from kvstore_core.errors import KvError

Got = TypeVar("Got")

IN_USE_SECONDS = 3.0
"""The parts of a service whose parent was killed end by themselves, in less than this."""

_PAUSE_SECONDS = 0.05
_IN_USE = {errno.EADDRINUSE, errno.EWOULDBLOCK}

COLLECT_AFTER = (20_000, 20, 50)
"""New objects before the collector looks for cycles among them, instead of Python's 700, 10 and 10. A request
of 10,000 puts, and gets on many connections, have more objects than that alive at any time."""


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard one: each connection takes a descriptor, and the usual
    soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def relax_garbage_collector() -> None:
    """Keep from the collector what lives as long as the process, which is what there is now, and let it look
    less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def patiently(take: Callable[[], Got]) -> Got:
    """The result of ``take``, which is called again for up to ``IN_USE_SECONDS`` while it raises a KvError
    whose cause says that an address, or a lock, is in use. Blocks meanwhile; for the start of a server."""
    deadline = time.monotonic() + IN_USE_SECONDS
    while True:
        try:
            return take()
        except KvError as error:
            if getattr(error.__cause__, "errno", None) not in _IN_USE or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_SECONDS)
