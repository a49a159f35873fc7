"""The rows of the local store, with their checksums. Pure bytes to values and back.

A checksum covers the row's key as well, so that a row which landed under another key is noticed.
All numbers are big-endian. ``DamageError`` is raised by every decoder that meets a row it cannot trust.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from kvstore_daemon.engine import Change, Stored, envelope
from kvstore_daemon.engine.envelope import Buffer

OPS = ("put", "delete", "expire")
_OP_CODES = {op: code for code, op in enumerate(OPS)}

_CRC = struct.Struct(">I")
# revision u64, index u32, create_revision u64, version u64; then the envelope
_RECORD = struct.Struct(">QIQQ")
# op u8, count u32, time u64, previous revision u64, previous index u32, key length u16, record length u32;
# then the key, the record without its checksum (puts), the previous record without its (if inline)
_EVENT = struct.Struct(">BIQQIHI")
_WHOLE = struct.Struct(">IQIQQ" + envelope.HEAD)
_PLACE = struct.Struct(">QI")
_POSITION = struct.Struct(">QQQQ")


class DamageError(ValueError):
    """The bytes are not what was written."""


class Place(NamedTuple):
    """Where an event stands in the log; (0, 0) is nowhere."""

    revision: int
    nth: int

    def encode(self) -> bytes:
        """The log's key for this place; its byte order is the log's order."""
        return _PLACE.pack(*self)

    @classmethod
    def decode(cls, data: Buffer) -> Place:
        """The place that :meth:`encode` wrote."""
        return cls(*_PLACE.unpack(data))


NOWHERE = Place(0, 0)


class Row(NamedTuple):
    """A record and the place of the event that made it what it is."""

    stored: Stored
    place: Place


class LogPosition(NamedTuple):
    """The log's counters, kept in one row that every commit rewrites."""

    head: int
    floor: int
    events: int
    size: int

    def encode(self) -> bytes:
        """The row's bytes."""
        return _POSITION.pack(*self)

    @classmethod
    def decode(cls, data: Buffer) -> LogPosition:
        """The counters that :meth:`encode` wrote."""
        return cls(*_POSITION.unpack(data))


def _sealed(key: bytes, body: bytes) -> bytes:
    return _CRC.pack(zlib.crc32(body, zlib.crc32(key))) + body


def _unsealed(key: Buffer, data: Buffer) -> Buffer:
    body = data[_CRC.size :]
    if len(data) < _CRC.size or _CRC.unpack_from(data)[0] != zlib.crc32(body, zlib.crc32(key)):
        raise DamageError("the checksum does not match")
    return body


def record_body(stored: Stored, nth: int) -> bytes:
    """A record without its checksum; ``nth`` is its event's index within the revision."""
    value = stored.value if stored.value is not None else b""
    return _RECORD.pack(stored.revision, nth, stored.create_revision, stored.version) + envelope.pack(
        value, stored.content_type, stored.modified_at, stored.expires_at
    )


def _decode_record(body: Buffer, *, value: bool) -> Row:
    try:
        revision, index, create_revision, version = _RECORD.unpack_from(body)
        content_type, modified_at, expires_at, raw = envelope.unpack(body[_RECORD.size :])
    except (struct.error, ValueError) as error:
        raise DamageError(str(error)) from error
    stored = Stored(
        bytes(raw) if value else None,
        content_type,
        revision,
        create_revision,
        version,
        modified_at,
        expires_at,
    )
    return Row(stored, Place(revision, index))


def encode_record(key: bytes, body: bytes) -> bytes:
    """The data row of the record in ``body``."""
    return _sealed(key, body)


def decode_body(key: Buffer, data: Buffer) -> Buffer:
    """The body in a data row, its checksum verified."""
    return _unsealed(key, data)


def decode_record(key: Buffer, data: Buffer, *, value: bool = True) -> Row:
    """The record in a data row; with ``value`` false its value is left out, the checksum is not."""
    stored = decode_stored(key, data, value=value)
    return Row(stored, Place(*_PLACE.unpack_from(data, _CRC.size)))


def decode_stored(key: Buffer, data: Buffer, *, value: bool = True) -> Stored:
    """As :func:`decode_record`, without the place of its event.

    Every read comes through here, so the row and the envelope in it are unpacked in one go.
    """
    try:
        crc, revision, _, create_revision, version, form, modified_at, expires_at, kind_length = (
            _WHOLE.unpack_from(data)
        )
    except struct.error as error:
        raise DamageError("the row is too short") from error
    if crc != zlib.crc32(data[_CRC.size :], zlib.crc32(key)) or form != envelope.FORMAT:
        raise DamageError("the checksum does not match")
    value_at = _WHOLE.size + kind_length
    return Stored(
        bytes(data[value_at:]) if value else None,
        str(data[_WHOLE.size : value_at], "ascii"),
        revision,
        create_revision,
        version,
        modified_at,
        expires_at or None,
    )


def encode_event(change: Change, before: Place, record: Buffer, inline: Buffer) -> bytes:
    """The log row of a change.

    ``before`` is the place of the key's preceding event. ``record`` is the body of the new record,
    empty where there is none; ``inline`` the body of the record it replaced, where that is to be kept
    within this row instead of being looked up at ``before``.
    """
    head = _EVENT.pack(
        _OP_CODES[change.op],
        change.count,
        change.time,
        before.revision,
        before.nth,
        len(change.key),
        len(record),
    )
    body = b"".join((head, change.key, record, inline))
    return _sealed(Place(change.revision, change.index).encode(), body)


def event_time(data: Buffer) -> int:
    """When the event in a log row happened, not verified: good enough to say how old it is, and
    asked with every commit."""
    time: int = _EVENT.unpack_from(data, _CRC.size)[2]
    return time


class LogRow(NamedTuple):
    """A log row, its checksum verified and its records still undecoded.

    ``before`` is the place of the key's preceding event, and ``inline`` says that the record it left
    is kept in this row. ``siblings`` is how many events share the revision, this one included.
    """

    op: str
    key: bytes
    place: Place
    siblings: int
    time: int
    before: Place
    record: Buffer
    inline: Buffer

    def stored(self, *, value: bool = True) -> Stored | None:
        """The record that a put stored, None on other ops."""
        return _decode_record(self.record, value=value).stored if self.record else None

    def inline_previous(self, *, value: bool = True) -> Stored | None:
        """The record that the change replaced, if it is kept here."""
        return _decode_record(self.inline, value=value).stored if self.inline else None


def decode_event(place: Place, data: Buffer) -> LogRow:
    """The log row at ``place``."""
    body = _unsealed(place.encode(), data)
    try:
        code, count, time, revision, index, key_length, record_length = _EVENT.unpack_from(body)
        op = OPS[code]
    except (struct.error, IndexError) as error:
        raise DamageError(str(error)) from error
    record_at = _EVENT.size + key_length
    inline_at = record_at + record_length
    return LogRow(
        op,
        bytes(body[_EVENT.size : record_at]),
        place,
        count,
        time,
        Place(revision, index),
        body[record_at:inline_at],
        body[inline_at:],
    )
