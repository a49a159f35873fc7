"""``kvstore export``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvstore_cli.command_line.completion import complete_file, complete_key
from kvstore_cli.command_line.context import configured, long_retry_ms, service_of
from kvstore_cli.command_line.flags import TEXT, Command, with_options
from kvstore_cli.http_client.client import Service
from kvstore_cli.terminal import output

if TYPE_CHECKING:
    from kvstore_cli.files.output_file import Write
    from kvstore_cli.terminal.progress import Advance
    from kvstore_cli.transfer.exporter import Collection, Scope
    from kvstore_cli.transfer.ndjson_format import Sealing

_TOLD_EVERY = 500


@click.command(cls=Command)
@click.argument("file", default="-", shell_complete=complete_file)
@click.option(
    "--prefix",
    "prefixes",
    multiple=True,
    type=TEXT,
    metavar="P",
    shell_complete=complete_key,
    help="Only keys that begin with P; may be repeated.",
)
@click.option(
    "--start",
    type=TEXT,
    metavar="KEY",
    shell_complete=complete_key,
    help="Only keys from KEY on, in byte order.",
)
@click.option(
    "--end",
    type=TEXT,
    metavar="KEY",
    shell_complete=complete_key,
    help="Only keys before KEY, in byte order.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@with_options("client", "stream")
@click.pass_context
def command(
    context: click.Context,
    file: str,
    prefixes: tuple[str, ...],
    start: str | None,
    end: str | None,
    force: bool,
) -> None:
    """Write every record to FILE (- or nothing is standard output), exactly as they all were at one
    revision, however much is written meanwhile.

    FILE holds one JSON object a line: a first line that says what it is, a record a line in byte
    order of the keys, with all its metadata, and a last line with the number of records and a
    checksum. If its name ends in .gz it is compressed. 'kvstore import' reads it.

    FILE appears when it is complete, and only then, readable by nobody else; until then there is a
    hidden file beside it. Meanwhile the records are also kept in a temporary file, without a name:
    in FILE's folder, for standard output in TMPDIR. The service needs no room for it.

    \b
    Examples:
      kvstore export store.ndjson.gz
      kvstore export users.ndjson --prefix user: --force
      kvstore export | jq -r 'select(.key) | .key'
      kvstore export --prefix app/ | kvstore import - --url http://other:5000
    """
    from kvstore_cli.files.output_file import refuse_target
    from kvstore_cli.terminal.signals import end_on_signals
    from kvstore_cli.transfer.exporter import Scope

    end_on_signals()
    if file != "-":
        refuse_target(Path(file), force=force)
    scope = Scope(tuple(dict.fromkeys(prefixes)), start or None, end or None)
    configuration = configured(context, "stream")
    retry_ms = long_retry_ms(configuration)
    with service_of(configuration, is_patient=False) as service:
        _export(service, scope, file, stall_ms=configuration["stall-timeout"], retry_ms=retry_ms)


def _export(service: Service, scope: Scope, file: str, *, stall_ms: int, retry_ms: int) -> None:
    from kvstore_cli.files.output_file import target
    from kvstore_cli.terminal.progress import bar, is_seen
    from kvstore_cli.transfer.exporter import Collection
    from kvstore_cli.transfer.retry import Patience

    folder = None if file == "-" else str(Path(file).parent)
    with Collection(scope, folder) as collection:
        with bar("exporting", scope.count(service) if is_seen() else None) as advance:
            patience = Patience(retry_ms, output.talk)
            collection.fill(service, stall_ms=stall_ms, patience=patience, advance=advance)
        with bar("writing", collection.at_most) as advance, target(file) as write:
            seal = _write(write, collection, scope, advance)
    where = "" if file == "-" else f" to {output.readable(file)}"
    records = output.counted(seal.records, "record")
    output.talk(f"exported {records}{where}, {seal.size} bytes of JSON, as of revision {collection.revision}")


def _write(write: Write, collection: Collection, scope: Scope, advance: Advance) -> Sealing:
    """Write the whole export; says how much it was."""
    from kvstore_cli.transfer.ndjson_format import Sealing

    seal = Sealing()
    bounds = {name: text for name, text in (("start", scope.start), ("end", scope.end)) if text}
    write(
        seal.head(
            epoch=collection.epoch,
            revision=collection.revision,
            prefixes=scope.prefixes,
            **bounds,
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
    )
    for line in collection.lines():
        write(seal.record(line))
        if seal.records % _TOLD_EVERY == 0:
            advance(seal.records)
    write(seal.end())
    return seal
