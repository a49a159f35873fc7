"""``kvstore check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvstore_cli.command_line.context import data_folder
from kvstore_cli.command_line.flags import given_flags, with_options
from kvstore_cli.command_line.parameters import Subcommand, complete_file, json_option
from kvstore_cli.files.input_file import opened, unreadable
from kvstore_cli.terminal import output, progress
from kvstore_cli.terminal.humanize import exact_size
from kvstore_cli.terminal.progress import Steps
from kvstore_cli.terminal.signals import exit_on_signals
from kvstore_core.errors import EXIT_DONE, EXIT_ERROR

SHOWN_FAULTS = 100


@click.command(cls=Subcommand)
@click.argument("file", metavar="[FILE]", required=False, shell_complete=complete_file)
@json_option("As one JSON object.")
@with_options("store")
@click.pass_context
def command(context: click.Context, file: str | None, as_json: bool) -> int:
    """Verify the store in the data folder, or the backup FILE: every page, record, event and index.

    The store may be in use: it is checked as of one revision, and nothing waits for it. Each fault is
    printed on a line, up to 100 of them.

    Exit status: 0 if everything is intact, 1 if there is damage.

    \b
    Examples:
      kvstore check
      kvstore check --data /var/lib/kvstore --json
      kvstore check /backup/kvstore-today.kvb
    """
    if file is not None and "data" in given_flags(context):
        raise click.UsageError("give FILE or --data, not both")
    exit_on_signals()
    faults: list[str] = []
    with progress.steps() as steps:
        if file is None:
            found = _check_store(data_folder(context), faults, steps)
        else:
            found = _check_backup(file, faults, steps)
    if as_json:
        shown = faults[:SHOWN_FAULTS]
        output.write_json({"whole": not faults, "faults": shown, "fault_count": len(faults), **found})
    else:
        what = str(data_folder(context)) if file is None else file
        advice = "restore a backup" if file is None else "do not use it as a backup"
        _say(output.readable(what), found, faults, advice)
    return EXIT_ERROR if faults else EXIT_DONE


def _check_store(folder: Path, faults: list[str], steps: Steps) -> dict[str, Any]:
    from kvstore_daemon.storage.offline import reader_client

    return reader_client.check(folder, faults.append, steps("checking"))


def _check_backup(name: str, faults: list[str], steps: Steps) -> dict[str, Any]:
    from kvstore_daemon.storage.offline.backup import check_backup

    if Path(name).is_dir():
        raise click.UsageError(f"{output.readable(name)} is a folder; name a data folder with --data")
    try:
        with opened(name) as file:
            return check_backup(file, faults.append, steps)
    except OSError as error:
        raise unreadable(name, error) from error


def _say(what: str, found: dict[str, Any], faults: list[str], advice: str) -> None:
    for fault in faults[:SHOWN_FAULTS]:
        output.write_line(output.visible(fault))
    if faults:
        output.talk(f"{what} is damaged: {len(faults):,} fault{'s' if len(faults) > 1 else ''}; {advice}")
        return
    free = found["file_bytes"] - found["bytes"]
    output.talk(
        f"{what} is whole: revision {found['revision']}, {found['keys']:,} keys, {found['events']:,} events, "
        f"{exact_size(found['file_bytes'])}, {exact_size(free)} of it free"
    )
