"""``kvstore restore``."""

from __future__ import annotations

import time

import click

from kvstore_cli.command_line.context import data_folder
from kvstore_cli.command_line.flags import with_options
from kvstore_cli.command_line.parameters import Subcommand, file_argument
from kvstore_cli.files.input_file import opened, shown_name
from kvstore_cli.terminal import output, progress
from kvstore_cli.terminal.signals import exit_on_signals
from kvstore_core.errors import KvError


@click.command(cls=Subcommand)
@file_argument
@click.option("--force", is_flag=True, help="Replace an existing store; its file is kept beside it.")
@with_options("store")
@click.pass_context
def command(context: click.Context, file: str, force: bool) -> None:
    """Make a store from the backup FILE; '-' is standard input.

    Stop the daemon first. The whole backup is verified first, and the store is replaced in one step or
    not at all. The restored store has a new epoch: subscribers start over with a snapshot. Its revisions
    continue far above those of the backup, so that none that was used since is used again.

    \b
    Examples:
      kvstore restore /backup/kvstore-today.kvb
      kvstore restore --data /var/lib/kvstore --force latest.kvb
      ssh db 'cat latest.kvb' | kvstore restore -
    """
    exit_on_signals()
    folder = data_folder(context)
    from kvstore_daemon.storage.offline.restore import restore
    from kvstore_daemon.storage.offline.run_as_owner import become_owner

    now = time.time_ns() // 1_000_000
    with opened(file) as source, progress.steps() as steps:
        try:
            found = restore(source, become_owner(folder), now, replace=force, steps=steps)
        except KvError as error:
            if error.code != "damaged":
                raise
            message = f"{shown_name(file)}: {error.message}; nothing was restored: use another backup"
            raise KvError("damaged", message) from error
    if found.kept is not None:
        output.talk(
            f"the old store is kept as {folder / 'lmdb' / found.kept.name}; remove it when it is not needed"
        )
    output.talk(
        f"restored {found.backup.keys:,} keys as of revision {found.backup.revision} to {folder}; "
        f"the next revision is {found.head + 1}"
    )
