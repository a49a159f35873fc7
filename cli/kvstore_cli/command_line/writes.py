"""How commands make a write, and print the revision that it made."""

from __future__ import annotations

import os
from urllib.parse import quote

import click

from kvstore_cli.http_client.client import ServiceClient
from kvstore_cli.terminal import output
from kvstore_core.limits import MAX_TTL_SECONDS


def ttl_parameter(ms: int) -> tuple[str, str]:
    """The query parameter for a TTL; a usage error for one that the service would refuse."""
    if ms > MAX_TTL_SECONDS * 1000:
        raise click.UsageError("a TTL is at most 100 years; without one a key stays for ever")
    return "ttl", f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def condition_headers(if_revision: int | None) -> dict[str, str]:
    """The headers that make a write conditional; revision 0 means that the key must not exist."""
    if if_revision is None:
        return {}
    return {"If-Match": f'"{if_revision}"'} if if_revision else {"If-None-Match": "*"}


def message_headers(message: str | None) -> dict[str, str]:
    """The header that says why a change is made."""
    return {} if message is None else {"X-Kvstore-Message": quote(message, safe="")}


def read_value(value: str, service: ServiceClient) -> bytes:
    """The bytes that the argument ``value`` means: standard input for ``-``, a file for ``@FILE``, else
    its own. Raises a usage error for a file that cannot be read, and ``value_too_large``."""
    if value == "@":
        raise click.UsageError("@ needs a file name after it; --literal stores '@' itself")
    if value != "-" and not value.startswith("@"):
        return os.fsencode(value)
    from kvstore_cli.files.input_file import read_limited

    return read_limited(value.removeprefix("@"), lambda: _value_limit(service))


def _value_limit(service: ServiceClient) -> int:
    limit: int = service.request("GET", "/v1/status").json()["limits"]["value_bytes"]
    return limit


def print_revision(made: dict[str, object], *, as_json: bool) -> None:
    """Print what a write made: JSON, a bare revision into a pipe, or words on a terminal."""
    try:
        if as_json:
            output.write_json(made)
        elif output.on_terminal():
            output.write_line(f"revision {made['revision']}")
        else:
            output.write_line(str(made["revision"]))
    except output.OutputFailed as error:
        message = f"revision {made['revision']} was made, but {error.message}"
        raise output.OutputFailed(message) from error
