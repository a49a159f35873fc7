"""What the logs of all servers have in common. How a line looks and where it goes is decided by
``kvstore_cli.serve.logging_setup``."""

from __future__ import annotations

import logging
import mmap
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

announcer = logging.getLogger("kvstore.announce")
"""For the lines that scripts may rely on: they are logged at every log level."""
announcer.setLevel(logging.INFO)


def request_extra(request_id: str | Sequence[str | None] | None) -> dict[str, Any] | None:
    """The ``extra`` with which a line about a request, or about several, is logged."""
    if request_id is None or isinstance(request_id, str):
        return None if request_id is None else {"request_id": request_id}
    ids = list(dict.fromkeys(each for each in request_id if each is not None))
    return {"request_id": ids[0] if len(ids) == 1 else ids} if ids else None


class RateLimitedLog:
    """Logs to ``log`` lines that could fill it: one in ``seconds``, which says how many were left out since
    the last one."""

    def __init__(self, log: logging.Logger, seconds: float = 10.0) -> None:
        self._log = log
        self._seconds = seconds
        self._logged_at = -seconds
        self._left_out = 0

    def warning(self, message: str, *arguments: object, extra: Mapping[str, object] | None = None) -> None:
        """As ``Logger.warning``, or nothing."""
        self._write(logging.WARNING, message, arguments, extra)

    def error(self, message: str, *arguments: object, extra: Mapping[str, object] | None = None) -> None:
        """As ``Logger.error``, or nothing."""
        self._write(logging.ERROR, message, arguments, extra)

    def _write(
        self, level: int, message: str, arguments: tuple[object, ...], extra: Mapping[str, object] | None
    ) -> None:
        now = time.monotonic()
        if now - self._logged_at < self._seconds:
            self._left_out += 1
            return
        more = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        self._logged_at, self._left_out = now, 0
        self._log.log(level, message + more, *arguments, extra=extra)


LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)

LEVEL_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


class LogLevel:
    """The level of everything that the process logs as ``part``: SIGUSR1 makes it one step more talkative,
    SIGUSR2 makes it what was configured. Not to be used in a signal handler.

    Processes forked later share it. They do not count signals that are passed on, of which several may arrive
    as one, but :meth:`follow`.
    """

    def __init__(self, part: str, configured: str) -> None:
        self._part = part
        self._configured: int = getattr(logging, configured.upper())
        self._shared = mmap.mmap(-1, 1)
        self._shared[0] = self._configured

    def change(self, number: int) -> None:
        """Do what the signal asks for, and announce the new level."""
        root = logging.getLogger()
        if number == signal.SIGUSR1:
            root.setLevel(max((level for level in LEVELS if level < root.level), default=logging.DEBUG))
        else:
            root.setLevel(self._configured)
        self._shared[0] = root.level
        name = logging.getLevelName(root.level).lower()
        announcer.info("kvstore %s: the log level is now %s", self._part, name)

    def follow(self) -> None:
        """Take the level of the process from which this one was forked."""
        logging.getLogger().setLevel(self._shared[0])
