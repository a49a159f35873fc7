"""What a server asks of the system and of Python before it takes requests."""

from __future__ import annotations

import gc
import resource

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
