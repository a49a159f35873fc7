"""``kvstore delete``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.subcommand import client_of, subcommand
from kvstore_cli.command_line.writes import (
    condition_headers,
    condition_query,
    guard_check,
    message_headers,
    print_revision,
)
from kvstore_cli.http_client.client import ServiceClient, key_path
from kvstore_cli.terminal import output
from kvstore_core.errors import EXIT_DONE, KvError
from kvstore_core.limits import MAX_ATOMIC_OPS, MAX_CLUSTER_ATOMIC_OPS


@subcommand("client")
@parameters.keys_argument
@parameters.prefix_option("Every key that begins with P; P may not be empty.")
@click.option(
    "--if-revision",
    type=parameters.WholeNumber(1),
    metavar="REV",
    help="Only if the key still has revision REV.",
)
@parameters.if_value_option
@parameters.guards_option
@click.option(
    "--atomic",
    is_flag=True,
    help=f"All KEYs or none, in one revision; {MAX_ATOMIC_OPS:,} at most, {MAX_CLUSTER_ATOMIC_OPS} in a "
    "cluster.",
)
@parameters.message_option
@parameters.json_option("Print the result as JSON.")
def command(
    context: click.Context,
    keys: tuple[str, ...],
    prefix: str | None,
    if_revision: int | None,
    if_value: str | None,
    guards: tuple[str, ...],
    atomic: bool,
    message: str | None,
    as_json: bool,
) -> int:
    """Remove KEY and print the revision of the delete, or remove all keys that begin with --prefix and
    print how many there were.

    Several KEYs are removed one by one, with a revision and a line of output each; a missing one is
    reported and does not stop the others. With --atomic they are removed in one revision, or, if one
    is missing, not at all.

    Exit status: 0; 3 if there is no such key; 4 if a condition does not hold. Removing a prefix
    that no key has succeeds.

    \b
    Examples:
      kvstore delete greeting
      kvstore delete lock:build --if-revision 1042
      kvstore delete state --guard lock:build@1042
      kvstore delete user:42 email:42 --atomic
      kvstore delete --prefix session: -m 'everybody logs in again'
    """
    which = parameters.exactly_one({"KEY": keys or None, "--prefix": prefix})
    parameters.at_most_one({"--if-revision": if_revision is not None, "--if-value": if_value is not None})
    if len(keys) != 1 and (if_revision is not None or if_value is not None):
        raise click.UsageError("--if-revision and --if-value need exactly one KEY")
    if guards and prefix is not None:
        raise click.UsageError("--guard needs KEYs: no guard holds over the several revisions of a prefix")
    if len(guards) and len(keys) > 1 and not atomic:
        raise click.UsageError("--guard with several KEYs needs --atomic, which removes them in one revision")
    if atomic and prefix is not None:
        raise click.UsageError("--atomic needs KEYs: a prefix may have more keys than one revision takes")
    headers = message_headers(message)
    with client_of(context) as service:
        if which == "--prefix":
            _delete_prefix(service, prefix or "", headers, as_json=as_json)
        elif len(keys) == 1:
            headers |= condition_headers(if_revision)
            query = condition_query(if_value, guards)
            made = service.request("DELETE", key_path("kv", keys[0]), query, headers=headers).json()
            print_revision(made, as_json=as_json)
        else:
            checks = [guard_check(guard) for guard in guards]
            return _delete_each(service, keys, checks, headers, atomic=atomic, as_json=as_json)
    return EXIT_DONE


def _delete_each(
    service: ServiceClient,
    keys: Sequence[str],
    checks: list[dict[str, Any]],
    headers: dict[str, str],
    *,
    atomic: bool,
    as_json: bool,
) -> int:
    from kvstore_cli.http_client.batch import run_ops
    from kvstore_cli.http_client.errors import problem_error

    status = EXIT_DONE
    try:
        ops = [*checks, *({"op": "delete", "key": key} for key in keys)]
        results = list(run_ops(service, ops, headers, atomic=atomic))[len(checks) :]
    except KvError as error:
        if not atomic or "outcome" in error.details:
            raise
        raise KvError(error.code, f"{error.message}; nothing was removed", **error.details) from error
    for result in results:
        if "error" in result:
            problem = problem_error(result["error"])
            status = status or problem.row.exit
            output.talk(problem.message)
            continue
        del result["status"]
        if as_json or not atomic or result["key"] == keys[0]:
            print_revision(result, as_json=as_json)
    return status


def _delete_prefix(service: ServiceClient, prefix: str, headers: dict[str, str], *, as_json: bool) -> None:
    if not prefix:
        raise click.UsageError("the prefix is empty: that would remove everything")
    result = service.request("DELETE", "/v1/kv", [("prefix", prefix)], headers=headers).json()
    if as_json:
        output.write_json(result)
    elif output.on_terminal():
        output.write_line(f"{result['deleted']} removed")
    else:
        output.write_line(str(result["deleted"]))
