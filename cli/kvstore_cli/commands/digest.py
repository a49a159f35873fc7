"""``kvstore digest`` and ``kvstore verify``: proving that a copy is equal."""

from __future__ import annotations

from typing import Any

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.subcommand import KindType, given_flags, reader_of, subcommand
from kvstore_cli.config.options import OPTIONS
from kvstore_cli.terminal import output

_URL = KindType(OPTIONS["url"].kind)


@subcommand("client")
@parameters.start_of_keys_argument
@parameters.prefix_option("Same as PREFIX.")
@parameters.start_option
@parameters.end_option
@parameters.stale_option
@parameters.min_revision_option
@parameters.json_option("With the number of records, the revision and the epoch.")
def digest(
    context: click.Context,
    start_of_keys: str | None,
    prefix: str | None,
    start: str | None,
    end: str | None,
    stale: bool,
    min_revision: int | None,
    as_json: bool,
) -> None:
    """Print the digest of all records, or of those that begin with PREFIX, as of one revision.

    Two stores have the same digest if they have the same keys with the same revisions and values. It finds
    every fault, but not somebody who writes what is made to deceive. 'kvstore verify' compares two services.

    \b
    Examples:
      kvstore digest
      kvstore digest config/ --json
    """
    prefix = parameters.prefix_of(start_of_keys, prefix)
    bounds = [("prefix", prefix), ("start", start), ("end", end)]
    query = [(name, text) for name, text in bounds if text is not None]
    query += parameters.min_revision_query(min_revision)
    with reader_of(context, stale=stale) as service:
        found = service.request("GET", "/v1/digest", query).json()
    output.write_json(found) if as_json else output.write_line(found["digest"])


@subcommand("client")
@click.argument("first", metavar="URL1", type=_URL)
@click.argument("second", metavar="URL2", type=_URL)
@parameters.prefix_option("Only keys that begin with P.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing.")
@parameters.json_option("As one JSON object.")
def verify(
    context: click.Context, first: str, second: str, prefix: str | None, quiet: bool, as_json: bool
) -> None:
    """Compare two services, such as one and a restored copy of it: keys, revisions and values.

    Prints the first key that differs, and how. Both may be written to meanwhile: a difference counts if it
    is still there after a second, in which not both of the two have changed the key. Where the digests
    are equal at once, all is, as of the revisions that are printed; otherwise equal means that each part
    was at some moment.

    Exit status: 0 if they are equal, 1 if they differ.

    \b
    Examples:
      kvstore verify http://127.0.0.1:5000 http://127.0.0.1:5100
      kvstore verify https://kv.example.org http://127.0.0.1:5000 --prefix config/
    """
    from kvstore_cli.command_line.service import client_for
    from kvstore_cli.transfer.comparison import ServiceComparison

    flags = given_flags(context)
    if "url" in flags:
        raise click.UsageError("give both addresses as arguments, and no --url")
    with client_for({**flags, "url": first}) as one, client_for({**flags, "url": second}) as other:
        comparison = ServiceComparison(one, other, prefix)
        digests = comparison.digests()
        is_proven = digests[0]["digest"] == digests[1]["digest"]
        difference = None if is_proven else comparison.difference()
    if difference is None:
        said: dict[str, Any] = {"equal": True, "proven": is_proven, "first": digests[0], "second": digests[1]}
        text = _equal(*digests) if is_proven else "equal, part by part, while they were written to"
    else:
        key, *records = difference
        shown = [record and _shown(record) for record in records]
        said = {"equal": False, "key": key, "differs": difference.kind, "first": shown[0], "second": shown[1]}
        text = "\n  ".join(
            [output.shown(key), *map(_sentence, (first, second), shown)]  # each on a line of its own
        )
    if not quiet:
        output.write_json(said) if as_json else output.write_line(text)
    context.exit(0 if difference is None else 1)


def _equal(first: dict[str, Any], second: dict[str, Any]) -> str:
    records = output.counted(first["count"], "record")
    at = " and ".join(dict.fromkeys(str(each["revision"]) for each in (first, second)))
    return f"equal: {records} at revision {at}, with the digest {first['digest']}"


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    """What is printed of a record that differs: not its value, which may be large."""
    from hashlib import sha256

    value = output.value_of(record)
    return {"revision": record["revision"], "size": len(value), "sha256": sha256(value).hexdigest()}


def _sentence(url: str, record: dict[str, Any] | None) -> str:
    if record is None:
        return f"{url} has no such key"
    size = output.counted(record["size"], "byte")
    return f"{url} has it at revision {record['revision']}, {size} with SHA-256 {record['sha256'][:16]}…"
