"""A bar on standard error for work that takes a while, where a person sees it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[[int], None]

EXIT_TERMINATED = 128 + signal.SIGTERM


def end_on_sigterm() -> None:
    """From now on SIGTERM ends the command as Ctrl-C does: what it began is undone."""
    signal.signal(signal.SIGTERM, _end)


def _end(_number: int, _frame: Any) -> None:
    raise SystemExit(EXIT_TERMINATED)


def is_seen() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    import os

    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def bar(label: str, total: int | None, *, is_bytes: bool = False) -> Iterator[Advance]:
    """Show how much of ``total`` (None: not known) is done; what is given is called with the amount
    that is done by then, which may be less than before. Does nothing where nobody sees it."""
    if not is_seen():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if is_bytes else [MofNCompleteColumn()]
    )
    # it leaves the screen when it is done: what remains is the sentence that says what was done
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        *amounts,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)
