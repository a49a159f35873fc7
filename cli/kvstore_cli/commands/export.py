"""``kvstore export``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from kvstore_cli import output
from kvstore_cli.client import TIME, configured, service_of
from kvstore_cli.completion import complete_file, complete_key
from kvstore_cli.flags import TEXT, Command, with_options
from kvstore_cli.service import Service

Write = Callable[[bytes], object]


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
@click.option(
    "--retry-for",
    type=TIME,
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long to go on trying while the service is away.",
)
@with_options("client", "stream")
@click.pass_context
def command(
    context: click.Context,
    file: str,
    prefixes: tuple[str, ...],
    start: str | None,
    end: str | None,
    force: bool,
    retry_for: int,
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
    from kvstore_cli.progress import end_on_sigterm
    from kvstore_cli.transfer.exporting import Scope

    end_on_sigterm()
    if file != "-":
        _refuse_target(Path(file), force=force)
    scope = Scope(tuple(dict.fromkeys(prefixes)), start or None, end or None)
    configuration = configured(context, "stream")
    with service_of(configuration) as service:
        _export(service, scope, file, stall_ms=configuration["stall-timeout"], retry_ms=retry_for)


def _refuse_target(path: Path, *, force: bool) -> None:
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise click.UsageError(f"cannot write {output.readable(str(path))}: {why}")
    if path.exists() and not force:
        raise click.UsageError(f"{output.readable(str(path))} is there already; --force replaces it")


def _export(service: Service, scope: Any, file: str, *, stall_ms: int, retry_ms: int) -> None:
    from kvstore_cli.progress import bar, is_seen
    from kvstore_cli.transfer.exporting import Collection
    from kvstore_cli.transfer.patience import Patience

    folder = None if file == "-" else str(Path(file).parent)
    with Collection(scope, folder) as collection:
        with bar("exporting", scope.count(service) if is_seen() else None) as advance:
            patience = Patience(retry_ms, output.talk)
            collection.fill(service, stall_ms=stall_ms, patience=patience, advance=advance)
        with _target(file) as write:
            records, size = _write(write, collection, scope)
    where = "" if file == "-" else f" to {output.readable(file)}"
    output.talk(
        f"exported {records} records{where}, {size} bytes of JSON, as of revision {collection.revision}"
    )


def _write(write: Write, collection: Any, scope: Any) -> tuple[int, int]:
    """Write the whole export; how many records and bytes that were."""
    from kvstore_cli.transfer.archive import Sealing

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
    write(seal.end())
    return seal.records, seal.size


@contextmanager
def _target(file: str) -> Iterator[Write]:
    """Where the bytes go: standard output, or a file that takes its name when all went well."""
    if file != "-":
        with _new_file(Path(file)) as write:
            yield write
        return
    buffer: list[bytes] = []
    size = 0

    def gather(line: bytes) -> None:
        nonlocal size
        buffer.append(output.shown(line.decode()[:-1]).encode() + b"\n" if output.on_terminal() else line)
        size += len(line)
        if size >= _OUTPUT_BYTES:
            flush()

    def flush() -> None:
        nonlocal size
        output.write(b"".join(buffer))
        buffer.clear()
        size = 0

    yield gather
    flush()


_OUTPUT_BYTES = 256 * 1024


@contextmanager
def _new_file(path: Path) -> Iterator[Write]:
    from tempfile import mkstemp

    try:
        descriptor, name = mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with open(descriptor, "wb") as new:  # noqa: PTH123 - it is open already
                with _compressed(new, path) as write:
                    yield write
                new.flush()
                os.fsync(new.fileno())
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise click.ClickException(f"cannot write {output.readable(str(path))}: {error.strerror}") from error


@contextmanager
def _compressed(file: Any, path: Path) -> Iterator[Write]:
    if path.suffix != ".gz":
        yield file.write
        return
    from gzip import GzipFile

    with GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
        yield compressed.write
