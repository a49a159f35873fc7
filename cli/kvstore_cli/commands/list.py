"""``kvstore list``."""

from __future__ import annotations

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.line_format import RECORD, LineFormat, format_option
from kvstore_cli.command_line.subcommand import reader_of, subcommand
from kvstore_cli.terminal import output


@subcommand("client")
@parameters.start_of_keys_argument
@parameters.prefix_option("Same as PREFIX.")
@parameters.start_option
@parameters.end_option
@parameters.limit_option
@parameters.reverse_option
@click.option("--count", is_flag=True, help="Print only how many there are.")
@click.option("--long", "-l", "long", is_flag=True, help="With revision, version, times and media type.")
@click.option("--null", "-0", "null", is_flag=True, help="End each key with a NUL, as xargs -0 takes them.")
@parameters.stale_option
@parameters.min_revision_option
@parameters.json_option("One JSON object a line, without the value.")
@format_option([name for name in RECORD if name != "value"])
def command(
    context: click.Context,
    start_of_keys: str | None,
    prefix: str | None,
    start: str | None,
    end: str | None,
    limit: int | None,
    reverse: bool,
    count: bool,
    long: bool,
    null: bool,
    stale: bool,
    min_revision: int | None,
    as_json: bool,
    line_format: LineFormat | None,
) -> None:
    """List the keys that begin with PREFIX, or all, in byte order, one a line. 'kvstore ls' shows one level
    of them, and 'kvstore get --all' prints values too.

    A key may contain any character except NUL, even a newline, so programs should use --null or
    --json.

    \b
    Examples:
      kvstore list user:
      kvstore list session: -0 | xargs -0r kvstore delete
      kvstore list --start a --end b --long
      kvstore list jobs/ --reverse --limit 10
      kvstore list --prefix queue/ --count
    """
    prefix = parameters.prefix_of(start_of_keys, prefix)
    if null and (count or long or as_json):
        raise click.UsageError("--null excludes --count, --long and --json")
    if line_format is not None and (count or long or as_json or null):
        raise click.UsageError("--format excludes --count, --long, --json and --null")
    bounds = [("prefix", prefix), ("start", start), ("end", end)]
    query = [(name, text) for name, text in bounds if text is not None]
    query += parameters.min_revision_query(min_revision)
    with reader_of(context, stale=stale) as service:
        if count:
            if limit is not None or long or reverse:
                raise click.UsageError("--count excludes --limit, --long and --reverse")
            total = service.request("GET", "/v1/kv", [*query, ("count", "1")]).json()
            output.write_json(total) if as_json else output.write_line(str(total["count"]))
            return
        if reverse:
            query.append(("reverse", "1"))
        records = service.items("/v1/kv", [*query, ("keys", "1")], limit)
        if long and not as_json:
            from kvstore_cli.command_line.reads import RECORD_HEAD, record_row

            output.write_table(RECORD_HEAD, [record_row(record) for record in records])
            return
        for record in records:
            if line_format is not None:
                line_format.write(record)
            elif null:
                output.write(record["key"].encode() + b"\0")
            else:
                output.write_json(record) if as_json else output.write_line(output.shown(record["key"]))
