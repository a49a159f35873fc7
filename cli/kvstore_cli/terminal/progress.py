"""Progress bars on standard error, if it is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

Advance = Callable[[int], None]
Report = Callable[[int, int], None]
Steps = Callable[[str], Report]


def is_seen() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def bar(label: str, total: int | None, *, is_bytes: bool = False) -> Iterator[Advance]:
    """Show a bar of ``total`` (None: unknown); call what it yields with the amount done so far, which may
    also shrink. Does nothing where :func:`is_seen` is false."""
    if not is_seen():
        yield lambda _done: None
        return
    from rich.progress import DownloadColumn, MofNCompleteColumn, TransferSpeedColumn

    amounts = (DownloadColumn(), TransferSpeedColumn()) if is_bytes else (MofNCompleteColumn(),)
    with _bars(*amounts) as bars:
        task = bars.add_task(label, total=total)
        yield lambda done: bars.update(task, completed=done)


@contextmanager
def steps() -> Iterator[Steps]:
    """The same for work of several steps: call what it yields with a step's name, and the result with the
    amount done and the total."""
    if not is_seen():
        yield lambda _name: lambda _done, _total: None
        return
    from rich.progress import TaskProgressColumn

    with _bars(TaskProgressColumn()) as bars:

        def begin(name: str) -> Report:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield begin


def _bars(*amounts: ProgressColumn) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    # transient: the message at the end says what was done
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), *amounts, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
