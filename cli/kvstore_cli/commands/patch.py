"""``kvstore patch``."""

from __future__ import annotations

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.context import client_of
from kvstore_cli.command_line.flags import with_options
from kvstore_cli.command_line.writes import condition_headers, print_revision, read_value, ttl_parameter
from kvstore_cli.http_client.client import key_path
from kvstore_core.media_types import MERGE_PATCH


@click.command(cls=parameters.Subcommand)
@parameters.key_argument
@click.argument("patch", shell_complete=parameters.complete_value)
@parameters.ttl_option("A new TTL.  [default: the key keeps the one it has]")
@parameters.if_revision_option
@parameters.json_option("Print key, revision and version as JSON.")
@with_options("client")
@click.pass_context
def command(
    context: click.Context, key: str, patch: str, ttl: int | None, if_revision: int | None, as_json: bool
) -> None:
    """Merge PATCH into the JSON value of KEY, and print the new revision.

    PATCH is a JSON merge patch (RFC 7396): its members replace those of the value, null removes one,
    and the others stay. - reads it from standard input, @FILE from a file. It is applied atomically.
    A missing key is created.

    If the answer is lost, the patch is not repeated: the value may have been changed since.

    Exit status: 0; 4 if the condition does not hold; 1 if the value or PATCH is not JSON.

    \b
    Examples:
      kvstore patch config '{"port": 8080, "debug": null}'
      kvstore patch config @changes.json --if-revision 1042
      jq -n '{seen: now}' | kvstore patch user:42 -
    """
    query = [] if ttl is None else [ttl_parameter(ttl)]
    headers = {"Content-Type": MERGE_PATCH, **condition_headers(if_revision)}
    with client_of(context) as service:
        body = read_value(patch, service)
        made = service.request("PATCH", key_path("kv", key), query, body=body, headers=headers).json()
    print_revision(made, as_json=as_json)
