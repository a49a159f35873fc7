"""``kvstore ls``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.subcommand import reader_of, subcommand
from kvstore_cli.http_client.client import Query, ServiceClient
from kvstore_cli.terminal import output


@subcommand("client")
@parameters.start_of_keys_argument
@parameters.prefix_option("Same as PREFIX.")
@click.option(
    "--delimiter",
    "-d",
    type=parameters.TEXT,
    default="/",
    metavar="TEXT",
    help="What a level ends with, of 1 to 16 bytes.  [default: /]",
)
@parameters.reverse_option
@parameters.limit_option
@click.option(
    "--long", "-l", "long", is_flag=True, help="With revision, version, times, media type; or how many keys."
)
@click.option("--null", "-0", "null", is_flag=True, help="End each name with a NUL, as xargs -0 takes them.")
@parameters.stale_option
@parameters.min_revision_option
@parameters.json_option("One JSON object a line: a record without its value, or a prefix and its count.")
def command(
    context: click.Context,
    start_of_keys: str | None,
    prefix: str | None,
    delimiter: str,
    reverse: bool,
    limit: int | None,
    long: bool,
    null: bool,
    stale: bool,
    min_revision: int | None,
    as_json: bool,
) -> None:
    """List one level of the keys that begin with PREFIX, or of all, in byte order, one a line. What has
    another / after PREFIX is shown as a folder, by its name up to there, however many keys it has.

    Names are whole: keys as they are, and folders as the PREFIX of the next ls. 'kvstore list' shows all
    keys below. --long counts up to 1000 keys in a folder.

    \b
    Examples:
      kvstore ls
      kvstore ls app/ --long
      kvstore ls logs/ --reverse --limit 3
      kvstore ls user: --delimiter :
    """
    prefix = parameters.prefix_of(start_of_keys, prefix)
    if null and (long or as_json):
        raise click.UsageError("--null excludes --long and --json")
    query = [("prefix", prefix or ""), ("delimiter", delimiter), ("keys", "1")]
    query += [("reverse", "1")] * reverse + [("counts", "1")] * (long or as_json)
    query += parameters.min_revision_query(min_revision)
    with reader_of(context, stale=stale) as service:
        entries = _entries(service, query, limit, reverse=reverse)
        if long and not as_json:
            from kvstore_cli.command_line.reads import RECORD_HEAD

            output.write_table(RECORD_HEAD, [_row(entry) for entry in entries])
            return
        for entry in entries:
            if null:
                output.write(_name(entry).encode() + b"\0")
            else:
                output.write_json(entry) if as_json else output.write_line(output.shown(_name(entry)))


def _entries(
    service: ServiceClient, query: Query, limit: int | None, *, reverse: bool
) -> Iterator[dict[str, Any]]:
    """Records and folders, in one order."""
    for page in service.pages("/v1/kv", query, limit, ("items", "prefixes")):
        folders = [{"prefix": prefix} for prefix in page["prefixes"]]
        for folder, count in zip(folders, page.get("counts", ()), strict=False):
            folder["count"] = count
        yield from sorted(
            [*page["items"], *folders], key=lambda entry: _name(entry).encode(), reverse=reverse
        )


def _name(entry: dict[str, Any]) -> str:
    name: str = entry["prefix"] if "prefix" in entry else entry["key"]
    return name


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    if "prefix" not in entry:
        from kvstore_cli.command_line.reads import record_row

        return record_row(entry)
    count = entry["count"]
    return "-", "-", "-", "-", "many keys" if count is None else output.counted(count, "key"), entry["prefix"]
