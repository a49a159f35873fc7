"""Whether the daemon does its work, as it reports to the process that started it."""

from __future__ import annotations

from kvstore_core.process.sd_notify import Notifier
from kvstore_daemon.group_commit import GroupCommitter


class Watchdog:
    """Beats while the daemon does its work: its loop turns, and what it hands to the engine is committed.

    A commit that takes longer than ``PATIENCE_TICKS`` is taken for one that never ends. That is far more than
    a slow disk needs: ending the daemon would take its reads away too, and make the disk no faster. Ticks are
    counted and not seconds: a process that the system stopped must not blame the engine for it.
    """

    PATIENCE_TICKS = 60

    def __init__(self, notifier: Notifier, committer: GroupCommitter) -> None:
        self._notifier = notifier
        self._committer = committer
        self._group: int | None = None
        self._ticks = 0

    def tick(self) -> None:
        """To be called by the loop every second."""
        group = self._committer.group_under_way()
        self._ticks = self._ticks + 1 if group is not None and group == self._group else 0
        self._group = group
        if self._ticks < self.PATIENCE_TICKS:
            self._notifier.beat()
        elif self._ticks == self.PATIENCE_TICKS:
            self._notifier.status("writes wait: a commit has not ended for a minute; look at the disk")
