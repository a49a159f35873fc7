"""The history of a key, and its value as of a revision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.servers import Daemon, Facade, wait_until
from support.session import Session, assert_problem, path_of


def test_the_history_tells_what_happened_newest_first(session: Session, key: str) -> None:
    put = session.put(path_of(key), b"1").json["revision"]
    session.put(path_of("elsewhere"), b"x")
    incr = session.post(path_of(key, "incr")).json["revision"]
    deleted = session.delete(path_of(key)).json["revision"]
    again = session.put(path_of(key), b"\xff").json["revision"]
    page = session.get(path_of(key, "history")).json
    assert (page["key"], page["cursor"], page["truncated"]) == (key, None, False)
    told = [(e["op"], e["revision"], e["previous_revision"], e.get("value")) for e in page["events"]]
    assert told == [
        ("put", again, 0, None),
        ("delete", deleted, incr, None),
        ("put", incr, put, "2"),
        ("put", put, 0, "1"),
    ]
    first = page["events"][0]
    assert (first["key"], first["value_b64"], first["index"], first["count"]) == (key, "/w==", 0, 1)
    assert first["time"] == first["modified_at"]


def test_the_history_comes_in_pages(session: Session, key: str) -> None:
    revisions = [session.put(path_of(key), str(n).encode()).json["revision"] for n in range(7)]
    seen: list[int] = []
    cursor = ""
    while True:
        page = session.get(path_of(key, "history") + f"?limit=3{cursor}").json
        assert len(page["events"]) <= 3
        seen += [event["revision"] for event in page["events"]]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert seen == revisions[::-1]
    before = session.get(path_of(key, "history") + f"?before={revisions[3]}&values=0").json["events"]
    assert [event["revision"] for event in before] == revisions[2::-1]
    assert all("value" not in event for event in before)


def test_a_key_that_never_was_has_no_history(session: Session, key: str) -> None:
    assert_problem(session.get(path_of(key, "history")), "not_found")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "before=0", "before=x", "values=2", "since=3"])
def test_what_no_history_takes_is_refused(session: Session, key: str, query: str) -> None:
    session.put(path_of(key), b"1")
    assert_problem(session.get(path_of(key, "history") + f"?{query}"), "bad_request")
    assert_problem(session.get(path_of(key, "history") + "?cursor=x"), "invalid_cursor")


@given(st.lists(st.none() | st.binary(max_size=3), min_size=1, max_size=8))
def test_every_revision_shows_the_value_of_its_time(session: Session, states: list[bytes | None]) -> None:
    target = path_of("as-of")
    before = session.put(path_of("elsewhere"), b"x").json["revision"]
    known = {before: session.get(target).body if session.get(target).status == 200 else None}
    for state in states:
        answer = session.delete(target) if state is None else session.put(target, state)
        if answer.status < 300:
            known[answer.json["revision"]] = state
    for revision, state in known.items():
        then = session.get(f"{target}?revision={revision}")
        if state is None:
            assert_problem(then, "not_found")
        else:
            assert (then.status, then.body) == (200, state)
            record = session.get(f"{target}?revision={revision}&format=json").json
            assert record["revision"] == int(then.headers["x-kvstore-revision"]) <= revision


def test_a_past_value_comes_with_its_own_headers(session: Session, key: str) -> None:
    first = session.put(path_of(key), b"1", content_type="text/x-first").json
    session.put(path_of(key), b"2")
    then = session.get(path_of(key) + f"?revision={first['revision']}")
    assert then.headers["content-type"] == "text/x-first"
    assert then.headers["etag"] == f'"{first["revision"]}"'
    assert then.headers["x-kvstore-version"] == "1"


def test_the_future_is_not_known(session: Session, key: str) -> None:
    head = session.put(path_of(key), b"1").json["revision"]
    answer = session.get(path_of(key) + f"?revision={head + 1}")
    assert assert_problem(answer, "bad_request")["revision"] == head


@pytest.mark.parametrize("revision", ["0", "-1", "x", "", "9223372036854775808"])
def test_what_is_no_revision_is_refused(session: Session, key: str, revision: str) -> None:
    session.put(path_of(key), b"1")
    assert_problem(session.get(path_of(key) + f"?revision={revision}"), "bad_request")


def test_what_the_log_forgot_is_gone_and_what_still_holds_is_known(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon(retain_events=5)
    session = Session(start_facade(daemon).url)
    old = session.put("/v1/kv/changed", b"1").json["revision"]
    kept = session.put("/v1/kv/kept", b"1").json["revision"]
    session.put("/v1/kv/changed", b"2")

    def is_forgotten() -> bool:
        session.put("/v1/kv/other", b"x")
        return bool(session.get("/v1/status").json["floor"] > kept)

    wait_until(is_forgotten, what="the log is trimmed")
    assert_problem(session.get(f"/v1/kv/changed?revision={old}"), "revision_gone")
    assert session.get(f"/v1/kv/kept?revision={kept}").body == b"1"
    assert session.get("/v1/history/kept").json["truncated"] is True
    session.close()
