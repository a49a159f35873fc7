"""The routes of the service that this one replaces, and the index."""

from __future__ import annotations

import json
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.session import Session, assert_problem, path_of

texts = st.text(st.characters(codec="utf-8"), max_size=50)
keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=50)


@given(key=keys, value=texts)
def test_what_is_put_is_got_as_text(session: Session, key: str, value: str) -> None:
    body = json.dumps({"key": key, "value": value}).encode()
    stored = session.put("/", body)
    assert stored.status == 200
    assert stored.headers["content-type"] == "text/plain; charset=utf-8"
    assert stored.body.endswith(b"\n")
    assert len(stored.body.splitlines()) == 1
    got = session.get(f"/?key={quote_plus(key)}")
    assert (got.status, got.body) == (200, value.encode())
    assert got.headers["content-type"] == "text/plain; charset=utf-8"
    assert session.get("/all").json[key] == value
    assert session.get(path_of(key)).body == value.encode()


@pytest.mark.parametrize(
    "sent", [None, "application/json", "application/x-www-form-urlencoded", "text/plain"]
)
def test_the_type_of_the_old_body_does_not_matter(session: Session, key: str, sent: str | None) -> None:
    body = json.dumps({"key": key, "value": "v"}).encode()
    headers = {} if sent is None else {"Content-Type": sent}
    assert session.request("PUT", "/", body, headers).status == 200
    assert session.get(f"/?key={key}").body == b"v"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"key":"a"}',
        b'{"key":"a","value":5}',
        b'{"key":5,"value":"a"}',
        b'{"key":"a","value":"b","more":1}',
    ],
)
def test_what_is_no_pair_is_refused(session: Session, body: bytes) -> None:
    assert_problem(session.put("/", body), "bad_request")


def test_a_key_that_is_none_is_refused(session: Session) -> None:
    assert_problem(session.put("/", b'{"key":"","value":"a"}'), "invalid_key")
    assert_problem(session.get("/?key="), "invalid_key")
    assert_problem(session.get("/?key=never-stored"), "not_found")


def test_all_pairs_are_one_object_over_many_pages(own: Session) -> None:
    assert own.get("/all").json == {}
    pairs = {f"k{number:04}": str(number) for number in range(2500)}
    for start in range(0, 2500, 500):
        batch = list(pairs.items())[start : start + 500]
        own.batch(*({"op": "put", "key": key, "value": value} for key, value in batch))
    own.put("/v1/kv/z", b"\xff")
    assert own.get("/all").json == {**pairs, "z": {"value_b64": "/w=="}}
    assert own.get("/?key=z").headers["content-type"] == "application/octet-stream"


def test_the_index_says_where_to_go(session: Session) -> None:
    index = session.get("/").json
    for target in index["links"].values():
        if "{" not in target and target not in ("/v1/subscribe", "/v1/batch"):
            assert session.get(target).status == 200
