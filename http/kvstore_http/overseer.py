"""Who waits for a facade, and what it is told: the parent of its workers, and the service manager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

BEAT_SECONDS = 1.0
"""How often a facade and each of its workers say that they work."""


class ServiceManager(Protocol):
    """Starts the facade, and starts it again where it ends or falls silent. Telling it never fails."""

    def ready(self, status: str) -> None:
        """The address answers."""

    def beat(self) -> None:
        """The facade does its work."""

    def stopping(self) -> None:
        """The facade is about to end."""


class Overseer(Protocol):
    """Whoever a worker, or the parent of several, reports to. Telling it never fails."""

    def ready(self) -> None:
        """Connections are accepted."""

    def beat(self) -> None:
        """The work is done; to be said every ``BEAT_SECONDS``."""

    def stopping(self) -> None:
        """No more connections are accepted."""


class Herald:
    """Tells people, through ``announce``, and the service manager, which shows them ``status``."""

    def __init__(self, manager: ServiceManager, status: str, announce: Callable[[], None]) -> None:
        self._manager = manager
        self._status = status
        self._announce = announce

    def ready(self) -> None:
        self._announce()
        self._manager.ready(self._status)

    def beat(self) -> None:
        self._manager.beat()

    def stopping(self) -> None:
        self._manager.stopping()
