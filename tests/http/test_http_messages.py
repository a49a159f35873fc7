"""Why a change was made, over HTTP: given in a header or a field, and told wherever the change is."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.operations import MESSAGE, is_message
from kvstore_http.protocol.preconditions import MESSAGE_HEADER
from kvstore_http.routes import ENDPOINTS, SUBSCRIBE_PATH
from support.servers import Service
from support.session import Answer, Session, assert_problem, kv_path, path_of
from support.streams import open_stream

WHY = "weil der Käse alle ist ✓"

Ask = Callable[[Session, str, dict[str, str]], Answer]


def dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): text for name, text in headers.items()}


WRITES: dict[str, Ask] = {
    "PUT /v1/kv/{key}": lambda s, key, headers: s.put(path_of(key), b"{}", **headers),
    "PATCH /v1/kv/{key}": lambda s, key, headers: s.patch(path_of(key), {"a": 1}, **headers),
    "DELETE /v1/kv/{key}": lambda s, key, headers: s.delete(path_of(key), **headers),
    "PUT /v1/kv": lambda s, key, headers: s.put(f"/v1/kv?key={quote(key)}", b"5", **headers),
    "PATCH /v1/kv": lambda s, key, headers: s.patch(f"/v1/kv?key={quote(key)}", {"a": 2}, **headers),
    "DELETE /v1/kv": lambda s, key, headers: s.delete(f"/v1/kv?prefix={quote(key)}", **headers),
    "POST /v1/kv/{key}": lambda s, key, headers: s.request("POST", path_of(key), b"5", dashed(headers)),
    "POST /v1/kv": lambda s, key, headers: s.request(
        "POST", f"/v1/kv?key={quote(key)}", b"5", dashed(headers)
    ),
    "POST /v1/batch": lambda s, key, headers: s.post(
        "/v1/batch", {"ops": [{"op": "put", "key": key, "value": "5"}, {"op": "get", "key": key}]}, **headers
    ),
    "POST /v1/incr/{key}": lambda s, key, headers: s.post(path_of(key, "incr"), **headers),
    "POST /v1/touch/{key}": lambda s, key, headers: s.post(path_of(key, "touch") + "?ttl=1h", **headers),
    "POST /v1/persist/{key}": lambda s, key, headers: s.post(path_of(key, "persist"), **headers),
    "PUT /": lambda s, key, headers: s.request(
        "PUT", "/", json.dumps({"key": key, "value": "{}"}).encode(), dashed(headers)
    ),
}
NUMBERED = ("POST /v1/kv/{key}", "POST /v1/kv")
"""Those that store under a key which they make."""


def test_every_route_that_writes_is_here() -> None:
    taking = {f"{e.method} {e.path}" for e in ENDPOINTS if MESSAGE_HEADER in {h.name for h in e.headers}}
    on_keys = [e for e in ENDPOINTS if e.needs == "by_ops" and e.path != SUBSCRIBE_PATH]
    writing = {f"{e.method} {e.path}" for e in on_keys if e.method in ("PUT", "PATCH", "DELETE", "POST")}
    assert taking == writing == set(WRITES)


@pytest.mark.parametrize("headers", [{}, {"if_match": "*"}, {"idempotency_key": "why"}], ids=str)
@pytest.mark.parametrize("route", WRITES)
def test_a_message_is_told_wherever_the_change_is(
    session: Session, shared_service: Service, key: str, route: str, headers: dict[str, str]
) -> None:
    takes_none = route in ("DELETE /v1/kv", "POST /v1/batch", *NUMBERED) or route.startswith("PATCH")
    if headers and takes_none:
        headers = {}  # which take neither, or one of them
    since = session.put(path_of(key) + "?ttl=2h", b"7" if "incr" in route else b"{}").json["revision"]
    if "idempotency_key" in headers:
        headers = {"idempotency_key": quote(key + route)}
    done = WRITES[route](session, key, {**headers, "x_kvstore_message": quote(WHY)})
    assert done.status == (201 if route in NUMBERED else 200), done
    if route in NUMBERED:
        key = done.json["key"]
    told = [session.get(path_of(key, "history") + "?limit=1").json["events"][0]]
    told += session.get(f"/v1/history?prefix={quote(key)}&limit=1&values=0").json["events"]
    with closing(open_stream(shared_service.url, f"key={quote(key)}&since={since}&values=0")) as stream:
        told.append(stream.first().json)
    if "DELETE" not in route:
        record = session.get(path_of(key))
        assert unquote(record.headers["x-kvstore-message"]) == WHY
        told.append(session.get(path_of(key) + "?format=json").json)
        told += session.get(f"/v1/kv?prefix={quote(key)}&keys=1").json["items"]
        with closing(open_stream(shared_service.url, f"key={quote(key)}&snapshot=1")) as stream:
            told.append(stream.first().json)
    for each in told:
        assert each["message"] == WHY
        assert "author" not in each


def test_a_batch_has_a_message_for_all_and_one_for_each(session: Session, key: str) -> None:
    ops = [
        {"op": "put", "key": f"{key}/a", "value": "1", "message": "its own"},
        {"op": "put", "key": f"{key}/b", "value": "1"},
        {"op": "incr", "key": f"{key}/c"},
        {"op": "get", "key": f"{key}/a"},
    ]
    for atomic in (True, False):
        answer = session.post("/v1/batch", {"ops": ops, "atomic": atomic}, x_kvstore_message="for all").json[
            "results"
        ]
        assert answer[3]["message"] == "its own"
        items = session.get(f"/v1/kv?prefix={quote(key)}").json["items"]
        assert [item["message"] for item in items] == ["its own", "for all", "for all"]
    assert "message" not in session.batch(ops[1], {"op": "get", "key": f"{key}/b"}).json["results"][1]


@pytest.mark.parametrize("route", WRITES)
def test_what_is_no_message_is_refused_and_nothing_done(session: Session, key: str, route: str) -> None:
    session.put(path_of(key) + "?ttl=2h", b"5")
    before = session.get("/v1/status").json["revision"]
    for raw in ("", "a%0Ab", "%1B[31m", "%E2%80%AE", "x" * 201, "%C3%BC" * 101):
        problem = assert_problem(WRITES[route](session, key, {"x_kvstore_message": raw}), "bad_request")
        assert problem["detail"] == f"{MESSAGE_HEADER} must be {MESSAGE}"
    for raw in ("100%", "%FF", "%ED%A0%80", "\xff"):
        problem = assert_problem(WRITES[route](session, key, {"x_kvstore_message": raw}), "bad_request")
        assert "percent-encoded UTF-8" in problem["detail"]
    assert session.get("/v1/status").json["revision"] == before


def test_a_message_that_is_none_is_refused_in_a_batch_as_by_the_daemon(session: Session, key: str) -> None:
    for message in ("", "a\nb", "x" * 201, 5, None, ["why"]):
        good: dict[str, Any] = {"op": "put", "key": key, "value": "1"}
        problem = assert_problem(session.batch(good, {**good, "message": message}), "bad_request")
        assert (problem["detail"], problem["op"]) == (f"ops[1].message must be {MESSAGE}", 1)
    assert_problem(session.get(path_of(key)), "not_found")
    assert_problem(session.batch({"op": "get", "key": key, "message": "why"}), "bad_request")


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=66).filter(is_message))
def test_a_message_comes_back_as_it_went_in(session: Session, text: str) -> None:
    session.put("/v1/kv/why", b"", x_kvstore_message=quote(text))
    answer = session.get("/v1/kv/why")
    assert unquote(answer.headers["x-kvstore-message"]) == text
    assert answer.headers["x-kvstore-message"].isascii()
    assert session.get("/v1/kv/why?format=json").json["message"] == text


def test_a_message_is_understood_as_a_shell_sends_it(session: Session) -> None:
    for raw, text in ((WHY.encode().decode("latin-1"), WHY), ("a, b + 5%25", "a, b + 5%")):
        session.put("/v1/kv/why", b"", x_kvstore_message=raw)
        assert session.get("/v1/kv/why?format=json").json["message"] == text


def test_a_repeat_with_another_message_is_another_request(session: Session, key: str) -> None:
    sent = {"idempotency_key": key.encode().hex()[:90], "x_kvstore_message": "one"}
    first = session.post(path_of(key, "incr"), **sent)
    assert session.post(path_of(key, "incr"), **sent).json == first.json
    assert_problem(
        session.post(path_of(key, "incr"), **{**sent, "x_kvstore_message": "two"}), "sequence_reused"
    )


def test_the_log_is_read_backwards_page_by_page(session: Session, key: str) -> None:
    for number in range(7):
        session.put(kv_path(f"{key}/{number % 3}"), str(number).encode())
        session.put(path_of("elsewhere"), b"x")
    seen, cursor = [], ""
    while True:
        page = session.get(f"/v1/history?prefix={quote(key + '/')}&limit=2{cursor}").json
        assert page["prefix"] == key + "/"
        assert len(page["events"]) <= 2
        seen += page["events"]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert [event["value"] for event in seen] == list("6543210")
    newest = session.get("/v1/history?prefix=&limit=2").json["events"]
    assert [event["key"] for event in newest] == ["elsewhere", f"{key}/0"]
    before = session.get(f"/v1/history?prefix=&limit=1&before={newest[0]['revision']}").json["events"]
    assert before == newest[1:]
    assert session.get(f"/v1/history?prefix={quote(key)}-nothing").json["events"] == []
    both = session.get(f"/v1/history?prefix=a&key={quote(key)}")
    assert assert_problem(both, "bad_request")["parameter"] == "prefix"
