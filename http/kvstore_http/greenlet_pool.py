"""Greenlets that serve requests, kept and used again.

Python maps a stack for each new greenlet, which takes a good part of the time of a request; switching to one
that exists takes hardly any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.hub import Hub
from greenlet import getcurrent, greenlet

MAX_IDLE = 256


class GreenletPool:
    """Runs functions at once, each in its own greenlet, whose parent is the hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._idle: list[Any] = []

    def run(self, function: Callable[[], None]) -> None:
        """Run ``function`` until it ends or waits for the first time. Call this in the hub only,
        since that is where control comes back to; what ``function`` raises is reported by the hub."""
        if getcurrent() is not self._hub:
            raise RuntimeError("a runner was started outside the hub, and its caller would never go on")
        runner = self._idle.pop() if self._idle else greenlet(self._loop, self._hub)
        runner.switch(function)

    def _loop(self, function: Callable[[], None]) -> None:
        hub, idle, this = self._hub, self._idle, getcurrent()
        while True:
            try:
                function()
            except Exception as error:  # the boundary: the hub prints it
                hub.handle_error(function, type(error), error, error.__traceback__)
            if len(idle) >= MAX_IDLE:
                return
            idle.append(this)
            function = hub.switch()
