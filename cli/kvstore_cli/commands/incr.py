"""``kvstore incr``."""

from __future__ import annotations

import click

from kvstore_cli import output
from kvstore_cli.client import connected
from kvstore_cli.completion import complete_key
from kvstore_cli.flags import KEY, Command, WholeNumber, with_options
from kvstore_cli.service import key_path


@click.command(cls=Command)
@click.argument("key", type=KEY, shell_complete=complete_key)
@click.option(
    "--by",
    type=WholeNumber(-(2**63)),
    default=1,
    show_default=True,
    metavar="N",
    help="What to add; may be negative.",
)
@click.option("--json", "as_json", is_flag=True, help="Print value, revision and version as JSON.")
@with_options("client")
@click.pass_context
def command(context: click.Context, key: str, by: int, as_json: bool) -> None:
    """Add to the whole number that KEY holds, and print the sum. A missing key counts from 0.

    This is atomic: of two at the same time, none is lost. TTL and media type stay.

    \b
    Examples:
      kvstore incr visits
      kvstore incr stock:apples --by -3
    """
    with connected(context) as service:
        made = service.request("POST", key_path("incr", key), [("by", str(by))]).json()
    output.write_json(made) if as_json else output.write_line(str(made["value"]))
