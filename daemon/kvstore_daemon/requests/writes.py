"""What a request that writes asks of the engine, whose ``write_rules`` say what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any
from zlib import crc32

from kvstore_core.limits import MAX_PAGE
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE
from kvstore_core.operations import OPERATIONS
from kvstore_core.wire import Authors, Request
from kvstore_daemon.storage.interface import Write, WriteRequest

WRITES = frozenset(row.name for row in OPERATIONS.values() if row.writes)
"""The names of the operations that write."""


def _write(op: dict[str, Any], value: bytes | None, author: str) -> Write:
    """The write that an op asks for. Fields that its operation does not have are not there, and what stands
    for them is not looked at."""
    name, get = op["op"], op.get
    ttl = get("ttl")
    # as Write(...) does, but with one call less, since one is made with every write
    return tuple.__new__(
        Write,
        (
            name,
            op["prefix" if name == "delete_prefix" else "key"].encode(),
            value or b"",
            get("content_type", DEFAULT_CONTENT_TYPE),
            None if ttl is None else max(1, round(ttl * 1000)),
            get("if_revision"),
            get("by", 1),
            get("limit", MAX_PAGE),
            get("keep_ttl", False),
            get("expires_at"),
            author,
            get("message", ""),
        ),
    )


def write_request(
    request: Request, frames: Sequence[bytes], ticket: Any, authors: Authors = ""
) -> WriteRequest:
    """The writes of ``request`` in its order, without its reads; ``authors`` are those of its ops.

    ``frames`` are those it was decoded from. The fingerprint of a numbered request is a checksum of them, so
    a repeat must be the same byte for byte, except for the request ids and the authors.
    """
    by = repeat(authors) if isinstance(authors, str) else authors
    writes = [
        _write(op, value, author or "")
        for op, value, author in zip(request.ops, request.values, by, strict=False)
        if op["op"] in WRITES
    ]
    fingerprint = _fingerprint([request.header, *frames[1:]]) if request.client is not None else 0
    return WriteRequest(writes, request.atomic, request.client, request.seq, fingerprint, ticket)


def _fingerprint(frames: Sequence[bytes]) -> int:
    """32 bits are enough: it finds a client that reuses a number by mistake, not one that tries to."""
    checksum = 0
    for frame in frames:
        checksum = crc32(frame, crc32(len(frame).to_bytes(8), checksum))
    return checksum
