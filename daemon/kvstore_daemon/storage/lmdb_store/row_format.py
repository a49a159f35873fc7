"""The rows of the local store, with their checksums. Pure bytes to values and back.

A checksum covers the row's key as well, so that a row which landed under another key is noticed.
All numbers are big-endian. ``DamageError`` is raised by every decoder that meets a row it cannot trust.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from kvstore_daemon.storage.interface import StoredEvent, StoredRecord

Buffer = bytes | memoryview

OPS = ("put", "delete", "expire")
_OP_CODES = {op: code for code, op in enumerate(OPS)}
_PUT = bytes((_OP_CODES["put"],))

# a named tuple's own __new__ takes twice as long, 0.24 us, and one is made with every read
_new_tuple = tuple.__new__

_CRC = struct.Struct(">I")
# the envelope, which would be the same on every engine: format u8, modified_at u64, expires_at u64 (0: none),
# length of the media type u8; then the media type (ASCII) and the value. Revisions are no part of it, since a
# distributed engine learns them only when a commit is done
_VALUE_FORMAT = 1
_VALUE_HEAD = "BQQB"
# revision u64, index u32, create_revision u64, version u64; then the envelope
_RECORD = struct.Struct(">QIQQ" + _VALUE_HEAD)
_SEALED_RECORD = struct.Struct(">IQIQQ" + _VALUE_HEAD)
# op u8, count u32, time u64, place of the preceding event, key length u16, record length u32;
# then the key, the record without its checksum (puts), the previous record without its (if inline)
_EVENT = struct.Struct(">BIQ12sHI")
_PLACE = struct.Struct(">QI")
_POSITION = struct.Struct(">QQQQ")


class DamageError(ValueError):
    """The bytes are not what was written."""


class EventId(NamedTuple):
    """Where an event stands in the log; (0, 0) is nowhere."""

    revision: int
    index: int  # type: ignore[assignment]

    def encode(self) -> bytes:
        """The log's key for this place; its byte order is the log's order."""
        return _PLACE.pack(*self)

    @classmethod
    def decode(cls, data: Buffer) -> EventId:
        """The place that :meth:`encode` wrote."""
        return cls(*_PLACE.unpack(data))


NO_EVENT = EventId(0, 0)

encode_place = _PLACE.pack
"""The bytes of ``EventId(revision, index).encode()``, without making the place."""


class LogCounters(NamedTuple):
    """The log's counters, kept in one row that every commit rewrites."""

    head: int
    floor: int
    events: int
    size: int

    def encode(self) -> bytes:
        """The row's bytes."""
        return _POSITION.pack(*self)

    @classmethod
    def decode(cls, data: Buffer) -> LogCounters:
        """The counters that :meth:`encode` wrote."""
        return cls(*_POSITION.unpack(data))


def record_body(stored: StoredRecord, index: int) -> bytes:
    """A record without its checksum; ``index`` is its event's index within the revision."""
    value, content_type, revision, create_revision, version, modified_at, expires_at = stored
    kind = content_type.encode("ascii")
    # one pack for the row's head and the envelope's; two of them take half as long again
    head = _RECORD.pack(
        revision, index, create_revision, version, _VALUE_FORMAT, modified_at, expires_at or 0, len(kind)
    )
    return head + kind + (value or b"")


def checksum(key: Buffer, body: Buffer) -> int:
    """What guards a record, in its data row and, as a part of the event's own, in its log row."""
    return crc32(body, crc32(key))


def encode_record(body: bytes, sum_: int) -> bytes:
    """The data row of the record in ``body``, whose checksum is ``sum_``."""
    return _CRC.pack(sum_) + body


def decode_body(key: Buffer, data: Buffer) -> Buffer:
    """The body in a data row, its checksum verified."""
    body = data[_CRC.size :]
    if len(data) < _CRC.size or _CRC.unpack_from(data)[0] != checksum(key, body):
        raise DamageError("the checksum does not match")
    return body


def record_place(data: Buffer) -> bytes:
    """The place, encoded, of the event that made the record in a data row; not verified."""
    return bytes(data[_CRC.size : _CRC.size + _PLACE.size])


def decode_record(key: Buffer, data: Buffer, *, value: bool = True) -> StoredRecord:
    """The record in a data row; with ``value`` false its value is left out, the checksum is not."""
    try:
        crc, revision, _, create_revision, version, form, modified_at, expires_at, kind_length = (
            _SEALED_RECORD.unpack_from(data)
        )
    except struct.error as error:
        raise DamageError("the row is too short") from error
    if crc != crc32(data[_CRC.size :], crc32(key)) or form != _VALUE_FORMAT:
        raise DamageError("the checksum does not match")
    value_at = _SEALED_RECORD.size + kind_length
    return _new_tuple(
        StoredRecord,
        (
            bytes(data[value_at:]) if value else None,
            str(data[_SEALED_RECORD.size : value_at], "ascii"),
            revision,
            create_revision,
            version,
            modified_at,
            expires_at or None,
        ),
    )


def _decode_body(body: Buffer, *, value: bool) -> StoredRecord:
    """The record in a log row, whose checksum was verified."""
    try:
        revision, _, create_revision, version, form, modified_at, expires_at, kind_length = (
            _RECORD.unpack_from(body)
        )
    except struct.error as error:
        raise DamageError(str(error)) from error
    if form != _VALUE_FORMAT:
        raise DamageError(f"the envelope has the unknown format {form}")
    value_at = _RECORD.size + kind_length
    return StoredRecord(
        bytes(body[value_at:]) if value else None,
        str(body[_RECORD.size : value_at], "ascii"),
        revision,
        create_revision,
        version,
        modified_at,
        expires_at or None,
    )


def encode_event(
    change: StoredEvent, place: bytes, before: bytes, record: bytes, record_sum: int, inline: Buffer
) -> bytes:
    """The log row of a change that stands at ``place``.

    ``before`` is the place of the key's preceding event; both are encoded. ``record`` is the body of
    the new record, empty where there is none, and ``record_sum`` its checksum; ``inline`` the body of
    the record it replaced, where that is to be kept within this row instead of being looked up at
    ``before``.
    """
    key = change.key
    head = _EVENT.pack(_OP_CODES[change.op], change.count, change.time, before, len(key), len(record))
    return b"".join((_CRC.pack(_event_sum(record_sum, place, head, inline)), head, key, record, inline))


def _event_sum(record_sum: int, place: bytes, head: Buffer, inline: Buffer) -> int:
    # goes on from the record's checksum, so that a value is not summed up a second time: 1 ms for 1 MiB
    return crc32(inline, crc32(head, crc32(place, record_sum)))


def event_time(data: Buffer) -> int:
    """When the event in a log row happened, not verified: good enough to say how old it is, and
    asked with every commit."""
    time: int = _EVENT.unpack_from(data, _CRC.size)[2]
    return time


def event_key(data: Buffer) -> bytes:
    """The key of the event in a log row, not verified; empty if the row is too short."""
    key_at = _CRC.size + _EVENT.size
    if len(data) < key_at:
        return b""
    return bytes(data[key_at : key_at + _EVENT.unpack_from(data, _CRC.size)[4]])


def is_put(data: Buffer) -> bool:
    """Whether the event in a log row is a put, not verified: nothing but its row has to go when it is
    trimmed."""
    return data[_CRC.size : _CRC.size + 1] == _PUT


class LogRow(NamedTuple):
    """A log row, its checksum verified and its records still undecoded.

    ``before`` is the place of the key's preceding event, and ``inline`` says that the record it left
    is kept in this row. ``count`` is how many events share the revision, this one included.
    """

    op: str
    key: bytes
    place: EventId
    count: int  # type: ignore[assignment]
    time: int
    before: EventId
    record: Buffer
    inline: Buffer

    def stored(self, *, value: bool = True) -> StoredRecord | None:
        """The record that a put stored, None on other ops."""
        return _decode_body(self.record, value=value) if self.record else None

    def inline_previous(self, *, value: bool = True) -> StoredRecord | None:
        """The record that the change replaced, if it is kept here."""
        return _decode_body(self.inline, value=value) if self.inline else None


def decode_event(place: EventId, data: Buffer) -> LogRow:
    """The log row at ``place``."""
    try:
        (crc,) = _CRC.unpack_from(data)
        code, count, time, before, key_length, record_length = _EVENT.unpack_from(data, _CRC.size)
    except struct.error as error:
        raise DamageError("the row is too short") from error
    key_at = _CRC.size + _EVENT.size
    record_at = key_at + key_length
    inline_at = record_at + record_length
    key, record, inline = bytes(data[key_at:record_at]), data[record_at:inline_at], data[inline_at:]
    if crc != _event_sum(checksum(key, record), place.encode(), data[_CRC.size : key_at], inline):
        raise DamageError("the checksum does not match")
    try:
        op = OPS[code]
    except IndexError as error:
        raise DamageError(f"there is no event with the code {code}") from error
    return LogRow(op, key, place, count, time, EventId.decode(before), record, inline)
