"""The page's modules that need no page, run by Node.js: keys, comparisons, formats."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore_http
from kvstore_core.access.grants import KEY_VERBS, GrantSet, KeyRange, Need
from support.programs import require_program

pytestmark = pytest.mark.slow

FOLDER = Path(kvstore_http.__file__).parent / "ui"
MODULES = ("keys", "diff", "format", "grants")
RUNNER = """
import { createInterface } from "node:readline";
const modules = {};
for (const name of process.argv.slice(2)) Object.assign(modules, await import(`./${name}.js`));
modules.may = (texts, verb, key) => new modules.Grants(texts).may(verb, key);
modules.covers = (texts, verb, prefix) => new modules.Grants(texts).covers(verb, prefix);
modules.below = (texts, prefix, verbs) => new modules.Grants(texts).below(prefix, verbs);
for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...given] = JSON.parse(line);
  let answer;
  try {
    answer = { value: await modules[name](...given) };
  } catch (error) {
    answer = { error: error.name };
  }
  console.log(JSON.stringify(answer));
}
"""

Call = Callable[..., Any]

lines = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=12).map("\n".join)
keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """``call("compareKeys", a, b)``: what an exported function gives for these, or ``{"error": name}``."""
    node = require_program("node")
    folder = tmp_path_factory.mktemp("modules")
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')  # as browsers take them anyway
    (folder / "runner.mjs").write_text(RUNNER)
    with subprocess.Popen(
        [node, folder / "runner.mjs", *MODULES], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sends, answers = process.stdin, process.stdout

        def call(name: str, *given: Any) -> Any:
            sends.write(json.dumps([name, *given]).encode() + b"\n")
            sends.flush()
            answer = json.loads(answers.readline())
            return answer if "error" in answer else answer.get("value")

        yield call


@given(a=keys, b=keys)
def test_keys_stand_in_the_order_of_their_bytes(call: Call, a: str, b: str) -> None:
    order = call("compareKeys", a, b)
    assert (order > 0) - (order < 0) == (a.encode() > b.encode()) - (a.encode() < b.encode())


@given(prefix=keys | st.just(""), key=keys, tab=st.sampled_from(["value", "history"]), flat=st.booleans())
def test_an_address_names_any_place(call: Call, prefix: str, key: str, tab: str, flat: bool) -> None:
    place = {
        "view": "keys",
        "prefix": prefix,
        "key": key,
        "tab": tab,
        "flat": flat,
        "isNew": False,
        "find": "",
    }
    fragment = call("hashOf", place)
    assert fragment.isascii()
    assert call("placeOf", fragment) == place


@given(base=keys.map(lambda text: text.replace("/", "") + "/"), inner=keys, other=keys)
def test_a_listing_goes_on_right_behind_a_folder(call: Call, base: str, inner: str, other: str) -> None:
    behind = call("behindFolder", base).encode()
    assert (base + inner).encode() < behind
    if other.encode() >= behind:
        assert not other.startswith(base)
    elif other.encode() > base.encode():
        assert other.startswith(base)


@pytest.mark.parametrize("key", ["", "a\0b", "\ud800", "é" * 256])
def test_what_cannot_be_a_key_is_told(call: Call, key: str) -> None:
    assert call("faultOf", key)


@given(key=keys)
def test_what_can_be_a_key_is_taken_and_shown_without_anything_unseen(call: Call, key: str) -> None:
    assert call("faultOf", key) == ""
    shown = call("shownKey", key)
    assert not set(shown) & {"\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\u200b", "\u202e", "\u2066", "\ufeff"}
    name = call("fileName", key)
    assert name
    assert "/" not in name
    assert not name.startswith(".")


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("a\u00a0b", "a\\u{a0}b"),
        ("a\u3000b", "a\\u{3000}b"),
        ("a\u3164b", "a\\u{3164}b"),
        ("a\ufe0f", "a\\u{fe0f}"),
        ("a\U000e0101", "a\\u{e0101}"),
        ("a\u034fb", "a\\u{34f}b"),
        ("\u2800", "\\u{2800}"),
        ("\u0301\u0302a/\u0301", "\\u{301}\\u{302}a/\\u{301}"),
        ("e\u0301", "e\\u{301}"),
        ("\u212b", "\\u{212b}"),
        ("\u1100\u1161", "\\u{1100}\\u{1161}"),
        ("a\\u{a0}b", "a\\\\u{a0}b"),
        ("a\u2423b", "a\\u{2423}b"),
        (" a  b c ", "\u2423a\u2423\u2423b c\u2423"),
        ("\u00e9/\uac00/\u0928\u092e\u0938\u094d\u0924\u0947/\u65e5\u672c", None),
        ("back\\slash", None),
    ],
)
def test_keys_that_would_look_alike_are_shown_differently(call: Call, key: str, shown: str | None) -> None:
    assert call("shownKey", key) == (shown or key)


@given(one=keys, other=keys)
def test_no_two_keys_are_shown_alike(call: Call, one: str, other: str) -> None:
    if one != other:
        assert call("shownKey", one) != call("shownKey", other)


@given(before=lines, after=lines)
def test_a_comparison_holds_both_texts(call: Call, before: str, after: str) -> None:
    compared = call("diffLines", before, after)
    assert "\n".join(line["text"] for line in compared if line["kind"] != "added") == before
    assert "\n".join(line["text"] for line in compared if line["kind"] != "removed") == after
    assert [line["left"] for line in compared if "left" in line] == list(range(1, before.count("\n") + 2))
    assert [line["right"] for line in compared if "right" in line] == list(range(1, after.count("\n") + 2))
    marked = sum(line["kind"] != "same" for line in compared)
    assert marked == len(before.split("\n")) + len(after.split("\n")) - 2 * longest_common(before, after)


words = st.lists(st.sampled_from(["a", "bc", " ", ": ", "12"]), max_size=10).map("".join)


@given(before=words, after=words)
def test_the_words_of_two_lines_are_all_there_and_marked_only_where_they_differ(
    call: Call, before: str, after: str
) -> None:
    pieces = call("diffWords", before, after)
    if pieces is None:
        assert before != after
        return
    assert ["".join(piece["text"] for piece in side) for side in pieces] == [before, after]
    common = [[piece["text"] for piece in side if not piece["isMarked"]] for side in pieces]
    assert common[0] == common[1]


def longest_common(before: str, after: str) -> int:
    """The most lines that both have in the same order."""
    a, b = before.split("\n"), after.split("\n")
    row = [0] * (len(b) + 1)
    for line in a:
        last, row = row, [0]
        for index, other in enumerate(b):
            row.append(last[index] + 1 if line == other else max(last[index + 1], row[index]))
    return row[-1]


def test_texts_that_have_nothing_in_common_are_not_searched_for_long(call: Call) -> None:
    before = "\n".join(f"a{number}" for number in range(20_000))
    after = "\n".join(f"b{number}" for number in range(20_000))
    compared = call("diffLines", before, after)
    assert [line["kind"] for line in compared] == ["removed"] * 20_000 + ["added"] * 20_000


@given(base=lines, changed=lines)
def test_one_change_alone_is_taken_as_it_is(call: Call, base: str, changed: str) -> None:
    for mine, theirs in ((changed, base), (base, changed), (changed, changed)):
        assert call("merge", base, mine, theirs) == {"text": changed, "conflicts": 0}


@given(base=lines, mine=lines, theirs=lines)
def test_a_merge_loses_no_line_of_a_conflict(call: Call, base: str, mine: str, theirs: str) -> None:
    merged = call("merge", base, mine, theirs)
    assert merged["text"].count("<<<<<<< mine") == merged["conflicts"]
    if merged["conflicts"]:
        assert set(mine.split("\n")) - set(base.split("\n")) <= set(merged["text"].split("\n"))
        assert set(theirs.split("\n")) - set(base.split("\n")) <= set(merged["text"].split("\n"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values, indent=st.none() | st.integers(0, 3))
def test_json_by_lines_is_the_same_json(call: Call, value: Any, indent: int | None) -> None:
    pretty = call("prettyJson", json.dumps(value, indent=indent))
    assert json.loads(pretty) == value
    assert pretty == call("prettyJson", pretty)


@given(value=json_values, end=st.integers(0, 40))
def test_coloured_json_is_all_there_with_its_names_and_values_told_apart(
    call: Call, value: Any, end: int
) -> None:
    pretty = call("prettyJson", json.dumps(value))
    pieces = call("jsonPieces", pretty)
    assert "".join(piece["text"] for piece in pieces) == pretty
    assert "".join(piece["text"] for piece in call("jsonPieces", pretty[:end])) == pretty[:end]
    names, others = [], []

    def walk(inner: Any) -> None:
        if isinstance(inner, dict):
            for name, member in inner.items():
                names.append(name)
                walk(member)
        elif isinstance(inner, list):
            for member in inner:
                walk(member)
        else:
            others.append(inner)

    walk(value)
    assert [json.loads(piece["text"]) for piece in pieces if piece["kind"] == "name"] == names
    assert [json.loads(piece["text"]) for piece in pieces if piece["kind"] not in {"", "name"}] == others


@given(value=json_values, indent=st.none() | st.integers(0, 3))
def test_json_on_one_line_is_the_same_json(call: Call, value: Any, indent: int | None) -> None:
    compact = call("compactJson", json.dumps(value, indent=indent))
    assert json.loads(compact) == value
    assert "\n" not in compact
    assert call("prettyJson", compact) == call("prettyJson", json.dumps(value, indent=indent))


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[1,]", "nope", "1 2"])
def test_what_is_not_json_is_not_shown_as_it(call: Call, text: str) -> None:
    assert call("prettyJson", text) == {"error": "SyntaxError"}


names = st.text("ab/", max_size=4)
scopes = st.builds(str.__add__, names, st.sampled_from(["", "/", "*"])).filter(bool)
verbs = st.lists(st.sampled_from([*KEY_VERBS, "ro", "rw", "all"]), min_size=1, max_size=2).map(",".join)
grants = st.lists(
    st.builds("{}:{}".format, verbs, scopes) | st.sampled_from(["monitor", "admin"]), max_size=4
)


@given(texts=grants, verb=st.sampled_from(KEY_VERBS), name=names)
def test_the_page_offers_what_the_service_allows(call: Call, texts: list[str], verb: str, name: str) -> None:
    allowed = GrantSet(texts)
    if name:
        assert call("may", texts, verb, name) == allowed.allow(Need(verb, name))
    assert call("covers", texts, verb, name) == allowed.allow(Need(verb, KeyRange.of_prefix(name)))


@given(texts=grants, prefix=names, key=names)
def test_all_that_may_be_listed_is_found_from_the_start(
    call: Call, texts: list[str], prefix: str, key: str
) -> None:
    found = call("below", texts, prefix, ["list"])
    assert all(each["scope"].startswith(prefix) for each in found)
    assert not any(each["isPrefix"] and each["scope"] == prefix for each in found)
    if key.startswith(prefix) and not call("covers", texts, "list", prefix):
        assert call("may", texts, "list", key) == any(
            key.startswith(each["scope"]) if each["isPrefix"] else key == each["scope"] for each in found
        )


def test_where_access_is_off_everything_is_offered(call: Call) -> None:
    assert call("may", None, "delete", "any")
    assert call("covers", None, "watch", "")
    assert call("below", None, "", ["list"]) == []
