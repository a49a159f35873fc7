"""The rows of the store and their checksums: values to bytes and back, without I/O.

A checksum covers the row's key as well, so that a row which landed under another key is noticed. All numbers
are big-endian. A decoder that meets a row it cannot trust raises ``DamageError``.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from kvstore_core.digest import DIGEST_BYTES, record_hash
from kvstore_core.errors import KvError
from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.interface import StoredEvent, StoredRecord

Buffer = bytes | memoryview

OPS = ("put", "delete", "expire")
_OP_CODES = {op: code for code, op in enumerate(OPS)}
_PUT = bytes((_OP_CODES["put"],))

# a named tuple's own __new__ takes twice as long, and one is made with every read
_new_tuple = tuple.__new__

_CRC = struct.Struct(">I")
# what every engine would store with a value: format u8, modified_at u64, expires_at u64 (0: none), length of
# the media type u8; then the media type (ASCII) and the value. Revisions are not part of it, since a
# distributed engine learns them only when a commit is done
_VALUE_FORMAT = 1
# the same with a byline between media type and value: the lengths u8 of author and message, then both (UTF-8)
_BYLINE_FORMAT = 2
# both with the record's hash right behind the head: so a change hashes the new value alone, and the digest of
# a range none
_HASHED_FORMAT, _HASHED_BYLINE_FORMAT = 3, 4
_VALUE_HEAD = "BQQB"
# revision u64, index u32, create_revision u64, version u64; then the value's head
_RECORD = struct.Struct(">QIQQ" + _VALUE_HEAD)
_SEALED_RECORD = struct.Struct(">IQIQQ" + _VALUE_HEAD)
_ID_IN_ROW = slice(_CRC.size, _CRC.size + struct.calcsize(">QI"))
_HASH_IN_ROW = slice(_SEALED_RECORD.size, _SEALED_RECORD.size + DIGEST_BYTES)
_FORM_AT = struct.calcsize(">IQIQQ")
_KIND_AT = _SEALED_RECORD.size + DIGEST_BYTES
# op u8, count u32, time u64, id of the key's event before, key length u16, record length u32;
# then the key, the record without its checksum (puts), a byline (where _HAS_BYLINE is set in the op; that of
# a put is in its record), the previous record without its checksum (if inline)
_EVENT = struct.Struct(">BIQ12sHI")
_EVENT_ID = struct.Struct(">QI")
_COUNTERS = struct.Struct(">QQQQ")
_COUNTERS_AND_DIGEST = struct.Struct(f">QQQQ{DIGEST_BYTES}s")


_HAS_BYLINE = 0x80


class EventId(NamedTuple):
    """An event's revision, and its index within the events of that revision."""

    revision: int
    index: int  # type: ignore[assignment] # tuple.index is of no use here

    def encode(self) -> bytes:
        """The event's key in the log; its byte order is the log's order."""
        return _EVENT_ID.pack(*self)

    @classmethod
    def decode(cls, data: Buffer) -> EventId:
        """The id that :meth:`encode` wrote."""
        return cls(*_EVENT_ID.unpack(data))


CRC_BYTES = _CRC.size
EVENT_ID_BYTES = _EVENT_ID.size
"""Where the body of a data row begins, and how long the id of its event is, with which it begins."""

NO_EVENT = EventId(0, 0)
NO_EVENT_ROW = NO_EVENT.encode()
"""Where an event is meant to be named and there is none."""

EXPIRY_TIME = struct.Struct(">Q")

encode_event_id = _EVENT_ID.pack
"""The bytes of ``EventId(revision, index).encode()``, without making the tuple."""


def damaged_event(event_id: EventId, damage: DamageError) -> KvError:
    """The ``damaged`` that names the revision of an event."""
    return KvError(
        "damaged",
        f"the event at revision {event_id.revision} is damaged ({damage}); restore a backup",
        revision=event_id.revision,
    )


class LogCounters(NamedTuple):
    """The log's counters, in one row that every commit rewrites. ``head``, ``floor`` and ``digest`` are those
    of :class:`kvstore_daemon.storage.interface.LogPosition`, ``size`` is in bytes."""

    head: int = 0
    floor: int = 0
    events: int = 0
    size: int = 0
    digest: int | None = 0

    def encode(self) -> bytes:
        """The row's bytes."""
        head, floor, events, size, digest = self
        if digest is None:
            return _COUNTERS.pack(head, floor, events, size)
        return _COUNTERS_AND_DIGEST.pack(head, floor, events, size, digest.to_bytes(DIGEST_BYTES))

    @classmethod
    def decode(cls, data: Buffer | None) -> LogCounters:
        """The counters that :meth:`encode` wrote; all 0 in a new store, which has no row of them. Those of
        format 4 have no digest. Raises DamageError."""
        if data is None:
            return cls()
        if len(data) == _COUNTERS.size:
            return cls(*_COUNTERS.unpack(data))._replace(digest=None)
        if len(data) != _COUNTERS_AND_DIGEST.size:
            raise DamageError(f"the log's counters have {len(data)} bytes")
        head, floor, events, size, digest = _COUNTERS_AND_DIGEST.unpack(data)
        return cls(head, floor, events, size, int.from_bytes(digest))


def record_body(stored: StoredRecord, index: int, digest: bytes) -> bytes:
    """A record without its checksum; ``index`` is its event's index within the revision, and ``digest`` its
    own hash, empty to write it as format 4 does."""
    value, content_type, revision, create_revision, version, modified_at, expires_at, author, message = stored
    form, kind = (_HASHED_FORMAT if digest else _VALUE_FORMAT), content_type.encode("ascii")
    texts = digest + kind
    if author or message:
        form, texts = form + 1, texts + _byline(author, message)
    # one pack for the heads of row and value, since this is done with every put
    head = _RECORD.pack(
        revision, index, create_revision, version, form, modified_at, expires_at or 0, len(kind)
    )
    return head + texts + (value or b"")


def _byline(author: str, message: str) -> bytes:
    by, why = author.encode(), message.encode()
    return bytes((len(by), len(why))) + by + why


def _read_byline(data: Buffer, at: int) -> tuple[str, str, int]:
    """The author and the message of the byline at ``at``, and where it ends."""
    try:
        why_at = at + 2 + data[at]
        end = why_at + data[at + 1]
        return str(data[at + 2 : why_at], "utf-8"), str(data[why_at:end], "utf-8"), end
    except (IndexError, UnicodeDecodeError) as error:
        raise DamageError("author and message cannot be read") from error


def checksum(key: Buffer, body: Buffer) -> int:
    """A record's checksum: that of its data row, and a part of the checksum of its log row."""
    return crc32(body, crc32(key))


def encode_record(body: bytes, record_sum: int) -> bytes:
    """The data row of the record in ``body``, whose checksum is ``record_sum``."""
    return _CRC.pack(record_sum) + body


def row_length(stored: StoredRecord) -> int:
    """The length of the data row that a record will have."""
    byline = 0
    if stored.author or stored.message:
        byline = len(_byline(stored.author, stored.message))
    return _KIND_AT + len(stored.content_type) + byline + len(stored.value or b"")


def decode_body(key: Buffer, data: Buffer) -> Buffer:
    """The body in a data row, its checksum verified."""
    body = data[_CRC.size :]
    if len(data) < _CRC.size or _CRC.unpack_from(data)[0] != checksum(key, body):
        raise DamageError("the checksum does not match")
    return body


def record_event_id(data: Buffer) -> bytes:
    """The encoded id of the event that made the record in a data row; not verified."""
    return bytes(data[_CRC.size : _CRC.size + _EVENT_ID.size])


def record_expiry(data: Buffer) -> tuple[int, int]:
    """When the record in a data row expires (0: never), and its revision; not verified. A row that is too
    short never does."""
    if len(data) < _SEALED_RECORD.size:
        return 0, 0
    _, revision, _, _, _, _, _, expires_at, _ = _SEALED_RECORD.unpack_from(data)
    return expires_at, revision


def hash_of_record(key: bytes, data: Buffer) -> bytes:
    """The hash of the record in a data row that was verified: the one it keeps, or that of an old row."""
    if data[_FORM_AT] >= _HASHED_FORMAT:
        return bytes(data[_HASH_IN_ROW])
    stored = _decode_body(data[_CRC.size :], value=True)
    return record_hash(key, stored.revision, stored.value or b"")


def id_and_hash(key: bytes, data: Buffer) -> bytes:
    """The encoded id of the event that made the record in a data row that was verified, then its hash."""
    if data[_FORM_AT] >= _HASHED_FORMAT:  # nearly all, and with every put
        return bytes(data[_ID_IN_ROW]) + bytes(data[_HASH_IN_ROW])
    return record_event_id(data) + hash_of_record(key, data)


def decode_record(key: Buffer, data: Buffer, *, value: bool = True) -> StoredRecord:
    """The record in a data row; with ``value`` false its value is left out, the checksum is not."""
    try:
        crc, revision, _, create_revision, version, form, modified_at, expires_at, kind_length = (
            _SEALED_RECORD.unpack_from(data)
        )
    except struct.error as error:
        raise DamageError("the row is too short") from error
    if crc != crc32(data[_CRC.size :], crc32(key)):
        raise DamageError("the checksum does not match")
    if form != _HASHED_FORMAT:
        return _decode_body(data[_CRC.size :], value=value)
    value_at = _KIND_AT + kind_length
    return _new_tuple(
        StoredRecord,
        (
            bytes(data[value_at:]) if value else None,
            str(data[_KIND_AT:value_at], "ascii"),
            revision,
            create_revision,
            version,
            modified_at,
            expires_at or None,
            "",
            "",
        ),
    )


def _decode_body(body: Buffer, *, value: bool) -> StoredRecord:
    """A record whose checksum was verified: one that is part of a log row, or has a byline."""
    try:
        revision, _, create_revision, version, form, modified_at, expires_at, kind_length = (
            _RECORD.unpack_from(body)
        )
    except struct.error as error:
        raise DamageError(str(error)) from error
    kind_at = _RECORD.size + (DIGEST_BYTES if form >= _HASHED_FORMAT else 0)
    value_at = kind_end = kind_at + kind_length
    author = message = ""
    if form in (_BYLINE_FORMAT, _HASHED_BYLINE_FORMAT):
        author, message, value_at = _read_byline(body, kind_end)
    elif form not in (_VALUE_FORMAT, _HASHED_FORMAT):
        raise DamageError(f"the value has the unknown format {form}")
    return StoredRecord(
        bytes(body[value_at:]) if value else None,
        str(body[kind_at:kind_end], "ascii"),
        revision,
        create_revision,
        version,
        modified_at,
        expires_at or None,
        author,
        message,
    )


def value_bytes(data: Buffer) -> int:
    """The length of the value in a data row that :func:`decode_record` has taken; nothing of it is copied."""
    value_at: int = _KIND_AT + _SEALED_RECORD.unpack_from(data)[-1]
    form = data[_FORM_AT]
    if form < _HASHED_FORMAT:
        value_at -= DIGEST_BYTES
    if form in (_BYLINE_FORMAT, _HASHED_BYLINE_FORMAT):
        _, _, value_at = _read_byline(data, value_at)
    return len(data) - value_at


def encode_event(
    event: StoredEvent, event_id: bytes, before: bytes, record: bytes, record_sum: int, inline: Buffer
) -> bytes:
    """The log row of ``event``, whose encoded id is ``event_id``.

    ``before`` is the encoded id of the key's event before. ``record`` is the body of the new record, empty if
    there is none, and ``record_sum`` its checksum. ``inline`` is the body of the record it replaced, if that
    is to be kept in this row instead of being looked up at ``before``.
    """
    key, code = event.key, _OP_CODES[event.op]
    if not record and (event.author or event.message):
        code |= _HAS_BYLINE
        inline = _byline(event.author, event.message) + bytes(inline)
    head = _EVENT.pack(code, event.count, event.time, before, len(key), len(record))
    return b"".join((_CRC.pack(_event_sum(record_sum, event_id, head, inline)), head, key, record, inline))


def _event_sum(record_sum: int, event_id: bytes, head: Buffer, inline: Buffer) -> int:
    # continues the record's checksum, so that a large value is not summed up twice
    return crc32(inline, crc32(head, crc32(event_id, record_sum)))


def event_time(data: Buffer) -> int:
    """When the event in a log row happened; not verified, since every commit asks how old the log is."""
    time: int = _EVENT.unpack_from(data, _CRC.size)[2]
    return time


def event_key(data: Buffer) -> bytes:
    """The key of the event in a log row, not verified; empty if the row is too short."""
    key_at = _CRC.size + _EVENT.size
    if len(data) < key_at:
        return b""
    return bytes(data[key_at : key_at + _EVENT.unpack_from(data, _CRC.size)[4]])


def is_put(data: Buffer) -> bool:
    """Whether the event in a log row is a put; not verified."""
    return data[_CRC.size : _CRC.size + 1] == _PUT


class LogRow(NamedTuple):
    """A log row, its checksum verified and its records still encoded.

    ``before`` is the id of the key's event before; where the record it left is kept in this row, ``inline``
    is that record. ``count`` is how many events share the revision. ``author`` and ``message`` are those of
    an event that stored no record; the record has its own.
    """

    op: str
    key: bytes
    event_id: EventId
    count: int  # type: ignore[assignment] # as in EventId
    time: int
    before: EventId
    record: Buffer
    inline: Buffer
    author: str = ""
    message: str = ""

    def stored(self, *, value: bool = True) -> StoredRecord | None:
        """The record that a put stored, None on other ops."""
        return _decode_body(self.record, value=value) if self.record else None

    def inline_previous(self, *, value: bool = True) -> StoredRecord | None:
        """The record that the event replaced, if it is kept here."""
        return _decode_body(self.inline, value=value) if self.inline else None


def event_record(data: bytes) -> bytes:
    """The body of the record in an event's row, empty if it stored none; not verified."""
    *_, key_length, record_length = _EVENT.unpack_from(data, _CRC.size)
    record_at = _CRC.size + _EVENT.size + key_length
    return data[record_at : record_at + record_length]


def decode_event(event_id: EventId, data: Buffer) -> LogRow:
    """The log row of the event ``event_id``."""
    try:
        (crc,) = _CRC.unpack_from(data)
        code, count, time, before, key_length, record_length = _EVENT.unpack_from(data, _CRC.size)
    except struct.error as error:
        raise DamageError("the row is too short") from error
    key_at = _CRC.size + _EVENT.size
    record_at = key_at + key_length
    inline_at = record_at + record_length
    key, record, inline = bytes(data[key_at:record_at]), data[record_at:inline_at], data[inline_at:]
    if crc != _event_sum(checksum(key, record), event_id.encode(), data[_CRC.size : key_at], inline):
        raise DamageError("the checksum does not match")
    author = message = ""
    if code & _HAS_BYLINE:
        author, message, byline_end = _read_byline(inline, 0)
        code, inline = code ^ _HAS_BYLINE, inline[byline_end:]
    try:
        op = OPS[code]
    except IndexError as error:
        raise DamageError(f"there is no event with the code {code}") from error
    return LogRow(op, key, event_id, count, time, EventId.decode(before), record, inline, author, message)
