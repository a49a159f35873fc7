"""``Range`` and ``If-Range``: the one part of a body that is asked for (RFC 9110 section 14)."""

from __future__ import annotations

import re
from typing import Any

_ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)


def range_of(environ: dict[str, Any], tag: str, size: int) -> range | None:
    """The bytes that a request asks for, of ``size`` bytes that have the entity ``tag``; empty if none of
    them is there.

    None where the whole is to be sent: without ``Range``, for a list of ranges, for what is no range, and
    where ``If-Range`` names another tag, or a date. Section 14.2 lets a server ignore Range, and has it do so
    for other methods than GET.
    """
    text = environ.get("HTTP_RANGE")
    if text is None or environ["REQUEST_METHOD"] != "GET" or environ.get("HTTP_IF_RANGE", tag) != tag:
        return None
    match = _ONE_RANGE.fullmatch(text)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return range(max(0, size - int(match[2])), size)
    if match[2] and int(match[2]) < int(match[1]):
        return None
    return range(int(match[1]), min(size, int(match[2]) + 1 if match[2] else size))


def content_range(part: range, size: int) -> str:
    """``Content-Range`` for a ``part``, which is not empty, of ``size`` bytes."""
    return f"bytes {part[0]}-{part[-1]}/{size}"
