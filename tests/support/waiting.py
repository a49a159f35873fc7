"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

POLL_SECONDS = 0.01


def wait_until(
    condition: Callable[[], Answer], *, timeout: float = 20, what: str = "", every: float = POLL_SECONDS
) -> Answer:
    """Call ``condition`` until it is true and return what it gave.

    ``timeout`` (seconds) keeps a broken test from hanging and is no promise about speed: choose it
    generously. ``what`` names the condition in the AssertionError that is raised after it. ``every``
    (seconds) is for a condition that is dear to look at.
    """
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(every)
    return answer
