"""``kvstore persist``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.completion import complete_key
from kvstore_cli.command_line.context import connected
from kvstore_cli.command_line.flags import KEY, Command, with_options
from kvstore_cli.commands.put import print_revision
from kvstore_cli.http_client.client import key_path


@click.command(cls=Command)
@click.argument("key", type=KEY, shell_complete=complete_key)
@click.option("--json", "as_json", is_flag=True, help="Print revision and version as JSON.")
@with_options("client")
@click.pass_context
def command(context: click.Context, key: str, as_json: bool) -> None:
    """Take the TTL of KEY away, so that it stays; prints the revision that this made.

    Exit status: 0, or 3 if there is no such key.

    \b
    Example:
      kvstore persist session:42
    """
    with connected(context) as service:
        made = service.request("POST", key_path("persist", key)).json()
    print_revision(made, as_json=as_json)
