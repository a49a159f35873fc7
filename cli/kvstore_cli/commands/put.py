"""``kvstore put``."""

from __future__ import annotations

import os

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.subcommand import client_of, subcommand
from kvstore_cli.command_line.writes import (
    condition_headers,
    message_headers,
    print_revision,
    read_value,
    ttl_parameter,
)
from kvstore_cli.http_client.client import key_path
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE, TEXT_CONTENT_TYPE


@subcommand("client")
@parameters.key_argument
@click.argument("value", shell_complete=parameters.complete_value)
@parameters.ttl_option("The key expires after TIME: 30, 30s, 5m, 2h, 7d, 500ms.")
@click.option("--keep-ttl", is_flag=True, help="Keep the TTL of the key, if it has one.")
@click.option("--if-absent", is_flag=True, help="Only if there is no such key.")
@parameters.if_revision_option
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
    content_type: str | None,
    message: str | None,
    literal: bool,
    as_json: bool,
) -> None:
    """Store VALUE under KEY, and print the new revision.

    The VALUE - reads standard input, @FILE reads a file; --literal stores either as it is.
    Without --ttl or --keep-ttl, the key loses the TTL that it had.

    Exit status: 0, or 4 if the condition does not hold.

    \b
    Examples:
      kvstore put greeting 'Hello, world'
      kvstore put session:42 active --ttl 30m
      kvstore put logo.png @logo.png --content-type image/png
      kvstore put lock:build "$HOSTNAME" --if-absent --ttl 60s
      date | kvstore put now -
      kvstore put offset -5
      kvstore put limits/upload 50M -m 'asked for by support'
    """
    if if_absent and if_revision is not None:
        raise click.UsageError("--if-absent and --if-revision exclude each other")
    if content_type is not None and not (content_type.isascii() and content_type.isprintable()):
        raise click.UsageError("--content-type takes printable ASCII, such as text/html; charset=utf-8")
    if keep_ttl and ttl is not None:
        raise click.UsageError("--ttl and --keep-ttl exclude each other")
    query = [] if ttl is None else [ttl_parameter(ttl)]
    if keep_ttl:
        query.append(("keep_ttl", "1"))
    with client_of(context) as service:
        body = os.fsencode(value) if literal else read_value(value, service)
        headers = {"Content-Type": content_type or _guess_type(body)}
        headers |= condition_headers(0 if if_absent else if_revision) | message_headers(message)
        made = service.request("PUT", key_path("kv", key), query, body=body, headers=headers).json()
    print_revision(made, as_json=as_json)


def _guess_type(body: bytes) -> str:
    try:
        body.decode()
    except UnicodeDecodeError:
        return DEFAULT_CONTENT_TYPE
    return TEXT_CONTENT_TYPE
