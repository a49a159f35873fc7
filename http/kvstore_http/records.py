"""Records and events as JSON: how the fields of a reply look to somebody who speaks HTTP."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

_TIMES = ("modified_at", "expires_at", "time", "started_at")
_MILLISECONDS = tuple(f".{rest:03d}Z" for rest in range(1000))
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def timestamp(milliseconds: int) -> str:
    """RFC 3339 in UTC with milliseconds: ``2026-01-31T12:00:00.000Z``."""
    seconds, rest = divmod(milliseconds, 1000)
    return _to_the_second(seconds) + _MILLISECONDS[rest]


@lru_cache(maxsize=1024)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=1024)
def http_date(seconds: int) -> str:
    """An IMF-fixdate of RFC 9110 section 5.6.7: ``Sat, 31 Jan 2026 12:00:00 GMT``."""
    # strftime would take the names of day and month from the locale
    moment = datetime.fromtimestamp(seconds, UTC)
    day, month = _DAYS[moment.weekday()], _MONTHS[moment.month - 1]
    return f"{day}, {moment.day:02d} {month} {moment.year:04d} {moment:%H:%M:%S} GMT"


def value_member(value: bytes) -> dict[str, str]:
    """``{"value": text}`` for UTF-8, else ``{"value_b64": base64}``: the name says which."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_b64": base64.b64encode(value).decode("ascii")}


def reply_json(fields: dict[str, Any], **first: Any) -> dict[str, Any]:
    """A reply's ``fields`` with ``first`` in front of them: times as text, a value as
    :func:`value_member` has it, ``size`` left out."""
    body = {**first, **fields}
    body.pop("size", None)
    for name in _TIMES:
        if name in body:
            body[name] = timestamp(body[name])
    if type(value := body.get("value")) is bytes:
        del body["value"]
        body |= value_member(value)
    if "previous" in body:
        body["previous"] = reply_json(body["previous"])
    return body
