"""``kvstore history``."""

from __future__ import annotations

from typing import Any

import click

from kvstore_cli.command_line.line_format import EVENT, LineFormat, format_option
from kvstore_cli.command_line.parameters import (
    WholeNumber,
    json_option,
    key_argument,
    min_revision_option,
    min_revision_query,
    stale_option,
)
from kvstore_cli.command_line.subcommand import reader_of, subcommand
from kvstore_cli.http_client.client import key_path
from kvstore_cli.terminal import output


@subcommand("client")
@key_argument
@click.option("--limit", type=WholeNumber(1), metavar="N", help="At most N events.  [default: all]")
@click.option("--before", type=WholeNumber(1), metavar="REV", help="Only events before revision REV.")
@stale_option
@min_revision_option
@json_option("One JSON object a line, with the values.")
@format_option([name for name in EVENT if name not in ("skipped", "cursor")])
def command(
    context: click.Context,
    key: str,
    limit: int | None,
    before: int | None,
    stale: bool,
    min_revision: int | None,
    as_json: bool,
    line_format: LineFormat | None,
) -> None:
    """Show what happened to KEY, newest first, as far back as the log goes.

    A line on standard error says so where there was more, which the log does not have any longer.

    Without --json: revision, time, op, and the value of a put; then, where any of them is known, the
    author and the message of each.

    Exit status: 0, or 3 if the log has no event of the key.

    \b
    Examples:
      kvstore history config/port
      kvstore history config/port --limit 1 --json
      kvstore history config/port --before 1042
    """
    if as_json and line_format is not None:
        raise click.UsageError("--json and --format exclude each other")
    query = min_revision_query(min_revision) + ([] if before is None else [("before", str(before))])
    with reader_of(context, stale=stale) as service:
        events = service.items(key_path("history", key), query, limit, "events")
        if as_json or line_format is not None:
            for event in events:
                output.write_json(event) if line_format is None else line_format.write(event)
        else:
            _write(list(events))
        if service.is_truncated:
            output.talk("the log does not reach further back")


def _write(events: list[dict[str, Any]]) -> None:
    head, rows = ["REVISION", "TIME", "OP", "VALUE"], [_row(event) for event in events]
    if any("author" in event or "message" in event for event in events):
        head += ["AUTHOR", "MESSAGE"]
        for event, row in zip(events, rows, strict=True):
            row += [event.get("author", "-"), event.get("message", "")]
    output.write_table(head, rows)


def _row(event: dict[str, Any]) -> list[str]:
    value = ""
    if event["op"] == "put":
        value = output.preview(output.value_of(event), event["content_type"])
    return [str(event["revision"]), event["time"], event["op"], value]
