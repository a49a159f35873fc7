"""How commands read one record, and print it, or many as a table."""

from __future__ import annotations

from typing import Any

from kvstore_cli.http_client.client import Query, ServiceClient, key_path
from kvstore_cli.terminal import output
from kvstore_core.errors import KvError

RECORD_HEAD = ("REVISION", "VERSION", "MODIFIED", "EXPIRES", "TYPE", "KEY")


def print_one(
    service: ServiceClient, key: str, query: Query, *, raw: bool, as_json: bool, default: str | None
) -> None:
    """Print the value of ``key``, ``raw`` or its record as JSON; ``default`` if there is none. Raises the
    KvError."""
    path = key_path("kv", key)
    try:
        if as_json:
            output.write_json(service.request("GET", path, [*query, ("format", "json")]).json())
            return
        answer = service.request("GET", path, query, headers={"Accept": "*/*"})
        value, content_type = answer.body, answer.headers.get("Content-Type", "")
    except KvError as error:
        if error.code != "not_found" or default is None:
            raise naming_prefix(error, key) from error
        print_default(key, default, raw=raw, as_json=as_json)
    else:
        output.write_value(value, content_type, raw=raw)


def print_default(key: str, default: str, *, raw: bool, as_json: bool) -> None:
    """Print what is to be there for ``key`` where there is no record."""
    if as_json:
        output.write_json({"key": key, "value": default})
    else:
        output.write_value(default.encode(), "from --default", raw=raw)


def naming_prefix(error: KvError, key: str) -> KvError:
    """``error``, with what reads all below a key that looks like a folder."""
    if error.code != "not_found" or not key.endswith("/"):
        return error
    message = f"{error.message}; to read all below it: --prefix {output.readable(key)}"
    return KvError(error.code, message, **error.details)


def record_row(record: dict[str, Any]) -> tuple[str, ...]:
    """The record as a row under :data:`RECORD_HEAD`."""
    return (
        str(record["revision"]),
        str(record["version"]),
        record["modified_at"],
        record.get("expires_at", "-"),
        record["content_type"],
        record["key"],
    )
