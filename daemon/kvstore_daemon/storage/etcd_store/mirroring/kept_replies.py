"""The rows of the mirror's table of replies: client -> the parts of its last reply.

A request of more writes than a transaction of etcd takes leaves one part with each, under one key of etcd, so
a later part replaces the one before. Here they are kept, each with the revision that its row was put at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.layout import ReplyRow

# revision at which the part was put, length of its value; then the value
_PART = struct.Struct(">QI")


class KeptReply(NamedTuple):
    """The last reply of a client that numbers its writes.

    ``mod_revision`` is that of its row in etcd. ``results`` are those of the first writes of ``total``, as
    far as they were committed; None for one that is not known any more, because only a later part of the
    reply was there when this mirror was made. ``error`` is set instead where the whole request was refused.
    ``seq`` is -1, below all others, where another program put something there.
    """

    mod_revision: int
    seq: int
    fingerprint: int
    total: int
    results: list[dict[str, Any] | KvError | None]
    error: KvError | None


def row_with(before: bytes | None, value: bytes, revision: int) -> bytes:
    """The client's row after ``value`` was put at ``revision``; ``before`` is its row until then."""
    row = _PART.pack(revision, len(value)) + value
    if before is None:
        return row
    part, last = layout.decode_reply(value, revision), reply_in(before)
    continues = part is not None and part.first and last[1:4] == (part.seq, part.fingerprint, part.total)
    return before + row if continues else row


def reply_in(row: bytes) -> KeptReply:
    """The reply in a row, its parts joined."""
    parts = list(_parts(row))
    revision, newest = parts[-1]
    if newest is None:
        return KeptReply(revision, -1, 0, 0, [], None)
    results: list[dict[str, Any] | KvError | None] = [None] * (newest.first + len(newest.results))
    for _, part in parts:
        if part is not None:
            results[part.first : part.first + len(part.results)] = part.results
    return KeptReply(revision, newest.seq, newest.fingerprint, newest.total, results, newest.error)


def _parts(row: bytes) -> Iterator[tuple[int, ReplyRow | None]]:
    at = 0
    while at < len(row):
        revision, length = _PART.unpack_from(row, at)
        at += _PART.size + length
        yield revision, layout.decode_reply(row[at - length : at], revision)
