"""What the logs of daemon and facade have in common; only ``logging`` itself is needed for it.

How a line looks and where it goes is decided by ``kvstore_cli.serve.logging_setup``.
"""

from __future__ import annotations

import logging
import mmap
import signal
import time
from collections.abc import Sequence
from typing import Any

announcer = logging.getLogger("kvstore.announce")
"""For the lines that are promised: they come whatever the log level is, and scripts read them."""
announcer.setLevel(logging.INFO)


def named(request_id: str | Sequence[str | None] | None) -> dict[str, Any] | None:
    """What a line about the request, or the ops of several, is logged with (``extra``)."""
    if request_id is None or isinstance(request_id, str):
        return None if request_id is None else {"request_id": request_id}
    ids = list(dict.fromkeys(each for each in request_id if each is not None))
    return {"request_id": ids[0] if len(ids) == 1 else ids} if ids else None


class Seldom:
    """Holds back lines that would fill the log: one in ``seconds`` may pass."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._passed_at = -seconds
        self._held_back = 0

    def turn(self) -> str | None:
        """None to be silent; else what to add to the line, which is empty unless some were held back."""
        now = time.monotonic()
        if now - self._passed_at < self._seconds:
            self._held_back += 1
            return None
        since = f" ({self._held_back} more since the last such line)" if self._held_back else ""
        self._passed_at, self._held_back = now, 0
        return since

    def warn(self, log: logging.Logger, message: str, *arguments: object) -> None:
        """Log a warning, as ``log.warning`` does, if it is its turn."""
        more = self.turn()
        if more is not None:
            log.warning(f"{message}%s", *arguments, more)


LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)

LEVEL_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


class LogLevel:
    """The level of everything that is logged: SIGUSR1 makes it one step more talkative, SIGUSR2 what
    it was configured as. Not to be used in a signal handler.

    Processes forked later share it: of signals that are passed on some may coincide, so those processes
    do not count them but :meth:`follow`.
    """

    def __init__(self, configured: str) -> None:
        self._configured: int = getattr(logging, configured.upper())
        self._shared = mmap.mmap(-1, 1)
        self._shared[0] = self._configured

    def change(self, number: int) -> str:
        """Do what the signal asks for; returns the name of the level that holds now."""
        root = logging.getLogger()
        if number == signal.SIGUSR1:
            root.setLevel(max((level for level in LEVELS if level < root.level), default=logging.DEBUG))
        else:
            root.setLevel(self._configured)
        self._shared[0] = root.level
        return logging.getLevelName(root.level).lower()

    def follow(self) -> None:
        """Do as the process did from which this one was forked."""
        logging.getLogger().setLevel(self._shared[0])
