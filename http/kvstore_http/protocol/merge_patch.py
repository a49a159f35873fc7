"""``application/merge-patch+json`` (RFC 7396), on the text of a value.

What a patch does not name stays as it is written, character by character: reading and writing would change
numbers (``1e400``, or more digits than a float has) and members that are there twice.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from kvstore_core.errors import KvError
from kvstore_core.media_types import JSON
from kvstore_http.large_work import maybe_in_thread

MAX_DEPTH = 100
"""How deep objects may be nested in a patch. The rest of the value may have any depth that Python's parser
takes."""


class Patch:
    """A merge patch for one key.

    It keeps the key's media type, and its time of expiry unless ``ttl`` (seconds) gives a new one. A missing
    key is created. ``message`` says why.
    """

    def __init__(self, body: bytes, key: str, ttl: float | None, message: str | None = None) -> None:
        try:
            self._patch = maybe_in_thread(len(body), lambda: _read(body))
        except ValueError as error:
            raise KvError("bad_request", f"the patch is not JSON: {error}") from error
        self._key = key
        self._ttl = ttl
        self._message = message

    def applied_to(self, record: dict[str, Any] | None) -> tuple[dict[str, Any], bytes]:
        """The put that stores the patched ``record`` (None: missing), and its value.

        Raises ``not_json`` for a stored value that is not JSON.
        """
        size = 0 if record is None else len(record["value"])
        value = maybe_in_thread(size, lambda: str(_merge(self._target(record), self._patch)))
        op: dict[str, Any] = {
            "op": "put",
            "key": self._key,
            "content_type": JSON if record is None else record["content_type"],
        }
        if self._ttl is None:
            op["keep_ttl"] = True
        else:
            op["ttl"] = self._ttl
        if self._message is not None:
            op["message"] = self._message
        return op, value.encode()

    def _target(self, record: dict[str, Any] | None) -> _Value | None:
        if record is None:
            return None
        try:
            return _read(record["value"], self._patch)
        except ValueError as error:
            raise KvError(
                "not_json", f"the stored value is not JSON: {error}", revision=record["revision"]
            ) from error


class _Member(NamedTuple):
    """A member of an object: its name, the text before the value (space, name, colon), the value, and the
    space between it and a comma."""

    name: str
    before: str
    value: _Value
    after: str = ""


class _Object(NamedTuple):
    """An object, and the space before its closing brace."""

    members: list[_Member]
    end: str

    @property
    def values(self) -> dict[str, _Value]:
        """The values by name; the last one of a name wins."""
        return {member.name: member.value for member in self.members}

    def __str__(self) -> str:
        inside = ",".join([f"{member.before}{member.value}{member.after}" for member in self.members])
        return f"{{{inside}{self.end}}}"


_Value = str | _Object
"""The text of a value; an object is parsed where a patch changes it."""


def _merge(target: _Value | None, patch: _Value) -> _Value:
    """MergePatch of RFC 7396 section 2."""
    if isinstance(patch, str):
        return patch
    members = target.members if isinstance(target, _Object) else []
    # new members are spaced as the last one is, on a new line or not
    space = _SPACE.match(members[-1].before)[0] if members else ""  # type: ignore[index]
    changes = patch.values
    present = {member.name: member for member in members}
    merged = []
    for member in members:
        change = changes.get(member.name)
        if change is None:
            merged.append(member)
        elif change != "null" and present[member.name] is member:
            merged.append(member._replace(value=_merge(member.value, change)))
    for member in patch.members:
        change = changes.pop(member.name, "null")
        if member.name not in present and change != "null":
            merged.append(_Member(member.name, space + member.before.lstrip(), _merge(None, change)))
    return _Object(merged, target.end if isinstance(target, _Object) else "")


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_refuse_constant)
"""Finds the end of a value. Numbers stay text: they may be of any size."""

_SPACE = re.compile(r"[ \t\n\r]*+")
_MEMBER = re.compile(
    r"""
    (?P<before> [ \t\n\r]*+ "(?P<name> [^"\\\x00-\x1f]*+ )" [ \t\n\r]*+ : [ \t\n\r]*+ )
    (?P<value> "[^"\\\x00-\x1f]*+" | true | false | null
             | -?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+ )
    (?P<after> [ \t\n\r]*+ ) ,
    """,
    re.VERBOSE,
)
"""A plain member with another behind it, as nearly all are; others are read step by step."""


def _read(data: bytes, patch: _Value | None = None) -> _Value:
    """The value in ``data``, with its objects parsed: all of them, or those that ``patch`` changes. Raises
    ValueError if it is not JSON."""
    text = data.decode()
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark")
    try:
        value, at = _value(text, _skipped(text, 0), patch, 0)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    end = _skipped(text, at)
    if end != len(text):
        raise ValueError(f"there is unexpected text after its end, at character {end + 1}")
    return value


def _skipped(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _value(text: str, at: int, patch: _Value | None, depth: int) -> tuple[_Value, int]:
    """The value at ``at``, and where it ends. Each character is read once, at any depth."""
    if text[at : at + 1] == "{" and not isinstance(patch, str):
        if depth == MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        return _object(text, at, None if patch is None else patch.values, depth + 1)
    _, end = _DECODER.raw_decode(text, at)
    return text[at:end], end


def _object(text: str, at: int, patches: dict[str, _Value] | None, depth: int) -> tuple[_Object, int]:
    members: list[_Member] = []
    begin = at + 1
    at = _skipped(text, begin)
    if text[at : at + 1] == "}":
        return _Object(members, text[begin:at]), at + 1
    while True:
        while plain := _MEMBER.match(text, begin):
            members.append(_Member(plain["name"], plain["before"], plain["value"], plain["after"]))
            begin = plain.end()
        at = _skipped(text, begin)
        if text[at : at + 1] != '"':
            raise ValueError(f"the name of a member is expected at character {at + 1}")
        name, end = _DECODER.raw_decode(text, at)
        colon = _skipped(text, end)
        if text[colon : colon + 1] != ":":
            raise ValueError(f"a colon is expected at character {colon + 1}")
        value_at = _skipped(text, colon + 1)
        patch = None if patches is None else patches.get(name, "")
        value, end = _value(text, value_at, patch, depth)
        at = _skipped(text, end)
        if text[at : at + 1] == "}":
            members.append(_Member(name, text[begin:value_at], value))
            return _Object(members, text[end:at]), at + 1
        if text[at : at + 1] != ",":
            raise ValueError(f"a comma or the end of the object is expected at character {at + 1}")
        members.append(_Member(name, text[begin:value_at], value, text[end:at]))
        begin = at + 1
