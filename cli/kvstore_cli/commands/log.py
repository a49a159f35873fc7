"""``kvstore log`` and ``blame``: who changed what, when, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.subcommand import reader_of, subcommand
from kvstore_cli.terminal import output

_ROWS_AT_ONCE = 1000
"""How many rows of a long table are aligned with each other, so that it begins before it is all read."""


@subcommand("client")
@parameters.start_of_keys_argument
@parameters.prefix_option("Same as PREFIX.")
@click.option(
    "--limit", "-n", type=parameters.WholeNumber(1), metavar="N", help="At most N changes.  [default: all]"
)
@click.option(
    "--before", type=parameters.WholeNumber(1), metavar="REV", help="Only changes before revision REV."
)
@parameters.stale_option
@parameters.json_option("One JSON object a line, without the values.")
def log(
    context: click.Context,
    start_of_keys: str | None,
    prefix: str | None,
    limit: int | None,
    before: int | None,
    stale: bool,
    as_json: bool,
) -> None:
    """Show the changes of all keys that begin with PREFIX, or of all keys, newest first, as far back as
    the service's log goes: revision, time, author, op, key, and the message that was given with it.

    The author is the identity that made the change. It is - where that is not known: while access is
    off, and for a key that expired. 'kvstore history' shows the values of one key.

    \b
    Examples:
      kvstore log -n 20
      kvstore log config/
      kvstore log --prefix config/ --before 1042 --json
    """
    prefix = parameters.prefix_of(start_of_keys, prefix)
    query = [("prefix", prefix or ""), ("values", "0")]
    if before is not None:
        query.append(("before", str(before)))
    with reader_of(context, stale=stale) as service:
        events = service.items("/v1/history", query, limit, "events")
        _write(_LOG_HEAD, events, _log_row, as_json=as_json)


@subcommand("client")
@parameters.start_of_keys_argument
@parameters.prefix_option("Same as PREFIX.")
@parameters.stale_option
@parameters.json_option("One JSON object a line, without the values.")
def blame(
    context: click.Context, start_of_keys: str | None, prefix: str | None, stale: bool, as_json: bool
) -> None:
    """Show for each key that begins with PREFIX, or for each key, who changed it last: revision,
    when the value was written, author, key, and the message that was given with the change.

    A new TTL is a change too, with an author and a message, but leaves the time as it is.

    \b
    Examples:
      kvstore blame config/
      kvstore blame --json | jq -r 'select(.author == "deploy") | .key'
    """
    prefix = parameters.prefix_of(start_of_keys, prefix)
    with reader_of(context, stale=stale) as service:
        records = service.items("/v1/kv", [("prefix", prefix or ""), ("keys", "1")])
        _write(_BLAME_HEAD, records, _blame_row, as_json=as_json)


_LOG_HEAD = ("REVISION", "TIME", "AUTHOR", "OP", "KEY", "MESSAGE")
_BLAME_HEAD = ("REVISION", "MODIFIED", "AUTHOR", "KEY", "MESSAGE")


def _log_row(event: dict[str, Any]) -> tuple[str, ...]:
    return str(event["revision"]), event["time"], _author(event), event["op"], *_what(event)


def _blame_row(record: dict[str, Any]) -> tuple[str, ...]:
    return str(record["revision"]), record["modified_at"], _author(record), *_what(record)


def _author(change: dict[str, Any]) -> str:
    author: str = change.get("author", "-")
    return author


def _what(change: dict[str, Any]) -> tuple[str, str]:
    # a key may hold tabs and line feeds, and is not the last column
    return output.visible(change["key"]), change.get("message", "")


def _write(head: Sequence[str], changes: Iterable[dict[str, Any]], row: Any, *, as_json: bool) -> None:
    if as_json:
        for change in changes:
            output.write_json(change)
        return
    left = iter(changes)
    while some := list(islice(left, _ROWS_AT_ONCE)):
        output.write_table(head, [row(change) for change in some])
        head = ()
