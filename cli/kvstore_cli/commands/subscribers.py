"""``kvstore subscribers`` and ``kvstore kick``: who is subscribed, and the end of one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from kvstore_cli.command_line.parameters import TEXT, WholeNumber, json_option
from kvstore_cli.command_line.subcommand import client_of, subcommand
from kvstore_cli.terminal import output
from kvstore_cli.terminal.humanize import NOTHING, age, count, size
from kvstore_core.errors import EXIT_DONE, KvError
from kvstore_core.limits import MAX_PAGE

_HEAD = ("ID", "ADDRESS", "NAME", "SINCE", "SENT", "WAITING", "LAG", "BLOCKED", "FILTERS")


@subcommand("client")
@click.option(
    "--limit", type=WholeNumber(1, MAX_PAGE), metavar="N", help="The most that are shown.  [default: 1000]"
)
@json_option("One JSON object a line.")
def subscribers(context: click.Context, limit: int | None, as_json: bool) -> None:
    """Print who is subscribed, those for whom most waits first: event streams over HTTP, whose ids begin with
    h, and native subscriptions over ZeroMQ, whose ids begin with n.

    WAITING is what the service and its system keep until the subscriber takes it; of a native one the
    service does not know its own part (+?). LAG is how many revisions a stream is behind at most, BLOCKED
    since when it has not taken all that waits. FILTERS are the prefixes and keys, '*' for every key.

    It needs the grant admin. The HTTP facade is a native subscriber itself.

    \b
    Examples:
      kvstore subscribers
      kvstore subscribers --json | jq 'select(.lag > 1000) | .address'
    """
    query = [] if limit is None else [("limit", str(limit))]
    with client_of(context) as service:
        found = service.request("GET", "/v1/subscribers", query).json()
    rows = found["subscribers"]
    if as_json:
        for row in rows:
            output.write_json(row)
    else:
        output.write_table(_HEAD, [_row(row) for row in rows])
    if len(rows) < found["count"]:
        output.talk(f"these are {count(len(rows))} of {count(found['count'])}, those for whom most waits")
    if found["unheard"]:
        output.talk(f"did not answer, so what they know is missing: {', '.join(found['unheard'])}")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(row["since"])).total_seconds()
    waiting = size(row["queued_bytes"] + (row["unsent_bytes"] or 0))
    return (
        row["id"],
        row["address"] or NOTHING,
        row["name"] or NOTHING,
        age(max(0.0, seconds)),
        size(row["sent_bytes"]),
        f"{waiting} +?" if row["unsent_bytes"] is None else waiting,
        count(row["lag"]),
        age(row["blocked_seconds"]),
        _filters(row),
    )


def _filters(row: dict[str, Any]) -> str:
    if row["filters"] is None:
        return "?"
    shown = [f"{prefix}*" for prefix in row["prefixes"]] + row["keys"]
    more = row["filters"] - len(shown)
    return output.shown(" ".join(shown)) + (f" and {more} more" if more else "") or NOTHING


@subcommand("client")
@click.argument("ids", type=TEXT, nargs=-1, required=True, metavar="ID...")
def kick(context: click.Context, ids: tuple[str, ...]) -> int:
    """End the streams or native subscriptions with these IDs, as 'kvstore subscribers' prints them.

    That is no ban: a client comes back, from where it was, and misses nothing. To keep one out, take its
    grants away, which 'kvstore token ungrant' and 'kvstore token revoke' do. It needs the grant admin, and
    the log of the service has who did it.

    A subscriber that is not there is reported and does not stop the others.

    Exit status: 0; 3 if there is no such subscriber.

    \b
    Examples:
      kvstore kick h48211
      kvstore subscribers --json | jq -r 'select(.lag > 1000) | .id' | xargs -r kvstore kick
    """
    from kvstore_core.operations import is_subscriber_id

    status = EXIT_DONE
    with client_of(context) as service:
        for each in ids:
            try:
                if not is_subscriber_id(each):
                    what = output.readable(each)
                    raise KvError(
                        "not_found", f"'{what}' is no subscriber's id; 'kvstore subscribers' lists them"
                    )
                service.request("DELETE", f"/v1/subscribers/{each}", is_once=True)
            except KvError as error:
                if error.code != "not_found":
                    raise
                output.talk(error.message)
                status = error.row.exit
            else:
                output.write_line(f"kicked {each}")
    return status
