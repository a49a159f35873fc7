"""Going on when the service is away for the moment."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep

from kvstore_cli.http_client.client import new_backoff
from kvstore_core.errors import KvError


class Patience:
    """Decides whether another attempt is made after one that failed: for as long as nothing went
    forward for less than ``limit_ms``. ``notice`` is told once of each absence."""

    def __init__(self, limit_ms: int, notice: Callable[[str], None]) -> None:
        self._limit_seconds = limit_ms / 1000
        self._notice = notice
        self._backoff = new_backoff()
        self._since: float | None = None

    def progress(self) -> None:
        """Something went forward: an absence is over."""
        if self._since is not None:
            self._since = None
            self._backoff.reset()

    def after(self, error: KvError) -> None:
        """Wait a little before the next attempt; raises ``error`` when it is no use or the time is over."""
        if not error.row.is_temporary:
            raise error
        now = monotonic()
        if self._since is None:
            self._since = now
            self._notice(f"{error.message}; trying again for {self._limit_seconds:g} s")
        pause = self._backoff.next()
        if now + pause >= self._since + self._limit_seconds:
            raise error
        sleep(pause)
