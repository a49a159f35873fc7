"""``kvstore patch``, ``incr``, ``touch`` and ``persist``: writes that keep some of what is there."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.subcommand import client_of, subcommand
from kvstore_cli.command_line.writes import (
    condition_headers,
    condition_query,
    message_headers,
    print_revision,
    read_value,
    ttl_parameter,
)
from kvstore_cli.http_client.client import key_path
from kvstore_cli.terminal import output
from kvstore_core.media_types import MERGE_PATCH


@subcommand("client")
@parameters.key_argument
@click.argument("patch", shell_complete=parameters.complete_value)
@parameters.ttl_option("A new TTL.  [default: the key keeps the one it has]")
@parameters.if_revision_option
@parameters.guards_option
@parameters.message_option
@parameters.json_option("Print key, revision and version as JSON.")
def patch(
    context: click.Context,
    key: str,
    patch: str,
    ttl: int | None,
    if_revision: int | None,
    guards: tuple[str, ...],
    message: str | None,
    as_json: bool,
) -> None:
    """Merge PATCH into the JSON value of KEY, and print the new revision.

    PATCH is a JSON merge patch (RFC 7396): its members replace those of the value, null removes one,
    and the others stay. - reads it from standard input, @FILE from a file. It is applied atomically.
    A missing key is created. A JSON patch, a list of operations (RFC 6902), is refused.

    If the answer is lost, the patch is not repeated: the value may have been changed since.

    Exit status: 0; 4 if a condition does not hold; 1 if the value or PATCH is not JSON.

    \b
    Examples:
      kvstore patch config '{"port": 8080, "debug": null}'
      kvstore patch config @changes.json --if-revision 1042
      jq -n '{seen: now}' | kvstore patch user:42 -
    """
    query = condition_query(None, guards)
    if ttl is not None:
        query.append(ttl_parameter(ttl))
    headers = {"Content-Type": MERGE_PATCH, **condition_headers(if_revision), **message_headers(message)}
    with client_of(context) as service:
        body = read_value(patch, service)
        if _is_json_patch(body):
            raise click.UsageError(
                "PATCH is a JSON patch (RFC 6902), which would become the value: "
                'write the members that change, as in {"port": 8080}'
            )
        made = service.request("PATCH", key_path("kv", key), query, body=body, headers=headers).json()
    print_revision(made, as_json=as_json)


def _is_json_patch(body: bytes) -> bool:
    if not body.lstrip().startswith(b"["):
        return False
    try:
        ops = json.loads(body)
    except (ValueError, RecursionError):
        return False  # the service says what is wrong
    return bool(ops) and all(isinstance(op, dict) and {"op", "path"} <= op.keys() for op in ops)


@subcommand("client")
@parameters.key_argument
@click.argument("number", metavar="[N]", type=parameters.WholeNumber(-(2**63)), required=False)
@click.option("--by", type=parameters.WholeNumber(-(2**63)), metavar="N", help="Same as N.")
@parameters.condition_options
@parameters.message_option
@parameters.json_option("Print value, revision and version as JSON.")
def incr(
    context: click.Context,
    key: str,
    number: int | None,
    by: int | None,
    if_revision: int | None,
    if_value: str | None,
    guards: tuple[str, ...],
    message: str | None,
    as_json: bool,
) -> None:
    """Add N (by default 1) to the whole number in KEY, and print the sum. N may be negative. A missing
    key starts from 0.

    This is atomic: concurrent increments are never lost. The key keeps its TTL and media type.

    Exit status: 0, or 4 if a condition does not hold.

    \b
    Examples:
      kvstore incr visits
      kvstore incr stock:apples -3
    """
    if number is not None and by is not None:
        raise click.UsageError("give N or --by, not both")
    amount = next((given for given in (number, by) if given is not None), 1)
    query = [("by", str(amount)), *_conditions(if_revision, if_value, guards)]
    headers = condition_headers(if_revision) | message_headers(message)
    with client_of(context) as service:
        made = service.request("POST", key_path("incr", key), query, headers=headers).json()
    output.write_json(made) if as_json else output.write_line(str(made["value"]))


@subcommand("client")
@parameters.key_argument
@parameters.ttl_option("Counted from now: 30, 30s, 5m, 2h, 7d, 500ms.", required=True)
@parameters.condition_options
@parameters.message_option
@parameters.json_option("Print revision, version and expiry as JSON.")
def touch(
    context: click.Context,
    key: str,
    ttl: int,
    if_revision: int | None,
    if_value: str | None,
    guards: tuple[str, ...],
    message: str | None,
    as_json: bool,
) -> None:
    """Give KEY a new TTL and keep its value; prints the new revision.

    Exit status: 0; 3 if there is no such key; 4 if a condition does not hold.

    \b
    Examples:
      kvstore touch session:42 --ttl 30m
      kvstore touch lock:build --ttl 60s --if-value "$HOSTNAME"
    """
    query = [ttl_parameter(ttl), *_conditions(if_revision, if_value, guards)]
    headers = condition_headers(if_revision) | message_headers(message)
    with client_of(context) as service:
        made = service.request("POST", key_path("touch", key), query, headers=headers).json()
    print_revision(made, as_json=as_json)


@subcommand("client")
@parameters.key_argument
@parameters.condition_options
@parameters.message_option
@parameters.json_option("Print revision and version as JSON.")
def persist(
    context: click.Context,
    key: str,
    if_revision: int | None,
    if_value: str | None,
    guards: tuple[str, ...],
    message: str | None,
    as_json: bool,
) -> None:
    """Remove the TTL of KEY, so that it does not expire; prints the new revision.

    Exit status: 0; 3 if there is no such key; 4 if a condition does not hold.

    \b
    Example:
      kvstore persist session:42
    """
    query = _conditions(if_revision, if_value, guards)
    headers = condition_headers(if_revision) | message_headers(message)
    with client_of(context) as service:
        made = service.request("POST", key_path("persist", key), query, headers=headers).json()
    print_revision(made, as_json=as_json)


def _conditions(
    if_revision: int | None, if_value: str | None, guards: Sequence[str]
) -> list[tuple[str, str]]:
    """The query of a write on these conditions; a usage error where two exclude each other."""
    parameters.at_most_one({"--if-revision": if_revision is not None, "--if-value": if_value is not None})
    return condition_query(if_value, guards)
