"""``kvstore backup``."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvstore_cli.command_line.completion import complete_file
from kvstore_cli.command_line.flags import Command, with_options
from kvstore_cli.files.output_file import refuse_mounted
from kvstore_cli.store_folder import data_folder, size
from kvstore_cli.terminal import output, progress
from kvstore_cli.terminal.progress import Report
from kvstore_cli.terminal.signals import end_on_signals

if TYPE_CHECKING:
    from kvstore_daemon.storage.offline.backup import Backup


@click.command(cls=Command)
@click.argument("file", metavar="FILE", shell_complete=complete_file)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print what the backup holds as one JSON object.")
@with_options("store")
@click.pass_context
def command(context: click.Context, file: str, force: bool, as_json: bool) -> None:
    """Write the store, as it is at one revision, to FILE; '-' is standard output.

    It reads the data folder on this machine, while the daemon goes on or without one, and nobody waits
    for it. FILE gets its name when all of it is on disk; if anything goes wrong nothing is left. Run it
    as the user who runs the daemon, or as root. From another machine: through ssh or docker exec.

    \b
    Examples:
      kvstore backup /backup/kvstore-today.kvb
      kvstore backup --data /var/lib/kvstore --force latest.kvb
      ssh db kvstore backup - > db.kvb
      docker exec kvstore kvstore backup - > db.kvb
    """
    end_on_signals()
    folder = data_folder(context)
    with suppress(OSError):  # a sandbox may forbid it
        os.nice(10)  # the daemon beside it has people waiting
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
        f"{size(found.bytes)}: {output.readable(str(folder))} is backed up to {place}"
    )


def _refuse_terminal(as_json: bool) -> None:
    if as_json:
        raise click.UsageError("--json prints to standard output, where the backup goes")
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
        raise click.ClickException(
            f"{output.readable(str(path))} cannot be written: {reason(error)}"
        ) from error


def _now() -> int:
    return time.time_ns() // 1_000_000
