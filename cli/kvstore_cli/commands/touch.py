"""``kvstore touch``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.context import client_of
from kvstore_cli.command_line.flags import with_options
from kvstore_cli.command_line.parameters import Subcommand, json_option, key_argument, ttl_option
from kvstore_cli.command_line.writes import print_revision, ttl_parameter
from kvstore_cli.http_client.client import key_path


@click.command(cls=Subcommand)
@key_argument
@ttl_option("Counted from now: 30, 30s, 5m, 2h, 7d, 500ms.", required=True)
@json_option("Print revision, version and expiry as JSON.")
@with_options("client")
@click.pass_context
def command(context: click.Context, key: str, ttl: int, as_json: bool) -> None:
    """Give KEY a new TTL and keep its value; prints the new revision.

    Exit status: 0, or 3 if there is no such key.

    \b
    Example:
      kvstore touch session:42 --ttl 30m
    """
    with client_of(context) as service:
        made = service.request("POST", key_path("touch", key), [ttl_parameter(ttl)]).json()
    print_revision(made, as_json=as_json)
