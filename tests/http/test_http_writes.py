"""Writing one key: put, lifetimes, numbers, patches, retries."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.servers import Service, wait_until
from support.session import PATCH_TYPE, Session, assert_problem, path_of

# ── put and delete ───────────────────────────────────────────────────────────────────────────────


def test_put_says_what_it_made(session: Session, key: str) -> None:
    first = session.put(path_of(key), b"1")
    again = session.put(path_of(key), b"2")
    revision, created = again.json["revision"], first.json["revision"]
    assert (first.status, again.status) == (201, 200)
    assert revision > created
    assert first.json == {"key": key, "revision": created, "create_revision": created, "version": 1}
    assert again.json == {"key": key, "revision": revision, "create_revision": created, "version": 2}


def test_a_key_starts_over_after_its_deletion(session: Session, key: str) -> None:
    session.put(path_of(key), b"1")
    deleted = session.delete(path_of(key))
    assert deleted.status == 200
    assert deleted.json == {"key": key, "revision": deleted.json["revision"], "deleted": 1}
    again = session.put(path_of(key), b"2")
    assert (again.status, again.json["version"]) == (201, 1)
    assert again.json["create_revision"] == again.json["revision"] > deleted.json["revision"]


def test_the_headers_say_what_the_record_says(session: Session, key: str) -> None:
    session.put(path_of(key), b"1")
    session.put(path_of(key) + "?ttl=1h", b"2")
    headers = session.get(path_of(key)).headers
    record = session.get(path_of(key) + "?format=json").json
    assert headers["x-kvstore-revision"] == str(record["revision"])
    assert headers["x-kvstore-create-revision"] == str(record["create_revision"])
    assert headers["x-kvstore-version"] == str(record["version"]) == "2"
    assert headers["x-kvstore-expires-at"] == record["expires_at"]
    assert record["key"] == key
    assert session.get(path_of(key) + "?format=raw").body == b"2"


# ── time to live ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "ttl", ["1", "1s", "500ms", "5m", "2h", "7d", "1w", "5%20m", "1H", "1.5h", "0.001", "3162240000"]
)
def test_a_ttl_is_a_number_with_or_without_a_unit(session: Session, key: str, ttl: str) -> None:
    assert "expires_at" in session.put(path_of(key) + f"?ttl={ttl}", b"x").json


@pytest.mark.parametrize(
    "ttl", ["", "0", "-1", "5x", "5 y", "1e3", "inf", "nan", "0.0001", "101y", "3162240001", "٣", "1h30m"]
)
def test_what_is_no_time_is_refused(session: Session, key: str, ttl: str) -> None:
    for answer in (
        session.put(path_of(key) + f"?ttl={quote(ttl)}", b"x"),
        session.post(path_of(key, "touch") + f"?ttl={quote(ttl)}"),
    ):
        assert assert_problem(answer, "bad_request")["parameter"] == "ttl"
    assert_problem(session.get(path_of(key)), "not_found")


def test_a_key_is_gone_when_its_time_is_up(session: Session, key: str) -> None:
    session.put(path_of(key) + "?ttl=300ms", b"x")
    wait_until(lambda: session.get(path_of(key)).status == 404, what="the key expires")
    wait_until(
        lambda: session.get(path_of(key, "history")).json["events"][0]["op"] == "expire",
        what="the event comes",
    )


def test_touch_and_persist_change_the_lifetime_and_nothing_else(session: Session, key: str) -> None:
    session.put(path_of(key), b"x")
    before = session.get(path_of(key) + "?format=json").json
    touched = session.post(path_of(key, "touch") + "?ttl=1h")
    assert touched.json["expires_at"] > before["modified_at"]
    after = session.get(path_of(key) + "?format=json").json
    assert after["expires_at"] == touched.json["expires_at"]
    session.post(path_of(key, "persist"))
    persisted = session.get(path_of(key) + "?format=json").json
    assert "expires_at" not in persisted
    assert persisted["revision"] > after["revision"] > before["revision"]
    for name in ("value", "version", "modified_at", "create_revision"):
        assert persisted[name] == after[name] == before[name]


def test_touch_needs_a_ttl(session: Session, key: str) -> None:
    assert assert_problem(session.post(path_of(key, "touch")), "bad_request")["parameter"] == "ttl"


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────

int64 = st.integers(-(2**63), 2**63 - 1)


@given(start=int64, by=int64)
def test_incr_adds_or_refuses(session: Session, start: int, by: int) -> None:
    target = path_of("number")
    session.put(target, str(start).encode(), content_type="text/plain")
    answer = session.post(path_of("number", "incr") + f"?by={by}")
    if -(2**63) <= start + by < 2**63:
        assert answer.json["value"] == start + by
        assert answer.json["text"] == str(start + by)
        assert session.get(target).body == str(start + by).encode()
    else:
        assert_problem(answer, "out_of_range")
        assert session.get(target).body == str(start).encode()


def test_incr_counts_a_missing_key_from_0(session: Session, key: str) -> None:
    assert session.post(path_of(key, "incr")).json["value"] == 1
    assert session.batch({"op": "incr", "key": key, "by": 0}).json["results"][0]["text"] == "1"
    assert session.post(path_of(key, "incr") + "?by=-3").json["value"] == -2
    assert session.get(path_of(key)).headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("value", [b"", b"x", b"1.5", b" 1", b"\xff", b"9223372036854775808"])
def test_incr_of_what_is_no_integer_is_refused(session: Session, key: str, value: bytes) -> None:
    session.put(path_of(key), value)
    assert session.post(path_of(key, "incr")).json["code"] in ("not_an_integer", "out_of_range")
    assert session.get(path_of(key)).body == value


@pytest.mark.parametrize("by", ["", "x", "1.5", "9223372036854775808", "-9223372036854775809", "1_0"])
def test_incr_by_what_is_no_integer_is_refused(session: Session, key: str, by: str) -> None:
    assert_problem(session.post(path_of(key, "incr") + f"?by={by}"), "bad_request")


def test_incr_keeps_the_lifetime_and_the_type(session: Session, key: str) -> None:
    put = session.put(path_of(key) + "?ttl=1h", b"1", content_type="text/x-number")
    assert session.post(path_of(key, "incr")).json["expires_at"] == put.json["expires_at"]
    assert session.get(path_of(key)).headers["content-type"] == "text/x-number"


def test_increments_at_the_same_time_all_count(session: Session, shared_service: Service, key: str) -> None:
    def count(times: int) -> None:
        one = Session(shared_service.url)
        for _ in range(times):
            assert one.post(path_of(key, "incr")).status == 200
        one.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, [25] * 8))
    assert session.get(path_of(key)).body == b"200"


@pytest.mark.parametrize("target", ["incr", "touch", "persist"])
def test_a_body_that_nothing_reads_is_refused(session: Session, key: str, target: str) -> None:
    session.put(path_of(key), b"1")
    query = "?ttl=5" if target == "touch" else ""
    assert_problem(session.request("POST", path_of(key, target) + query, b"by=5"), "bad_request")
    assert session.get(path_of(key)).body == b"1"


# ── merge patches ────────────────────────────────────────────────────────────────────────────────

# RFC 7396, appendix A
APPENDIX_A = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def merged(target: Any, patch: Any) -> Any:
    """The pseudocode of RFC 7396 section 2, word by word."""
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merged(target.get(name), value)
    return target


@pytest.mark.parametrize(("target", "patch", "result"), APPENDIX_A)
def test_patches_do_what_the_rfc_shows(
    session: Session, key: str, target: Any, patch: Any, result: Any
) -> None:
    session.put(path_of(key), json.dumps(target).encode(), content_type="application/json")
    assert session.patch(path_of(key), patch).status == 200
    assert session.get(path_of(key)).json == result


@given(target=documents, patch=documents)
def test_patches_do_what_the_rfc_says(session: Session, target: Any, patch: Any) -> None:
    session.put(path_of("patched"), json.dumps(target).encode())
    assert session.patch(path_of("patched"), patch).status == 200
    assert session.get(path_of("patched")).json == merged(target, patch)


@pytest.mark.parametrize(
    ("before", "patch", "after"),
    [
        ('{"a":0.1234567890123456789012345}', '{"b":1}', '{"a":0.1234567890123456789012345,"b":1}'),
        ('{"a":100000000000000000.01}', '{"b":1e400}', '{"a":100000000000000000.01,"b":1e400}'),
        ('{"a":1e400,"b":-0,"c":1E5}', '{"b":null}', '{"a":1e400,"c":1E5}'),
        ('{"a":"\\ud800\\u0041/\\/é"}', '{"b":"\\ud800"}', '{"a":"\\ud800\\u0041/\\/é","b":"\\ud800"}'),
        ('{"a":{"x":1.0,"x":2.0},"n":1}', '{"n":2}', '{"a":{"x":1.0,"x":2.0},"n":2}'),
        ('{"a":1.0,"b":0,"a":2.0}', '{"a":3.0}', '{"b":0,"a":3.0}'),
        ('{"a":1,"b":0,"a":2}', '{"a":null}', '{"b":0}'),
        ('{"a":{"x":1.00,"y":2}}', '{"a":{"y":3.10}}', '{"a":{"x":1.00,"y":3.10}}'),
        (
            '{"a":1.00}',
            '{"n":{"p":null,"q":[null,1.0],"r":{"s":null}}}',
            '{"a":1.00,"n":{"q":[null,1.0],"r":{}}}',
        ),
        (' {\n  "a": 1.0,\n  "b": [ 1, 2 ]\n}\n', '{"a":null,"c":9}', '{\n  "b": [ 1, 2 ],\n  "c":9\n}'),
        ("[1.0]", '{"a":1.0}', '{"a":1.0}'),
        ('{"a":1}', "[1.0, null]", "[1.0, null]"),
        ('{"\\u0061":1.0,"b":2}', '{"a":5}', '{"\\u0061":5,"b":2}'),
        ("{}", '{"a": 1}', '{"a": 1}'),
        ('{"a" :1\t, "b": [2] , "c":3 }', '{"c":4}', '{"a" :1\t, "b": [2] , "c":4 }'),
        ('{"a":%s}' % ("7" * 5000), '{"b":1}', '{"a":%s,"b":1}' % ("7" * 5000)),
    ],
)
def test_a_patch_leaves_what_it_does_not_name_as_it_is_written(
    session: Session, key: str, before: str, patch: str, after: str
) -> None:
    session.put(path_of(key), before.encode())
    patched = session.patch(path_of(key), patch.encode())
    assert patched.status == 200
    assert session.get(path_of(key)).body.decode() == after


@pytest.mark.parametrize(
    "text",
    ['{"a" 1}', '{"a":1,}', "{a:1}", '{"a":1 "b":2}', '{"a":1}x', "\ufeff{}", '{"a":NaN}', '{"a":', "{"],
)
def test_what_is_wrong_with_a_patch_is_said(session: Session, key: str, text: str) -> None:
    session.put(path_of(key), b"{}")
    patched = session.patch(path_of(key), text.encode())
    assert "not JSON" in assert_problem(patched, "bad_request")["detail"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_a_patch_that_is_nested_too_deeply_is_refused(session: Session, key: str, text: str) -> None:
    patched = session.patch(path_of(key), text.encode())
    assert "too deeply" in assert_problem(patched, "bad_request")["detail"]


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("depth", [1, 99, 100, 101, 195, 300, 480, 1000])
def test_a_patch_is_nested_as_deep_as_is_promised(session: Session, key: str, depth: int) -> None:
    patched = session.patch(path_of(key), nested(depth).encode())
    if depth > 100:
        assert "too deeply" in assert_problem(patched, "bad_request")["detail"]
        assert session.get(path_of(key)).status == 404
    else:
        assert session.get(path_of(key)).body.decode() == nested(depth)


@pytest.mark.parametrize("depth", [99, 195, 300, 480])
def test_how_deep_a_value_is_nested_is_nothing_to_a_patch_of_something_else(
    session: Session, key: str, depth: int
) -> None:
    session.put(path_of(key), nested(depth).encode())
    assert session.patch(path_of(key), {"b": 1}).status == 200
    assert session.get(path_of(key)).body.decode() == nested(depth)[:-1] + ',"b": 1}'


def test_large_values_are_patched_as_small_ones_are(session: Session, key: str) -> None:
    target = {str(number): number for number in range(50_000)}
    patch = {str(number): None if number % 3 else {"n": number} for number in range(25_000, 75_000)}
    session.put(path_of(key), json.dumps(target).encode())
    assert session.patch(path_of(key), patch).status == 200
    assert session.get(path_of(key)).json == merged(target, patch)


def test_a_patch_is_no_larger_than_a_value(session: Session, key: str) -> None:
    limit = session.get("/v1/status").json["limits"]["value_bytes"]
    problem = assert_problem(session.patch(path_of(key), b" " * (limit + 1)), "value_too_large")
    assert problem["limit"] == limit


def test_a_patch_keeps_the_type_and_the_moment_of_expiry(session: Session, key: str) -> None:
    session.put(path_of(key) + "?ttl=1h", b"{}", content_type="application/vnd.x+json")
    before = session.get(path_of(key) + "?format=json").json
    for number in range(20):
        session.patch(path_of(key), {"a": number})
    after = session.get(path_of(key) + "?format=json").json
    assert after["content_type"] == "application/vnd.x+json"
    assert after["expires_at"] == before["expires_at"]
    assert session.patch(path_of(key) + "?ttl=9h", {}).json["expires_at"] > after["expires_at"]


def test_a_put_can_keep_the_moment_of_expiry(session: Session, key: str) -> None:
    assert "expires_at" not in session.put(path_of(key) + "?keep_ttl=1", b"1").json
    before = session.put(path_of(key) + "?ttl=1h", b"2").json["expires_at"]
    assert session.put(path_of(key) + "?keep_ttl=1", b"3").json["expires_at"] == before
    op = {"op": "put", "key": key, "value": "4", "keep_ttl": True}
    (result,) = session.post("/v1/batch", {"ops": [op]}).json["results"]
    assert result["expires_at"] == before
    assert "expires_at" not in session.put(path_of(key) + "?keep_ttl=0", b"5").json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2100-01-31T12:00:00Z", "2100-01-31T12:00:00.000Z"),
        ("2100-01-31T12:00:00.123456Z", "2100-01-31T12:00:00.123Z"),
        ("2100-01-31T12:00:00%2B01:00", "2100-01-31T11:00:00.000Z"),
        ("2100-01-31T12:00:00+01:00", "2100-01-31T11:00:00.000Z"),
    ],
)
def test_a_put_can_name_the_moment_of_expiry(session: Session, key: str, text: str, shown: str) -> None:
    assert session.put(path_of(key) + f"?expires_at={text}", b"1").json["expires_at"] == shown
    op = {"op": "put", "key": key, "value": "4", "expires_at": shown}
    (result,) = session.post("/v1/batch", {"ops": [op]}).json["results"]
    assert result["expires_at"] == shown


def test_a_moment_that_has_passed_is_the_end_at_once(session: Session, key: str) -> None:
    assert session.put(path_of(key) + "?expires_at=2001-01-01T00:00:00Z", b"1").status == 201
    assert_problem(session.get(path_of(key)), "not_found")


@pytest.mark.parametrize(
    "text", ["", "1", "2100-01-31", "2100-02-30T00:00:00Z", "2100-01-31T12:00:00", "1969-01-01T00:00:00Z"]
)
def test_what_is_no_moment_is_refused(session: Session, key: str, text: str) -> None:
    answer = session.put(path_of(key) + f"?expires_at={text}", b"1")
    assert assert_problem(answer, "bad_request")["parameter"] == "expires_at"


@pytest.mark.parametrize(
    "query",
    [
        "ttl=5&keep_ttl=1",
        "ttl=5&expires_at=2100-01-31T12:00:00Z",
        "keep_ttl=1&expires_at=2100-01-31T12:00:00Z",
    ],
)
def test_two_ends_exclude_each_other(session: Session, key: str, query: str) -> None:
    detail = assert_problem(session.put(path_of(key) + f"?{query}", b"1"), "bad_request")["detail"]
    assert "exclude each other" in detail
    op = {"op": "put", "key": key, "value": "4"} | dict(pair.split("=") for pair in query.split("&"))
    if "keep_ttl" in op:
        op["keep_ttl"] = True  # type: ignore[assignment]
    problem = assert_problem(session.post("/v1/batch", {"ops": [op]}), "bad_request")
    assert "exclude each other" in problem["detail"]


def test_a_patch_creates_a_missing_key(session: Session, key: str) -> None:
    assert session.patch(path_of(key), {"a": 1, "b": None}).status == 201
    got = session.get(path_of(key))
    assert (got.json, got.headers["content-type"]) == ({"a": 1}, "application/json")


@pytest.mark.parametrize("value", [b"", b"x", b"\xff", b"{", b"NaN", b"[" * 100_000])
def test_what_is_no_json_is_neither_patched_nor_a_patch(session: Session, key: str, value: bytes) -> None:
    session.put(path_of(key), value)
    assert_problem(session.patch(path_of(key), {}), "not_json")
    assert session.get(path_of(key)).body == value
    session.put(path_of(key), b"{}")
    assert_problem(session.request("PATCH", path_of(key), value, PATCH_TYPE), "bad_request")


@pytest.mark.parametrize("sent", [None, "application/json", "text/plain", "application/merge-patch"])
def test_a_patch_has_to_say_that_it_is_one(session: Session, key: str, sent: str | None) -> None:
    headers = {} if sent is None else {"Content-Type": sent}
    answer = session.request("PATCH", path_of(key), b"{}", headers)
    assert_problem(answer, "unsupported_media_type")
    assert answer.headers["accept-patch"] == "application/merge-patch+json"


def test_patches_at_the_same_time_are_all_applied(
    session: Session, shared_service: Service, key: str
) -> None:
    def patch(number: int) -> None:
        one = Session(shared_service.url)
        for step in range(5):
            # too_busy is an honest answer under contention; the patch was then not applied
            wait_until(lambda step=step: one.patch(path_of(key), {f"{number}.{step}": 1}).status < 300)
        one.close()

    session.put(path_of(key), b"{}")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(patch, range(4)))
    assert len(session.get(path_of(key)).json) == 20


# ── retries ──────────────────────────────────────────────────────────────────────────────────────


def test_a_repeat_under_the_same_number_is_applied_once(session: Session, key: str) -> None:
    number = {"idempotency_key": f"retry {key}"}
    for _ in range(3):
        assert session.post(path_of(key, "incr") + "?by=5", **number).json["value"] == 5
    assert session.get(path_of(key)).body == b"5"


def test_a_repeated_put_gets_the_first_answer(session: Session, key: str) -> None:
    first = session.put(path_of(key), b"1", idempotency_key=key, if_none_match="*")
    session.put(path_of(key), b"other")
    again = session.put(path_of(key), b"1", idempotency_key=key, if_none_match="*")
    assert (again.status, again.json) == (first.status, first.json)
    assert session.get(path_of(key)).body == b"other"


def test_a_repeated_delete_gets_the_first_answer(session: Session, key: str) -> None:
    session.put(path_of(key), b"1")
    first = session.delete(path_of(key), idempotency_key=key)
    assert session.delete(path_of(key), idempotency_key=key).json == first.json


def test_a_repeated_deletion_by_prefix_deletes_nothing_new(session: Session, key: str) -> None:
    for part in range(3):
        session.put(path_of(f"{key}/{part}"), b"1")
    first = session.delete(f"/v1/kv?prefix={key}/", idempotency_key=key)
    assert first.json["deleted"] == 3
    session.put(path_of(f"{key}/new"), b"1")
    assert session.delete(f"/v1/kv?prefix={key}/", idempotency_key=key).json == first.json
    assert session.get(path_of(f"{key}/new")).status == 200


def test_a_number_belongs_to_one_request(session: Session, key: str) -> None:
    session.put(path_of(key), b"1", idempotency_key=key)
    assert_problem(session.put(path_of(key), b"2", idempotency_key=key), "sequence_reused")
    assert session.get(path_of(key)).body == b"1"


@pytest.mark.parametrize("number", ["", "x" * 101, "é"])
def test_what_is_no_number_is_refused(session: Session, key: str, number: str) -> None:
    assert_problem(session.put(path_of(key), b"1", idempotency_key=number), "bad_request")
    assert session.put(path_of(key), b"1", idempotency_key=("x" + key).ljust(100, "!")).status == 201


def test_a_number_that_could_not_keep_its_promise_is_refused(session: Session, key: str) -> None:
    assert_problem(session.patch(path_of(key), {}, idempotency_key=key), "bad_request")
    for headers in ({"if_match": "*"}, {"if_match": '"1", "2"'}, {"if_none_match": '"1"'}):
        assert_problem(session.put(path_of(key), b"1", idempotency_key=key, **headers), "bad_request")
    assert_problem(session.get(path_of(key)), "not_found")
