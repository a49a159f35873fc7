"""``application/merge-patch+json`` (RFC 7396), on the text of a value.

What a patch does not name stays as it is written, character by character: to read a number and
write it again would change it (``1e400``, or more digits than a float has), and so would members that
stand there twice.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from kvstore_client.errors import KvError
from kvstore_http.bodies import JSON

_SPACE = re.compile(r"[ \t\n\r]*")


class Patch:
    """A merge patch for one key.

    It keeps the key's media type, and the moment at which it expires unless ``ttl`` (seconds) gives a new
    one. A missing key is patched from nothing, which creates it.
    """

    def __init__(self, body: bytes, key: str, ttl: float | None) -> None:
        try:
            self._patch = _read(body)
        except ValueError as error:
            raise KvError("bad_request", f"the patch is not JSON: {error}") from error
        self._key = key
        self._ttl = ttl

    def applied_to(self, record: dict[str, Any] | None) -> tuple[dict[str, Any], bytes]:
        """The put that stores the patched ``record`` (None: missing), and its value.

        Raises ``not_json`` for a stored value that is not JSON.
        """
        value = _merged(self._target(record), self._patch)
        op: dict[str, Any] = {
            "op": "put",
            "key": self._key,
            "content_type": JSON if record is None else record["content_type"],
        }
        if self._ttl is None:
            op["keep_ttl"] = True
        else:
            op["ttl"] = self._ttl
        return op, value.encode()

    def _target(self, record: dict[str, Any] | None) -> _Value | None:
        if record is None:
            return None
        try:
            return _read(record["value"])
        except ValueError as error:
            raise KvError(
                "not_json", f"the stored value is not JSON: {error}", revision=record["revision"]
            ) from error


class _Member(NamedTuple):
    """A member of an object: its name, what is written before the value (space, name, colon), the value."""

    name: str
    before: str
    value: _Value


class _Object(NamedTuple):
    """An object, and the space before its closing brace."""

    members: list[_Member]
    end: str

    def __str__(self) -> str:
        return "{" + ",".join(f"{member.before}{member.value}" for member in self.members) + self.end + "}"


_Value = str | _Object
"""The text of a value; objects are taken apart, since a patch looks into nothing else."""


def _merged(target: _Value | None, patch: _Value) -> str:
    return str(_merge(target, patch))


def _merge(target: _Value | None, patch: _Value) -> _Value:
    """MergePatch of RFC 7396 section 2."""
    if isinstance(patch, str):
        return patch
    members = target.members.copy() if isinstance(target, _Object) else []
    # members that are new are written as the last one is, on a line of its own or not
    space = _SPACE.match(members[-1].before)[0] if members else ""  # type: ignore[index]
    changes = {member.name: member for member in patch.members}  # of the same name, the last one counts
    present = {member.name: member for member in members}
    merged = []
    for member in members:
        change = changes.get(member.name)
        if change is None:
            merged.append(member)
        elif change.value != "null" and present[member.name] is member:
            merged.append(member._replace(value=_merge(member.value, change.value)))
    for name, change in changes.items():
        if name not in present and change.value != "null":
            merged.append(_Member(name, space + change.before.lstrip(), _merge(None, change.value)))
    return _Object(merged, target.end if isinstance(target, _Object) else "")


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_refuse_constant)
"""Tells where a value ends. Its numbers stay text: they may be of any size."""


def _read(data: bytes) -> _Value:
    """The value in ``data``; raises ValueError if it is not JSON."""
    text = data.decode()
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark")
    try:
        value, at = _value(text, _skipped(text, 0))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    end = _skipped(text, at)
    if end != len(text):
        raise ValueError(f"there is something behind its end, at character {end + 1}")
    return value


def _skipped(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _value(text: str, at: int) -> tuple[_Value, int]:
    """The value at ``at``, and where it ends. Each character is looked at once, however deep it stands."""
    if text[at : at + 1] == "{":
        return _object(text, at)
    _, end = _DECODER.raw_decode(text, at)
    return text[at:end], end


def _object(text: str, at: int) -> tuple[_Object, int]:
    members: list[_Member] = []
    begin = at + 1
    at = _skipped(text, begin)
    if text[at : at + 1] == "}":
        return _Object(members, text[begin:at]), at + 1
    while True:
        if text[at : at + 1] != '"':
            raise ValueError(f"the name of a member is expected at character {at + 1}")
        name, end = _DECODER.raw_decode(text, at)
        colon = _skipped(text, end)
        if text[colon : colon + 1] != ":":
            raise ValueError(f"a colon is expected at character {colon + 1}")
        value_at = _skipped(text, colon + 1)
        value, end = _value(text, value_at)
        members.append(_Member(name, text[begin:value_at], value))
        at = _skipped(text, end)
        if text[at : at + 1] == "}":
            return _Object(members, text[end:at]), at + 1
        if text[at : at + 1] != ",":
            raise ValueError(f"a comma or the end of the object is expected at character {at + 1}")
        begin = at + 1
        at = _skipped(text, begin)
