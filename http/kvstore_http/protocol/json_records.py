"""Records and events as JSON: the fields of a reply as HTTP shows them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from typing import Any

import orjson

from kvstore_core.json_depth import is_too_deep
from kvstore_core.limits import MAX_MOMENT
from kvstore_core.media_types import JSON

_TIMES = ("modified_at", "expires_at", "time", "started_at")
_MILLISECONDS = tuple(f".{rest:03d}Z" for rest in range(1000))
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


def timestamp(milliseconds: int) -> str:
    """RFC 3339 in UTC with milliseconds: ``2026-01-31T12:00:00.000Z``.

    A time before 1970 or after the year 9999 is shown as the first or last that can be written: the wall
    clock, and with it the times of records, may be set to anything.
    """
    seconds, rest = divmod(min(max(0, milliseconds), MAX_MOMENT), 1000)
    return _to_the_second(seconds) + _MILLISECONDS[rest]


@lru_cache(maxsize=1024)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=1024)
def http_date(seconds: int) -> str:
    """An IMF-fixdate of RFC 9110 section 5.6.7: ``Sat, 31 Jan 2026 12:00:00 GMT``, within the
    limits of :func:`timestamp`."""
    return formatdate(min(max(0, seconds), MAX_MOMENT // 1000), usegmt=True)


def value_member(value: bytes) -> dict[str, str]:
    """``{"value": text}`` for UTF-8, else ``{"value_b64": base64}``: the name says which."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_b64": base64.b64encode(value).decode("ascii")}


def inline_member(value: bytes, content_type: str) -> dict[str, Any]:
    """``{"value_json": …}`` with the value as it is written, where its type says JSON and any parser takes it
    for that inside another document; else as :func:`value_member`."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        return value_member(value)
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return value_member(value)
    if is_too_deep(value):  # some parsers could not read the whole page
        return value_member(value)
    # outside of texts, where JSON has none, a line feed is a blank; in a stream it would end the line
    return {"value_json": orjson.Fragment(value.translate(_ONE_LINE))}


def reply_json(fields: dict[str, Any], *, inline: bool = False, **first: Any) -> dict[str, Any]:
    """A reply's ``fields`` with ``first`` in front of them: times as text, a value as
    :func:`value_member` has it, or :func:`inline_member`, ``size`` left out."""
    body = {**first, **fields}
    body.pop("size", None)
    for name in _TIMES:
        if name in body:
            body[name] = timestamp(body[name])
    if type(value := body.get("value")) is bytes:
        del body["value"]
        body |= inline_member(value, body.get("content_type", "")) if inline else value_member(value)
    elif type(value) is int:
        # what incr counts: JavaScript reads numbers above 2^53 as their neighbours
        body["text"] = str(value)
    if "previous" in body:
        body["previous"] = reply_json(body["previous"], inline=inline)
    return body
