"""``application/merge-patch+json`` (RFC 7396)."""

from __future__ import annotations

import json
import time
from typing import Any

from kvstore_client.errors import KvError
from kvstore_http.bodies import JSON


class Patch:
    """A merge patch for one key.

    It keeps the key's media type, and its TTL unless ``ttl`` (seconds) gives a new one. A missing key
    is patched from nothing, which creates it.
    """

    def __init__(self, body: bytes, key: str, ttl: float | None) -> None:
        try:
            self._patch = _loads(body)
        except ValueError as error:
            raise KvError("bad_request", f"the patch is not JSON: {error}") from error
        self._key = key
        self._ttl = ttl

    def applied_to(self, record: dict[str, Any] | None) -> tuple[dict[str, Any], bytes]:
        """The put that stores the patched ``record`` (None: missing), and its value.

        Raises ``not_json`` for a stored value that is not JSON.
        """
        value = _dumps(_merged(self._target(record), self._patch))
        op: dict[str, Any] = {
            "op": "put",
            "key": self._key,
            "content_type": JSON if record is None else record["content_type"],
        }
        ttl = self._ttl if self._ttl is not None else _remaining_seconds(record)
        if ttl is not None:
            op["ttl"] = ttl
        return op, value

    def _target(self, record: dict[str, Any] | None) -> Any:
        if record is None:
            return None
        try:
            return _loads(record["value"])
        except ValueError as error:
            raise KvError(
                "not_json", f"the stored value is not JSON: {error}", revision=record["revision"]
            ) from error


def _remaining_seconds(record: dict[str, Any] | None) -> float | None:
    if record is None or "expires_at" not in record:
        return None
    expires_at: int = record["expires_at"]
    return max(0.001, expires_at / 1000 - time.time())


def _merged(target: Any, patch: Any) -> Any:
    """MergePatch of RFC 7396 section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


# The standard library's json and not orjson: members that a patch does not name must stay as they
# are, and orjson turns integers over 64 bits into floats.


def _loads(text: bytes) -> Any:
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:32]} is out of range")
    return number


def _dumps(value: Any) -> bytes:
    compact = (",", ":")
    try:
        return json.dumps(value, ensure_ascii=False, separators=compact).encode()
    except UnicodeEncodeError:  # an escaped lone surrogate, which only an escape can write
        return json.dumps(value, separators=compact).encode()
