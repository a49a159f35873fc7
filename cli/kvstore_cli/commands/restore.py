"""``kvstore restore``."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from typing import BinaryIO

import click

from kvstore_cli.command_line.completion import complete_file
from kvstore_cli.command_line.flags import Command, with_options
from kvstore_cli.store_folder import data_folder
from kvstore_cli.terminal import output, progress
from kvstore_cli.terminal.signals import end_on_signals
from kvstore_core.errors import KvError
from kvstore_core.process.files import reason


@click.command(cls=Command)
@click.argument("file", metavar="FILE", shell_complete=complete_file)
@click.option("--force", is_flag=True, help="Replace the store that is there; its file is kept beside.")
@with_options("store")
@click.pass_context
def command(context: click.Context, file: str, force: bool) -> None:
    """Make a store from the backup FILE; '-' is standard input.

    The daemon has to be stopped. All of the backup is verified first, and the store is replaced in one
    step or not at all. What is restored is a new epoch: subscribers start over with a snapshot. Its
    revisions go on far above those of the backup, so that none that was given out since is used again.

    \b
    Examples:
      kvstore restore /backup/kvstore-today.kvb
      kvstore restore --data /var/lib/kvstore --force latest.kvb
      ssh db 'cat latest.kvb' | kvstore restore -
    """
    end_on_signals()
    folder = data_folder(context)
    from kvstore_daemon.storage.offline.restore import restore
    from kvstore_daemon.storage.offline.run_as_owner import become_owner

    now = time.time_ns() // 1_000_000
    with closing(_opened(file)) as source, progress.steps() as steps:
        try:
            found = restore(source, become_owner(folder), now, replace=force, steps=steps)
        except KvError as error:
            if error.code != "damaged":
                raise
            message = f"{output.readable(file)}: {error.message}; nothing was restored: take another backup"
            raise KvError("damaged", message) from error
    if found.kept is not None:
        output.talk(
            f"the store that was there is kept as {folder / 'lmdb' / found.kept.name}; remove it in time"
        )
    output.talk(
        f"restored {found.backup.keys:,} keys as of revision {found.backup.revision} to {folder}; "
        f"the next revision is {found.head + 1}"
    )


def _opened(file: str) -> BinaryIO:
    if file == "-":
        if sys.stdin is None:
            raise click.UsageError("standard input is closed, there is nothing to read")
        return sys.stdin.buffer
    try:
        return open(file, "rb")  # noqa: PTH123 - pathlib adds nothing here
    except OSError as error:
        raise click.UsageError(f"cannot read {output.readable(file)}: {reason(error)}") from error
