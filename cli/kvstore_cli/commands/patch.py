"""``kvstore patch``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.completion import complete_key, complete_value
from kvstore_cli.command_line.context import TIME, connected, seconds
from kvstore_cli.command_line.flags import KEY, Command, WholeNumber, with_options
from kvstore_cli.commands.put import condition, given_value, print_revision
from kvstore_cli.http_client.client import key_path
from kvstore_core.media_types import MERGE_PATCH


@click.command(cls=Command)
@click.argument("key", type=KEY, shell_complete=complete_key)
@click.argument("patch", shell_complete=complete_value)
@click.option("--ttl", type=TIME, metavar="TIME", help="A new TTL.  [default: the key keeps the one it has]")
@click.option(
    "--if-revision",
    type=WholeNumber(0),
    metavar="REV",
    help="Only if the key still has revision REV; 0: only if there is no such key.",
)
@click.option("--json", "as_json", is_flag=True, help="Print key, revision and version as JSON.")
@with_options("client")
@click.pass_context
def command(
    context: click.Context, key: str, patch: str, ttl: int | None, if_revision: int | None, as_json: bool
) -> None:
    """Merge PATCH into the JSON value of KEY, and print the revision that this made.

    PATCH is a JSON merge patch (RFC 7396): its members replace those of the value, null removes one,
    and what it does not name stays. - reads it from standard input, @FILE from a file. It is applied
    whole, however many write at the same time. A missing key is made.

    A patch whose answer was lost is not repeated by itself: somebody may have changed the value since.

    Exit status: 0; 4 if the condition does not hold; 1 if the value or PATCH is not JSON.

    \b
    Examples:
      kvstore patch config '{"port": 8080, "debug": null}'
      kvstore patch config @changes.json --if-revision 1042
      jq -n '{seen: now}' | kvstore patch user:42 -
    """
    query = [] if ttl is None else [("ttl", seconds(ttl))]
    headers = {"Content-Type": MERGE_PATCH, **condition(if_revision)}
    with connected(context) as service:
        body = given_value(patch, service)
        made = service.request("PATCH", key_path("kv", key), query, body=body, headers=headers).json()
    print_revision(made, as_json=as_json)
