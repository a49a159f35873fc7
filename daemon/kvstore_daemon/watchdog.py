"""Whoever started the daemon and watches over it, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from kvstore_daemon.group_commit import GroupCommitter


class ServiceManager(Protocol):
    """Starts the daemon, and starts it again where it ends or falls silent. Telling it never fails."""

    def ready(self, where: Mapping[str, str]) -> None:
        """The store is open and the sockets are bound; ``where`` names their addresses and the data."""

    def status(self, line: str) -> None:
        """How the daemon is, for people to read."""

    def beat(self) -> None:
        """The daemon does its work; to be said every second."""

    def stopping(self) -> None:
        """The daemon is about to end."""


class Pulse:
    """Beats while the daemon does its work: its loop turns, and what it hands to the engine is committed.

    A commit that takes longer than ``PATIENCE_TICKS`` is taken for one that never ends. That is far
    beyond what a slow disk needs, since to end the daemon early would take its reads away too and make
    the disk no faster. Ticks are counted and not seconds, so that a process which the system held up
    does not take its own absence for the engine's.
    """

    PATIENCE_TICKS = 60

    def __init__(self, manager: ServiceManager, committer: GroupCommitter) -> None:
        self._manager = manager
        self._committer = committer
        self._group: int | None = None
        self._ticks = 0

    def tick(self) -> None:
        """To be called by the loop every second."""
        group = self._committer.group_under_way()
        self._ticks = self._ticks + 1 if group is not None and group == self._group else 0
        self._group = group
        if self._ticks < self.PATIENCE_TICKS:
            self._manager.beat()
        elif self._ticks == self.PATIENCE_TICKS:
            self._manager.status("writes wait: a commit has not ended for a minute; look at the disk")
