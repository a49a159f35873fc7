"""A subscription as a JSON body, where it would make an address too long: the parameters of the query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_FILTERS, MAX_TTL_SECONDS
from kvstore_http.protocol import query_params as q
from kvstore_http.protocol.query_params import Parameter, Query

Texts = Callable[[Any], list[str] | None]
"""Gives a member as the texts of its parameter, or None if it has another type."""


class _BodyMember(NamedTuple):
    parameter: Parameter[Any]
    texts: Texts
    must_be: str
    schema: dict[str, Any]


def _list(member: Any) -> list[str] | None:
    if type(member) is not list or len(member) > MAX_FILTERS or any(type(text) is not str for text in member):
        return None
    return member


def _joined(member: Any) -> list[str] | None:
    names = _list(member)
    return None if names is None or any("," in name for name in names) else [",".join(names)]


def _flag(member: Any) -> list[str] | None:
    return ["1" if member else "0"] if type(member) is bool else None


def _position(member: Any) -> list[str] | None:
    if member is None:
        return []
    return [str(member)] if type(member) is str or (type(member) is int and member >= 0) else None


def _text(member: Any) -> list[str] | None:
    return [member] if type(member) is str else None


def _duration(member: Any) -> list[str] | None:
    if type(member) in (int, float):
        return [f"{member:.3f}"] if 0 < member < MAX_TTL_SECONDS else None
    return _text(member)


_TEXTS = {"type": "array", "items": {"type": "string"}, "maxItems": MAX_FILTERS}
_UP_TO = f"a list of up to {MAX_FILTERS} texts"


def _flag_of(parameter: Parameter[bool]) -> _BodyMember:
    return _BodyMember(parameter, _flag, "true or false", {"type": "boolean"})


MEMBERS: dict[str, _BodyMember] = {
    "prefixes": _BodyMember(q.STREAM_PREFIX, _list, _UP_TO, _TEXTS),
    "keys": _BodyMember(q.STREAM_KEY, _list, _UP_TO, _TEXTS),
    "since": _BodyMember(
        q.STREAM_SINCE,
        _position,
        f"{q.BEGIN}, as text, or a revision as number; null is as if it were not there",
        {"type": ["string", "integer", "null"]},
    ),
    "snapshot": _flag_of(q.SNAPSHOT),
    "ops": _BodyMember(q.OPS, _joined, f"a {q.OPS.must_be.replace('names', 'list', 1)}", _TEXTS),
    "values": _flag_of(q.VALUES),
    "prev": _flag_of(q.PREVIOUS),
    "json": _flag_of(q.INLINE),
    "deliver": _BodyMember(q.DELIVER, _text, q.DELIVER.must_be, q.DELIVER.schema),
    "sample": _BodyMember(
        q.SAMPLE, _duration, f"{q.SAMPLE.must_be}, or seconds", {"type": ["string", "number"]}
    ),
}
"""The members by name. Those that are a parameter of the query have its name; several prefixes and keys are
lists, called as in the op ``events``."""


def read_subscription(body: Any) -> Query:
    """The parameters that ``body``, decoded JSON, has: not parsed yet, as those of a query. Raises
    ``bad_request`` for anything but an object of MEMBERS, each of its type."""
    if type(body) is not dict:
        raise KvError("bad_request", 'the body must be a JSON object, such as {"prefixes": ["app/"]}')
    texts: dict[str, list[str]] = {}
    for name, value in body.items():
        member = MEMBERS.get(name)
        if member is None:
            known = ", ".join(MEMBERS)
            raise KvError("bad_request", f"unknown member {name!r}; known: {known}", parameter=name)
        found = member.texts(value)
        if found is None:
            raise KvError("bad_request", f"{name} must be {member.must_be}", parameter=name)
        if found:
            texts[member.parameter.name] = found
    return Query(texts)


def schema() -> dict[str, Any]:
    """The form of the body, for ``/openapi.json``."""
    properties = {
        name: {**member.schema, "description": f"{member.parameter.meaning}: {member.must_be}"}
        for name, member in MEMBERS.items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}
