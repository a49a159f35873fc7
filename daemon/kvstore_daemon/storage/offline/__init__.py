"""Work on a store from outside the daemon: backup, restore, compaction, checks."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called now and then with what is done and what there is to do."""

Steps = Callable[[str], Progress]
"""Called with the name of each step as it begins; returns what is called with the step's progress."""


def no_progress(_done: int, _total: int) -> None:
    """A progress that nobody looks at."""
