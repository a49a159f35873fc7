"""The file of a mirror: its records and the cursor from which to go on."""

from __future__ import annotations

import logging
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.model import Cursor, Record
from kvstore_core.process.files import reason, whole_file

log = logging.getLogger("kvstore.client")

MAGIC = b"kvstore mirror 1\n"

SAVE_SECONDS = 5.0
POSITION_SECONDS = 60.0
"""After how long a change is written, and after how long a position that moved without one."""
SAVE_SHARE = 20
"""It is written as a whole: a pause is this many times as long as the writing took, at least."""

_HASH_BYTES = 32


class NotUsableError(Exception):
    """The file holds nothing to go on from; the text says why."""


class MirrorFile:
    """Reads and writes the file at ``path`` for a mirror of ``wanted``.

    The file begins with a line that names its format; a SHA-256 of the rest follows, a line of JSON with the
    filter, the cursor and the records' fields, and the values. It is replaced as a whole, when that is on the
    disk, and readable by its owner only.
    """

    def __init__(self, path: Path, wanted: Filter) -> None:
        self._path = path
        self._prefixes = list(wanted.prefixes)
        self._lock = threading.Lock()
        self._saved: Cursor | None = None
        self._changed_at: float | None = None
        self._moved_at: float | None = None
        self._not_before = 0.0
        self._is_failing = False

    def load(self) -> tuple[dict[str, Record], Cursor] | None:
        """The records and the cursor; None, with a line in the log unless there is no file, where it is of no
        use."""
        try:
            records, self._saved = self._parse(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, NotUsableError) as error:
            said = reason(error) if isinstance(error, OSError) else error
            log.warning("the mirror's file %s is not used, and all is read again: %s", self._path, said)
            return None
        return records, self._saved

    def _parse(self, data: bytes) -> tuple[dict[str, Record], Cursor]:
        if not data.startswith(MAGIC):
            raise NotUsableError("it is no file of a mirror, or one of another version")
        checksum, rest = data[len(MAGIC) :][:_HASH_BYTES], memoryview(data)[len(MAGIC) + _HASH_BYTES :]
        if sha256(rest).digest() != checksum:
            raise NotUsableError("it is damaged")
        line, _, values = bytes(rest).partition(b"\n")
        try:
            header = orjson.loads(line)
            if header["prefixes"] != self._prefixes:
                raise NotUsableError(f"it is that of a mirror of {header['prefixes'] or 'all keys'}")
            return _records(header["records"], values), Cursor.parse(header["cursor"])
        except (KvError, KeyError, TypeError, ValueError) as error:
            raise NotUsableError(f"it is malformed: {error!r}") from error

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def note(self, cursor: Cursor | None, *, has_changed: bool) -> None:
        """The mirror has gone on to ``cursor``."""
        if has_changed and self._changed_at is None:
            self._changed_at = time.monotonic()
        elif self._moved_at is None and cursor != self._saved:
            self._moved_at = time.monotonic()

    def due_in(self) -> float | None:
        """After how many seconds it is to be written; None while nothing has changed."""
        times = []
        if self._changed_at is not None:
            times.append(self._changed_at + SAVE_SECONDS)
        if self._moved_at is not None:
            times.append(self._moved_at + POSITION_SECONDS)
        return max(0.0, max(min(times), self._not_before) - time.monotonic()) if times else None

    def save(self, records: dict[str, Record], cursor: Cursor) -> None:
        """Write it; a failure is in the log, and is no error of the mirror."""
        with self._lock:
            began = time.monotonic()
            self._changed_at = self._moved_at = None
            try:
                with whole_file(self._path, replace=True) as file:
                    file.writelines(_parts(self._prefixes, records, cursor))
                self._saved, self._is_failing = cursor, False
            except OSError as error:
                self._changed_at = began
                if not self._is_failing:
                    log.warning("the mirror's file %s cannot be written: %s", self._path, reason(error))
                self._is_failing = True
            ended = time.monotonic()
            self._not_before = ended + SAVE_SHARE * (ended - began)


def _parts(prefixes: list[str], records: dict[str, Record], cursor: Cursor) -> list[bytes]:
    fields = [[record.key, len(record.value or b""), *record[2:]] for record in records.values()]
    header = orjson.dumps({"prefixes": prefixes, "cursor": str(cursor), "records": fields}) + b"\n"
    values = [record.value or b"" for record in records.values()]
    checksum = sha256(header)
    for value in values:
        checksum.update(value)
    return [MAGIC, checksum.digest(), header, *values]


def _records(fields: list[list[Any]], values: bytes) -> dict[str, Record]:
    records, offset = {}, 0
    for key, size, *rest in fields:
        records[key] = Record(key, values[offset : offset + size], *rest)
        offset += size
    return records
