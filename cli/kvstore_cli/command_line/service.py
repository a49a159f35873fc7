"""Clients for the service that a command asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvstore_cli.config.resolve import Configuration, resolve
from kvstore_cli.config.token_source import TokenSource
from kvstore_cli.http_client.client import ServiceClient


def client_for(flags: Mapping[str, Any]) -> ServiceClient:
    """A client for the service that the flags, the environment or the configuration file name."""
    return new_client(resolve(flags, "client"))


def new_client(
    configuration: Configuration,
    at_most_ms: int | None = None,
    *,
    retries: bool = True,
    tokens: TokenSource | None = None,
    is_anonymous: bool = False,
) -> ServiceClient:
    """A client for the service that ``configuration`` names, with its token, that of ``tokens``, or, if it
    ``is_anonymous``, without one. ``at_most_ms`` caps the time for an answer. Without ``retries``,
    ``retry-for`` is ignored: the caller retries by itself, or not at all."""
    timeout_ms, retry_ms = configuration["request-timeout"], configuration["retry-for"] or 0
    if at_most_ms is not None:
        timeout_ms, retry_ms = min(timeout_ms, at_most_ms), min(retry_ms, at_most_ms)
    return ServiceClient(
        configuration["url"],
        timeout_ms=timeout_ms,
        ca_file=configuration["ca-file"],
        checks_certificate=not configuration.asks_itself,
        retry_ms=retry_ms if retries else 0,
        tokens=None if is_anonymous else tokens or TokenSource(configuration),
    )
