"""``kvstore backup``, ``restore``, ``check`` and ``compact``, which work on the store's files themselves;
only a backup with ``--url`` is made by the service."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.command_line.parameters import complete_file, file_argument, json_option
from kvstore_cli.command_line.subcommand import (
    configuration_of,
    data_folder,
    exit_on_signals,
    given_flags,
    long_retry_ms,
    subcommand,
)
from kvstore_cli.files.input_file import opened, shown_name, unreadable
from kvstore_cli.files.output_file import Write, refuse_mounted, refuse_unwritable, writing, written_whole
from kvstore_cli.terminal import output, progress
from kvstore_cli.terminal.humanize import exact_size
from kvstore_cli.terminal.progress import Steps
from kvstore_core.distribution import require
from kvstore_core.errors import EXIT_DONE, EXIT_ERROR, BackupExists, KvError
from kvstore_core.process.files import steadily

if TYPE_CHECKING:
    from kvstore_cli.transfer.remote_backup import BackupSource

SHOWN_FAULTS = 100


@subcommand("store", "client")
@file_argument
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--restart", is_flag=True, help="With --url: delete the backup that is there, and begin again.")
@json_option("Print a summary of the backup as one JSON object.")
def backup(context: click.Context, file: str, force: bool, restart: bool, as_json: bool) -> None:
    """Write the store, as it is at one revision, to FILE; '-' is standard output.

    It reads the data folder on this machine, as the daemon's user or as root. The daemon may be running,
    and nothing waits for the backup. FILE gets its name once all of it is on disk; on an error nothing is
    left.

    With --url the service there makes the backup on its own disk, which takes the grant admin, and this
    command fetches and verifies it and has it deleted there. After an interruption the same command goes on
    from where it was: until then what has come is in FILE.….part.

    \b
    Examples:
      kvstore backup /backup/kvstore-today.kvb
      kvstore backup --data /var/lib/kvstore --force latest.kvb
      kvstore backup --url https://kv.example today.kvb
      docker exec kvstore kvstore backup - > db.kvb
    """
    flags = given_flags(context)
    if "url" in flags and "data" in flags:
        raise click.UsageError("give --url or --data, not both")
    if restart and "url" not in flags:
        raise click.UsageError("--restart goes with --url")
    exit_on_signals()
    if file == "-":
        _refuse_terminal(as_json)
    else:
        refuse_mounted(Path(file))
    back_up_from = _back_up_service if "url" in flags else _back_up_folder
    summary = back_up_from(context, file, force, restart)
    if as_json:
        output.write_json(summary)


def _back_up_folder(context: click.Context, file: str, force: bool, _restart: bool) -> dict[str, Any]:
    require("server")
    folder = data_folder(context)
    if not folder.exists():
        raise KvError(
            "bad_request",
            f"there is no store: {folder} does not exist; name its folder with --data or KVSTORE_DATA, "
            "or with --url a service that is to make the backup",
        )
    with suppress(OSError):  # a sandbox may forbid it
        os.nice(10)  # the daemon's requests come first
    from kvstore_daemon.storage.offline.backup import back_up

    with progress.steps() as steps, _destination(file, replace=force) as write:
        found = back_up(folder, write, _now(), steps("copying"))._asdict()
    _say_done(found, str(folder), file)
    return found


def _back_up_service(context: click.Context, file: str, force: bool, restart: bool) -> dict[str, Any]:
    from kvstore_cli.command_line.service import new_client
    from kvstore_cli.http_client.client import RetryLimit
    from kvstore_cli.transfer.remote_backup import BackupSource, discard_parts, fetch, fetch_file

    path = None if file == "-" else Path(file)
    if path is not None:
        refuse_unwritable(path, force=force)
    configuration = configuration_of(context, "client")
    with new_client(configuration, retries=False) as service, progress.steps() as steps, _naming_restart():
        source = BackupSource(service, RetryLimit(long_retry_ms(configuration), output.talk))
        if restart:
            for kept in source.kept():
                source.delete(kept)
        if path is None:
            made = fetch(source, output.write, steps)
            found = {**made, "events": made["log_events"]}
        else:
            with writing(path):
                if restart:
                    discard_parts(path)
                made = fetch_file(source, path, steps, replace=force)
            found = _trailer_of(path)
        _give_back(source, made)
    _say_done(found, service.url, file)
    return found


def _give_back(source: BackupSource, made: dict[str, Any]) -> None:
    """Have the service remove a backup that is here; if it does not, it will by itself."""
    try:
        source.delete(made)
    except KvError as error:
        output.talk(f"the service keeps its copy of the backup for up to an hour: {error.message}")


@contextmanager
def _naming_restart() -> Iterator[None]:
    """Say what to do about a backup of somebody else's."""
    try:
        yield
    except BackupExists as error:
        message = f"{error.message}; or add --restart, which deletes it"
        raise KvError(error.code, message, **error.details) from error


def _trailer_of(path: Path) -> dict[str, Any]:
    from kvstore_daemon.storage.offline.backup import read_trailer

    with path.open("rb") as file:
        return read_trailer(file)._asdict()


def _say_done(found: dict[str, Any], what: str, file: str) -> None:
    place = "standard output" if file == "-" else output.readable(file)
    output.talk(
        f"revision {found['revision']}, {found['keys']:,} keys, {found['events']:,} events, "
        f"{exact_size(found['bytes'])}: {output.readable(what)} is backed up to {place}"
    )


def _refuse_terminal(as_json: bool) -> None:
    if as_json:
        raise click.UsageError("--json and the backup would both go to standard output")
    if output.on_terminal():
        raise click.UsageError("standard output is a terminal; send the backup to a file or a pipe")


@contextmanager
def _destination(file: str, *, replace: bool) -> Iterator[Write]:
    if file == "-":
        yield output.write
    else:
        with written_whole(Path(file), replace=replace) as backup_file:
            yield steadily(backup_file)


def _now() -> int:
    return time.time_ns() // 1_000_000


@subcommand("store")
@file_argument
@click.option("--force", is_flag=True, help="Replace an existing store; its file is kept beside it.")
def restore(context: click.Context, file: str, force: bool) -> None:
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
    from kvstore_daemon.storage.offline.restore import restore as restore_backup
    from kvstore_daemon.storage.offline.run_as_owner import become_owner

    with opened(file) as source, progress.steps() as steps:
        try:
            found = restore_backup(source, become_owner(folder), _now(), replace=force, steps=steps)
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


@subcommand("store")
@click.argument("file", metavar="[FILE]", required=False, shell_complete=complete_file)
@json_option("As one JSON object.")
def check(context: click.Context, file: str | None, as_json: bool) -> int:
    """Verify the store in the data folder, or the backup FILE: every page, record, event and index.

    The store may be in use: it is checked as of one revision, and nothing waits for it. Each fault is
    printed on a line, up to 100 of them. The digest, also in --json, is that of 'kvstore digest': it proves
    that a backup has the records that a service or another backup has.

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
    require("server")  # a reader that cannot be started counts as a fault of the store
    from kvstore_daemon.storage.offline import reader_client

    return reader_client.check(folder, faults.append, steps("checking"))


def _check_backup(name: str, faults: list[str], steps: Steps) -> dict[str, Any]:
    from kvstore_daemon.storage.offline.backup import check_backup

    if name == "-":
        raise click.UsageError("a backup is checked in a file: write it to one, and name that")
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
    sizes = exact_size(found["bytes"])
    if "file_bytes" in found:  # a backup has no free pages
        free = found["file_bytes"] - found["bytes"]
        sizes = f"{exact_size(found['file_bytes'])}, {exact_size(free)} of it free"
    digest = f"; digest {found['digest']}" if found["digest"] else ""
    output.talk(
        f"{what} is whole: revision {found['revision']}, {found['keys']:,} keys, {found['events']:,} events, "
        f"{sizes}{digest}"
    )


@subcommand("store")
@click.option("--dry-run", is_flag=True, help="Only print how much it would save; the daemon may be running.")
def compact(context: click.Context, dry_run: bool) -> None:
    """Give the space of the store's free pages back to the disk.

    Stop the daemon first. A new file is written beside the old one, verified, and then replaces it in one
    step; until then the disk needs space for both. New writes reuse free pages, so this is only for a
    store that has shrunk for good.

    \b
    Examples:
      kvstore compact --dry-run
      kvstore compact --data /var/lib/kvstore
    """
    exit_on_signals()
    folder = data_folder(context)
    from kvstore_daemon.storage.offline import reader_client
    from kvstore_daemon.storage.offline.replace_store import Compacted
    from kvstore_daemon.storage.offline.replace_store import compact as compact_store
    from kvstore_daemon.storage.offline.run_as_owner import become_owner

    if dry_run:
        found = reader_client.facts(folder)
        done, verb = Compacted(found["file_bytes"], found["bytes"]), "would become"
    else:
        with progress.steps() as steps:
            done, verb = compact_store(become_owner(folder), steps), "became"
    output.talk(f"{exact_size(done.before_bytes)} {verb} {exact_size(done.after_bytes)}")
