"""``kvstore check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvstore_cli.command_line.completion import complete_file
from kvstore_cli.command_line.flags import Command, given_flags, with_options
from kvstore_cli.store_folder import data_folder, size
from kvstore_cli.terminal import output, progress
from kvstore_cli.terminal.progress import Steps
from kvstore_cli.terminal.signals import end_on_signals
from kvstore_core.errors import EXIT_DONE, EXIT_ERROR
from kvstore_core.process.files import reason

SHOWN_FAULTS = 100


@click.command(cls=Command)
@click.argument("file", metavar="[FILE]", required=False, shell_complete=complete_file)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@with_options("store")
@click.pass_context
def command(context: click.Context, file: str | None, as_json: bool) -> int:
    """Verify the store in the data folder, or the backup FILE: every page, record, event and index.

    The store may be in use: it is checked as of one revision, and nobody waits. One line is printed
    for each damage, up to 100 of them.

    Exit status: 0 if all is whole, 1 if there is damage.

    \b
    Examples:
      kvstore check
      kvstore check --data /var/lib/kvstore --json
      kvstore check /backup/kvstore-today.kvb
    """
    if file is not None and "data" in given_flags(context):
        raise click.UsageError("give FILE or --data, not both")
    end_on_signals()
    faults: list[str] = []
    with progress.steps() as steps:
        if file is None:
            found = _check_store(data_folder(context), faults, steps)
        else:
            found = _check_backup(Path(file), faults, steps)
    if as_json:
        shown = faults[:SHOWN_FAULTS]
        output.write_json({"whole": not faults, "faults": shown, "fault_count": len(faults), **found})
    else:
        what = str(data_folder(context)) if file is None else file
        advice = "restore a backup" if file is None else "do not rely on it as a backup"
        _say(output.readable(what), found, faults, advice)
    return EXIT_ERROR if faults else EXIT_DONE


def _check_store(folder: Path, faults: list[str], steps: Steps) -> dict[str, Any]:
    from kvstore_daemon.storage.offline import reader_client

    return reader_client.check(folder, faults.append, steps("checking"))


def _check_backup(path: Path, faults: list[str], steps: Steps) -> dict[str, Any]:
    from kvstore_daemon.storage.offline.backup import check_backup

    if path.is_dir():
        raise click.UsageError(f"{output.readable(str(path))} is a folder; name a data folder with --data")
    try:
        with path.open("rb") as file:
            return check_backup(file, faults.append, steps)
    except OSError as error:
        raise click.UsageError(f"cannot read {output.readable(str(path))}: {reason(error)}") from error


def _say(what: str, found: dict[str, Any], faults: list[str], advice: str) -> None:
    for fault in faults[:SHOWN_FAULTS]:
        output.write_line(output.visible(fault))
    if faults:
        output.talk(f"{what} is damaged: {len(faults):,} fault{'s' if len(faults) > 1 else ''}; {advice}")
        return
    free = found["file_bytes"] - found["bytes"]
    output.talk(
        f"{what} is whole: revision {found['revision']}, {found['keys']:,} keys, {found['events']:,} events, "
        f"{size(found['file_bytes'])}, of which {size(free)} are free"
    )
