"""The journal: what was committed and is not in LMDB yet, in two files that are used in turn.

A file is a sequence of frames, each the changes of one group of requests:

    journal's id 8 | number u64 | synced u64 | length u32 | checksum of the rows u32 | and of the head u32
    then rows: table u8 | length of the key u16 | length of the row u32 | key | row

A length of 2^32 - 1 is that of a row which is deleted, and 2^32 - 2 that of a record which the row of its
event, earlier in the frame, has as well: what follows is its checksum and the event's id.

All numbers are big-endian. Frames are numbered without gaps through both files. ``synced`` is the number of
the last frame that was known to be on the disk when this one was written.

The journal ends at the first frame that is not whole or has not the next number: a file is not made empty
before it is used again, and what a power cut leaves of the last write may be any part of it. Was a frame lost
that had been acknowledged, then a later one says by its ``synced`` that there was one, and that is damage
(:func:`read_frames`). The id is that of one run of the daemon, in LMDB too, so frames of a store that was
replaced, by a restore, are never taken for this one's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.journaling.overlay import NUMBERS, Generation, Row

NAMES = ("journal.0", "journal.1")
ID_BYTES = 8

FILE_BYTES = 16 * 1024 * 1024
"""Where a file is full: the next frame goes into the other one."""

_HEAD = struct.Struct(">8sQQII")
_CRC = struct.Struct(">I")
_ROW = struct.Struct(">BHI")
_DELETED = 0xFFFFFFFF
_IN_EVENT = 0xFFFFFFFE
_LARGE_BYTES = 256
_STEP_PARTS = 1000
_REFERENCE_BYTES = row_format.CRC_BYTES + row_format.EVENT_ID_BYTES

_DATA, _LOG = NUMBERS["data"], NUMBERS["log"]
_ORDER = (_LOG, *(number for number in NUMBERS.values() if number != _LOG))

HEAD_BYTES = _HEAD.size + _CRC.size


class Frame(NamedTuple):
    """A frame that was read. ``end`` is the offset behind it."""

    number: int
    synced: int
    rows: memoryview
    end: int


def encode_rows(staged: Generation) -> Generator[None, None, bytes]:
    """The rows of a frame; a step is some hundred of them."""
    parts: list[bytes] = []
    pack, full = _ROW.pack, _STEP_PARTS
    events = staged.tables[_LOG].rows
    for number in _ORDER:
        for key, row in staged.tables[number].rows.items():
            if row is None:
                parts += (pack(number, len(key), _DELETED), key)
            elif number == _DATA and len(row) > _LARGE_BYTES and _is_in_event(row, events):
                parts += (pack(number, len(key), _IN_EVENT), key, row[:_REFERENCE_BYTES])
            else:
                parts += (pack(number, len(key), len(row)), key, row)
            if len(parts) > full:
                full = len(parts) + _STEP_PARTS
                yield
    return b"".join(parts)


def _is_in_event(row: bytes, events: Mapping[bytes, Row]) -> bool:
    """Whether the event that made a record has it in its row, so that it need not be written twice."""
    event = events.get(row_format.record_event_id(row))
    return event is not None and row_format.event_record(event) == row[row_format.CRC_BYTES :]


def decode_rows(data: memoryview, tables: Sequence[dict[bytes, Row]]) -> None:
    """Put the rows that :func:`encode_rows` wrote into ``tables``, by number. Their checksum was verified."""
    at, end, unpack = 0, len(data), _ROW.unpack_from
    events = tables[_LOG]
    while at < end:
        number, key_length, row_length = unpack(data, at)
        key_at = at + _ROW.size
        at = key_at + key_length
        key = bytes(data[key_at:at])
        if row_length == _DELETED:
            tables[number][key] = None
        elif row_length == _IN_EVENT:
            reference = bytes(data[at : at + _REFERENCE_BYTES])
            event = events[row_format.record_event_id(reference)] or b""
            tables[number][key] = reference[: row_format.CRC_BYTES] + row_format.event_record(event)
            at += _REFERENCE_BYTES
        else:
            tables[number][key] = bytes(data[at : at + row_length])
            at += row_length


def encode_head(journal_id: bytes, number: int, synced: int, rows: bytes, rows_sum: int) -> bytes:
    """The head of a frame; ``rows_sum`` is the checksum of its rows."""
    head = _HEAD.pack(journal_id, number, synced, len(rows), rows_sum)
    return head + _CRC.pack(crc32(head))


def _frame_at(data: memoryview, at: int, journal_id: bytes) -> Frame | None:
    """The whole frame of the journal at an offset, None if there is none."""
    if at + HEAD_BYTES > len(data):
        return None
    found, number, synced, length, rows_sum = _HEAD.unpack_from(data, at)
    rows_at = at + HEAD_BYTES
    end = rows_at + length
    if found != journal_id or end > len(data):
        return None
    if _CRC.unpack_from(data, at + _HEAD.size)[0] != crc32(data[at : at + _HEAD.size]):
        return None
    rows = data[rows_at:end]
    return Frame(number, synced, rows, end) if crc32(rows) == rows_sum else None


def frames_of(data: memoryview, journal_id: bytes) -> Iterator[Frame]:
    """The frames of one file, as far as they follow each other."""
    frame = _frame_at(data, 0, journal_id)
    while frame is not None:
        yield frame
        number = frame.number
        frame = _frame_at(data, frame.end, journal_id)
        if frame is not None and frame.number != number + 1:
            return


def read_frames(files: list[memoryview], journal_id: bytes, applied: int) -> Iterator[Frame]:
    """The frames above number ``applied``, in their order, from the contents of the journal's files.

    Raises DamageError at the end if there was a later one on the disk.
    """
    if any(_is_foreign(data, journal_id) for data in files):
        raise DamageError("it is of another store, or of another run of the daemon")
    number = applied
    # a file goes on where the other one ends, or both have only what is applied
    for data in sorted(files, key=lambda data: _first_number(data, journal_id)):
        for frame in frames_of(data, journal_id):
            if frame.number == number + 1:
                yield frame
                number += 1
    synced = max((_newest_synced(data, journal_id) for data in files), default=0)
    if synced > number:
        raise DamageError(f"frames {number + 1} to {synced} of the journal are missing or damaged")


def _is_foreign(data: memoryview, journal_id: bytes) -> bool:
    """Whether a file begins with a frame of another journal: files are emptied before a journal begins."""
    if len(data) < HEAD_BYTES or data[:ID_BYTES] == journal_id:
        return False
    return bool(_CRC.unpack_from(data, _HEAD.size)[0] == crc32(data[: _HEAD.size]))


def _first_number(data: memoryview, journal_id: bytes) -> int:
    frame = _frame_at(data, 0, journal_id)
    return 0 if frame is None else frame.number


def _newest_synced(data: memoryview, journal_id: bytes) -> int:
    """The highest ``synced`` of all heads in a file, wherever they are: those behind a damaged frame, too."""
    content, newest, at = bytes(data), 0, -1
    while (at := content.find(journal_id, at + 1)) >= 0:
        if at + HEAD_BYTES <= len(content):
            head = content[at : at + _HEAD.size]
            if _CRC.unpack_from(content, at + _HEAD.size)[0] == crc32(head):
                newest = max(newest, _HEAD.unpack(head)[2])
    return newest


def read_file(path: Path) -> memoryview:
    """The content of a file of the journal."""
    return memoryview(path.read_bytes())


def open_file(path: Path) -> int:
    """A descriptor of a new, empty file of the journal, for writing. The caller syncs it and the folder."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
