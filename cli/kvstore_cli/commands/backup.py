"""``kvstore backup``."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvstore_cli.command_line.context import data_folder
from kvstore_cli.command_line.flags import with_options
from kvstore_cli.command_line.parameters import Subcommand, file_argument, json_option
from kvstore_cli.files.output_file import refuse_mounted
from kvstore_cli.terminal import output, progress
from kvstore_cli.terminal.humanize import exact_size
from kvstore_cli.terminal.progress import Report
from kvstore_cli.terminal.signals import exit_on_signals

if TYPE_CHECKING:
    from kvstore_daemon.storage.offline.backup import Backup


@click.command(cls=Subcommand)
@file_argument
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option("Print a summary of the backup as one JSON object.")
@with_options("store")
@click.pass_context
def command(context: click.Context, file: str, force: bool, as_json: bool) -> None:
    """Write the store, as it is at one revision, to FILE; '-' is standard output.

    It reads the data folder on this machine. The daemon may be running, and nothing waits for the backup.
    FILE gets its name once all of it is on disk; on an error nothing is left. Run this as the daemon's
    user or as root. From another machine, use ssh or docker exec.

    \b
    Examples:
      kvstore backup /backup/kvstore-today.kvb
      kvstore backup --data /var/lib/kvstore --force latest.kvb
      ssh db kvstore backup - > db.kvb
      docker exec kvstore kvstore backup - > db.kvb
    """
    exit_on_signals()
    folder = data_folder(context)
    with suppress(OSError):  # a sandbox may forbid it
        os.nice(10)  # the daemon's requests come first
    if file == "-":
        _refuse_terminal(as_json)
    else:
        refuse_mounted(Path(file))
    with progress.steps() as steps:
        found = (
            _to_output(folder, steps("copying"))
            if file == "-"
            else _to_file(folder, Path(file), steps("copying"), replace=force)
        )
    if as_json:
        output.write_json(found._asdict())
    place = "standard output" if file == "-" else output.readable(file)
    output.talk(
        f"revision {found.revision}, {found.keys:,} keys, {found.events:,} events, "
        f"{exact_size(found.bytes)}: {output.readable(str(folder))} is backed up to {place}"
    )


def _refuse_terminal(as_json: bool) -> None:
    if as_json:
        raise click.UsageError("--json and the backup would both go to standard output")
    if output.on_terminal():
        raise click.UsageError("standard output is a terminal; send the backup to a file or a pipe")


def _to_output(folder: Path, report: Report) -> Backup:
    from kvstore_daemon.storage.offline.backup import back_up

    return back_up(folder, output.write, _now(), report)


def _to_file(folder: Path, path: Path, report: Report, *, replace: bool) -> Backup:
    from kvstore_core.process.files import reason, steadily, whole_file
    from kvstore_daemon.storage.offline.backup import back_up

    try:
        with whole_file(path, replace=replace) as file:
            return back_up(folder, steadily(file), _now(), report)
    except FileExistsError as error:
        raise click.UsageError(f"{output.readable(str(path))} already exists; --force replaces it") from error
    except OSError as error:
        raise click.ClickException(f"cannot write {output.readable(str(path))}: {reason(error)}") from error


def _now() -> int:
    return time.time_ns() // 1_000_000
