"""``kvstore export``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.service import new_client
from kvstore_cli.command_line.subcommand import (
    configuration_of,
    exit_on_signals,
    long_retry_ms,
    subcommand,
)
from kvstore_cli.http_client.client import RetryLimit, ServiceClient
from kvstore_cli.terminal import output

if TYPE_CHECKING:
    from kvstore_cli.files.output_file import Write
    from kvstore_cli.terminal.progress import Advance
    from kvstore_cli.transfer.exporter import RecordSpool, Scope
    from kvstore_cli.transfer.ndjson_format import ExportWriter

_REPORT_EVERY = 500


@subcommand("client", "stream")
@click.argument("file", default="-", shell_complete=parameters.complete_file)
@parameters.prefixes_option("Only keys that begin with P")
@parameters.start_option
@parameters.end_option
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def command(
    context: click.Context,
    file: str,
    prefixes: tuple[str, ...],
    start: str | None,
    end: str | None,
    force: bool,
) -> None:
    """Write all records to FILE (by default, or as -, standard output), as of one revision, however much
    is written meanwhile.

    FILE has one JSON object a line: a header, the records with all their metadata in byte order of the
    keys, and a last line with the number of records and a checksum. It is compressed if its name ends
    in .gz. 'kvstore import' reads it.

    FILE appears only once it is complete, and only its owner can read it; until then there is a hidden
    file beside it. The records are first kept in an unnamed temporary file: in FILE's folder, or in
    TMPDIR for standard output. The service needs no space for it.

    \b
    Examples:
      kvstore export store.ndjson.gz
      kvstore export users.ndjson --prefix user: --force
      kvstore export | jq -r 'select(.key) | .key'
      kvstore export --prefix app/ | kvstore import - --url http://other:5000
    """
    from kvstore_cli.files.output_file import refuse_unwritable
    from kvstore_cli.transfer.exporter import Scope

    exit_on_signals()
    if file != "-":
        refuse_unwritable(Path(file), force=force)
    scope = Scope(tuple(dict.fromkeys(prefixes)), start or None, end or None)
    configuration = configuration_of(context, "client", "stream")
    retry_ms = long_retry_ms(configuration)
    with new_client(configuration, retries=False) as service:
        _export(service, scope, file, stall_ms=configuration["stall-timeout"], retry_ms=retry_ms)


def _export(service: ServiceClient, scope: Scope, file: str, *, stall_ms: int, retry_ms: int) -> None:
    from kvstore_cli.files.output_file import output_file
    from kvstore_cli.terminal.progress import bar, is_seen
    from kvstore_cli.transfer.exporter import RecordSpool

    folder = None if file == "-" else str(Path(file).parent)
    with RecordSpool(scope, folder) as spool:
        with bar("exporting", scope.count(service) if is_seen() else None) as advance:
            retry = RetryLimit(retry_ms, output.talk)
            spool.fill(service, stall_ms=stall_ms, retry=retry, advance=advance)
        with bar("writing", spool.at_most) as advance, output_file(file) as write:
            export = _write(write, spool, scope, advance)
    where = "" if file == "-" else f" to {output.readable(file)}"
    records = output.counted(export.records, "record")
    output.talk(f"exported {records}{where}, {export.size} bytes of JSON, as of revision {spool.revision}")


def _write(write: Write, spool: RecordSpool, scope: Scope, advance: Advance) -> ExportWriter:
    """Write the whole export."""
    from kvstore_cli.transfer.ndjson_format import ExportWriter

    export = ExportWriter()
    write(
        export.first(
            epoch=spool.epoch,
            revision=spool.revision,
            prefixes=scope.prefixes,
            **scope.bounds(),
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
    )
    for line in spool.lines():
        write(export.record(line))
        if export.records % _REPORT_EVERY == 0:
            advance(export.records)
    write(export.last())
    return export
