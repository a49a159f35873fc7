"""``kvstore put``."""

from __future__ import annotations

import os

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.subcommand import client_of, subcommand
from kvstore_cli.command_line.writes import (
    condition_headers,
    condition_query,
    message_headers,
    numbered,
    print_key,
    print_revision,
    read_value,
    stored,
    ttl_parameter,
)
from kvstore_cli.http_client.client import ServiceClient
from kvstore_cli.terminal import output
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE, TEXT_CONTENT_TYPE


@subcommand("client")
@parameters.key_argument
@click.argument("value", shell_complete=parameters.complete_value)
@parameters.ttl_option("The key expires after TIME: 30, 30s, 5m, 2h, 7d, 500ms.")
@click.option("--keep-ttl", is_flag=True, help="Keep the TTL of the key, if it has one.")
@click.option("--if-absent", is_flag=True, help="Only if there is no such key.")
@parameters.condition_options
@click.option(
    "--sequence", is_flag=True, help="KEY is only the beginning: a number follows it. Prints the whole key."
)
@click.option(
    "--content-type",
    metavar="TYPE",
    help=f"The value's media type.  [default: {TEXT_CONTENT_TYPE} if it is UTF-8, "
    f"else {DEFAULT_CONTENT_TYPE}]",
)
@parameters.message_option
@click.option("--literal", is_flag=True, help="Store VALUE as it is, even if it is - or begins with @.")
@parameters.json_option("Print key, revision and version as JSON.")
def command(
    context: click.Context,
    key: str,
    value: str,
    ttl: int | None,
    keep_ttl: bool,
    if_absent: bool,
    if_revision: int | None,
    if_value: str | None,
    guards: tuple[str, ...],
    sequence: bool,
    content_type: str | None,
    message: str | None,
    literal: bool,
    as_json: bool,
) -> None:
    """Store VALUE under KEY, and print the new revision.

    The VALUE - reads standard input, @FILE reads a file; --literal stores either as it is.
    Without --ttl or --keep-ttl, the key loses the TTL that it had.

    With --sequence the value is stored under KEY and a number of 20 digits, which no other key gets and
    which grows with each such put; the key is printed in place of the revision.

    Exit status: 0, or 4 if a condition does not hold.

    \b
    Examples:
      kvstore put greeting 'Hello, world'
      kvstore put session:42 active --ttl 30m
      kvstore put logo.png @logo.png --content-type image/png
      kvstore put lock:build "$HOSTNAME" --if-absent --ttl 60s
      kvstore put state deployed --guard lock:build@1042
      kvstore put --sequence jobs/ '{"to": "ann"}'
      date | kvstore put now -
      kvstore put offset -5
      kvstore put limits/upload 50M -m 'asked for by support'
    """
    conditions = {
        "--if-absent": if_absent,
        "--if-revision": if_revision is not None,
        "--if-value": if_value is not None,
        "--sequence": sequence,
    }
    parameters.at_most_one(conditions)
    if content_type is not None and not (content_type.isascii() and content_type.isprintable()):
        raise click.UsageError("--content-type takes printable ASCII, such as text/html; charset=utf-8")
    if keep_ttl and ttl is not None:
        raise click.UsageError("--ttl and --keep-ttl exclude each other")
    if keep_ttl and sequence:
        raise click.UsageError("--keep-ttl and --sequence exclude each other: the key is a new one")
    query = condition_query(if_value, guards)
    if ttl is not None:
        query.append(ttl_parameter(ttl))
    if keep_ttl:
        query.append(("keep_ttl", "1"))
    with client_of(context) as service:
        body = os.fsencode(value) if literal else _read(value, service)
        if sequence:
            print_key(numbered(service, key, body, content_type, query, message), as_json=as_json)
            return
        headers = condition_headers(0 if if_absent else if_revision) | message_headers(message)
        made = stored(service, key, body, content_type, query, headers)
    print_revision(made, as_json=as_json)


def _read(value: str, service: ServiceClient) -> bytes:
    try:
        return read_value(value, service)
    except click.UsageError as error:
        if value == "-" or "--literal" in error.message:
            raise
        message = f"{error.message}; --literal stores '{output.readable(value)}' itself"
        raise click.UsageError(message) from error
