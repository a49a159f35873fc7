"""``kvstore put``."""

from __future__ import annotations

import os

import click

from kvstore_cli.command_line.completion import complete_key, complete_value
from kvstore_cli.command_line.context import TIME, connected, seconds
from kvstore_cli.command_line.flags import KEY, Command, WholeNumber, with_options
from kvstore_cli.http_client.client import Service, key_path
from kvstore_cli.terminal import output
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE, TEXT_CONTENT_TYPE


@click.command(cls=Command)
@click.argument("key", type=KEY, shell_complete=complete_key)
@click.argument("value", shell_complete=complete_value)
@click.option(
    "--ttl", type=TIME, metavar="TIME", help="The key is gone after TIME: 30, 30s, 5m, 2h, 7d, 500ms."
)
@click.option("--keep-ttl", is_flag=True, help="The key expires when it would have, if it has a TTL.")
@click.option("--if-absent", is_flag=True, help="Only if there is no such key yet.")
@click.option(
    "--if-revision",
    type=WholeNumber(0),
    metavar="REV",
    help="Only if the key still has revision REV; 0: only if there is no such key.",
)
@click.option(
    "--content-type",
    metavar="TYPE",
    help=f"The value's media type.  [default: {TEXT_CONTENT_TYPE} if it is UTF-8, "
    f"else {DEFAULT_CONTENT_TYPE}]",
)
@click.option("--literal", is_flag=True, help="Take VALUE as it stands, also if it is - or begins with @.")
@click.option("--json", "as_json", is_flag=True, help="Print key, revision and version as JSON.")
@with_options("client")
@click.pass_context
def command(
    context: click.Context,
    key: str,
    value: str,
    ttl: int | None,
    keep_ttl: bool,
    if_absent: bool,
    if_revision: int | None,
    content_type: str | None,
    literal: bool,
    as_json: bool,
) -> None:
    """Store VALUE under KEY, and print the revision that this made.

    VALUE - reads standard input, @FILE reads a file; --literal takes either as it stands.
    A put without --ttl or --keep-ttl takes away a TTL that the key had.

    Exit status: 0, or 4 if the condition does not hold.

    \b
    Examples:
      kvstore put greeting 'Hello, world'
      kvstore put session:42 active --ttl 30m
      kvstore put logo.png @logo.png --content-type image/png
      kvstore put lock:build "$HOSTNAME" --if-absent --ttl 60s
      date | kvstore put now -
      kvstore put offset -5
    """
    if if_absent and if_revision is not None:
        raise click.UsageError("--if-absent and --if-revision exclude each other")
    if content_type is not None and not (content_type.isascii() and content_type.isprintable()):
        raise click.UsageError("--content-type takes printable ASCII, such as text/html; charset=utf-8")
    if keep_ttl and ttl is not None:
        raise click.UsageError("--ttl and --keep-ttl exclude each other")
    query = [] if ttl is None else [("ttl", seconds(ttl))]
    if keep_ttl:
        query.append(("keep_ttl", "1"))
    with connected(context) as service:
        body = os.fsencode(value) if literal else given_value(value, service)
        headers = {"Content-Type": content_type or _guess_type(body)}
        headers |= condition(0 if if_absent else if_revision)
        made = service.request("PUT", key_path("kv", key), query, body=body, headers=headers).json()
    print_revision(made, as_json=as_json)


def condition(if_revision: int | None) -> dict[str, str]:
    """The headers that make a write conditional; revision 0 stands for "must not exist"."""
    if if_revision is None:
        return {}
    return {"If-Match": f'"{if_revision}"'} if if_revision else {"If-None-Match": "*"}


def print_revision(made: dict[str, object], *, as_json: bool) -> None:
    """What a write came to: JSON, a bare revision for a pipe, or words for a person."""
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


def given_value(value: str, service: Service) -> bytes:
    """What ``value`` stands for: ``-`` for standard input, ``@FILE`` for a file, else itself."""
    if value == "@":
        raise click.UsageError("@ wants the name of a file behind it; --literal stores '@' itself")
    if value != "-" and not value.startswith("@"):
        return os.fsencode(value)
    from kvstore_cli.files.input_file import read_value

    return read_value(value.removeprefix("@"), lambda: _value_limit(service))


def _value_limit(service: Service) -> int:
    limit: int = service.request("GET", "/v1/status").json()["limits"]["value_bytes"]
    return limit


def _guess_type(body: bytes) -> str:
    try:
        body.decode()
    except UnicodeDecodeError:
        return DEFAULT_CONTENT_TYPE
    return TEXT_CONTENT_TYPE
