"""Whether a child process still works, which its parent knows by the beats that it sends."""

from __future__ import annotations

import signal

BEAT_SECONDS = 1.0
"""How often a process beats, and how often its parent ticks."""

LATE_TICKS = 5
"""A process that is silent for longer is late: its parent no longer vouches for it."""

STUCK_TICKS = 20
"""A process that is silent for so long hangs."""

START_TICKS = 90
"""How long a process may take until it is ready; systemd's default is the same."""

KILL_TICKS = 2
"""How long after SIGABRT, which lets a process log where it hangs, SIGKILL follows."""


class Liveness:
    """The silence of one process, counted by its parent's ticks.

    Ticks are counted and not seconds: a parent that the system stopped together with its children must not
    take that for their silence.
    """

    def __init__(self, stuck_ticks: int = STUCK_TICKS) -> None:
        self._stuck_ticks = stuck_ticks
        self.started()

    def started(self) -> None:
        """A new process was started, and is not ready yet."""
        self.is_ready = False
        self._silent_ticks = 0

    def beat(self) -> bool:
        """The process has said that it works, or, at first, that it is ready. Returns whether it was late."""
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
        """Whether the last tick made it late."""
        return self.is_ready and self._silent_ticks == LATE_TICKS + 1

    def tick(self) -> signal.Signals | None:
        """One ``BEAT_SECONDS`` has passed; returns the signal that should end the process, if one should:
        SIGABRT once, later SIGKILL."""
        self._silent_ticks += 1
        over = self._silent_ticks - (self._stuck_ticks if self.is_ready else START_TICKS)
        if over == 0:
            return signal.SIGABRT
        return signal.SIGKILL if over >= KILL_TICKS else None
