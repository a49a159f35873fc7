"""The engine-neutral form in which a value is stored: media type and times, then the raw bytes.

Revisions are not part of it, since a distributed engine learns them only when a commit is done.
Layout, big-endian: format u8 (1), modified_at u64, expires_at u64 (0: none), length of the media type
u8, media type (ASCII), value (all that follows).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FORMAT = 1
HEAD = "BQQB"
_HEAD = struct.Struct(">" + HEAD)

Buffer = bytes | memoryview


class Envelope(NamedTuple):
    """What :func:`unpack` gives back; ``value`` is a slice of the buffer it was given."""

    content_type: str
    modified_at: int
    expires_at: int | None
    value: Buffer


def pack(value: bytes, content_type: str, modified_at: int, expires_at: int | None) -> bytes:
    """The envelope of a value; ``content_type`` is ASCII of at most 255 characters."""
    kind = content_type.encode("ascii")
    return _HEAD.pack(FORMAT, modified_at, expires_at or 0, len(kind)) + kind + value


def unpack(data: Buffer) -> Envelope:
    """The envelope in ``data``; raises ValueError if it is none of a known format."""
    try:
        form, modified_at, expires_at, kind_length = _HEAD.unpack_from(data)
    except struct.error as error:
        raise ValueError("the envelope is too short") from error
    if form != FORMAT:
        raise ValueError(f"the envelope has the unknown format {form}")
    value_at = _HEAD.size + kind_length
    kind = data[_HEAD.size : value_at]
    if len(kind) != kind_length:
        raise ValueError("the envelope's media type is cut short")
    return Envelope(str(kind, "ascii"), modified_at, expires_at or None, data[value_at:])
