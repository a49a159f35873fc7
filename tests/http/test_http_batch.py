"""POST /v1/batch."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from support.session import Session, assert_problem, path_of

MIB = 1024 * 1024


def results(session: Session, *ops: dict[str, Any], atomic: bool = False) -> list[dict[str, Any]]:
    """The results of a batch that is accepted."""
    answer = session.batch(*ops, atomic=atomic)
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.json["results"]
    assert len(found) == len(ops)
    return found


def test_each_operation_has_its_own_result(session: Session, key: str) -> None:
    session.put(path_of(f"{key}/n"), b"4")
    session.put(path_of(f"{key}/d"), b"x")
    put, b64, missing, incr, bad, gone, touch, persist, prefix, got = results(
        session,
        {"op": "put", "key": key, "value": "é"},
        {"op": "put", "key": f"{key}/b", "value_b64": "AP8=", "content_type": "image/x", "ttl": "5m"},
        {"op": "get", "key": f"{key}/missing"},
        {"op": "incr", "key": f"{key}/n", "by": -6},
        {"op": "incr", "key": key},
        {"op": "delete", "key": f"{key}/d"},
        {"op": "touch", "key": f"{key}/n", "ttl": 30.5},
        {"op": "persist", "key": f"{key}/n"},
        {"op": "delete_prefix", "prefix": f"{key}/x", "limit": 5},
        {"op": "get", "key": key},
    )
    assert (put["status"], put["key"], put["version"]) == (201, key, 1)
    assert b64["expires_at"]
    assert missing["status"] == missing["error"]["status"] == 404
    assert missing["error"]["code"] == "not_found"
    assert (incr["status"], incr["value"]) == (200, -2)
    assert bad["error"]["code"] == "not_an_integer"
    assert gone["deleted"] == 1
    assert "expires_at" in touch
    assert "expires_at" not in persist
    assert (prefix["status"], prefix["prefix"], prefix["deleted"]) == (200, f"{key}/x", 0)
    assert (got["value"], got["content_type"]) == ("é", "text/plain; charset=utf-8")
    binary = session.get(path_of(f"{key}/b"))
    assert (binary.body, binary.headers["content-type"]) == (b"\0\xff", "image/x")


def test_reads_see_the_writes_of_their_batch(session: Session, key: str) -> None:
    before, _, after = results(
        session,
        {"op": "get", "key": key},
        {"op": "put", "key": key, "value_b64": ""},
        {"op": "get", "key": key},
    )
    assert before["value"] == after["value"] == ""
    assert before["content_type"] == "application/octet-stream"


def test_an_atomic_batch_is_applied_in_one_revision(session: Session, key: str) -> None:
    one, two = results(
        session,
        {"op": "put", "key": f"{key}/1", "value": "a", "if_revision": 0},
        {"op": "put", "key": f"{key}/2", "value": "b"},
        atomic=True,
    )
    assert one["revision"] == two["revision"]
    assert [one["status"], two["status"]] == [201, 201]


def test_an_atomic_batch_that_fails_changes_nothing_and_says_where(session: Session, key: str) -> None:
    revision = session.put(path_of(f"{key}/2"), b"x").json["revision"]
    answer = session.batch(
        {"op": "put", "key": f"{key}/1", "value": "a"},
        {"op": "get", "key": key},
        {"op": "put", "key": f"{key}/2", "value": "b", "if_revision": 0},
        atomic=True,
    )
    problem = assert_problem(answer, "condition_failed")
    assert (problem["op"], problem["revision"]) == (2, revision)
    assert session.get(path_of(f"{key}/1")).status == 404
    assert session.get(path_of(f"{key}/2")).body == b"x"


def test_a_repeated_batch_is_applied_once(session: Session, key: str) -> None:
    body = {"ops": [{"op": "incr", "key": key}, {"op": "get", "key": key}]}
    first = session.post("/v1/batch", body, idempotency_key=key)
    assert session.post("/v1/batch", body, idempotency_key=key).json == first.json
    assert session.get(path_of(key)).body == b"1"


def test_conditions_of_independent_operations_stand_alone(session: Session, key: str) -> None:
    revision = session.put(path_of(key), b"x").json["revision"]
    wrong, right = results(
        session,
        {"op": "put", "key": f"{key}/1", "value": "a", "if_revision": revision},
        {"op": "delete", "key": key, "if_revision": revision},
    )
    assert wrong["error"]["code"] == "condition_failed"
    assert (wrong["status"], wrong["error"]["revision"]) == (412, 0)
    assert right["status"] == 200


PUT = {"op": "put", "key": "never", "value": "x"}

MALFORMED: list[tuple[Any, str, int | None]] = [
    ([], "bad_request", None),
    ({}, "bad_request", None),
    ("ops", "bad_request", None),
    ({"ops": []}, "bad_request", None),
    ({"ops": {}}, "bad_request", None),
    ({"ops": [PUT], "atomic": 1}, "bad_request", None),
    ({"ops": [PUT], "atomc": True}, "bad_request", None),
    ({"ops": [PUT, 5]}, "bad_request", 1),
    ({"ops": [PUT, {}]}, "unknown_operation", 1),
    ({"ops": [PUT, {"op": ["put"]}]}, "unknown_operation", 1),
    ({"ops": [PUT, {"op": "list"}]}, "unknown_operation", 1),
    ({"ops": [PUT, {"op": "get"}]}, "bad_request", 1),
    ({"ops": [PUT, {"op": "get", "key": ""}]}, "invalid_key", 1),
    ({"ops": [PUT, {"op": "get", "key": "a\0"}]}, "invalid_key", 1),
    ({"ops": [PUT, {"op": "get", "key": "x" * 512}]}, "invalid_key", 1),
    ({"ops": [PUT, {"op": "get", "key": 5}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "key": ""}]}, "invalid_key", 1),
    ({"ops": [PUT, {**PUT, "key": "a\0"}]}, "invalid_key", 1),
    ({"ops": [PUT, {**PUT, "key": "x" * 512}]}, "invalid_key", 1),
    ({"ops": [PUT, {**PUT, "key": "é" * 256}]}, "invalid_key", 1),
    ({"ops": [PUT, {**PUT, "key": 5}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "op": "get"}]}, "bad_request", 1),
    ({"ops": [PUT, {"op": "put", "key": "a", "valve": "x"}]}, "bad_request", 1),
    ({"ops": [PUT, {"op": "get", "key": "a", "size": 1}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "size": 1}]}, "bad_request", 1),
    ({"ops": [PUT, {"op": "put", "key": "a"}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "value": 5}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "value": None}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "value_b64": ""}]}, "bad_request", 1),
    ({"ops": [PUT, {"op": "put", "key": "a", "value_b64": "?"}]}, "bad_request", 1),
    ({"ops": [PUT, {"op": "put", "key": "a", "value_b64": "é"}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "ttl": "soon"}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "ttl": 0}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "ttl": True}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "content_type": ""}]}, "bad_request", 1),
    ({"ops": [PUT, {**PUT, "if_revision": -1}]}, "bad_request", 1),
    ({"ops": [PUT, {"op": "incr", "key": "a", "by": 1.5}]}, "bad_request", 1),
    ({"ops": [PUT, {"op": "touch", "key": "a"}]}, "bad_request", 1),
    ({"ops": [PUT, {"op": "delete_prefix", "prefix": ""}]}, "bad_request", 1),
    ({"ops": [PUT, {"op": "delete_prefix", "prefix": "x"}], "atomic": True}, "bad_request", 1),
    ({"ops": [PUT, PUT], "atomic": True}, "bad_request", 1),
]


@pytest.mark.parametrize(("body", "code", "op"), MALFORMED)
def test_nothing_of_a_malformed_batch_is_applied(
    session: Session, body: Any, code: str, op: int | None
) -> None:
    problem = assert_problem(session.post("/v1/batch", body), code)
    assert problem.get("op") == op
    assert_problem(session.get(path_of("never")), "not_found")


@pytest.mark.parametrize("body", [b"", b"{", b'{"ops":[{"op":"get","key":"\\ud800"}]}', b"\xff"])
def test_what_is_no_json_is_no_batch(session: Session, body: bytes) -> None:
    answer = session.request("POST", "/v1/batch", body, {"Content-Type": "application/json"})
    assert_problem(answer, "bad_request")


@pytest.mark.parametrize("sent", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_batch_has_to_say_that_it_is_json(session: Session, sent: str | None) -> None:
    """Else a page of any origin could send one: browsers ask nobody before they send those types."""
    headers = {} if sent is None else {"Content-Type": sent}
    answer = session.request("POST", "/v1/batch", b'{"ops":[]}', headers)
    assert_problem(answer, "unsupported_media_type")
    assert answer.headers["accept"] == "application/json"


@pytest.mark.parametrize(
    ("count", "size", "atomic"),
    [(10_001, 0, False), (0, 0, True), (2, MIB // 2 + 1, True)],
    ids=["too many", "too many for an atomic one", "too large for an atomic one"],
)
def test_a_batch_over_a_limit_is_refused_whole(
    session: Session, key: str, count: int, size: int, atomic: bool
) -> None:
    count = count or session.get("/v1/status").json["limits"]["atomic_ops"] + 1
    ops = [{"op": "put", "key": f"{key}/{number}", "value": "x" * size} for number in range(count)]
    assert assert_problem(session.batch(*ops, atomic=atomic), "request_too_large")["limit"] > 0
    assert session.get(f"/v1/kv?count=1&prefix={key}").json["count"] == 0


def test_values_of_a_batch_over_the_limit_are_refused_whole(session: Session, key: str) -> None:
    value = base64.b64encode(bytes(MIB)).decode()
    ops = [{"op": "put", "key": f"{key}/{number}", "value_b64": value} for number in range(17)]
    assert_problem(session.batch(*ops), "request_too_large")
    assert session.get(f"/v1/kv?count=1&prefix={key}").json["count"] == 0


@pytest.mark.parametrize("name", ["x" * 511, "é" * 255, "a//../b %2F", "\n"])
@pytest.mark.parametrize("options", [{}, {"content_type": "text/x"}], ids=["plain", "with options"])
def test_every_key_is_one_in_a_batch_too(session: Session, name: str, options: dict[str, str]) -> None:
    put = {"op": "put", "key": name, "value": "žluť", **options}
    stored, got = results(session, put, {"op": "get", "key": name})
    assert stored["key"] == got["key"] == name
    assert (got["revision"], got["value"]) == (stored["revision"], "žluť")
    assert got["content_type"] == options.get("content_type", "text/plain; charset=utf-8")


def test_a_batch_may_be_as_large_as_the_limits(session: Session, key: str) -> None:
    ops = [{"op": "put", "key": f"{key}/{number}", "value": "x"} for number in range(10_000)]
    assert all(result["status"] == 201 for result in results(session, *ops))
    atomic = [{"op": "put", "key": f"{key}/a{number}", "value": "x" * 10_000} for number in range(100)]
    assert len({result["revision"] for result in results(session, *atomic, atomic=True)}) == 1


def test_an_atomic_batch_may_be_of_checks_and_writes_up_to_the_limit(session: Session, key: str) -> None:
    half = session.get("/v1/status").json["limits"]["atomic_ops"] // 2
    session.put(path_of(f"{key}/lock"), b"mine")
    lock = {"op": "check", "key": f"{key}/lock", "if_value": "mine"}
    checks = [lock, *({"op": "check", "key": f"{key}/{n}", "if_revision": 0} for n in range(half - 1))]
    puts = [{"op": "put", "key": f"{key}/{number}", "value": "x"} for number in range(half)]
    found = results(session, *checks, *puts, atomic=True)
    assert len({result["revision"] for result in found[half:]}) == 1
    assert all(result["revision"] == 0 for result in found[1:half])
    problem = assert_problem(session.batch(*checks, *puts, atomic=True), "condition_failed")
    assert (problem["op"], problem["key"]) == (1, f"{key}/0")


def test_one_value_over_the_limit_names_its_operation(session: Session, key: str) -> None:
    problem = assert_problem(
        session.batch(
            {"op": "put", "key": key, "value": "x"},
            {"op": "put", "key": f"{key}/2", "value": "x" * (MIB + 1)},
        ),
        "value_too_large",
    )
    assert problem["op"] == 1
    assert_problem(session.get(path_of(key)), "not_found")


@pytest.mark.parametrize(
    ("value", "kind"),
    [(5, "a number"), (1.5, "a number"), (True, "true"), (None, "null"), ([], "an array"), ({}, "an object")],
)
def test_a_value_that_is_no_text_is_refused_with_what_it_is(
    session: Session, key: str, value: object, kind: str
) -> None:
    problem = assert_problem(session.batch({"op": "put", "key": key, "value": value}), "bad_request")
    assert f"value must be text, not {kind}" in problem["detail"]
