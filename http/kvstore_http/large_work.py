"""Work on texts, of which large ones are left to a thread: the other requests of the worker go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent

T = TypeVar("T")

LARGE_BYTES = 16 * 1024
"""From this size on a text is worked on in a thread."""


def maybe_in_thread(size: int, work: Callable[[], T]) -> T:
    """What ``work`` returns; run in a thread if it is about a text of many bytes."""
    if size < LARGE_BYTES:
        return work()
    done, error = gevent.get_hub().threadpool.apply(_attempt, (work,))
    if error is not None:
        raise error
    result: T = done
    return result


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What ``work`` returns or raises; gevent would print the traceback of what is raised in a thread."""
    try:
        return work(), None
    except Exception as error:
        return None, error
