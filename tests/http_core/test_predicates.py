"""What ``until`` means, compared with another evaluation of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.errors import KvError
from kvstore_core.json_depth import MAX_DEPTH, is_too_deep
from kvstore_core.predicates import MAX_PREDICATE_BYTES, parse_predicate

names = st.text(st.sampled_from(["a", "b", "é", "/", "~", " ", "=", "<", '"', "0", "1", "-"]), max_size=3)


Draw = Callable[[st.SearchStrategy[Any]], Any]


class Number(Fraction):
    """A number of a model; a bool is none."""


numbers = st.builds(
    Number, st.integers(-30, 30) | st.integers(-(10**40), 10**40), st.sampled_from([1, 2, 10])
)
scalars = st.none() | st.booleans() | numbers | names
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def written_number(draw: Draw, number: Number) -> str:
    """One of the ways to write it."""
    shift = draw(st.integers(0, 5))
    digits = number * 10**shift
    if digits.denominator != 1:
        shift, digits = shift + 1, digits * 10
    exponent = draw(st.sampled_from(["e", "E"])) + f"-{shift:0{draw(st.integers(1, 3))}d}"
    return f"{digits.numerator}{exponent if shift or draw(st.booleans()) else ''}"


def written(draw: Draw, value: Any) -> str:
    """``value`` as JSON, with members in any order and blanks anywhere."""
    blank: str = draw(st.sampled_from(["", "", " ", "\n\t"]))
    if isinstance(value, Number):
        return blank + written_number(draw, value)
    if isinstance(value, list):
        return f"{blank}[{','.join(written(draw, each) for each in value)}{blank}]"
    if isinstance(value, dict):
        members = draw(st.permutations(list(value.items())))
        inner = ",".join(f"{json.dumps(name)}{blank}:{written(draw, each)}" for name, each in members)
        return f"{{{inner}{blank}}}"
    text: str = blank + json.dumps(value, ensure_ascii=draw(st.booleans()))
    return text


def same(one: Any, other: Any) -> bool:
    """Compares the texts that both have when numbers are reduced and members sorted."""

    def canonical(value: Any) -> Any:
        if isinstance(value, Number):
            return ["number", value.numerator, value.denominator]
        if isinstance(value, list):
            return ["list", *map(canonical, value)]
        if isinstance(value, dict):
            return ["object", sorted([name, canonical(each)] for name, each in value.items())]
        return [type(value).__name__, value]

    return json.dumps(canonical(one)) == json.dumps(canonical(other))


def expected(found: list[Any], operator: str, wanted: Any) -> bool:
    """``found`` is empty where the pointer leads nowhere."""
    if not found:
        return False
    (value,) = found
    if operator in ("==", "!="):
        return same(value, wanted) is (operator == "==")
    both_numbers = isinstance(value, Number) and isinstance(wanted, Number)
    if not both_numbers and not (isinstance(value, str) and isinstance(wanted, str)):
        return False
    if isinstance(value, str) and isinstance(wanted, str):
        value, wanted = [ord(c) for c in value], [ord(c) for c in wanted]
    is_less, is_same = bool(value < wanted), bool(value == wanted)
    return {"<": is_less, "<=": is_less or is_same, ">": not is_less and not is_same, ">=": not is_less}[
        operator
    ]


@st.composite
def places(draw: Any, value: Any) -> tuple[str, list[Any]]:
    """A pointer, and in a list what is there in ``value``, if anything is."""
    pointer, found = "", [value]
    for _ in range(draw(st.integers(0, 3))):
        here = found[0] if found else None
        if isinstance(here, dict) and here and draw(st.integers(0, 4)):
            name = draw(st.sampled_from(sorted(here)))
            found = [here[name]]
        elif isinstance(here, list) and here and draw(st.integers(0, 4)):
            index = draw(st.integers(0, len(here) - 1))
            name, found = str(index), [here[index]]
        else:
            name = draw(st.sampled_from(["zz", "01", "-", "99", "+0", "٠"]))
            found = []
        pointer += "/" + name.replace("~", "~0").replace("/", "~1")
    return pointer, found


def is_writable(pointer: str) -> bool:
    """Whether it does not end with what the grammar would take for a part of the operator or of the space."""
    return pointer == pointer.rstrip(" =!<>")


@given(st.data())
def test_a_look_into_json_finds_what_another_evaluation_finds(data: st.DataObject) -> None:
    value = data.draw(values)
    pointer, found = data.draw(places(value).filter(lambda place: is_writable(place[0])))
    operator = data.draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
    wanted: Any = data.draw(values)
    if data.draw(st.booleans()) and found:
        wanted = found[0]
    stored = written(data.draw, value).encode()
    blank = data.draw(st.sampled_from(["", " ", "  "]))
    text = f"{pointer}{blank}{operator}{blank}{written(data.draw, wanted)}"
    assert parse_predicate(text).holds(stored) is expected(found, operator, wanted), (text, stored)
    assert parse_predicate((pointer or '""') + " exists").holds(stored) is bool(found)
    assert parse_predicate((pointer or '""') + " gone").holds(stored) is (not found)


def holds(text: str, value: bytes | None) -> bool:
    return parse_predicate(text).holds(value)


def test_exists_and_gone_ask_for_the_record_and_not_for_its_value() -> None:
    for text in ("exists", " exists "):
        assert holds(text, b"")
        assert not holds(text, None)
        assert not parse_predicate(text).needs_value
    assert holds("gone", None)
    assert not holds("gone", b"\xff")


def test_equals_takes_the_rest_byte_for_byte() -> None:
    assert holds("equals  a b ", b" a b ")
    assert not holds("equals a", b"a ")
    assert holds("equals ", b"")
    assert not holds("equals ", None)
    assert holds("equals é", "é".encode())
    assert not holds("equals 1", b"1.0")
    assert holds("equals gone", b"gone")
    assert holds("equals /a == 1", b"/a == 1")


@pytest.mark.parametrize(
    ("text", "value", "is_held"),
    [
        ("/a == 1", b'{"a": 1.0}', True),
        ("/a == 100", b'{"a": 1e2}', True),
        ("/a == 1", b'{"a": true}', False),
        ("/a == true", b'{"a": 1}', False),
        ("/a == 0", b'{"a": -0.0}', True),
        ("/a == 9007199254740993", b'{"a": 9007199254740992}', False),
        ("/a > 9007199254740992.5", b'{"a": 9007199254740993}', True),
        ("/a == 123456789012345678901234567890", b'{"a": 123456789012345678901234567891}', False),
        ("/a < 1e400", b'{"a": 1e399}', True),
        ("/a == 0.1", b'{"a": 0.1000000000000000055511151231257827}', False),
        ("== null", b"null", True),
        ("/a != 1", b"{}", False),
        ("/a != 1", b'{"a": "1"}', True),
        ('/a < "b"', b'{"a": 1}', False),
        ('/a < "\U00010000"', '{"a": "\uffff"}'.encode(), True),
        ("/a == 2", b'{"a": 1, "a": 2}', True),
        ('/a~1b == "x"', b'{"a/b": "x"}', True),
        ('/a~01 == "x"', b'{"a~1": "x"}', True),
        ("/ == 1", b'{"": 1}', True),
        ("/0 == 1", b"[1]", True),
        ("/00 == 1", b"[1]", False),
        ("/- exists", b"[1]", False),
        ("/a == b == 1", b'{"a == b": 1}', True),
        ('/a == "x == 1"', b'{"a": "x == 1"}', True),
        ("/a=b==1", b'{"a=b": 1}', True),
        ("/a exists exists", b'{"a exists": null}', True),
        ("/n>=-5", b'{"n": -5}', True),
    ],
)
def test_json_is_compared_by_value(text: str, value: bytes, is_held: bool) -> None:
    assert holds(text, value) is is_held


NO_JSON = (
    b"",
    b"{",
    b"NaN",
    b"Infinity",
    b"\xff",
    b"\xef\xbb\xbf1",
    b"1 2",
    b"'a'",
    b'{"a": 1,}',
    b"[" * 100_000,
)


@pytest.mark.parametrize("value", [*NO_JSON, b'{"a":1,"b":' + b"[" * 200 + b"]" * 200 + b"}"])
def test_what_is_no_json_or_too_deep_fulfils_nothing_that_looks_into_it(value: bytes) -> None:
    for text in ("/a == 1", "/a != 1", "/a exists", "/a gone", '"" exists', "== 1", "!= 1"):
        assert not holds(text, value), text
    assert holds("exists", value)


def test_where_there_is_no_record_nothing_is_there() -> None:
    assert holds("/a gone", None)
    assert not any(holds(text, None) for text in ("/a exists", "/a == null", "/a != 1", "== null"))


@pytest.mark.parametrize(
    "value", [b"1e" + b"9" * 100_000, b"1e1000000000000000000", b"-1E-1000000000000000000000"]
)
def test_a_number_that_nothing_can_be_compared_with_is_no_error(value: bytes) -> None:
    assert not holds("> 1", value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "equals",
        "Exists",
        "exist",
        "/a",
        "/a = 1",
        "/a === 1",
        "/a !== 1",
        "/a <> 1",
        "/a == ",
        "/a == b",
        "/a == NaN",
        "/a == 1e1000000000000000000",
        "/a == " + "[" * 101 + "]" * 101,
        "a == 1",
        "a exists",
        "/~ == 1",
        "/~2 exists",
        "\ud800 == 1",
        "equals " + "x" * MAX_PREDICATE_BYTES,
        7,
        None,
    ],
)
def test_what_is_no_predicate_is_refused_with_what_is_one(text: Any) -> None:
    with pytest.raises(KvError) as caught:
        parse_predicate(text)
    assert caught.value.code == "bad_request"
    assert any(hint in caught.value.message for hint in ("POINTER OP JSON", "~0", "the limit is", "UTF-8"))


@given(
    st.lists(st.sampled_from(["[", "]", "[[[[[[[[", "]]]]]]]]", '"[[["', '"\\\\"[', "1"]), max_size=80),
    st.integers(0, 120),
)
def test_a_text_is_too_deep_where_a_walk_over_it_comes_too_deep(pieces: list[str], more: int) -> None:
    text = "[" * more + "".join(pieces) + "[]" * 10_000
    depth = most = 0
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    for character in outside:
        depth += {"[": 1, "]": -1}.get(character, 0)
        most = max(most, depth)
    assert is_too_deep(text.encode()) is (most > MAX_DEPTH)
