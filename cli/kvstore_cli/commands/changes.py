"""``kvstore changes``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import pairwise
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.line_format import EVENT, LineFormat, format_option
from kvstore_cli.command_line.subcommand import reader_of, subcommand
from kvstore_cli.http_client.client import SLICE_SECONDS, Query, ServiceClient
from kvstore_cli.subscribe.sinks import FormatSink, JsonSink, Sink, TextSink
from kvstore_cli.terminal import output
from kvstore_core.errors import KvError

if TYPE_CHECKING:
    from kvstore_cli.files.position_file import PositionFile

_MOST_EVENTS = 1000
"""Of a page."""


@subcommand("client")
@parameters.keys_argument
@click.option(
    "--since",
    required=True,
    metavar="C",
    shell_complete=parameters.complete_value,
    help="After the cursor, revision or time C: 10m-ago, 2026-01-31T12:00:00Z; 0: all that the log has; "
    "@FILE: where the last run ended.",
)
@parameters.prefixes_option("Keys that begin with P")
@parameters.ops_option
@click.option(
    "--limit",
    type=parameters.WholeNumber(1),
    metavar="N",
    help="At most N events, but all of a revision.  [default: all]",
)
@click.option(
    "--wait",
    type=parameters.TIME,
    metavar="TIME",
    help="If there is no change yet, wait up to this long for one: 30, 30s, 5m.",
)
@click.option("--values/--no-values", default=True, help="Print the values.  [default: --values]")
@click.option("--prev", is_flag=True, help="With --json: also the record that was replaced.")
@parameters.stale_option
@parameters.json_option("One JSON object a line.")
@format_option([name for name in EVENT if name != "skipped"])
def command(
    context: click.Context,
    keys: tuple[str, ...],
    since: str,
    prefixes: tuple[str, ...],
    ops: tuple[str, ...],
    limit: int | None,
    wait: int | None,
    values: bool,
    prev: bool,
    stale: bool,
    as_json: bool,
    line_format: LineFormat | None,
) -> None:
    """Print what has changed since C, of the KEYs and prefixes, of all keys if none is given, and end.

    The lines are those of 'kvstore subscribe'. What was written together comes together. A line on
    standard error says where to go on.

    With --since @FILE the position is kept in FILE, for the next run, so a job that runs from time to time
    misses nothing: it is moved on once the lines are written. The first run makes FILE, and prints
    nothing: it begins now. To begin elsewhere, write a cursor or a revision into FILE. A second run waits
    up to 10 s for the first to end.

    Exit status: 0, whether anything has changed or not; 1 if the log does not reach back to C.

    \b
    Examples:
      kvstore changes --since 10m-ago
      kvstore changes --since @/var/lib/mirror/position --prefix user: --json | ./apply
      kvstore changes --since 1042 --wait 30s config/port
    """
    query = parameters.query_of_changes(keys, prefixes, ops, values=values)
    if prev:
        query.append(("prev", "1"))
    if as_json and line_format is not None:
        raise click.UsageError("--json and --format exclude each other")
    sink: Sink = JsonSink(with_sync=False) if as_json else TextSink()
    if line_format is not None:
        sink = FormatSink(line_format)
    with _kept(since) as kept, reader_of(context, stale=stale) as service:
        begin = since if kept is None else _cursor_in(kept)
        if kept is None and not parameters.is_beginning(begin):
            raise click.UsageError(
                f"--since {output.readable(begin)} is neither a cursor, a revision nor a time, such as "
                "10m-ago or 2026-01-31T12:00:00Z"
            )
        _print_pages(service, query, begin, limit, wait, sink, kept)


def _kept(since: str) -> AbstractContextManager[PositionFile | None]:
    if not since.startswith("@"):
        return nullcontext()
    if since == "@":
        raise click.UsageError("--since @ needs the name of a file: @FILE")
    from kvstore_cli.files.position_file import PositionFile

    return closing(PositionFile(since[1:], "the position"))


def _cursor_in(kept: PositionFile) -> str:
    """What was kept, empty at the first run; a usage error if the file holds anything else."""
    cursor = kept.read()
    if cursor and not parameters.is_cursor(cursor):
        raise click.UsageError(f"{kept.name} does not contain a cursor; remove it to begin now")
    return cursor


def _print_pages(
    service: ServiceClient,
    query: Query,
    begin: str,
    limit: int | None,
    wait: int | None,
    sink: Sink,
    kept: PositionFile | None,
) -> None:
    """Print page after page, and keep the position behind each."""
    deadline = monotonic() + (wait or 0) / 1000
    cursor, is_waiting, more = begin, wait is not None, True
    while more and limit != 0:
        page = _page(service, query, cursor, limit, deadline if is_waiting else None, kept)
        for line in _lines(page):
            sink.event(line)
        cursor = page["cursor"]
        if kept is not None:
            kept.write(cursor)
        if limit is not None:
            limit = max(0, limit - len(page["events"]))
        is_waiting = is_waiting and not page["events"] and monotonic() < deadline
        more = page["more"] or is_waiting
    if kept is None:
        output.talk(f"go on with --since {cursor}")
    elif not begin:
        output.talk(f"{kept.name} keeps the position from now on")


def _page(
    service: ServiceClient,
    query: Query,
    cursor: str,
    limit: int | None,
    deadline: float | None,
    kept: PositionFile | None,
) -> dict[str, Any]:
    asked = [*query, ("limit", str(min(_MOST_EVENTS, limit or _MOST_EVENTS)))]
    if cursor:
        asked.append(("since", cursor))
    seconds = 0.0
    if deadline is not None:
        seconds = min(SLICE_SECONDS, max(0.0, deadline - monotonic()))
        asked.append(("wait", f"{seconds * 1000:.0f}ms"))
    try:
        page: dict[str, Any] = service.request("GET", "/v1/changes", asked, wait_seconds=seconds).json()
    except KvError as error:
        if error.code != "cursor_expired" or kept is None:
            raise
        advice = f"remove {kept.name} to begin now, or write {error.details.get('floor')} into it"
        raise KvError(error.code, f"{error.message}; {advice}", **error.details) from error
    return page


def _lines(page: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events as they are in a stream: the last of each revision has the cursor behind it."""
    epoch = page["cursor"].partition("-")[2]
    for event, following in pairwise((*page["events"], None)):
        line = {"event": event["op"], **event}
        if following is None or following["revision"] != event["revision"]:
            line["cursor"] = f"{event['revision']}-{epoch}"
        yield line
