"""Work on a store from outside the daemon: backup, restore, compaction, checks."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called now and then with what is done and what there is to do."""

Steps = Callable[[str], Progress]
"""Called with the name of each step as it begins; returns what is called with the step's progress."""

OnBegun = Callable[[Callable[[], None]], None]
"""Called with a function that ends a process that has begun, from whatever thread."""


def no_progress(_done: int, _total: int) -> None:
    """A progress that nobody looks at."""


def never_ended(_end: Callable[[], None]) -> None:
    """An :data:`OnBegun` of somebody who lets the process go on to its end."""
