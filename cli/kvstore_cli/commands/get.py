"""``kvstore get``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.line_format import RECORD, LineFormat, format_option
from kvstore_cli.command_line.reads import naming_prefix, print_default, print_one
from kvstore_cli.command_line.subcommand import reader_of, subcommand
from kvstore_cli.http_client.client import Query, ServiceClient, key_path
from kvstore_cli.terminal import output
from kvstore_core.errors import EXIT_DONE, BadRequest, CursorExpired, KvError, NotFound


@subcommand("client")
@parameters.keys_argument
@click.option("--all", "everything", is_flag=True, help="All keys with their values.")
@parameters.prefix_option("All keys that begin with P, with their values.")
@click.option("--raw", is_flag=True, help="Only the bytes of the value, without a newline.")
@click.option("--null", "-0", "null", is_flag=True, help="End each KEY and each VALUE with a NUL.")
@parameters.json_option("The record as JSON, one object a line.")
@format_option(RECORD)
@click.option(
    "--default",
    type=parameters.TEXT,
    metavar="VALUE",
    help="If there is no such key, print VALUE and succeed.",
)
@click.option(
    "--revision",
    type=parameters.RevisionType(),
    metavar="REV",
    help="The value as it was at REV, or at a time: 10m-ago, 2026-01-31T12:00:00Z.",
)
@parameters.stale_option
@parameters.min_revision_option
def command(
    context: click.Context,
    keys: tuple[str, ...],
    everything: bool,
    prefix: str | None,
    raw: bool,
    null: bool,
    as_json: bool,
    line_format: LineFormat | None,
    default: str | None,
    revision: int | str | None,
    stale: bool,
    min_revision: int | None,
) -> int:
    """Print the value of KEY, or, of several KEYs, of all with --prefix, or of --all, each key with its
    value.

    The value is printed unchanged, with a newline added unless it ends with one. On a terminal, control
    characters are escaped and binary data is described instead. --raw prints only the bytes. Several
    keys are printed as KEY, a tab and VALUE, one a line; on a terminal as a table. A missing key is
    reported on standard error, and the others are printed. Up to 1000 KEYs, with less than 4 MiB of
    values, are read from one snapshot; with --revision any number.

    Exit status: 0, or 3 if there is no such key.

    \b
    Examples:
      kvstore get greeting
      kvstore get logo.png --raw > logo.png
      kvstore get config/port --default 8080
      kvstore get user:1 user:2 --json | jq .value
      kvstore get --prefix host/ --format '{value} {key}' > hosts
    """
    which = parameters.exactly_one({"KEY": keys or None, "--all": everything, "--prefix": prefix})
    if [raw, null, as_json, line_format is not None].count(True) > 1:
        raise click.UsageError("--raw, --null, --json and --format exclude each other")
    if which != "KEY" and (default is not None or revision is not None):
        raise click.UsageError("--default and --revision need a KEY")
    if revision is not None and min_revision is not None:
        raise click.UsageError("--revision, which is of the past, and --min-revision exclude each other")
    newest = parameters.min_revision_query(min_revision)
    with reader_of(context, stale=stale) as service:
        is_alone = len(keys) == 1 and not null and line_format is None
        if isinstance(revision, str):
            try:
                revision = _revision_at(service, revision, keys)
            except NotFound:
                if default is None:
                    raise
                if is_alone:
                    print_default(keys[0], default, raw=raw, as_json=as_json)
                else:
                    nothing = ({"key": key, "value": default} for key in keys)
                    _print_many(nothing, line_format, raw=raw, null=null, as_json=as_json)
                return EXIT_DONE
        query = newest if revision is None else [("revision", str(revision))]
        if is_alone:
            print_one(service, keys[0], query, raw=raw, as_json=as_json, default=default)
            return EXIT_DONE
        if keys:
            failed: list[KvError] = []
            records = _records(service, keys, query, default, failed)
            _print_many(records, line_format, raw=raw, null=null, as_json=as_json)
            return failed[0].row.exit if failed else EXIT_DONE
        records = service.items("/v1/kv", [("prefix", prefix or ""), *newest])
        _print_many(records, line_format, raw=raw, null=null, as_json=as_json)
        return EXIT_DONE


def _revision_at(service: ServiceClient, time: str, keys: Sequence[str]) -> int:
    """The last revision of which the log says that it was made by ``time``, as far as ``keys`` go. Raises
    ``revision_gone`` if the log does not reach back, and ``not_found`` if nothing is as old."""
    query = [*parameters.query_of_changes(keys, (), (), values=False), ("since", time), ("limit", "1")]
    try:
        page = service.request("GET", "/v1/changes", query).json()
    except CursorExpired as error:
        raise KvError("revision_gone", f"the log no longer says what was there at {time}") from error
    except BadRequest as error:
        if error.details.get("parameter") != "since":
            raise
        raise KvError("bad_request", parameters.no_revision(time)) from error
    events = page["events"]
    revision = events[0]["revision"] - 1 if events else int(page["cursor"].partition("-")[0])
    if not revision:
        raise KvError("not_found", f"there was nothing yet at {time}")
    return int(revision)


def _records(
    service: ServiceClient, keys: Sequence[str], query: Query, default: str | None, failed: list[KvError]
) -> Iterator[dict[str, Any]]:
    """The records of ``keys``, in order. The errors of those that cannot be read are printed, and added to
    ``failed``, which is complete once all records were taken."""
    for key, result in zip(keys, _results(service, keys, query), strict=True):
        if not isinstance(result, KvError):
            yield result
        elif result.code == "not_found" and default is not None:
            yield {"key": key, "value": default}
        else:
            failed.append(result)
            output.talk(naming_prefix(result, key).message)


def _results(service: ServiceClient, keys: Sequence[str], query: Query) -> Iterator[Any]:
    """For each key its record, or the KvError."""
    if "revision" in dict(query):  # these are one snapshot, too
        yield from (_alone(service, key, query) for key in keys)
        return
    from kvstore_cli.http_client.batch import run_ops
    from kvstore_cli.http_client.errors import problem_error

    newest = {name: int(revision) for name, revision in query}
    results = run_ops(service, [{"op": "get", "key": key, **newest} for key in keys])
    for key, result in zip(keys, results, strict=True):
        del result["status"]
        error = problem_error(result["error"]) if "error" in result else None
        # a value that does not fit into the reply with the others is read alone
        is_too_large = error is not None and error.code == "reply_too_large"
        yield _alone(service, key, query) if is_too_large else error or result


def _alone(service: ServiceClient, key: str, query: Query) -> Any:
    try:
        return service.request("GET", key_path("kv", key), [*query, ("format", "json")]).json()
    except KvError as error:
        if error.code not in ("not_found", "revision_gone"):
            raise
        return error


def _print_many(
    records: Iterable[dict[str, Any]],
    line_format: LineFormat | None,
    *,
    raw: bool,
    null: bool,
    as_json: bool,
) -> None:
    if line_format is not None:
        for record in records:
            line_format.write(record)
        return
    if output.on_terminal() and not (raw or null or as_json):
        rows = [(r["key"], output.preview(output.value_of(r), r.get("content_type", ""))) for r in records]
        output.write_table(("KEY", "VALUE"), rows)
        return
    between, behind = (b"\0", b"\0") if null else (b"\t", b"\n")
    for record in records:
        if as_json:
            output.write_json(record)
        elif raw:
            output.write(output.value_of(record))
        else:
            output.write(record["key"].encode() + between + output.value_of(record) + behind)
