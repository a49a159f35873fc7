"""What grants allow, by a model that compares bytes one by one, and what each op needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.access.grants import KEY_VERBS, GrantSet, KeyRange, Need, Prefix
from kvstore_core.operations import OPERATIONS

texts = st.text("abA/*", max_size=4)
keys = st.text("abA/*", min_size=1, max_size=4)
scopes = st.one_of(texts.filter(bool), st.just("*"))
grants = st.builds("{}:{}".format, st.sampled_from(["read", "read,list", "ro", "write"]), scopes)


def covered(scope: str, key: str) -> bool:
    """Whether a scope covers a key, written without any of the code."""
    if scope[-1] in "/*":
        stem = scope[:-1] if scope[-1] == "*" else scope
        return key.encode()[: len(stem.encode())] == stem.encode()
    return key.encode() == scope.encode()


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("app/", {"app/", "app/x", "app//", "app/../secret"}),
        ("app*", {"app", "app/", "app2", "app/x", "apple", "app//", "app/../secret", "app\u2215x"}),
        ("app", {"app"}),
        ("*", None),
    ],
)
def test_a_prefix_is_not_confused_with_another(scope: str, allowed: set[str] | None) -> None:
    inside = ["app", "app/", "app2", "app/x", "apple", "app//", "app/../secret", "app\u2215x"]
    tried = [*inside, "ap", "APP/", "zz"]
    found = {key for key in tried if GrantSet([f"read:{scope}"]).allow(Need("read", key))}
    assert found == (set(tried) if allowed is None else allowed)


@given(st.lists(grants, max_size=4), keys, st.sampled_from(KEY_VERBS))
def test_a_key_is_allowed_as_the_model_says(given_: list[str], key: str, verb: str) -> None:
    short = {"ro": {"read", "list", "watch"}}
    pairs = [text.split(":", 1) for text in given_]
    model = any(
        verb in {v for name in verbs.split(",") for v in short.get(name, {name})} and covered(scope, key)
        for verbs, scope in pairs
    )
    assert GrantSet(given_).allow(Need(verb, key)) is model
    assert (GrantSet(given_).deciding(Need(verb, key)) is not None) is model


@given(grants, texts, texts, texts, keys)
def test_who_may_a_range_may_each_key_of_it(grant: str, prefix: str, start: str, end: str, key: str) -> None:
    wanted = KeyRange.common(prefix, start, end)
    inside = wanted.low <= key.encode() and (wanted.high is None or key.encode() < wanted.high)
    allowed = GrantSet([grant])
    if inside and allowed.allow(Need("read", wanted)):
        assert allowed.allow(Need("read", key))


@given(st.lists(grants, max_size=3), st.lists(grants, max_size=3), keys, st.sampled_from(KEY_VERBS))
def test_what_is_handed_on_gives_no_more(parent: list[str], child: list[str], key: str, verb: str) -> None:
    if GrantSet(parent).handed_on(tuple(child)).allow(Need(verb, key)):
        assert GrantSet(child).allow(Need(verb, key))
        assert GrantSet(parent).allow(Need(verb, key))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("app/", "write VERBS:SCOPE"),
        ("ro:", "for everything write ro:*"),
        ("see:app/", "unknown verb 'see'"),
        (":app/", "unknown verb ''"),
        ("admin:app/", "takes none"),
        ("read,:x", "unknown verb ''"),
        ("ro:a\0b", "without NUL"),
        ("ro:\ud800", "lone surrogate"),
        ("ro:" + "x" * 512, "at most 511 bytes"),
        ("", "write VERBS:SCOPE"),
    ],
)
def test_what_is_no_grant_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        GrantSet([text])


@given(st.lists(grants, max_size=4), texts, keys, st.sampled_from(KEY_VERBS))
def test_a_prefix_is_allowed_as_the_range_that_it_is(
    given_: list[str], prefix: str, key: str, verb: str
) -> None:
    allowed = GrantSet(given_)
    assert allowed.allow(Need(verb, Prefix(prefix))) is allowed.allow(Need(verb, KeyRange.of_prefix(prefix)))
    if allowed.allow(Need(verb, Prefix(prefix))):
        assert allowed.allow(Need(verb, prefix + key))


def test_grants_are_bounded() -> None:
    with pytest.raises(ValueError, match="at most 100 grants"):
        GrantSet(f"ro:{number}/" for number in range(101))


def test_the_document_has_every_operation() -> None:
    page = Path(__file__).parents[2].joinpath("docs/access.md").read_text()
    table = page.partition("## What each operation needs")[2].partition("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(OPERATIONS)
