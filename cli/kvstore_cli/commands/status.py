"""``kvstore status``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from kvstore_cli import output
from kvstore_cli.client import connected
from kvstore_cli.flags import Command, with_options


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@with_options("client")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Say how the service is: version, revision, number of keys, sizes, limits.

    Exit status: 0; 6 if the service, or the daemon behind it, cannot be reached.

    \b
    Examples:
      kvstore status
      kvstore status --json | jq .revision
    """
    with connected(context) as service:
        status = service.request("GET", "/v1/status").json()
    if as_json:
        output.write_json(status)
    else:
        output.write_table(("NAME", "VALUE"), list(_flattened(status)))


def _flattened(fields: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", str(value)
