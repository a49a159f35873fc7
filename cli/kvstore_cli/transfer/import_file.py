"""The file that is imported."""

from __future__ import annotations

import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile, GzipFile
from typing import BinaryIO, Protocol

import click

from kvstore_cli.transfer.ndjson_format import Entry, Reader
from kvstore_core.process.files import reason

_GZIP_MAGIC = b"\x1f\x8b"
_BUFFER_BYTES = 256 * 1024


class _Bytes(Protocol):
    def readline(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...


class Intake:
    """An open file of lines, plain or compressed.

    ``can_rewind`` says that it is a file on disk, which can be read more than once; ``size`` is what it
    takes there, None for a pipe. Set ``value_bytes``, the limit for a value, before reading, and
    ``sha256`` and ``breaches`` of the reader once all was read.
    """

    value_bytes = 0
    sha256 = ""
    breaches = 0

    def __init__(self, name: str, raw: BinaryIO) -> None:
        self.name = name
        self._raw = raw
        about = os.fstat(raw.fileno())
        self.can_rewind = stat.S_ISREG(about.st_mode) and name != "-"
        self.size = about.st_size if self.can_rewind else None
        self._is_compressed = raw.peek(2)[:2] == _GZIP_MAGIC  # type: ignore[attr-defined]

    def whole(self) -> Reader:
        """All of it, with what an export says of itself checked."""
        if self.can_rewind:
            self._raw.seek(0)
        return Reader(self._stream(), value_bytes=self.value_bytes)

    def behind(self, offset: int, line: int) -> Reader:
        """What follows line ``line``, which ends at ``offset``. Only if it ``can_rewind``."""
        self._raw.seek(0)
        stream = self._stream()
        stream.seek(offset)
        return Reader(stream, value_bytes=self.value_bytes, is_sealed=False, offset=offset, number=line)

    def _stream(self) -> _Bytes:
        return _Unzipped(self._raw) if self._is_compressed else self._raw

    @property
    def done(self) -> int:
        """How much of ``size`` has been read."""
        return self._raw.tell() if self.can_rewind else 0

    def entries(self, reader: Reader) -> Iterator[Entry]:
        """The entries of one of its readers; a file that cannot be read is a ClickException."""
        try:
            yield from reader.entries()
        except OSError as error:
            raise click.ClickException(f"it cannot be read any further: {reason(error)}") from error


class _Unzipped:
    """What is in a compressed file; a line that cannot be had is a ClickException."""

    def __init__(self, raw: BinaryIO) -> None:
        self._file = GzipFile(fileobj=raw)

    def readline(self, size: int, /) -> bytes:
        try:
            return self._file.readline(size)
        except EOFError as error:
            raise click.ClickException("the file is cut off: its compressed data has no end") from error
        except (BadGzipFile, zlib.error) as error:
            raise click.ClickException(f"the file is damaged: {error}") from error

    def seek(self, offset: int, /) -> int:
        return self._file.seek(offset)


@contextmanager
def opened(name: str) -> Iterator[Intake]:
    """The file ``name``, ``-`` for standard input; a usage error if it cannot be read."""
    from kvstore_cli.terminal.output import readable

    if name == "-":
        if sys.stdin is None:
            raise click.UsageError("standard input is closed, there is nothing to read")
        yield Intake(name, sys.stdin.buffer)
        return
    try:
        file = open(name, "rb", buffering=_BUFFER_BYTES)  # noqa: PTH123, SIM115 - pathlib adds nothing here
    except OSError as error:
        raise click.UsageError(f"cannot read {readable(name)}: {reason(error)}") from error
    with file:
        try:
            intake = Intake(name, file)
        except OSError as error:
            raise click.UsageError(f"cannot read {readable(name)}: {reason(error)}") from error
        yield intake
