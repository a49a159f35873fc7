"""If-Match and If-None-Match, on reads and on writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.session import Answer, Session, assert_problem, path_of

# (If-Match, If-None-Match) with {now} for the present revision, {old} for the one before, and
# whether a write under them happens to an existing and to a missing key
CONDITIONS = [
    ('"{now}"', None, True, False),
    ('"{old}"', None, False, False),
    ('W/"{now}"', None, False, False),
    ('"{old}", "{now}"', None, True, False),
    ('"{old}" , W/"{now}"', None, False, False),
    ('"x,y", "{now}"', None, True, False),
    ('"x"', None, False, False),
    ('"0"', None, False, False),
    ('"0{now}"', None, False, False),
    ('""', None, False, False),
    ('"99999999999999999999"', None, False, False),
    ("*", None, True, False),
    (" * ", None, True, False),
    (None, "*", False, True),
    (None, '"{now}"', False, True),
    (None, 'W/"{now}"', False, True),
    (None, '"{old}"', True, True),
    (None, '"{old}", "x"', True, True),
    ("*", '"{old}"', True, False),
    ("*", '"{now}"', False, False),
    ('"{now}"', "*", False, False),
]

WRITES = ["PUT", "DELETE", "PATCH", "incr", "touch", "persist"]


def write(session: Session, how: str, key: str, headers: dict[str, str]) -> Answer:
    """Write ``key`` in one of the ways."""
    if how == "PATCH":
        return session.patch(path_of(key), 5, **headers)
    if how in ("PUT", "DELETE"):
        return session.request(how, path_of(key), b"5" if how == "PUT" else None, headers)
    return session.request("POST", path_of(key, how) + ("?ttl=1h" if how == "touch" else ""), None, headers)


def headers_of(match: str | None, none_match: str | None, now: int, old: int) -> dict[str, str]:
    """The headers with the revisions filled in."""
    named = {"If-Match": match, "If-None-Match": none_match}
    return {name: text.format(now=now, old=old) for name, text in named.items() if text is not None}


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize(("match", "none_match", "on_existing", "on_missing"), CONDITIONS)
def test_a_write_happens_only_if_its_condition_holds(
    session: Session,
    key: str,
    how: str,
    match: str | None,
    none_match: str | None,
    on_existing: bool,
    on_missing: bool,
) -> None:
    old = session.put(path_of(key), b"1").json["revision"]
    now = session.put(path_of(key) + "?ttl=1h", b"2").json["revision"]
    headers = headers_of(match, none_match, now, old)
    assert write(session, how, key, headers).status == (200 if on_existing else 412)
    after = session.get(path_of(key))
    assert (after.status == 200 and after.headers["etag"] == f'"{now}"') is not on_existing

    session.delete(path_of(key))
    status = write(session, how, key, headers).status
    creates = how in ("PUT", "PATCH", "incr")
    assert status == (412 if not on_missing else {"incr": 200}.get(how, 201) if creates else 404)
    assert (session.get(path_of(key)).status == 200) is (on_missing and creates)


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("tags", ['"9999"', '"8888", "9999"'])
def test_a_failed_condition_names_the_key(session: Session, key: str, how: str, tags: str) -> None:
    session.put(path_of(key), b"5")
    assert repr(key) in write(session, how, key, {"If-Match": tags}).json["detail"]
    session.delete(path_of(key))
    assert f"{key!r} does not exist" in write(session, how, key, {"If-Match": tags}).json["detail"]


@pytest.mark.parametrize("how", WRITES)
def test_a_failed_condition_says_the_present_revision(session: Session, key: str, how: str) -> None:
    revision = session.put(path_of(key), b"1").json["revision"]
    for headers in ({"If-Match": '"1"'}, {"If-Match": '"1", W/"2"'}, {"If-None-Match": "*"}):
        answer = write(session, how, key, headers)
        assert assert_problem(answer, "condition_failed")["revision"] == revision
        assert answer.headers["x-kvstore-revision"] == str(revision)


@pytest.mark.parametrize("text", ["5", '"5', '"5" "6"', "W/*", 'w/"5"', "", ",", "*, *", '"a"b'])
@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
def test_what_is_no_entity_tag_is_refused(session: Session, key: str, name: str, text: str) -> None:
    assert_problem(session.request("PUT", path_of(key), b"x", {name: text}), "bad_request")
    assert_problem(session.get(path_of(key)), "not_found")


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ('"{now}"', 304),
        ('W/"{now}"', 304),
        ('"{old}", "{now}"', 304),
        ("*", 304),
        ('"{old}"', 200),
        ('"x"', 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_read_is_answered_304_while_the_client_is_up_to_date(
    session: Session, key: str, method: str, tags: str, status: int
) -> None:
    old = session.put(path_of(key), b"1").json["revision"]
    now = session.put(path_of(key), b"2").json["revision"]
    for target in (path_of(key), path_of(key) + "?format=json", f"/v1/kv?key={key}"):
        headers = {"If-None-Match": tags.format(now=now, old=old)}
        answer = session.request(method, target, headers=headers)
        assert answer.status == status
        assert answer.headers["etag"] == f'"{now}"'
        assert answer.headers["cache-control"] == "no-cache"
        assert bool(answer.body) is (status == 200 and method == "GET")


def test_a_date_is_compared_by_the_second_and_gives_way_to_a_tag(session: Session, key: str) -> None:
    session.put(path_of(key), b"1")
    modified = session.get(path_of(key)).headers["last-modified"]
    assert session.get(path_of(key), if_modified_since=modified).status == 304
    assert session.get(path_of(key), if_modified_since=modified, if_none_match='"1"').status == 200
    for earlier in ("Thu, 01 Jan 1970 00:00:00 GMT", "not a date", "0", ""):
        assert session.get(path_of(key), if_modified_since=earlier).status == 200


def test_a_missing_key_is_missing_whatever_the_client_has(session: Session, key: str) -> None:
    assert_problem(session.get(path_of(key), if_none_match="*"), "not_found")


def test_the_tag_changes_with_every_write_and_names_its_revision(session: Session, key: str) -> None:
    writes: list[Callable[[], Answer]] = [
        lambda: session.put(path_of(key), b"1"),
        lambda: session.put(path_of(key), b"1"),
        lambda: session.post(path_of(key, "incr")),
        lambda: session.post(path_of(key, "touch") + "?ttl=1h"),
        lambda: session.post(path_of(key, "persist")),
        lambda: session.patch(path_of(key), 7),
    ]
    tags = []
    for write_it in writes:
        answer = write_it()
        tags.append(answer.headers["etag"])
        assert tags[-1] == f'"{answer.json["revision"]}"'
        assert session.get(path_of(key)).headers["etag"] == tags[-1]
    assert len(set(tags)) == len(writes)


def test_a_write_on_condition_of_a_time_is_refused_and_points_to_if_match(session: Session, key: str) -> None:
    session.put(path_of(key), b"1")
    date = session.get(path_of(key)).headers["last-modified"]
    for answer in (
        session.put(path_of(key), b"2", if_unmodified_since=date),
        session.patch(path_of(key), {}, if_unmodified_since=date),
        session.post(path_of(key, "incr"), if_unmodified_since=date),
        session.delete(path_of(key), if_unmodified_since=date),
        session.delete(f"/v1/kv?prefix={key}", if_unmodified_since=date),
    ):
        problem = assert_problem(answer, "bad_request")
        assert problem["header"] == "If-Unmodified-Since"
    assert session.get(path_of(key)).body == b"1"


def test_beside_if_match_a_condition_of_a_time_does_not_count(session: Session, key: str) -> None:
    tag = session.put(path_of(key), b"1").headers["etag"]
    old = "Thu, 01 Jan 1970 00:00:00 GMT"
    assert session.put(path_of(key), b"2", if_match=tag, if_unmodified_since=old).status == 200


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match", "If-Unmodified-Since"])
def test_a_batch_on_condition_is_refused_and_points_to_if_revision(
    session: Session, key: str, header: str
) -> None:
    body = {"ops": [{"op": "put", "key": key, "value": "v"}]}
    problem = assert_problem(session.post("/v1/batch", body, **{header: "*"}), "bad_request")
    assert problem["header"] == header
    assert "if_revision" in problem["detail"]
    assert session.get(path_of(key)).status == 404


@pytest.mark.parametrize(
    ("query", "words"),
    [("if_revision=0", 'a header: If-Match: "7"'), ("if_absent=1", "a header: If-None-Match: *")],
)
def test_a_condition_among_the_parameters_is_refused_with_where_it_belongs(
    session: Session, key: str, query: str, words: str
) -> None:
    assert words in assert_problem(session.put(f"{path_of(key)}?{query}", b"x"), "bad_request")["detail"]
    answer = session.batch({"op": "put", "key": key, "value": "x", "if_absent": True})
    assert "if_revision is 0" in assert_problem(answer, "bad_request")["detail"]
    assert session.get(path_of(key)).status == 404
