"""What the commands that work on the store's files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from kvstore_cli.configuration import resolve
from kvstore_cli.flags import given_flags
from kvstore_cli.progress import end_on_sigterm, is_seen

Report = Callable[[int, int], None]
Steps = Callable[[str], Report]


def data_folder(context: click.Context) -> Path:
    """The data folder that is meant."""
    return Path(resolve(given_flags(context), "store")["data"])


@contextmanager
def progress() -> Iterator[Steps]:
    """Shows how far the steps of a command are, on stderr if that is a terminal; a step is begun by its name
    and then told what is done and what there is to do.

    Within the block SIGTERM ends the command as Ctrl-C does: what it began is undone.
    """
    end_on_sigterm()
    if not is_seen():
        yield lambda _name: lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def begin(name: str) -> Report:
            bar = bars.add_task(name, total=None)
            return lambda done, total: bars.update(bar, completed=done, total=total)

        yield begin


def size(count: int) -> str:
    """A number of bytes for a person."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count:,} bytes"
