"""``kvstore rename``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.subcommand import client_of, subcommand
from kvstore_cli.command_line.writes import message_headers, print_revision
from kvstore_cli.http_client.batch import run_ops
from kvstore_cli.http_client.client import ServiceClient, key_path
from kvstore_cli.terminal import output
from kvstore_core.errors import KvError

_KEPT = ("value", "value_b64", "content_type", "expires_at")
_ATTEMPTS = 5
"""Each begins with what is there by then."""


@subcommand("client")
@click.argument("old", type=parameters.KEY, shell_complete=parameters.complete_key)
@click.argument("new", type=parameters.KEY, shell_complete=parameters.complete_key)
@click.option("--prefix", "is_prefix", is_flag=True, help="Rename all keys that begin with OLD.")
@click.option("--force", is_flag=True, help="Replace a key that has the name NEW.")
@parameters.message_option
@parameters.json_option("Print the result as JSON.")
def command(
    context: click.Context,
    old: str,
    new: str,
    is_prefix: bool,
    force: bool,
    message: str | None,
    as_json: bool,
) -> None:
    """Give the record of OLD the key NEW, and print the revision. Value, media type and the moment of
    expiry stay; the version begins at 1.

    It is one revision: nobody sees both keys, or none. A key that changes while it is renamed is read
    again. With --prefix all keys are renamed in one revision, at most half as many as an atomic batch may
    have operations, with their values (kvstore status names the limits), and the number of them is
    printed; keys that are added at that moment stay.

    Exit status: 0; 3 if there is no such key, or none with that prefix; 4 if there is a NEW, without
    --force.

    \b
    Examples:
      kvstore rename config/old config/new
      kvstore rename --prefix draft/ published/
    """
    if old == new:
        raise click.UsageError("OLD and NEW are the same")
    with client_of(context) as service:
        made = _renamed(service, old, new, message_headers(message), is_prefix=is_prefix, force=force)
    if is_prefix and old.endswith("/") and new[-1].isalnum():
        output.talk(f"NEW ends in no slash: the first key is '{output.readable(made[0]['key'])}' now")
    if not is_prefix:
        del made[0]["status"]
        print_revision(made[0], as_json=as_json)
    elif as_json:
        output.write_json({"renamed": len(made), "revision": made[0]["revision"]})
    else:
        output.write_line(f"{len(made)} renamed" if output.on_terminal() else str(len(made)))


def _renamed(
    service: ServiceClient, old: str, new: str, headers: dict[str, str], *, is_prefix: bool, force: bool
) -> list[dict[str, Any]]:
    """What each put has made."""
    for left in range(_ATTEMPTS - 1, -1, -1):
        records = list(_records(service, old, is_prefix=is_prefix))
        names = {record["key"]: new + record["key"].removeprefix(old) for record in records}
        if not records:
            raise KvError("not_found", f"no key begins with '{output.readable(old)}'")
        _refuse_overlap(names)
        _refuse_doubled_slash(old, new, names)
        ops = [op for record in records for op in _ops(record, names[record["key"]], force=force)]
        try:
            return list(run_ops(service, ops, headers, atomic=True))[::2]
        except KvError as error:
            # of each two ops the second deletes the old key
            if error.code != "condition_failed":
                raise
            op = error.details.get("op", 0)
            if op % 2 == 0:
                key = output.readable(ops[op]["key"])
                message = f"there is a key '{key}' already; --force replaces it"
                raise KvError(error.code, message, **error.details) from error
            if not left:
                raise
    raise AssertionError("the last attempt returns or raises")


def _records(service: ServiceClient, old: str, *, is_prefix: bool) -> Iterator[dict[str, Any]]:
    if is_prefix:
        yield from service.items("/v1/kv", [("prefix", old)])
    else:
        yield service.request("GET", key_path("kv", old), [("format", "json")]).json()


def _refuse_overlap(names: dict[str, str]) -> None:
    both = next((name for name in names.values() if name in names), None)
    if both is not None:
        raise click.ClickException(
            f"'{output.readable(both)}' is an old and a new name, which one revision cannot do; "
            "rename to a third prefix first"
        )


def _refuse_doubled_slash(old: str, new: str, names: dict[str, str]) -> None:
    """What is below a folder is meant where only one of both ends in a slash."""
    if not new.endswith("/") or new.endswith("//"):
        return
    doubled = next((key for key in names if key.startswith(f"{old}/")), None)
    if doubled is not None:
        raise click.UsageError(
            f"'{output.readable(doubled)}' would become '{output.readable(names[doubled])}'; "
            f"end both OLD and NEW in a slash: --prefix {output.readable(old)}/ {output.readable(new)}"
        )


def _ops(record: dict[str, Any], name: str, *, force: bool) -> list[dict[str, Any]]:
    kept: dict[str, Any] = {part: record[part] for part in _KEPT if part in record}
    condition = {} if force else {"if_revision": 0}
    return [
        {"op": "put", "key": name, **kept, **condition},
        {"op": "delete", "key": record["key"], "if_revision": record["revision"]},
    ]
