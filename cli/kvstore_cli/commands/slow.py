"""``kvstore slow``: the last requests that took long."""

from __future__ import annotations

from typing import Any

import click

from kvstore_cli.command_line.parameters import WholeNumber, json_option
from kvstore_cli.command_line.subcommand import client_of, subcommand
from kvstore_cli.terminal import output
from kvstore_cli.terminal.humanize import NOTHING, duration, size
from kvstore_core.limits import MAX_PAGE

_HEAD = (
    *("TIME", "TOOK", "SIDE", "DAEMON", "CLIENT", "QUEUED"),
    *("STATUS", "BYTES", "ADDRESS", "NAME", "REQUEST"),
)


@subcommand("client")
@click.option(
    "--limit",
    type=WholeNumber(1, MAX_PAGE),
    default=20,
    show_default=True,
    metavar="N",
    help="The most that are shown.",
)
@json_option("One JSON object a line.")
def command(context: click.Context, limit: int, as_json: bool) -> None:
    """Print the last requests that took as long as --slow-log of the service says (100 ms), or longer, the
    newest first.

    SIDE says who measured: the HTTP facade, from when a request was there to the end of its answer, or the
    daemon, which also has the requests of native clients and those of the facade. DAEMON is how long the
    facade waited for the daemon, CLIENT how long for the client to take the answer, QUEUED how long a request
    waited for its turn in the daemon. Keys are shown, values never. Waits and streams are not among them.

    It needs the grant admin. Each worker, and the daemon, keeps its last 128.

    \b
    Examples:
      kvstore slow
      kvstore slow --limit 1000 --json | jq -s 'max_by(.seconds)'
    """
    with client_of(context) as service:
        found = service.request("GET", "/v1/slow", [("limit", str(limit))]).json()
    if as_json:
        for row in found["requests"]:
            output.write_json(row)
    else:
        output.write_table(_HEAD, [_row(row) for row in found["requests"]])
    if found["unheard"]:
        output.talk(f"did not answer, so what they know is missing: {', '.join(found['unheard'])}")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["time"],
        duration(row["seconds"]),
        row["side"],
        duration(row["daemon_seconds"]),
        duration(row["client_seconds"]),
        duration(row["queued_seconds"]),
        NOTHING if row["status"] is None else str(row["status"]),
        size(row["bytes"]),
        row["address"] or NOTHING,
        row["name"] or NOTHING,
        output.shown(row["what"]),
    )
