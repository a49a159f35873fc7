"""The format of an export: newline-delimited JSON.

The first line, ``{"kvstore_export": 1, ...}``, describes the file. Then comes one record a line, in the form
of ``/v1/kv``, each key once and in byte order. The last line, ``{"kvstore_export_end": 1, ...}``, has the
number of records and the SHA-256 of all bytes before it, which shows whether the file was truncated or
changed. Files without these two lines are read as well: any objects with a key and a value.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from gzip import BadGzipFile, GzipFile
from typing import Any, BinaryIO, NamedTuple

import click
import orjson

from kvstore_cli.files.input_file import opened, unreadable
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_CONTENT_TYPE_BYTES, MAX_TTL_SECONDS
from kvstore_core.model import check_key
from kvstore_core.operations import is_media_type
from kvstore_core.process.files import reason

FORMAT = 1
HEAD, END = "kvstore_export", "kvstore_export_end"
_GZIP_MAGIC = b"\x1f\x8b"

MEMBERS = (
    "key",
    "revision",
    "create_revision",
    "version",
    "content_type",
    "modified_at",
    "expires_at",
    "author",
    "message",
    "value",
    "value_b64",
)
"""The members of a record's line, in this order; a record may lack some."""

# of an event of a stream, without those of its record
_OF_EVENTS = ("event", "op", "index", "count", "time", "snapshot", "previous", "previous_revision", "cursor")
_KNOWN = frozenset((*MEMBERS, *_OF_EVENTS, "ttl", "size"))


class Put(NamedTuple):
    """A record to put. ``value`` is text or bytes. The expiry is absolute (``expires_at``, milliseconds since
    1970) or relative to the put (``ttl``, milliseconds)."""

    key: str
    value: str | bytes
    content_type: str | None
    expires_at: int | None
    ttl: int | None


class Entry(NamedTuple):
    """What a line holds: a record to put, or ``fault``, which says why it cannot be used. ``end`` is the
    offset of the line's end."""

    number: int
    end: int
    put: Put | None
    fault: str = ""


def line_of(fields: dict[str, Any]) -> bytes:
    """A record or an event as a line of an export."""
    return orjson.dumps({name: fields[name] for name in MEMBERS if name in fields}) + b"\n"


class ExportWriter:
    """Makes the lines of an export, and counts and sums up the records for the last one."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.records = 0
        self.size = 0

    def first(self, **about: Any) -> bytes:
        """The first line."""
        return self._counted(orjson.dumps({HEAD: FORMAT, **about}) + b"\n")

    def record(self, line: bytes) -> bytes:
        """The line of a record, unchanged."""
        self.records += 1
        return self._counted(line)

    def last(self) -> bytes:
        """The last line."""
        sha256 = self._digest.hexdigest()
        return orjson.dumps({END: FORMAT, "records": self.records, "sha256": sha256}) + b"\n"

    def _counted(self, line: bytes) -> bytes:
        self._digest.update(line)
        self.size += len(line)
        return line


Lines = BinaryIO | GzipFile


class Reader:
    """The lines of a file as entries.

    ``value_bytes`` is the most that a value may have. With ``is_export`` what an export says of itself
    is checked; without, as for a file that was checked before and is read from its middle, it is not.
    """

    def __init__(
        self, file: Lines, *, value_bytes: int, is_export: bool = True, offset: int = 0, number: int = 0
    ) -> None:
        self._file = file
        self._value_bytes = value_bytes
        # a character takes up to six bytes in JSON; the rest is key and times
        self._line_bytes = 6 * value_bytes + 64 * 1024
        self._is_export = is_export
        self._check = _ExportCheck()
        self.offset = offset
        self.number = number
        self.export_faults = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The checksum of everything read so far."""
        return self._digest.hexdigest()

    def entries(self) -> Iterator[Entry]:
        """The entries of the lines that are not empty and not the first or last of an export."""
        while line := self._file.readline(self._line_bytes + 1):
            self.number += 1
            self.offset += len(line)
            self._digest.update(line)
            if len(line) > self._line_bytes:
                yield self._fault(f"longer than {self._line_bytes} bytes, the most of any record")
                return
            if line.isspace():
                continue
            try:
                entry = self._entry(line)
            except _ExportError as error:
                self.export_faults += 1
                entry = self._fault(str(error))
            except (ValueError, KvError) as error:
                entry = self._fault(str(error))
            if entry is not None:
                yield entry
        if self._check.is_open:
            self.export_faults += 1
            yield self._fault("the export is truncated here: its last line is missing")

    def _fault(self, why: str) -> Entry:
        return Entry(self.number, self.offset, None, why)

    def _entry(self, line: bytes) -> Entry | None:
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            self._check.record(line)
            raise ValueError(_not_json(line, error)) from error
        if type(fields) is dict and (HEAD in fields or END in fields) and "key" not in fields:
            if self._is_export:
                self._check.mark(fields, line)
            return None
        self._check.record(line)
        return Entry(self.number, self.offset, put_of(fields, self._value_bytes))


def _not_json(line: bytes, error: ValueError) -> str:
    # for bytes that are not text, orjson's message is about surrogates
    try:
        line.decode()
    except UnicodeDecodeError:
        return "not JSON: not even UTF-8"
    return f"not JSON: {error}"


class _ExportError(ValueError):
    """The first or the last line of an export is wrong."""


class _ExportCheck:
    """Compares the lines of an export with its first and its last; raises _ExportError where they differ."""

    def __init__(self) -> None:
        self.is_open = False
        self._records = 0
        self._digest = hashlib.sha256()

    def record(self, line: bytes) -> None:
        """Any other line."""
        if self.is_open:
            self._records += 1
            self._digest.update(line)

    def mark(self, fields: dict[str, Any], line: bytes) -> None:
        """A first or a last line."""
        if HEAD in fields:
            self._begin(fields[HEAD], line)
        else:
            self._finish(fields)

    def _begin(self, form: Any, line: bytes) -> None:
        if self.is_open:
            raise _ExportError("another export begins here, but the last line of the one before is missing")
        if form != FORMAT:
            raise _ExportError(
                f"the export has format {form}, but this kvstore reads {FORMAT}; use a newer one"
            )
        self.is_open, self._records, self._digest = True, 0, hashlib.sha256(line)

    def _finish(self, fields: dict[str, Any]) -> None:
        if not self.is_open:
            raise _ExportError("an export ends here, but its first line is missing")
        self.is_open = False
        if fields[END] != FORMAT:
            raise _ExportError(f"the export's last line has format {fields[END]}, but its first has {FORMAT}")
        if fields.get("records") != self._records:
            raise _ExportError(
                f"the export has {self._records} records, but its last line says {fields.get('records')}"
            )
        if fields.get("sha256") != self._digest.hexdigest():
            raise _ExportError(
                "the export is damaged or was changed: its checksum does not match. To import it as it is, "
                "remove its first and its last line"
            )


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

    def _lines(self) -> Lines:
        return _GzipLines(fileobj=self._raw) if self._is_compressed else self._raw

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


class _GzipLines(GzipFile):
    """A compressed file; a damaged one is a ClickException."""

    def readline(self, size: int | None = -1) -> bytes:
        try:
            return super().readline(size)
        except EOFError as error:
            raise click.ClickException("the file is truncated: its compressed data has no end") from error
        except (BadGzipFile, zlib.error) as error:
            raise click.ClickException(f"the file is damaged: {error}") from error


@contextmanager
def opened_import(name: str) -> Iterator[ImportFile]:
    """The file ``name``, ``-`` for standard input; a usage error if it cannot be read."""
    with opened(name) as file:
        try:
            source = ImportFile(name, file)
        except OSError as error:
            raise unreadable(name, error) from error
        yield source


def put_of(fields: Any, value_bytes: int) -> Put:
    """The record of a line; raises ValueError or ``invalid_key``."""
    if type(fields) is not dict:
        raise ValueError('not a JSON object like {"key": "a", "value": "b"}')
    if fields.get("op", "put") != "put":
        raise ValueError(f"a {fields['op']!r} cannot be imported, only records can")
    if type(key := fields.get("key")) is not str:
        raise ValueError('no key; a record is an object like {"key": "a", "value": "b"}')
    if not fields.keys() <= _KNOWN:
        unknown = ", ".join(sorted(fields.keys() - _KNOWN))
        raise ValueError(f"unknown member {unknown}; known: {', '.join(MEMBERS)}, ttl")
    check_key(key)
    value = _value(fields)
    size = len(value.encode() if isinstance(value, str) and not value.isascii() else value)
    if size > value_bytes:
        raise ValueError(f"the value has {size} bytes; the service takes at most {value_bytes}")
    expires_at = _moment(fields["expires_at"]) if "expires_at" in fields else None
    ttl = None
    if "ttl" in fields:
        if expires_at is not None:
            raise ValueError("both expires_at and ttl are given; give one")
        ttl = _ttl(fields["ttl"])
    return Put(key, value, _content_type(fields), expires_at, ttl)


def _value(fields: dict[str, Any]) -> str | bytes:
    text, encoded = fields.get("value"), fields.get("value_b64")
    if ("value" in fields) == ("value_b64" in fields):
        raise ValueError("give one of value (text) and value_b64 (bytes in base64)")
    if "value" in fields:
        if type(text) is not str:
            raise ValueError("value must be a string; write other JSON as a string")
        return text
    try:
        return b64decode(encoded, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"value_b64 is not base64: {error}") from error


def _content_type(fields: dict[str, Any]) -> str | None:
    given = fields.get("content_type")
    if given is None:
        return None
    if not is_media_type(given):
        raise ValueError(f"content_type must be printable ASCII of 1 to {MAX_CONTENT_TYPE_BYTES} characters")
    return str(given)


def _moment(given: Any) -> int:
    try:
        moment = datetime.fromisoformat(given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expires_at is {given!r}; it must be a time like 2026-01-31T12:00:00.000Z"
        ) from error
    if moment.tzinfo is None:
        raise ValueError(f"expires_at is {given!r}, without a time zone; write Z for UTC")
    return round(moment.timestamp() * 1000)


def _ttl(given: Any) -> int:
    from kvstore_cli.config.option_values import parse_duration

    try:
        ms = round(given * 1000) if type(given) in (int, float) else parse_duration(given)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"ttl: {error}") from error
    if not 1 <= ms <= MAX_TTL_SECONDS * 1000:
        raise ValueError(f"ttl is {given!r}; it must be from 1 ms to 100 years")
    return ms
