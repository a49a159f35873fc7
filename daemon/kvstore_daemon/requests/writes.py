"""What each operation that writes asks of the engine: a function and its row in ``WRITES``, by the
operation's name. The engine's ``write_rules`` say what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

from kvstore_core.limits import MAX_PAGE
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE
from kvstore_core.wire import Request
from kvstore_daemon.storage.interface import Write, WriteRequest

Op = dict[str, Any]


def _put(op: Op, value: bytes) -> Write:
    return Write(
        "put",
        op["key"].encode(),
        value,
        op.get("content_type", DEFAULT_CONTENT_TYPE),
        _ttl_ms(op),
        op.get("if_revision"),
        keep_ttl=op.get("keep_ttl", False),
        expires_at=op.get("expires_at"),
    )


def _delete(op: Op, value: bytes) -> Write:
    del value
    return Write("delete", op["key"].encode(), if_revision=op.get("if_revision"))


def _delete_prefix(op: Op, value: bytes) -> Write:
    del value
    return Write("delete_prefix", op["prefix"].encode(), limit=op.get("limit", MAX_PAGE))


def _incr(op: Op, value: bytes) -> Write:
    del value
    return Write("incr", op["key"].encode(), by=op.get("by", 1), if_revision=op.get("if_revision"))


def _touch(op: Op, value: bytes) -> Write:
    del value
    return Write("touch", op["key"].encode(), ttl_ms=_ttl_ms(op), if_revision=op.get("if_revision"))


def _persist(op: Op, value: bytes) -> Write:
    del value
    return Write("persist", op["key"].encode(), if_revision=op.get("if_revision"))


def _ttl_ms(op: Op) -> int | None:
    ttl = op.get("ttl")
    return None if ttl is None else max(1, round(ttl * 1000))


WRITES: dict[str, Callable[[Op, bytes], Write]] = {
    "put": _put,
    "delete": _delete,
    "delete_prefix": _delete_prefix,
    "incr": _incr,
    "touch": _touch,
    "persist": _persist,
}


def write_request(request: Request, frames: Sequence[bytes], ticket: Any) -> WriteRequest:
    """The writes of ``request`` in its order, without its reads.

    ``frames`` are those it was decoded from. The fingerprint of a numbered request is a checksum of them, so
    a repeat must be the same byte for byte, except for the request ids.
    """
    writes = [
        WRITES[op["op"]](op, value or b"")
        for op, value in zip(request.ops, request.values, strict=True)
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
