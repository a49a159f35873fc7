"""What somebody waits for: ``exists``, ``gone``, ``equals TEXT``, or a look into a JSON value.

The grammar is :data:`GRAMMAR`, and ``docs/http.md`` explains it. Facade, command and native client share it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, Protocol

from kvstore_core.errors import KvError
from kvstore_core.json_depth import MAX_DEPTH, is_too_deep
from kvstore_core.limits import MAX_REPEATED

MAX_PREDICATE_BYTES = 4096

GRAMMAR = (
    "exists, gone, equals TEXT, POINTER exists, POINTER gone, or POINTER OP JSON, where POINTER is a JSON "
    'pointer such as /state (nothing or "" is the whole value) and OP is one of == != < <= > >=, '
    'as in: /state == "done"'
)


class Predicate(Protocol):
    """What a key is to fulfil."""

    @property
    def needs_value(self) -> bool:
        """Whether it depends on the value, and not only on whether there is one."""

    def holds(self, value: bytes | None) -> bool:
        """Whether it holds for a record with this value; None: there is no record. Never raises."""


def parse_predicate(text: str) -> Predicate:
    """The predicate written as ``text``; raises ``bad_request``, which says the grammar.

    Numbers are compared by value, exactly, however large and however they are written; texts by code points;
    objects whatever the order of their members, of which the last of a name counts; ``true`` is not 1. Only a
    number is less or greater than a number, and a text than a text. A comparison holds only for something
    that is there, so ``!=`` does not hold where the pointer leads nowhere. A value that is no JSON, is nested
    more than 100 deep, or has a number with an exponent of more than 18 digits, fulfils nothing that looks
    into it. Where there is no record, nothing is there.
    """
    _check_text(text)
    word = text.strip()
    if word in ("exists", "gone"):
        return _Presence(is_wanted=word == "exists")
    if text.lstrip().startswith("equals "):
        return _Equals(text.lstrip().removeprefix("equals ").encode())
    for pointer, operator, operand in _splits(word):
        try:
            wanted = _read_json(operand.encode())
        except ValueError:
            continue
        return _Comparison(_parse_pointer(pointer), _OPERATORS[operator], wanted)
    pointer, _, last = word.rpartition(" ")
    if last in ("exists", "gone"):
        return _Reach(_parse_pointer(pointer.rstrip()), is_wanted=last == "exists")
    raise _malformed(text)


def _check_text(text: Any) -> None:
    if type(text) is not str:
        raise KvError("bad_request", f"until must be a text: {GRAMMAR}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise KvError("bad_request", "until must be text that UTF-8 can hold") from error
    if size > MAX_PREDICATE_BYTES:
        message = f"until has {size} bytes; the limit is {MAX_PREDICATE_BYTES}"
        raise KvError("bad_request", message, limit=MAX_PREDICATE_BYTES)


def _malformed(text: str) -> KvError:
    return KvError("bad_request", f"until must be {GRAMMAR}; not {text[:MAX_REPEATED]!r}")


# ── the kinds ────────────────────────────────────────────────────────────────────────────────────


class _Presence(NamedTuple):
    """``exists``, ``gone``."""

    is_wanted: bool
    needs_value: bool = False

    def holds(self, value: bytes | None) -> bool:
        return (value is not None) is self.is_wanted


class _Equals(NamedTuple):
    """``equals TEXT``."""

    wanted: bytes
    needs_value: bool = True

    def holds(self, value: bytes | None) -> bool:
        return value == self.wanted


class _Reach(NamedTuple):
    """``POINTER exists``, ``POINTER gone``."""

    pointer: tuple[str, ...]
    is_wanted: bool
    needs_value: bool = True

    def holds(self, value: bytes | None) -> bool:
        if value is None:
            return not self.is_wanted
        try:
            found = _at(_read_json(value), self.pointer)
        except ValueError:
            return False
        return (found is not _NOTHING) is self.is_wanted


class _Comparison(NamedTuple):
    """``POINTER OP JSON``."""

    pointer: tuple[str, ...]
    compare: Callable[[Any, Any], bool]
    wanted: Any
    needs_value: bool = True

    def holds(self, value: bytes | None) -> bool:
        if value is None:
            return False
        try:
            found = _at(_read_json(value), self.pointer)
        except ValueError:
            return False
        return found is not _NOTHING and self.compare(found, self.wanted)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────

_OPERATOR = re.compile(r"[=!<>]++")
"""An operator, or what is none: ``===`` must not be taken for one after a name that ends with a sign."""


def _splits(word: str) -> Iterator[tuple[str, str, str]]:
    """The places where an operator may stand: what is before it, the operator, what is behind it.

    The right one is the first with JSON behind it. There is no other: an operator further on would stand in
    one of that JSON's texts, and what is behind it would end inside a text.
    """
    for match in _OPERATOR.finditer(word):
        if match[0] in _OPERATORS:
            yield word[: match.start()].rstrip(), match[0], word[match.end() :].lstrip()


_UNESCAPED = re.compile(r"(?:[^~]|~[01])*", re.DOTALL)


def _parse_pointer(text: str) -> tuple[str, ...]:
    """The names in a JSON pointer (RFC 6901 section 3)."""
    if text in ("", '""'):
        return ()
    shown = repr(text[:MAX_REPEATED])
    if not text.startswith("/"):
        raise KvError("bad_request", f"a JSON pointer begins with /; {shown} does not; until is {GRAMMAR}")
    if _UNESCAPED.fullmatch(text) is None:
        message = f"in a JSON pointer ~ is written ~0, and / in a name ~1; {shown} has another ~"
        raise KvError("bad_request", message)
    return tuple(name.replace("~1", "/").replace("~0", "~") for name in text[1:].split("/"))


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ValueError("an exponent of more than 18 digits") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    # functions in Python, at which other threads may get their turn; orjson would round large numbers
    parse_float=lambda text: _number(text),
    parse_int=lambda text: _number(text),
    parse_constant=_refuse_constant,
)


def _read_json(data: bytes) -> Any:
    """The JSON value in ``data``, its numbers as Decimal; raises ValueError for anything else."""
    if is_too_deep(data):
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return _DECODER.decode(data.decode())


# ── looking ──────────────────────────────────────────────────────────────────────────────────────

_NOTHING = object()
_INDEX = re.compile(r"0|[1-9][0-9]*", re.ASCII)


def _at(value: Any, pointer: tuple[str, ...]) -> Any:
    """What ``pointer`` leads to in ``value`` (RFC 6901 section 4), ``_NOTHING`` if that is nothing."""
    for name in pointer:
        if type(value) is dict:
            value = value.get(name, _NOTHING)
        elif type(value) is list and _INDEX.fullmatch(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return _NOTHING
    return value


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same. Python's == would take true for 1."""
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if type(one) is list:
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _in_order(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(one: Any, other: Any) -> bool:
        return type(one) is type(other) and type(one) in (Decimal, str) and compare(one, other)

    return holds


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": _same,
    "!=": lambda one, other: not _same(one, other),
    "<": _in_order(lambda one, other: one < other),
    "<=": _in_order(lambda one, other: one <= other),
    ">": _in_order(lambda one, other: one > other),
    ">=": _in_order(lambda one, other: one >= other),
}
