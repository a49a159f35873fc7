"""The file that is imported."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile, GzipFile
from typing import BinaryIO

import click

from kvstore_cli.files.input_file import opened, unreadable
from kvstore_cli.transfer.ndjson_format import Entry, LineSource, Reader
from kvstore_core.process.files import reason

_GZIP_MAGIC = b"\x1f\x8b"


class ImportFile:
    """An open file of lines, plain or compressed with gzip.

    ``can_rewind``: it is a file on disk, which can be read more than once. ``size`` is its size there, None
    for a pipe. Set ``value_bytes``, the limit for a value, before reading, and ``sha256`` and
    ``export_faults`` of the reader after the first reading.
    """

    value_bytes = 0
    sha256 = ""
    export_faults = 0

    def __init__(self, name: str, raw: BinaryIO) -> None:
        self.name = name
        self._raw = raw
        about = os.fstat(raw.fileno())
        self.can_rewind = stat.S_ISREG(about.st_mode) and name != "-"
        self.size = about.st_size if self.can_rewind else None
        self._is_compressed = raw.peek(2)[:2] == _GZIP_MAGIC  # type: ignore[attr-defined]

    def whole(self) -> Reader:
        """All of it; the first and last line of an export are checked."""
        if self.can_rewind:
            self._raw.seek(0)
        return Reader(self._lines(), value_bytes=self.value_bytes)

    def after(self, offset: int, line: int) -> Reader:
        """What follows line ``line``, which ends at ``offset``. Only if it ``can_rewind``."""
        self._raw.seek(0)
        lines = self._lines()
        lines.seek(offset)
        return Reader(lines, value_bytes=self.value_bytes, is_export=False, offset=offset, number=line)

    def _lines(self) -> LineSource:
        return _GzipLines(self._raw) if self._is_compressed else self._raw

    @property
    def done(self) -> int:
        """How much of ``size`` has been read."""
        return self._raw.tell() if self.can_rewind else 0

    def entries(self, reader: Reader) -> Iterator[Entry]:
        """The entries of one of its readers; raises ClickException if the file cannot be read."""
        try:
            yield from reader.entries()
        except OSError as error:
            raise click.ClickException(f"it cannot be read any further: {reason(error)}") from error


class _GzipLines:
    """The lines of a compressed file; a damaged one is a ClickException."""

    def __init__(self, raw: BinaryIO) -> None:
        self._file = GzipFile(fileobj=raw)

    def readline(self, size: int, /) -> bytes:
        try:
            return self._file.readline(size)
        except EOFError as error:
            raise click.ClickException("the file is truncated: its compressed data has no end") from error
        except (BadGzipFile, zlib.error) as error:
            raise click.ClickException(f"the file is damaged: {error}") from error

    def seek(self, offset: int, /) -> int:
        return self._file.seek(offset)


@contextmanager
def opened_import(name: str) -> Iterator[ImportFile]:
    """The file ``name``, ``-`` for standard input; a usage error if it cannot be read."""
    with opened(name) as file:
        try:
            source = ImportFile(name, file)
        except OSError as error:
            raise unreadable(name, error) from error
        yield source
