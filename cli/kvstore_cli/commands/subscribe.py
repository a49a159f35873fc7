"""``kvstore subscribe``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.line_format import EVENT, LineFormat, format_option
from kvstore_cli.command_line.service import new_client
from kvstore_cli.command_line.subcommand import configuration_of, exit_on_signals, subcommand
from kvstore_cli.http_client import change_stream
from kvstore_cli.http_client.client import Query
from kvstore_cli.subscribe.sinks import ExecSink, FormatSink, JsonSink, Sink, TextSink
from kvstore_cli.terminal import output
from kvstore_core.errors import KvError

if TYPE_CHECKING:
    from kvstore_cli.files.position_file import PositionFile


@subcommand("client", "stream")
@parameters.keys_argument
@parameters.prefixes_option("Keys that begin with P")
@parameters.ops_option
@click.option(
    "--since", metavar="C", help="Start after the cursor, revision or time C: 10m-ago, 2026-01-31T12:00:00Z."
)
@click.option("--snapshot", is_flag=True, help="Start with the current records.")
@click.option("--count", type=parameters.WholeNumber(1), metavar="N", help="Stop after N events.")
@click.option(
    "--deliver",
    type=click.Choice(["all", "latest"]),
    help="latest: where newer changes of a key come before older ones could be delivered, only the newest.",
)
@click.option(
    "--sample",
    type=parameters.TIME,
    metavar="TIME",
    help="As --deliver latest, and at most one change of each key in TIME: 1s, 500ms, 5m.",
)
@click.option("--no-values", is_flag=True, help="Do not print values.")
@parameters.json_option("One JSON object a line.")
@format_option(EVENT)
@click.option("--exec", "shell_command", metavar="CMD", help="Run the shell command CMD for each event.")
@click.option("--exec-marks", is_flag=True, help="Run CMD also for a reset, and for the end of a snapshot.")
@click.option("--fail-fast", is_flag=True, help="Stop with status 1 as soon as a command of --exec fails.")
@click.option(
    "--cursor", "cursor_file", metavar="FILE", help="Keep the position in FILE, and resume there next time."
)
def command(
    context: click.Context,
    keys: tuple[str, ...],
    prefixes: tuple[str, ...],
    ops: tuple[str, ...],
    since: str | None,
    snapshot: bool,
    count: int | None,
    deliver: str | None,
    sample: int | None,
    no_values: bool,
    as_json: bool,
    line_format: LineFormat | None,
    shell_command: str | None,
    exec_marks: bool,
    fail_fast: bool,
    cursor_file: str | None,
) -> int:
    """Print every change of the KEYs and prefixes as it happens; of all keys if none is given.

    Each event is a line with the op, the key, the revision and the value that was put, separated by
    tabs; control characters in values are escaped. --json prints everything, and adds a line "sync"
    where a --snapshot is complete, and "reset" where everything before it is void because the log no
    longer reaches back: a snapshot follows.

    After a broken connection the stream resumes, with nothing lost and nothing twice. --cursor FILE
    keeps the position for the next run, which goes on there, whatever --since or --snapshot say; an event
    counts as delivered once it is printed or its command has ended.

    --deliver latest is for readers that cannot keep up, as a slow CMD or terminal: they get the newest
    change of each key instead of all, each with how many it stands for ("skipped"), and are not cut off.
    With --sample TIME a key's first change comes at once, and the newest again at the end of each TIME.

    --exec runs CMD in a shell, one event at a time, with the value (the last one, of an expired key)
    on standard input and the event in KVSTORE_EVENT_OP, _KEY, _REVISION, _INDEX, _COUNT, _TIME,
    _CONTENT_TYPE, _VERSION, _EXPIRES_AT, _PREVIOUS_REVISION, _AUTHOR, _MESSAGE, _SKIPPED and _CURSOR. A
    command that fails is reported on standard error and the stream continues; the exit status is then 1. With
    --fail-fast it stops there, and the event stays undelivered. A CMD never outlives this command.
    With --exec-marks it also runs with the op "reset" where everything before is void, and "sync" where the
    present records are complete: a CMD that keeps a copy has to forget keys then that are gone.

    \b
    Examples:
      kvstore subscribe
      kvstore subscribe config/port --prefix user: --json
      kvstore subscribe --snapshot --prefix user: --exec './sync-user "$KVSTORE_EVENT_KEY"'
      kvstore subscribe --cursor /var/lib/mirror/position --json >> changes.ndjson
      kvstore subscribe sensor/7 --sample 1s
    """
    if shell_command is None and (fail_fast or exec_marks):
        raise click.UsageError(f"{'--fail-fast' if fail_fast else '--exec-marks'} needs --exec")
    if since is not None and not parameters.is_beginning(since):
        raise click.UsageError(
            f"--since {output.readable(since)} is neither a cursor, a revision nor a time, such as "
            "10m-ago or 2026-01-31T12:00:00Z"
        )
    if line_format is not None and (as_json or shell_command is not None):
        raise click.UsageError("--format excludes --json and --exec")
    configuration = configuration_of(context, "client", "stream")
    if shell_command is not None:
        exit_on_signals()
    with new_client(configuration) as service, _kept(cursor_file) as kept:
        start = _cursor_in(kept) or since
        if shell_command is not None:
            sink: Sink = ExecSink(
                shell_command,
                fail_fast=fail_fast,
                marks=exec_marks,
                begins_with_snapshot=snapshot and start is None,
            )
        else:
            sink = _printing(line_format, as_json=as_json, with_sync=snapshot)
        updates = change_stream.follow(
            service,
            [
                *parameters.query_of_changes(keys, prefixes, ops, values=not no_values),
                *_delivery(deliver, sample),
            ],
            change_stream.StreamPosition(start, snapshot and start is None),
            stall_ms=configuration["stall-timeout"],
            # a command of --exec may not write anything, and then needs no reader
            output=None if shell_command is not None else output.descriptor(),
            notice=output.talk,
            newest=deliver == "latest" or sample is not None,
        )
        with closing(updates):
            try:
                _deliver(updates, sink, count, kept)
            except KvError as error:
                cursor = error.details.get(change_stream.CURSOR)
                if cursor is None or kept is not None:
                    raise
                raise KvError(error.code, f"{error.message}; go on with --since {cursor}") from error
    return sink.status


def _kept(path: str | None) -> AbstractContextManager[PositionFile | None]:
    if path is None:
        return nullcontext()
    from kvstore_cli.files.position_file import PositionFile

    return closing(PositionFile(path, "the cursor"))


def _cursor_in(kept: PositionFile | None) -> str | None:
    """The cursor that was kept, if there is one; a usage error if the file holds anything else."""
    cursor = kept.read() if kept else None
    if kept and cursor and not parameters.is_cursor(cursor):
        raise click.UsageError(f"{kept.name} does not contain a cursor; remove it to start over")
    return cursor


def _delivery(deliver: str | None, sample: int | None) -> Query:
    if sample is None:
        return [] if deliver is None else [("deliver", deliver)]
    if deliver == "all":
        raise click.UsageError("--sample goes with --deliver latest, which it implies")
    return [("sample", f"{sample}ms")]


def _printing(line_format: LineFormat | None, *, as_json: bool, with_sync: bool) -> Sink:
    if line_format is not None:
        return FormatSink(line_format)
    return JsonSink(with_sync=with_sync) if as_json else TextSink()


def _deliver(
    updates: Iterable[change_stream.StreamUpdate], sink: Sink, count: int | None, kept: PositionFile | None
) -> None:
    """Deliver ``count`` events, or all, and keep the position after them."""
    following = False
    for update in updates:
        events = update.lines if update.kind in (change_stream.EVENTS, change_stream.SNAPSHOT) else []
        wanted = events[:count]
        for line in wanted:
            sink.event(line)
        if update.kind in (change_stream.SYNC, change_stream.RESET):
            sink.mark(update.lines[0])
        if update.kind == change_stream.SYNC and not following:
            following = True
            output.talk(f"following the changes after {update.cursor}")
        # not within a revision that --count cuts in two
        if kept and update.cursor and len(wanted) == len(events):
            kept.write(update.cursor)
        if count is not None:
            count -= len(wanted)
            if count == 0:
                return
