"""``kvstore incr``."""

from __future__ import annotations

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.context import client_of
from kvstore_cli.command_line.flags import with_options
from kvstore_cli.command_line.writes import condition_headers
from kvstore_cli.http_client.client import key_path
from kvstore_cli.terminal import output


@click.command(cls=parameters.Subcommand)
@parameters.key_argument
@click.argument("number", metavar="[N]", type=parameters.WholeNumber(-(2**63)), required=False)
@click.option("--by", type=parameters.WholeNumber(-(2**63)), metavar="N", help="Same as N.")
@parameters.if_revision_option
@parameters.json_option("Print value, revision and version as JSON.")
@with_options("client")
@click.pass_context
def command(
    context: click.Context,
    key: str,
    number: int | None,
    by: int | None,
    if_revision: int | None,
    as_json: bool,
) -> None:
    """Add N (by default 1) to the whole number in KEY, and print the sum. N may be negative. A missing
    key starts from 0.

    This is atomic: concurrent increments are never lost. The key keeps its TTL and media type.

    Exit status: 0, or 4 if the condition does not hold.

    \b
    Examples:
      kvstore incr visits
      kvstore incr stock:apples -3
    """
    if number is not None and by is not None:
        raise click.UsageError("give N or --by, not both")
    amount = next((given for given in (number, by) if given is not None), 1)
    headers = condition_headers(if_revision)
    with client_of(context) as service:
        made = service.request("POST", key_path("incr", key), [("by", str(amount))], headers=headers).json()
    output.write_json(made) if as_json else output.write_line(str(made["value"]))
