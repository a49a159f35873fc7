"""What a request that writes asks of the engine, whose ``write_rules`` say what becomes of it."""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence
from itertools import repeat, starmap
from typing import Any, overload
from zlib import crc32

from kvstore_core.limits import MAX_PAGE
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE
from kvstore_core.operations import OPERATIONS
from kvstore_core.wire import Authors, Request
from kvstore_daemon.storage.interface import Write, WriteRequest

WRITES = frozenset(row.name for row in OPERATIONS.values() if row.writes)
"""The names of the operations that write."""


def _write(op: dict[str, Any], value: bytes | None, author: str | None) -> Write:
    """The write that an op asks for. Fields that its operation does not have are not there, and what stands
    for them is not looked at."""
    name, get = op["op"], op.get
    ttl, if_value, exists = get("ttl"), get("if_value"), get("exists")
    wanted = if_value.encode() if if_value is not None else None
    if wanted is None and (encoded := get("if_value_b64")) is not None:
        wanted = binascii.a2b_base64(encoded)
    # as Write(...) does, but with one call less, since one is made with every write
    return tuple.__new__(
        Write,
        (
            name,
            op["prefix" if name == "delete_prefix" else "key"].encode(),
            value or b"",
            get("content_type", DEFAULT_CONTENT_TYPE),
            None if ttl is None else max(1, round(ttl * 1000)),
            get("if_revision") if exists is not False else 0,
            get("by", 1),
            get("limit", MAX_PAGE),
            get("keep_ttl", False),
            get("expires_at"),
            author or "",
            get("message", ""),
            wanted,
            exists is True,
            get("sequence", False),
        ),
    )


class _Writes(Sequence[Write]):
    """The writes of a request. Each is made when it is asked for, not all when the request comes: of ten
    thousand that would hold up the loop for longer than anything else does."""

    __slots__ = ("_asked",)

    def __init__(self, asked: list[tuple[dict[str, Any], bytes | None, str | None]]) -> None:
        self._asked = asked

    def __len__(self) -> int:
        return len(self._asked)

    @overload
    def __getitem__(self, at: int) -> Write: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Write]: ...

    def __getitem__(self, at: int | slice) -> Write | Sequence[Write]:
        asked = self._asked[at]
        return _Writes(asked) if isinstance(asked, list) else _write(*asked)

    def __iter__(self) -> Iterator[Write]:
        return starmap(_write, self._asked)


def write_request(
    request: Request, frames: Sequence[bytes], ticket: Any, authors: Authors = ""
) -> WriteRequest:
    """The writes of ``request`` in its order, without its reads; ``authors`` are those of its ops.

    ``frames`` are those it was decoded from. The fingerprint of a numbered request is a checksum of them, so
    a repeat must be the same byte for byte, except for the request ids and the authors.
    """
    by = repeat(authors) if isinstance(authors, str) else authors
    asked = list(zip(request.ops, request.values, by, strict=False))
    if request.writes < len(request.ops):
        asked = [each for each in asked if each[0]["op"] in WRITES]
    writes = _Writes(asked)
    if request.client is None:
        return WriteRequest(writes, request.atomic, ticket=ticket)
    fingerprint = _fingerprint([request.header, *frames[1:]])
    only_checks = all(op["op"] == "check" for op, _, _ in asked)
    return WriteRequest(writes, request.atomic, request.client, request.seq, fingerprint, ticket, only_checks)


def _fingerprint(frames: Sequence[bytes]) -> int:
    """32 bits are enough: it finds a client that reuses a number by mistake, not one that tries to."""
    checksum = 0
    for frame in frames:
        checksum = crc32(frame, crc32(len(frame).to_bytes(8), checksum))
    return checksum
