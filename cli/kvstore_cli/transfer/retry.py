"""Retrying while the service is temporarily unavailable."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep

from kvstore_cli.http_client.client import new_backoff
from kvstore_core.errors import KvError


class RetryLimit:
    """Allows retries until nothing has succeeded for ``limit_ms``. ``notice`` is called once for each time
    that the service is unavailable."""

    def __init__(self, limit_ms: int, notice: Callable[[str], None]) -> None:
        self._limit_seconds = limit_ms / 1000
        self._notice = notice
        self._backoff = new_backoff()
        self._since: float | None = None

    def progress(self) -> None:
        """Something succeeded: the limit starts over."""
        if self._since is not None:
            self._since = None
            self._backoff.reset()

    def wait_after(self, error: KvError) -> None:
        """Sleep before the next attempt; raises ``error`` if it is not transient or the limit is reached."""
        if not error.row.is_temporary:
            raise error
        now = monotonic()
        if self._since is None:
            self._since = now
            self._notice(f"{error.message}; retrying for {self._limit_seconds:g} s")
        pause = self._backoff.next()
        if now + pause >= self._since + self._limit_seconds:
            raise error
        sleep(pause)
