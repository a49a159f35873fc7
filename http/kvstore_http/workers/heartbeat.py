"""Who waits for a facade, and what it is told: the parent of its workers, and the service manager."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class ServiceManager(Protocol):
    """Starts the facade, and starts it again where it ends or falls silent. Telling it never fails."""

    def ready(self, where: Mapping[str, str]) -> None:
        """The address answers; ``where`` has it as ``url``."""

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
    """Tells people, through ``announce``, and the service manager ``where`` requests are taken."""

    def __init__(
        self, manager: ServiceManager, where: Mapping[str, str], announce: Callable[[], None]
    ) -> None:
        self._manager = manager
        self._where = where
        self._announce = announce

    def ready(self) -> None:
        self._announce()
        self._manager.ready(self._where)

    def beat(self) -> None:
        self._manager.beat()

    def stopping(self) -> None:
        self._manager.stopping()
