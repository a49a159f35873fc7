"""The same work for every contender: keys of 16 bytes, values of 100 bytes and of 10 KB."""

from __future__ import annotations

import json
import random
from base64 import b64encode
from collections.abc import Sequence

SMALL = 100
LARGE = 10_000

KEYS = 10_000
LARGE_KEYS = 1_000
"""So many keys are read and written; large values fill the memory of no contender."""


def key(number: int) -> str:
    """The key ``number``: 16 bytes, and the form in which redis-benchmark makes its own."""
    return f"key:{number:012d}"


def value(size: int) -> bytes:
    """``size`` bytes that JSON need not escape."""
    return b"v" * size


def count_of(size: int) -> int:
    """How many keys hold values of ``size`` bytes."""
    return KEYS if size < LARGE else LARGE_KEYS


def spread(count: int, total: int) -> list[int]:
    """``count`` numbers below ``total`` at random, the same ones in every run."""
    chooser = random.Random(1)
    return [chooser.randrange(total) for _ in range(count)]


def label(size: int) -> str:
    """A size as the tables name it."""
    return f"{size // 1000} KB" if size >= 1000 else f"{size} B"


def keys_label(count: int) -> str:
    """A number of keys as the tables name it."""
    return f"{count:,} keys"


# ── HTTP requests as they are sent ───────────────────────────────────────────────────────────────


def request(
    method: str, target: str, body: bytes = b"", content_type: str = "", token: str | None = None
) -> bytes:
    """A whole HTTP request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    if body or method != "GET":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


def base64(data: str | bytes) -> str:
    """The form in which etcd's gateway takes keys and values."""
    return b64encode(data.encode() if isinstance(data, str) else data).decode()


def _json(target: str, body: object) -> bytes:
    return request("POST", target, json.dumps(body, separators=(",", ":")).encode(), "application/json")


class KvstoreHttp:
    """kvstore's routes."""

    @staticmethod
    def get(name: str, token: str | None = None) -> bytes:
        return request("GET", f"/v1/kv/{name}", token=token)

    @staticmethod
    def put(name: str, data: bytes) -> bytes:
        return request("PUT", f"/v1/kv/{name}", data, "application/octet-stream")

    @staticmethod
    def put_many(names: Sequence[str], data: bytes) -> bytes:
        ops = [{"op": "put", "key": name, "value": data.decode()} for name in names]
        return _json("/v1/batch", {"atomic": True, "ops": ops})

    @staticmethod
    def get_many(names: Sequence[str]) -> bytes:
        return _json("/v1/batch", {"ops": [{"op": "get", "key": name} for name in names]})

    @staticmethod
    def watch(prefix: str) -> bytes:
        return request("GET", f"/v1/subscribe?prefix={prefix}")


class EtcdHttp:
    """The routes of etcd's gateway."""

    @staticmethod
    def get(name: str) -> bytes:
        return _json("/v3/kv/range", {"key": base64(name)})

    @staticmethod
    def put(name: str, data: bytes) -> bytes:
        return _json("/v3/kv/put", {"key": base64(name), "value": base64(data)})

    @staticmethod
    def put_many(names: Sequence[str], data: bytes) -> bytes:
        ops = [{"requestPut": {"key": base64(name), "value": base64(data)}} for name in names]
        return _json("/v3/kv/txn", {"success": ops})

    @staticmethod
    def get_many(names: Sequence[str]) -> bytes:
        ops = [{"requestRange": {"key": base64(name)}} for name in names]
        return _json("/v3/kv/txn", {"success": ops})

    @staticmethod
    def watch(prefix: str) -> bytes:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        return _json("/v3/watch", {"create_request": {"key": base64(prefix), "range_end": base64(end)}})


class WebdisHttp:
    """Redis's commands as webdis takes them, with the value as the body, as it is."""

    @staticmethod
    def get(name: str) -> bytes:
        return request("GET", f"/GET/{name}.txt")

    @staticmethod
    def put(name: str, data: bytes) -> bytes:
        return request("PUT", f"/SET/{name}", data)
