"""Keys reach the store exactly as the client means them."""

from __future__ import annotations

import socket
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.patience import PATIENCE_SECONDS
from support.servers import Service
from support.session import Session, assert_problem, path_of

# every plane but the surrogates, which UTF-8 cannot hold, and NUL, which a key cannot
characters = st.characters(codec="utf-8", exclude_characters="\0")
keys = st.text(characters, min_size=1, max_size=127)

AWKWARD = [
    "/", "//", "a//b", "/a", "a/", ".", "..", "a/./b/../c", "%", "%2F", "%25", "%zz", "a?b", "a#b", "a+b",
    "a b", " ", "a&b=c", "a;b", "a:b@c", "http://example.com/x?y#z", "\\", "\t\r\n", "\x01\x7f", "ключ",
    "é", "e\u0301", "\ufeff", "\U0001f600", "\U0010ffff", "key", "*", '"', "<script>",
]  # fmt: skip


def unencoded(key: str) -> str:
    """The path of ``key`` with only that encoded which a request line cannot hold."""
    return "/v1/kv/" + quote(key, safe="/.+&=;:@!$'()*,[]|^~\\\"<>`{}")


@pytest.mark.parametrize("written", [path_of, unencoded], ids=["all encoded", "little encoded"])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_keys_survive_in_the_path(session: Session, name: str, written: object) -> None:
    assert callable(written)
    put = session.put(written(name), name.encode())
    assert put.status in (200, 201)
    assert put.json["key"] == name
    got = session.get(written(name))
    assert (got.status, got.body) == (200, name.encode())
    listed = session.get("/v1/kv?limit=1&" + f"prefix={quote_plus(name)}").json["items"]
    assert name in [item["key"] for item in listed]
    assert session.delete(written(name)).status == 200
    assert_problem(session.get(written(name)), "not_found")


@given(key=keys)
def test_any_key_is_the_same_in_the_path_and_in_the_query(session: Session, key: str) -> None:
    in_query = f"/v1/kv?key={quote_plus(key)}"
    assert session.put(path_of(key), key.encode()).json["key"] == key
    assert session.get(in_query).body == key.encode()
    assert session.put(in_query, b"other").json["key"] == key
    assert session.get(path_of(key)).body == b"other"
    assert session.delete(in_query).json["key"] == key
    assert_problem(session.get(path_of(key)), "not_found")


@pytest.mark.parametrize("name", AWKWARD)
def test_a_key_is_decoded_once(session: Session, name: str) -> None:
    once, twice = name, quote(name, safe="")
    session.put(path_of(twice), b"twice")
    session.put(path_of(once), b"once")
    assert session.get(path_of(once)).body == b"once"
    if once != twice:
        assert session.get(path_of(twice)).body == b"twice"


@pytest.mark.parametrize("target", ["/v1/kv/ключ", "/v1/kv?key=ключ"])
def test_utf8_that_is_not_percent_encoded_is_understood(
    shared_service: Service, session: Session, target: str
) -> None:
    """As curl sends what somebody types; Python's own client refuses to."""
    session.put(path_of("ключ"), b"unlocked")
    host, _, port = shared_service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as raw:
        raw.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert b"".join(iter(lambda: raw.recv(65536), b"")).endswith(b"unlocked")


def test_a_plus_is_a_plus_in_a_path_and_a_space_in_a_query(session: Session) -> None:
    session.put(path_of("a+b"), b"plus")
    session.put(path_of("a b"), b"space")
    assert session.get("/v1/kv/a+b").body == b"plus"
    assert session.get("/v1/kv?key=a+b").body == b"space"
    assert session.get("/v1/kv?key=a%2Bb").body == b"plus"


@pytest.mark.parametrize("text", ["k" * 511, "é" * 255 + "k", "\U0001f600" * 127 + "abc"])
def test_511_bytes_are_a_key_and_512_are_not(session: Session, text: str) -> None:
    assert len(text.encode()) == 511
    assert session.put(path_of(text), b"long").status == 201
    assert session.get(path_of(text)).body == b"long"
    problem = assert_problem(session.put(path_of(text + "x"), b"long"), "invalid_key")
    assert problem["limit"] == 511


@pytest.mark.parametrize("group", ["kv", "incr", "touch", "persist", "history"])
@pytest.mark.parametrize("raw", ["", "%00", "a%00b", "%", "a%2", "%zz", "%ff", "%C3%28", "%ED%A0%80", "a%80"])
def test_what_is_no_key_is_refused(session: Session, group: str, raw: str) -> None:
    method = "GET" if group in ("kv", "history") else "POST"
    assert_problem(session.request(method, f"/v1/{group}/{raw}?ttl=5"), "invalid_key")


@pytest.mark.parametrize("raw", ["", "%00", "%ff", "%zz", "x" * 512])
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_what_is_no_key_is_refused_in_the_query(session: Session, raw: str, method: str) -> None:
    assert_problem(session.request(method, f"/v1/kv?key={raw}", b"{}"), "invalid_key")


@pytest.mark.parametrize(
    "target", ["/v1/kv//", "/v1/kv/./", "/v1/kv/..", "//v1/kv/a", "/v1//kv/a", "/v1/kv/a/../b"]
)
def test_no_address_is_redirected(session: Session, target: str) -> None:
    assert session.get(target).status in (200, 404)
