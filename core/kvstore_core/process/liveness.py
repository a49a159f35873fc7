"""Whether a process that was started still works, told by the beats that it sends its parent."""

from __future__ import annotations

import signal

BEAT_SECONDS = 1.0
"""How often a process says that it works, and how often its parent ticks."""

LATE_TICKS = 5
"""Silent for longer, a process is late: its parent no longer vouches for it."""

STUCK_TICKS = 20
"""Silent for so long, it hangs."""

START_TICKS = 90
"""So long may a process take until it is ready; systemd's default is the same."""

KILL_TICKS = 2
"""How much longer it has after SIGABRT, which lets it log where it hangs, before SIGKILL ends it."""


class Liveness:
    """The silence of one process, counted by its parent's ticks.

    Ticks are counted and not seconds: a parent that the system held up together with its children must
    not take their absence for silence.
    """

    def __init__(self, stuck_ticks: int = STUCK_TICKS) -> None:
        self._stuck_ticks = stuck_ticks
        self.started()

    def started(self) -> None:
        """A new process begins, and is not ready yet."""
        self.is_ready = False
        self._silent_ticks = 0

    def beat(self) -> bool:
        """The process works; the first beat says that it is ready. Returns whether it had been late."""
        was_late = self.is_late
        self.is_ready = True
        self._silent_ticks = 0
        return was_late

    @property
    def is_late(self) -> bool:
        """Whether a process that was ready has been silent for more than ``LATE_TICKS``."""
        return self.is_ready and self._silent_ticks > LATE_TICKS

    @property
    def has_become_late(self) -> bool:
        """Whether it is late since the last tick."""
        return self.is_ready and self._silent_ticks == LATE_TICKS + 1

    def tick(self) -> signal.Signals | None:
        """One ``BEAT_SECONDS`` has passed; returns the signal that should end the process, if one should:
        SIGABRT once, later SIGKILL."""
        self._silent_ticks += 1
        over = self._silent_ticks - (self._stuck_ticks if self.is_ready else START_TICKS)
        if over == 0:
            return signal.SIGABRT
        return signal.SIGKILL if over >= KILL_TICKS else None
