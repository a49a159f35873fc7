"""Writes on condition of another key (``guard``) or of the value (``if_value``), and keys that number
themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from support.servers import Daemon, Facade, Service
from support.session import Answer, Session, assert_problem, kv_path, path_of

_numbers = itertools.count()


@pytest.fixture
def key() -> str:
    """A key that no other test uses, nor one that begins with it."""
    return f"key-{next(_numbers):06}"


WRITES = ["PUT", "DELETE", "PATCH", "POST", "incr", "touch", "persist"]


def write(session: Session, how: str, key: str, query: str, **headers: str) -> Answer:
    """Write ``key`` in one of the ways, with more of a query."""
    if how == "PATCH":
        return session.patch(f"{path_of(key)}?{query}", 5, **headers)
    if how in ("PUT", "DELETE", "POST"):
        body = None if how == "DELETE" else b"5"
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return session.request(how, f"{path_of(key)}?{query}", body, named)
    more = "ttl=1h&" if how == "touch" else ""
    return session.post(f"{path_of(key, how)}?{more}{query}", **headers)


def revision_of(session: Session, key: str) -> int:
    """The key's revision, 0 if it is missing."""
    answer = session.get(path_of(key))
    return 0 if answer.status == 404 else int(answer.headers["x-kvstore-revision"])


def state(session: Session, prefix: str) -> Any:
    """All that begins with ``prefix``."""
    return session.get(f"/v1/kv?prefix={quote_plus(prefix)}").json["items"]


# ── guards ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", WRITES)
def test_a_write_is_done_only_while_its_guard_holds(session: Session, key: str, how: str) -> None:
    lock, data = f"{key}/lock", f"{key}/data/"
    held = session.put(path_of(lock), b"me").json["revision"]
    session.put(path_of(data) + "?ttl=1h", b"1")
    assert write(session, how, data, f"guard={quote(lock)}@{held}").status in (200, 201)
    session.put(path_of(data) + "?ttl=1h", b"1")
    before = state(session, data)
    other = session.put(path_of(lock), b"you").json["revision"]
    for idempotency_key in ({}, {"idempotency_key": f"{key}{how}"} if how != "PATCH" else {}):
        answer = write(session, how, data, f"guard={quote(lock)}@{held}", **idempotency_key)
        problem = assert_problem(answer, "condition_failed")
        assert (problem["key"], problem["revision"]) == (lock, other)
        assert lock in problem["detail"]
        assert "op" not in problem
        assert answer.headers["x-kvstore-revision"] == str(other)
        assert state(session, data) == before
    session.delete(path_of(lock))
    problem = assert_problem(write(session, how, data, f"guard={quote(lock)}@{held}"), "condition_failed")
    assert (problem["key"], problem["revision"]) == (lock, 0)
    assert write(session, how, data, f"guard={quote(lock)}@0").status in (200, 201)


@pytest.mark.parametrize("how", WRITES)
def test_of_several_guards_the_one_that_fails_is_named(session: Session, key: str, how: str) -> None:
    data = f"{key}/data"
    session.put(path_of(data), b"1")
    made = [session.put(path_of(f"{key}/{number}"), b"").json["revision"] for number in range(3)]
    for wrong in (0, 1, 2, None):
        guards = [
            f"guard={key}/{number}@{revision + (number == wrong)}" for number, revision in enumerate(made)
        ]
        answer = write(session, how, data, "&".join(guards))
        if wrong is None:
            assert answer.status in (200, 201)
            return
        problem = assert_problem(answer, "condition_failed")
        assert (problem["key"], problem["revision"]) == (f"{key}/{wrong}", made[wrong])


@pytest.mark.parametrize(
    "name",
    ["a@7", "@", "a@", "%41", "a+b", "a b", "ключ", "..", "a//b", "x" * 511, "\U0001f600", "a&guard=b@1"],
)
def test_any_key_may_be_a_guard(session: Session, key: str, name: str) -> None:
    """It is decoded once and ends at the last @."""
    revision = session.put(path_of(name), b"").json["revision"]
    for place in ("PUT", "POST"):
        good, bad = (f"guard={quote_plus(name)}@{n}" for n in (revision, revision + 1))
        assert write(session, place, key, good).status in (200, 201)
        problem = assert_problem(write(session, place, key, bad), "condition_failed")
        assert (problem["key"], problem["revision"]) == (name, revision)


@pytest.mark.parametrize(
    "guard",
    ["", "a", "@", "@1", "a@", "a@-1", "a@+1", "a@1.5", "a@ 1", "a@x", "a@٣", f"a@{2**63}", "a@" + "9" * 400],
)
@pytest.mark.parametrize("how", WRITES)
def test_what_is_no_guard_is_refused_with_what_one_is(
    session: Session, key: str, how: str, guard: str
) -> None:
    problem = assert_problem(write(session, how, key, f"guard={quote(guard)}"), "bad_request")
    assert problem["parameter"] == "guard"
    assert "KEY@REVISION" in problem["detail"]
    assert state(session, key) == []


@pytest.mark.parametrize("name", ["x" * 512, "é" * 256, "a\0"])
def test_a_guard_that_no_key_can_have_is_refused(session: Session, key: str, name: str) -> None:
    answer = session.put(f"{path_of(key)}?guard={quote(name)}@1", b"x")
    assert_problem(answer, "invalid_key")


def test_guards_and_values_under_them_are_within_the_limits_of_an_atomic_batch(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon(max_atomic_ops=5, max_atomic_bytes=1024)
    with closing(Session(start_facade(daemon).url)) as session:
        guards = [f"guard={number}@0" for number in range(5)]
        for few, size, limit in ((guards, 1, 5), (guards[:1], 1025, 1024)):
            for how in ("PUT", "POST"):
                answer = session.request(how, f"/v1/kv/a?{'&'.join(few)}", b"x" * size)
                problem = assert_problem(answer, "request_too_large")
                assert problem["limit"] == limit
                assert "guards" in problem["detail"]
        assert session.put(f"/v1/kv/a?{'&'.join(guards[1:])}", b"x" * 1024).status == 201


@pytest.mark.parametrize("how", WRITES)
def test_a_guard_may_be_of_the_key_itself(session: Session, key: str, how: str) -> None:
    revision = session.put(path_of(key) + "?ttl=1h", b"1").json["revision"]
    assert_problem(write(session, how, key, f"guard={key}@{revision - 1}"), "condition_failed")
    assert write(session, how, key, f"guard={key}@{revision}").status in (200, 201)


@pytest.mark.parametrize("how", [how for how in WRITES if how != "POST"])
def test_guard_and_condition_must_both_hold(session: Session, key: str, how: str) -> None:
    lock, data = f"{key}/lock", f"{key}/data"
    held = session.put(path_of(lock), b"").json["revision"]
    now = session.put(path_of(data) + "?ttl=1h", b"1").json["revision"]
    right, wrong = (f'"{now}"', f'"1", "{now}"', "*"), ('"1"', '"1", "2"', 'W/"1"')
    for guard, match in [(held, match) for match in wrong] + [
        (held + 7, match) for match in (*wrong, *right)
    ]:
        answer = write(session, how, data, f"guard={lock}@{guard}", if_match=match)
        problem = assert_problem(answer, "condition_failed")
        if match in right:
            assert (problem["key"], problem["revision"]) == (lock, held)
        assert revision_of(session, data) == now
    assert write(session, how, data, f"guard={lock}@{held}", if_match=right[1]).status == 200


@pytest.mark.parametrize("how", [how for how in WRITES if how != "PATCH"])
def test_a_repeat_is_answered_as_before_whatever_became_of_the_guard(
    session: Session, key: str, how: str
) -> None:
    lock, data = f"{key}/lock", f"{key}/data"
    held = session.put(path_of(lock), b"").json["revision"]
    session.put(path_of(data) + "?ttl=1h", b"1")
    query = f"guard={lock}@{held}"
    first = write(session, how, data, query, idempotency_key=key + how)
    session.put(path_of(lock), b"moved on")
    again = write(session, how, data, query, idempotency_key=key + how)
    assert (again.status, again.json) == (first.status, first.json)
    assert again.headers.get("location") == first.headers.get("location")
    assert_problem(write(session, how, data, query, idempotency_key=key + how + "2"), "condition_failed")


@pytest.mark.parametrize("how", WRITES)
def test_a_guarded_write_says_why(session: Session, key: str, how: str) -> None:
    session.put(path_of(f"{key}/data") + "?ttl=1h", b"1")
    write(session, how, f"{key}/data", f"guard={key}/lock@0", x_kvstore_message="since it is held")
    (event,) = session.get(f"/v1/history?prefix={key}&limit=1").json["events"]
    assert event["message"] == "since it is held"


def test_a_guarded_patch_is_done_once_more_for_other_writers_and_ends_with_its_guard(
    shared_service: Service, session: Session, key: str
) -> None:
    lock, data = f"{key}/lock", f"{key}/data"
    held = session.put(path_of(lock), b"").json["revision"]
    session.put(path_of(data), b"{}")

    def patch_much(number: int) -> list[int]:
        own = Session(shared_service.url)
        statuses = [
            own.patch(f"{path_of(data)}?guard={lock}@{held}", {f"{number}-{n}": n}).status for n in range(12)
        ]
        own.close()
        return statuses

    with ThreadPoolExecutor(4) as pool:
        statuses = [status for found in pool.map(patch_much, range(4)) for status in found]
    assert set(statuses) == {200}
    assert len(session.get(path_of(data)).json) == 48
    session.delete(path_of(lock))
    problem = assert_problem(
        session.patch(f"{path_of(data)}?guard={lock}@{held}", {"late": 1}), "condition_failed"
    )
    assert problem["key"] == lock
    assert "late" not in session.get(path_of(data)).json


def test_what_was_written_under_a_guard_came_before_the_guard_moved(
    shared_service: Service, session: Session, key: str
) -> None:
    """Writers at the same time, merged with others' writes or not: none of them is after the move."""
    lock = f"{key}/lock"
    held = session.put(path_of(lock), b"").json["revision"]

    def write_until_refused(number: int) -> list[int]:
        own, made = Session(shared_service.url), []
        for step in itertools.count():
            own.put(path_of(f"{key}/plain/{number}"), b"x")
            query = f"guard={lock}@{held}"
            how = ("PUT", "POST", "incr", "PATCH")[step % 4]
            answer = write(own, how, f"{key}/{how}/{number}/", query)
            if answer.status == 412:
                break
            made.append(answer.json["revision"])
        own.close()
        return made

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write_until_refused, number) for number in range(4)]
        while not all(state(session, f"{key}/PATCH/{number}/") for number in range(4)):
            assert not any(each.done() for each in running)
        moved = session.put(path_of(lock), b"moved").json["revision"]
        made = [revision for each in running for revision in each.result()]
    assert len(made) >= 16
    assert max(made) < moved


def test_what_is_not_about_one_key_takes_no_guard_and_says_what_to_do(session: Session, key: str) -> None:
    session.put(path_of(f"{key}/1"), b"x")
    for query in (f"guard={key}@0", "if_value=x"):
        problem = assert_problem(session.delete(f"/v1/kv?prefix={key}&{query}"), "bad_request")
        assert problem["parameter"] == query.partition("=")[0]
        assert "atomic batch" in problem["detail"]
    assert len(state(session, key)) == 1
    body = {"ops": [{"op": "delete", "key": f"{key}/1"}]}
    problem = assert_problem(session.post(f"/v1/batch?guard={key}@0", body), "bad_request")
    assert '"check"' in problem["detail"]
    assert len(state(session, key)) == 1


# ── by value ─────────────────────────────────────────────────────────────────────────────────────

BY_VALUE = ["PUT", "DELETE", "incr", "touch", "persist"]


@pytest.mark.parametrize("how", BY_VALUE)
@pytest.mark.parametrize("value", ["5", "-12", "0"])
def test_a_write_happens_only_if_the_value_is_that_one(
    session: Session, key: str, how: str, value: str
) -> None:
    now = session.put(path_of(key) + "?ttl=1h", value.encode()).json["revision"]
    for wrong in ("", value + "0", value[:-1], f" {value}", value + "\n", "ü"):
        answer = write(session, how, key, f"if_value={quote(wrong)}")
        problem = assert_problem(answer, "condition_failed")
        assert problem["revision"] == now
        assert set(problem) <= {
            *("type", "title", "status", "detail", "code", "retryable", "revision", "key", "request_id")
        }
        assert revision_of(session, key) == now
    assert write(session, how, key, f"if_value={quote(value)}").status == 200
    session.delete(path_of(key))
    assert_problem(write(session, how, key, f"if_value={quote(value)}"), "condition_failed")
    assert revision_of(session, key) == 0


@pytest.mark.parametrize("value", ["", "light blue", "ключ + %41", "a\nb", "\U0001f600", "x" * 3000])
def test_a_value_is_compared_byte_for_byte(session: Session, key: str, value: str) -> None:
    session.put(path_of(key), value.encode())
    assert session.put(path_of(key) + f"?if_value={quote_plus(value)}", value.encode()).status == 200
    assert_problem(session.put(path_of(key) + f"?if_value={quote_plus(value)}x", b""), "condition_failed")
    session.put(path_of(key), b"\xff" + value.encode())
    assert_problem(session.put(path_of(key) + f"?if_value={quote_plus(value)}", b""), "condition_failed")


def test_the_value_is_not_told_by_a_condition_on_it(session: Session, key: str) -> None:
    session.put(path_of(key), b"a secret")
    for how in BY_VALUE:
        assert b"a secret" not in write(session, how, key, "if_value=guessed").body


@pytest.mark.parametrize("how", BY_VALUE)
def test_a_condition_is_of_the_value_or_of_the_revision(session: Session, key: str, how: str) -> None:
    now = session.put(path_of(key) + "?ttl=1h", b"1").json["revision"]
    for headers in ({"if_match": f'"{now}"'}, {"if_match": "*"}, {"if_none_match": '"1"'}):
        problem = assert_problem(write(session, how, key, "if_value=1", **headers), "bad_request")
        assert problem["parameter"] == "if_value"
    assert revision_of(session, key) == now


# ── keys that number themselves ──────────────────────────────────────────────────────────────────


PREFIXES = (
    *("jobs/", "jobs", "a b/", "a%2Fb/", "ключ/", "../", "a/../", "./", "/", "a//", "a/./", "q?x=1#f/"),
    *("+", ":", "x" * 485),
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("place", ["path", "query"])
def test_a_body_is_stored_under_a_key_that_numbers_itself(session: Session, prefix: str, place: str) -> None:
    target = path_of(prefix) if place == "path" else f"/v1/kv?key={quote(prefix)}"
    before = session.get("/v1/status").json["revision"]
    answer = session.request("POST", target, b"a job", {"Content-Type": "text/x"})
    made = answer.json
    assert answer.status == 201
    assert made == {
        "key": made["key"], "revision": made["revision"], "create_revision": made["revision"], "version": 1
    }  # fmt: skip
    number = made["key"].removeprefix(prefix)
    assert len(number) == 20
    assert int(number) > before
    assert answer.headers["etag"] == f'"{made["revision"]}"'
    found = session.get(answer.headers["location"])
    assert (found.status, found.body, found.headers["content-type"]) == (200, b"a job", "text/x")
    assert found.headers["etag"] == answer.headers["etag"]


def test_an_address_with_slashes_is_given_as_people_write_it(session: Session) -> None:
    answer = session.request("POST", "/v1/kv/jobs/mail/", b"x")
    assert answer.headers["location"] == "/v1/kv/" + answer.json["key"]


def test_numbered_keys_are_unique_and_in_the_order_of_their_commits(
    shared_service: Service, session: Session, key: str
) -> None:
    def add(number: int) -> list[tuple[int, str]]:
        own = Session(shared_service.url)
        answers = [own.request("POST", path_of(f"{key}/"), b"%d" % number) for _ in range(25)]
        own.close()
        return [(answer.json["revision"], answer.json["key"]) for answer in answers]

    with ThreadPoolExecutor(4) as pool:
        made = sorted(pair for found in pool.map(add, range(4)) for pair in found)
    keys = [each for _, each in made]
    assert len(set(keys)) == 100
    assert keys == sorted(keys) == [item["key"] for item in state(session, key)]


def test_a_numbered_key_is_made_once_under_an_idempotency_key(session: Session, key: str) -> None:
    answers = [
        session.request("POST", path_of(f"{key}/"), b"x", {"Idempotency-Key": f"once-{key}"})
        for _ in range(3)
    ]
    assert len({answer.json["key"] for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert len(state(session, key)) == 1
    other = session.request("POST", path_of(f"{key}/"), b"y", {"Idempotency-Key": f"once-{key}"})
    assert_problem(other, "sequence_reused")


def test_a_numbered_key_may_expire(session: Session, key: str) -> None:
    for query in ("ttl=1h", "expires_at=2099-01-31T12:00:00Z"):
        made = session.request("POST", f"{path_of(key)}?{query}", b"x").json
        assert made["expires_at"] == session.get(path_of(made["key"]) + "?format=json").json["expires_at"]
    assert_problem(
        session.request("POST", f"{path_of(key)}?ttl=1h&expires_at=2099-01-31T12:00:00Z"), "bad_request"
    )


def test_what_a_new_key_cannot_have_is_refused(session: Session, key: str) -> None:
    for header in ("If-Match", "If-None-Match", "If-Unmodified-Since"):
        answer = session.request("POST", path_of(key), b"x", {header: '"1"'})
        problem = assert_problem(answer, "bad_request")
        assert problem["header"] == header
        assert "guard" in problem["detail"]
    for query in ("keep_ttl=1", "if_value=x", "json=1"):
        assert_problem(session.request("POST", f"{path_of(key)}?{query}", b"x"), "bad_request")
    assert_problem(session.request("POST", path_of("x" * 486), b"x"), "invalid_key")
    assert_problem(session.request("POST", "/v1/kv/", b"x"), "invalid_key")
    answer = session.request("POST", path_of(key), b"x", {"Content-Encoding": "gzip"})
    assert_problem(answer, "unsupported_media_type")
    assert state(session, key) == []


def test_a_page_of_another_origin_adds_no_key(session: Session, key: str) -> None:
    headers = {"Origin": "http://elsewhere.example", "Content-Type": "text/plain"}
    assert_problem(session.request("POST", path_of(key), b"x", headers), "not_allowed")
    assert state(session, key) == []


# ── in batches ───────────────────────────────────────────────────────────────────────────────────


def test_checks_have_results_of_their_own(session: Session, key: str) -> None:
    revision = session.put(path_of(key), b"\xffvalue").json["revision"]
    ops: list[tuple[dict[str, Any], bool]] = [
        ({"if_revision": revision}, True),
        ({"if_revision": revision + 1}, False),
        ({"if_revision": 0}, False),
        ({"if_value_b64": "/3ZhbHVl"}, True),
        ({"if_value": "value"}, False),
        ({"exists": True}, True),
        ({"exists": False}, False),
    ]
    answer = session.batch(*({"op": "check", "key": key, **fields} for fields, _ in ops))
    for (fields, holds), result in zip(ops, answer.json["results"], strict=True):
        if holds:
            assert result == {"status": 200, "key": key, "revision": revision}, fields
        else:
            assert result["status"] == 412, fields
            assert (result["error"]["code"], result["error"]["key"]) == ("condition_failed", key)
            assert result["error"]["revision"] == revision
    assert revision_of(session, key) == revision


def test_an_atomic_batch_whose_check_fails_changes_nothing_and_says_which(session: Session, key: str) -> None:
    lock = session.put(path_of(f"{key}/lock"), b"").json["revision"]
    put = {"op": "put", "key": f"{key}/a", "value": "x"}
    for at in range(3):
        ops: list[dict[str, Any]] = [
            {"op": "get", "key": f"{key}/a"}, put, {"op": "incr", "key": f"{key}/n"}
        ]  # fmt: skip
        ops.insert(at, {"op": "check", "key": f"{key}/lock", "if_revision": lock + 1})
        problem = assert_problem(session.batch(*ops, atomic=True), "condition_failed")
        assert (problem["op"], problem["key"], problem["revision"]) == (at, f"{key}/lock", lock)
        assert len(state(session, key)) == 1
        ops[at]["if_revision"] = lock
        results = session.batch(*ops, atomic=True).json["results"]
        assert results[at] == {"status": 200, "key": f"{key}/lock", "revision": lock}
        session.delete(f"/v1/kv?prefix={key}/a")
        session.delete(f"/v1/kv?prefix={key}/n")


def test_a_check_sees_a_key_as_it_was_before_the_batch(session: Session, key: str) -> None:
    revision = session.put(path_of(key), b"old").json["revision"]
    checks: list[dict[str, Any]] = [{"if_revision": revision}, {"if_value": "old"}, {"exists": True}]
    ops: list[dict[str, Any]] = [{"op": "check", "key": key, **fields} for fields in checks]
    ops.insert(1, {"op": "put", "key": key, "value": "new"})
    assert session.batch(*ops, atomic=True).status == 200
    assert session.get(path_of(key)).body == b"new"


WITH_VALUE: list[dict[str, Any]] = [
    {"op": "put", "value": "6"},
    {"op": "delete"},
    {"op": "incr"},
    {"op": "touch", "ttl": "1h"},
    {"op": "persist"},
]


@pytest.mark.parametrize("op", WITH_VALUE, ids=lambda op: op["op"])
@pytest.mark.parametrize("atomic", [False, True])
def test_every_write_of_a_batch_may_depend_on_the_value(
    session: Session, key: str, op: dict[str, Any], atomic: bool
) -> None:
    revision = session.put(path_of(key) + "?ttl=1h", b"5").json["revision"]
    for wrong in ({"if_value": "6"}, {"if_value_b64": "Ng=="}):
        answer = session.batch({**op, "key": key, **wrong}, atomic=atomic)
        problem = answer.json if atomic else answer.json["results"][0]["error"]
        assert (problem["code"], problem["revision"]) == ("condition_failed", revision)
        assert revision_of(session, key) == revision
    for right in ({"if_value": "5"}, {"if_value_b64": "NQ=="}):
        session.put(path_of(key) + "?ttl=1h", b"5")
        assert session.batch({**op, "key": key, **right}, atomic=atomic).json["results"][0]["status"] == 200


def test_keys_of_a_batch_number_themselves(session: Session, key: str) -> None:
    put = {"op": "put", "key": f"{key}/", "value": "x", "sequence": True}
    alone = session.batch(put, put).json["results"]
    assert [result["status"] for result in alone] == [201, 201]
    together = session.batch(put, {"op": "put", "key": f"{key}/z", "value": ""}, put, atomic=True).json[
        "results"
    ]
    assert len({result["revision"] for result in together}) == 1
    keys = [result["key"] for result in (*alone, together[0], together[2])]
    assert keys == sorted(set(keys))
    assert together[1]["key"] == f"{key}/z"
    assert [item["key"] for item in state(session, key)] == [*keys, f"{key}/z"]


MALFORMED: list[dict[str, Any]] = [
    {},
    {"if_revision": 1, "exists": True},
    {"if_revision": 0, "if_value": ""},
    {"if_value": "", "if_value_b64": ""},
    {"if_value": 5},
    {"if_value": None},
    {"if_value_b64": "?"},
    {"if_value_b64": "é"},
    {"exists": 1},
    {"exists": "true"},
    {"if_revision": -1},
    {"if_revision": True},
    {"exists": True, "message": "why"},
    {"exists": True, "ttl": 5},
    {"exists": True, "value": "x"},
]


@pytest.mark.parametrize("fields", MALFORMED, ids=str)
def test_nothing_of_a_batch_with_a_malformed_check_is_done(
    session: Session, key: str, fields: dict[str, Any]
) -> None:
    put = {"op": "put", "key": key, "value": "x"}
    problem = assert_problem(session.batch(put, {"op": "check", "key": key, **fields}), "bad_request")
    assert problem["op"] == 1
    assert state(session, key) == []


def test_the_address_is_only_of_what_was_made(session: Session, key: str) -> None:
    """A put under a known key is at the address of the request."""
    assert "location" not in session.put(kv_path(key), b"x").headers


def test_many_checks_hold_over_the_writes_beside_them(
    shared_service: Service, session: Session, key: str
) -> None:
    """Transfers between accounts: each reads two, and writes both if nobody has meanwhile."""
    accounts = [f"{key}/{number}" for number in range(4)]
    for each in accounts:
        session.put(path_of(each), b"100")

    def move(number: int) -> int:
        own, done = Session(shared_service.url), 0
        for step in range(30):
            one, two = (accounts[(number + step * n) % 4] for n in (1, 2))
            if one == two:
                continue
            read = own.batch({"op": "get", "key": one}, {"op": "get", "key": two}).json["results"]
            values = [int(result["value"]) for result in read]
            ops = [
                {"op": "check", "key": one, "if_revision": read[0]["revision"]},
                {"op": "check", "key": two, "if_value": str(values[1])},
                {"op": "put", "key": one, "value": str(values[0] - 1)},
                {"op": "put", "key": two, "value": str(values[1] + 1)},
            ]
            answer = own.batch(*ops, atomic=True)
            assert answer.status in (200, 412)
            done += answer.status == 200
        own.close()
        return done

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(move, range(4))) > 0
    assert sum(int(session.get(path_of(each)).body) for each in accounts) == 400
