"""``kvstore status``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
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
    """Say how the service is: version, revision, number of keys, sizes, commits, limits.

    A histogram is told by its mean and by what 99% of its values do not exceed; --json has all of it.

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
        if isinstance(value, dict) and "bounds" in value:
            yield f"{above}{name}", _summary(value)
        elif isinstance(value, dict):
            yield from _flattened(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", "-" if value is None else str(value)


def _summary(histogram: dict[str, Any]) -> str:
    """A histogram in a few words: its mean, and what 99 of 100 values do not exceed."""
    bounds, counts = histogram["bounds"], histogram["counts"]
    number = sum(counts)
    if not number:
        return "-"
    seen = accumulate(counts)
    at = next(index for index, below in enumerate(seen) if below >= 0.99 * number)
    most = f"at most {bounds[at]:g}" if at < len(bounds) else f"above {bounds[-1]:g}"
    return f"mean {histogram['sum'] / number:.3g}, 99% {most}"
