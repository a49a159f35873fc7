"""``kvstore incr``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.completion import complete_key
from kvstore_cli.command_line.context import connected
from kvstore_cli.command_line.flags import KEY, Command, WholeNumber, with_options
from kvstore_cli.commands.put import condition
from kvstore_cli.http_client.client import key_path
from kvstore_cli.terminal import output


@click.command(cls=Command)
@click.argument("key", type=KEY, shell_complete=complete_key)
@click.argument("number", metavar="[N]", type=WholeNumber(-(2**63)), required=False)
@click.option("--by", type=WholeNumber(-(2**63)), metavar="N", help="The same as N.")
@click.option(
    "--if-revision",
    type=WholeNumber(0),
    metavar="REV",
    help="Only if the key still has revision REV; 0: only if there is no such key.",
)
@click.option("--json", "as_json", is_flag=True, help="Print value, revision and version as JSON.")
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
    """Add N, 1 if it is not given, to the whole number that KEY holds, and print the sum. N may be
    negative. A missing key counts from 0.

    This is atomic: of two at the same time, none is lost. TTL and media type stay.

    Exit status: 0, or 4 if the condition does not hold.

    \b
    Examples:
      kvstore incr visits
      kvstore incr stock:apples -3
    """
    if number is not None and by is not None:
        raise click.UsageError("N and --by are the same; give one")
    amount = next((given for given in (number, by) if given is not None), 1)
    headers = condition(if_revision)
    with connected(context) as service:
        made = service.request("POST", key_path("incr", key), [("by", str(amount))], headers=headers).json()
    output.write_json(made) if as_json else output.write_line(str(made["value"]))
