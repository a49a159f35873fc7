"""What every command that asks the service begins with."""

from __future__ import annotations

from typing import Any

import click

from kvstore_cli.configuration import Configuration, resolve
from kvstore_cli.flags import KindType, given_flags
from kvstore_cli.options import DURATION
from kvstore_cli.service import Service

TIME = KindType(DURATION)


def configured(context: click.Context, *parts: str) -> Configuration:
    """The settings of ``client`` and further parts."""
    return resolve(given_flags(context), "client", *parts)


def connected(context: click.Context) -> Service:
    """The service that the command line, the environment or the file names."""
    return service_of(configured(context))


def service_of(configuration: Configuration, at_most_ms: int | None = None) -> Service:
    """The service that ``configuration`` names; ``at_most_ms`` shortens the time for an answer."""
    timeout_ms = configuration["request-timeout"]
    if at_most_ms is not None:
        timeout_ms = min(timeout_ms, at_most_ms)
    return Service(configuration["url"], timeout_ms=timeout_ms, ca_file=configuration["ca-file"])


def seconds(ms: int) -> str:
    """A duration in the way the service's parameters take it."""
    return f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def exactly_one(given: dict[str, Any]) -> str:
    """The name of the one thing in ``given`` that is set; a usage error if it is none or several."""
    names = [name for name, value in given.items() if value not in (None, False)]
    if len(names) != 1:
        raise click.UsageError(f"give one of {', '.join(given)}" + (", not several" if names else ""))
    return names[0]
