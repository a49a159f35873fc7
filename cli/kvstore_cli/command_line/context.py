"""What every command that asks the service begins with."""

from __future__ import annotations

from typing import Any

import click

from kvstore_cli.command_line.flags import KindType, given_flags
from kvstore_cli.config.options import DURATION
from kvstore_cli.config.resolve import Configuration, resolve
from kvstore_cli.http_client.client import Service
from kvstore_core.limits import MAX_TTL_SECONDS

_LONG_RETRY_MS = 60_000
TIME = KindType(DURATION)


def configured(context: click.Context, *parts: str) -> Configuration:
    """The settings of ``client`` and further parts."""
    return resolve(given_flags(context), "client", *parts)


def connected(context: click.Context) -> Service:
    """The service that the command line, the environment or the file names."""
    return service_of(configured(context))


def service_of(
    configuration: Configuration, at_most_ms: int | None = None, *, is_patient: bool = True
) -> Service:
    """The service that ``configuration`` names; ``at_most_ms`` shortens the time for an answer. Who does
    not have it be ``is_patient`` sees to ``retry-for``, or goes without."""
    timeout_ms, retry_ms = configuration["request-timeout"], configuration["retry-for"] or 0
    if at_most_ms is not None:
        timeout_ms, retry_ms = min(timeout_ms, at_most_ms), min(retry_ms, at_most_ms)
    return Service(
        configuration["url"],
        timeout_ms=timeout_ms,
        ca_file=configuration["ca-file"],
        retry_ms=retry_ms if is_patient else 0,
    )


def long_retry_ms(configuration: Configuration) -> int:
    """``retry-for`` of commands that take long and would have to begin anew."""
    retry_ms: int | None = configuration["retry-for"]
    return _LONG_RETRY_MS if retry_ms is None else retry_ms


def seconds(ms: int) -> str:
    """A TTL in the way the service's parameters take it; a usage error for one that it would refuse."""
    if ms > MAX_TTL_SECONDS * 1000:
        raise click.UsageError("a TTL is at most 100 years; without one a key stays for ever")
    return f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def exactly_one(given: dict[str, Any]) -> str:
    """The name of the one thing in ``given`` that is set; a usage error if it is none or several."""
    names = [name for name, value in given.items() if value not in (None, False)]
    if len(names) != 1:
        raise click.UsageError(f"give one of {', '.join(given)}" + (", not several" if names else ""))
    return names[0]
