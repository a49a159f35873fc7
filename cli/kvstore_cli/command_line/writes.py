"""How commands make a write, and print the revision that it made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from kvstore_cli.http_client.client import Query, ServiceClient, key_path
from kvstore_cli.terminal import output
from kvstore_core.limits import MAX_TTL_SECONDS
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE, TEXT_CONTENT_TYPE


def ttl_parameter(ms: int) -> tuple[str, str]:
    """The query parameter for a TTL; a usage error for one that the service would refuse."""
    if ms > MAX_TTL_SECONDS * 1000:
        import click  # not for a mistake that is not made

        raise click.UsageError("a TTL is at most 100 years; without one a key stays for ever")
    return "ttl", f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def condition_headers(if_revision: int | None) -> dict[str, str]:
    """The headers that make a write conditional; revision 0 means that the key must not exist."""
    if if_revision is None:
        return {}
    return {"If-Match": f'"{if_revision}"'} if if_revision else {"If-None-Match": "*"}


def condition_query(if_value: str | None, guards: Sequence[str]) -> list[tuple[str, str]]:
    """The query parameters that make a write conditional."""
    return [
        *(() if if_value is None else (("if_value", if_value),)),
        *(("guard", guard) for guard in guards),
    ]


def guard_check(guard: str) -> dict[str, Any]:
    """The op of a batch that checks what ``guard`` says."""
    key, _, revision = guard.rpartition("@")
    return {"op": "check", "key": key, "if_revision": int(revision)}


def message_headers(message: str | None) -> dict[str, str]:
    """The header that says why a change is made."""
    return {} if message is None else {"X-Kvstore-Message": quote(message, safe="")}


def read_value(value: str, service: ServiceClient) -> bytes:
    """The bytes that the argument ``value`` means: standard input for ``-``, a file for ``@FILE``, else
    its own. Raises a usage error for a file that cannot be read, and ``value_too_large``."""
    if value == "@":
        import click  # as above

        raise click.UsageError("@ needs a file name after it; --literal stores '@' itself")
    if value != "-" and not value.startswith("@"):
        return os.fsencode(value)
    from kvstore_cli.files.input_file import read_limited

    return read_limited(value.removeprefix("@"), lambda: _value_limit(service))


def _value_limit(service: ServiceClient) -> int:
    limit: int = service.request("GET", "/v1/status").json()["limits"]["value_bytes"]
    return limit


def stored(
    service: ServiceClient,
    key: str,
    body: bytes,
    content_type: str | None = None,
    query: Query = (),
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Store ``body`` under ``key``, as text if it is some and no type is given; what the service answered."""
    sent = {"Content-Type": content_type or _guess_type(body), **(headers or {})}
    made: dict[str, Any] = service.request("PUT", key_path("kv", key), query, body=body, headers=sent).json()
    return made


def _guess_type(body: bytes) -> str:
    try:
        body.decode()
    except UnicodeDecodeError:
        return DEFAULT_CONTENT_TYPE
    return TEXT_CONTENT_TYPE


def numbered(
    service: ServiceClient,
    prefix: str,
    body: bytes,
    content_type: str | None,
    query: Query,
    message: str | None,
) -> dict[str, Any]:
    """Store ``body`` under a key that begins with ``prefix`` and has a number of its own, as :func:`stored`;
    what the service answered."""
    sent = {"Content-Type": content_type or _guess_type(body), **message_headers(message)}
    made: dict[str, Any] = service.request(
        "POST", key_path("kv", prefix), query, body=body, headers=sent
    ).json()
    return made


def print_revision(made: dict[str, object], *, as_json: bool) -> None:
    """Print what a write made: JSON, a bare revision into a pipe, or words on a terminal."""
    words = f"revision {made['revision']}" if output.on_terminal() else str(made["revision"])
    _print_made(made, words, as_json=as_json)


def print_key(made: dict[str, Any], *, as_json: bool) -> None:
    """Print the key that a write made, as a line or as JSON."""
    key = made["key"]
    _print_made(made, output.visible(key) if output.on_terminal() else key, as_json=as_json)


def _print_made(made: dict[str, object], line: str, *, as_json: bool) -> None:
    try:
        output.write_json(made) if as_json else output.write_line(line)
    except output.OutputError as error:
        message = f"revision {made['revision']} was made, but {error.message}"
        raise output.OutputError(message) from error
