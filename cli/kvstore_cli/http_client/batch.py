"""Many ops by ``/v1/batch``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from kvstore_cli.http_client.client import ServiceClient
from kvstore_core.errors import KvError, fewer_ops
from kvstore_core.media_types import JSON

# Independent ops gain nothing from larger requests, and the limits of a service are seldom smaller: where
# they are, it says so and has done nothing.
_REQUEST_OPS = 1000
_REQUEST_BYTES = 4 * 1024 * 1024


def run_ops(
    service: ServiceClient, ops: list[Any], headers: dict[str, str] | None = None, *, atomic: bool = False
) -> Iterator[dict[str, Any]]:
    """The result of each of ``ops``, in order: sent in one request if ``atomic``, else in as many as it
    takes, each with ``headers``. Raises the KvError of a request that failed as a whole."""
    headers = {"Content-Type": JSON, **(headers or {})}
    if atomic:
        yield from _send(service, [_encoded(op) for op in ops], headers, atomic=True)
        return
    most = _REQUEST_OPS
    for before, part in _parts(ops):
        while part:
            some = part[:most]
            try:
                results = _send(service, some, headers, before)
            except KvError as error:
                most = fewer_ops(error, len(some))
                continue
            yield from results
            before, part = before + len(some), part[len(some) :]


def _parts(ops: list[Any]) -> Iterator[tuple[int, list[bytes]]]:
    """The bodies of requests of a bounded size, each with how many ops are in those before it."""
    part: list[bytes] = []
    before = size = 0
    for encoded in map(_encoded, ops):
        if part and (len(part) == _REQUEST_OPS or size + len(encoded) > _REQUEST_BYTES):
            yield before, part
            before, part, size = before + len(part), [], 0
        part.append(encoded)
        size += len(encoded)
    if part:
        yield before, part


def _encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _send(
    service: ServiceClient,
    ops: list[bytes],
    headers: dict[str, str],
    before: int = 0,
    *,
    atomic: bool = False,
) -> list[dict[str, Any]]:
    body = b'{"atomic":%s,"ops":[%s]}' % (b"true" if atomic else b"false", b",".join(ops))
    try:
        answer = service.request("POST", "/v1/batch", body=body, headers=headers).json()
    except KvError as error:
        raise _naming_op(error, ops, before) from error
    results: list[dict[str, Any]] = answer["results"]
    return results


def _naming_op(error: KvError, ops: list[bytes], before: int) -> KvError:
    """The error, with the op that it is about as it is numbered in the whole batch."""
    index = error.details.get("op")
    if not isinstance(index, int) or not 0 <= index < len(ops):
        return error
    message = re.sub(rf"^ops\[{index}\](: )?", "", error.message)
    at = f"ops[{before + index}]"
    if message.startswith("."):
        return KvError(error.code, at + message, **error.details)
    return KvError(
        error.code, f"{at}{_described(json.loads(ops[index]))}: {message.strip()}", **error.details
    )


def _described(op: Any) -> str:
    """What an op does, and to which key."""
    if not isinstance(op, dict):
        return ""
    words = [str(op.get("op")), *(repr(op[name]) for name in ("key", "prefix") if name in op)]
    return f" ({' '.join(words)})"
