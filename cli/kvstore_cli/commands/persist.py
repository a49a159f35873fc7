"""``kvstore persist``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.context import client_of
from kvstore_cli.command_line.flags import with_options
from kvstore_cli.command_line.parameters import Subcommand, json_option, key_argument
from kvstore_cli.command_line.writes import print_revision
from kvstore_cli.http_client.client import key_path


@click.command(cls=Subcommand)
@key_argument
@json_option("Print revision and version as JSON.")
@with_options("client")
@click.pass_context
def command(context: click.Context, key: str, as_json: bool) -> None:
    """Remove the TTL of KEY, so that it does not expire; prints the new revision.

    Exit status: 0, or 3 if there is no such key.

    \b
    Example:
      kvstore persist session:42
    """
    with client_of(context) as service:
        made = service.request("POST", key_path("persist", key)).json()
    print_revision(made, as_json=as_json)
