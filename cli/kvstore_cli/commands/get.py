"""``kvstore get``."""

from __future__ import annotations

import click

from kvstore_cli import output
from kvstore_cli.client import connected, exactly_one
from kvstore_cli.completion import complete_key
from kvstore_cli.flags import KEY, TEXT, Command, WholeNumber, with_options
from kvstore_cli.service import Query, Service, key_path
from kvstore_client.errors import KvError


@click.command(cls=Command)
@click.argument("key", type=KEY, required=False, shell_complete=complete_key)
@click.option("--all", "everything", is_flag=True, help="All keys with their values.")
@click.option(
    "--prefix",
    type=TEXT,
    metavar="P",
    shell_complete=complete_key,
    help="All keys that begin with P, with their values.",
)
@click.option("--raw", is_flag=True, help="The value's bytes and nothing else, no newline.")
@click.option("--json", "as_json", is_flag=True, help="The record as JSON, one object a line.")
@click.option("--default", metavar="VALUE", help="Print VALUE, and succeed, if there is no such key.")
@click.option("--revision", type=WholeNumber(1), metavar="REV", help="The value as it was at REV.")
@with_options("client")
@click.pass_context
def command(
    context: click.Context,
    key: str | None,
    everything: bool,
    prefix: str | None,
    raw: bool,
    as_json: bool,
    default: str | None,
    revision: int | None,
) -> None:
    """Print the value of KEY, or keys and values with --all or --prefix.

    The value comes out as it went in, with a newline behind it unless it ends with one. A terminal
    gets control characters as escapes and a description of what is no text. --raw gives the bytes
    alone. Several keys come as KEY, a tab, VALUE, one a line; on a terminal as a table.

    Exit status: 0, or 3 if there is no such key.

    \b
    Examples:
      kvstore get greeting
      kvstore get logo.png --raw > logo.png
      kvstore get config/port --default 8080
      kvstore get --prefix user: --json | jq .value
    """
    which = exactly_one({"KEY": key, "--all": everything, "--prefix": prefix})
    with connected(context) as service:
        if which == "KEY":
            query = [] if revision is None else [("revision", str(revision))]
            _print_one(service, key or "", query, raw=raw, as_json=as_json, default=default)
        elif default is not None or revision is not None:
            raise click.UsageError("--default and --revision go with a KEY")
        else:
            _print_many(service, prefix or "", raw=raw, as_json=as_json)


def _print_one(
    service: Service, key: str, query: Query, *, raw: bool, as_json: bool, default: str | None
) -> None:
    path = key_path("kv", key)
    try:
        if as_json:
            output.write_json(service.request("GET", path, [*query, ("format", "json")]).json())
            return
        answer = service.request("GET", path, query, headers={"Accept": "*/*"})
        value, content_type = answer.body, answer.headers.get("Content-Type", "")
    except KvError as error:
        if error.code != "not_found" or default is None:
            raise
        if as_json:
            output.write_json({"key": key, "value": default})
            return
        value, content_type = default.encode(errors="surrogateescape"), "from --default"
    output.write_value(value, content_type, raw=raw)


def _print_many(service: Service, prefix: str, *, raw: bool, as_json: bool) -> None:
    from kvstore_cli.pages import items

    records = items(service, "/v1/kv", [("prefix", prefix)])
    if output.on_terminal() and not raw and not as_json:
        rows = [(r["key"], output.preview(output.value_of(r), r["content_type"])) for r in records]
        output.write_table(("KEY", "VALUE"), rows)
        return
    for record in records:
        if as_json:
            output.write_json(record)
        elif raw:
            output.write(output.value_of(record))
        else:
            output.write(record["key"].encode() + b"\t" + output.value_of(record) + b"\n")
