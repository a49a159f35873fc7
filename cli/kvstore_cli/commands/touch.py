"""``kvstore touch``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.completion import complete_key
from kvstore_cli.command_line.context import TIME, connected, seconds
from kvstore_cli.command_line.flags import KEY, Command, with_options
from kvstore_cli.commands.put import print_revision
from kvstore_cli.http_client.client import key_path


@click.command(cls=Command)
@click.argument("key", type=KEY, shell_complete=complete_key)
@click.option(
    "--ttl", type=TIME, metavar="TIME", required=True, help="Counted from now: 30, 30s, 5m, 2h, 7d, 500ms."
)
@click.option("--json", "as_json", is_flag=True, help="Print revision, version and expiry as JSON.")
@with_options("client")
@click.pass_context
def command(context: click.Context, key: str, ttl: int, as_json: bool) -> None:
    """Give KEY a new TTL and leave its value alone; prints the revision that this made.

    Exit status: 0, or 3 if there is no such key.

    \b
    Example:
      kvstore touch session:42 --ttl 30m
    """
    with connected(context) as service:
        made = service.request("POST", key_path("touch", key), [("ttl", seconds(ttl))]).json()
    print_revision(made, as_json=as_json)
