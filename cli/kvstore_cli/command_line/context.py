"""What a command gets from its flags: the configuration, a client for the service, the data folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvstore_cli.command_line.flags import given_flags
from kvstore_cli.config.resolve import Configuration, resolve
from kvstore_cli.http_client.client import ServiceClient

if TYPE_CHECKING:
    from pathlib import Path

_LONG_RETRY_MS = 60_000


def configuration_of(context: click.Context, *parts: str) -> Configuration:
    """The settings of ``client`` and further parts."""
    return resolve(given_flags(context), "client", *parts)


def client_of(context: click.Context) -> ServiceClient:
    """A client for the service that the flags, the environment or the configuration file name."""
    return new_client(configuration_of(context))


def new_client(
    configuration: Configuration, at_most_ms: int | None = None, *, retries: bool = True
) -> ServiceClient:
    """A client for the service that ``configuration`` names. ``at_most_ms`` caps the time for an answer.
    Without ``retries``, ``retry-for`` is ignored: the caller retries by itself, or not at all."""
    timeout_ms, retry_ms = configuration["request-timeout"], configuration["retry-for"] or 0
    if at_most_ms is not None:
        timeout_ms, retry_ms = min(timeout_ms, at_most_ms), min(retry_ms, at_most_ms)
    return ServiceClient(
        configuration["url"],
        timeout_ms=timeout_ms,
        ca_file=configuration["ca-file"],
        retry_ms=retry_ms if retries else 0,
    )


def long_retry_ms(configuration: Configuration) -> int:
    """``retry-for`` of commands that run for long: a minute unless it is set."""
    retry_ms: int | None = configuration["retry-for"]
    return _LONG_RETRY_MS if retry_ms is None else retry_ms


def data_folder(context: click.Context) -> Path:
    """The folder of the store that a command works on."""
    from pathlib import Path  # slow to import, and needed by few commands

    return Path(resolve(given_flags(context), "store").data_folder())
