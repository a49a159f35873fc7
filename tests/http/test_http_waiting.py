"""Long polls: ?wait= and ?since=."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest

from support.servers import Service, wait_until
from support.session import Answer, Session, assert_problem, path_of

Poll = Callable[[str], "Future[Answer]"]


@pytest.fixture
def poll(shared_service: Service) -> Iterator[Poll]:
    """Sends a GET that may take long, beside the test."""
    with ThreadPoolExecutor(8) as pool:
        yield lambda target: pool.submit(_get, shared_service.url, target)


def _get(url: str, target: str) -> Answer:
    with closing(Session(url)) as session:
        return session.get(target)


def test_a_change_that_was_already_made_is_answered_at_once(session: Session, key: str) -> None:
    first = session.put(path_of(key), b"1").json["revision"]
    second = session.put(path_of(key), b"2").json["revision"]
    for since in (0, first, second - 1):
        got = session.get(path_of(key) + f"?wait=10m&since={since}")
        assert (got.status, got.body) == (200, b"2")
    assert session.get(path_of(key) + f"?wait=10m&since={first}&format=json").json["value"] == "2"


def test_without_a_change_the_answer_is_304(session: Session, key: str) -> None:
    revision = session.put(path_of(key), b"1").json["revision"]
    session.put(path_of("elsewhere"), b"x")
    answer = session.get(path_of(key) + f"?wait=100ms&since={revision}")
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["etag"] == f'"{revision}"'
    assert session.get(path_of(key) + f"?wait=0&since={revision}").status == 304


def test_a_deletion_while_waiting_is_answered(session: Session, poll: Poll, key: str) -> None:
    revision = session.put(path_of(key), b"1").json["revision"]
    waiting = poll(path_of(key) + f"?wait=10m&since={revision}")
    deleted = session.delete(path_of(key)).json["revision"]
    answer = waiting.result(30)
    assert assert_problem(answer, "not_found")["revision"] == deleted
    assert answer.headers["x-kvstore-revision"] == str(deleted)


def test_an_expiry_while_waiting_is_answered(session: Session, key: str) -> None:
    revision = session.put(path_of(key) + "?ttl=500ms", b"1").json["revision"]
    assert_problem(session.get(path_of(key) + f"?wait=10m&since={revision}"), "not_found")


def test_a_key_known_as_missing_stays_unchanged(session: Session, key: str) -> None:
    assert session.get(path_of(key) + "?wait=50ms&since=0").status == 304
    session.put(path_of(key), b"1")
    deleted = session.delete(path_of(key)).json["revision"]
    for since in (0, deleted):
        answer = session.get(path_of(key) + f"?wait=50ms&since={since}")
        assert answer.status == 304
        assert answer.headers["x-kvstore-revision"] == str(since)


def test_a_deletion_that_was_already_made_is_answered_at_once(session: Session, key: str) -> None:
    revision = session.put(path_of(key), b"1").json["revision"]
    deleted = session.delete(path_of(key)).json["revision"]
    problem = assert_problem(session.get(path_of(key) + f"?wait=10m&since={revision}"), "not_found")
    assert problem["revision"] == deleted


def test_following_the_revisions_of_the_answers_misses_no_state(
    session: Session, poll: Poll, key: str
) -> None:
    """A poll loop beside a writer that waits for it sees every state, the missing ones too."""
    since, seen = "0", []
    changes: list[Callable[[], Answer]] = [
        lambda: session.put(path_of(key), b"1"),
        lambda: session.put(path_of(key), b"2"),
        lambda: session.delete(path_of(key)),
        lambda: session.put(path_of(key), b"3"),
    ]
    for change in changes:
        waiting = poll(path_of(key) + f"?wait=10m&since={since}")
        change()
        answer = waiting.result(30)
        seen.append(answer.body if answer.status == 200 else None)
        since = answer.headers["x-kvstore-revision"]
    assert seen == [b"1", b"2", None, b"3"]


def test_without_since_the_next_change_counts(session: Session, poll: Poll, key: str) -> None:
    session.put(path_of(key), b"1")
    waiting = poll(path_of(key) + "?wait=10m")
    # again and again, since the poll may begin late
    wait_until(lambda: session.put(path_of(key)) and waiting.done(), what="the poll answers")
    assert waiting.result().status == 200


def test_without_since_the_answer_is_the_state_at_the_end(session: Session, key: str) -> None:
    assert_problem(session.get(path_of(key) + "?wait=50ms"), "not_found")
    session.put(path_of(key), b"1")
    assert session.get(path_of(key) + "?wait=50ms").body == b"1"


def test_a_revision_of_another_store_is_answered_at_once(session: Session, key: str) -> None:
    head = session.put(path_of(key), b"1").json["revision"]
    epoch = session.get("/v1/status").json["epoch"]
    assert session.get(path_of(key) + f"?wait=10m&since={head + 1000}").status == 200
    assert session.get(path_of(key) + f"?wait=10m&since={head}-0123456789abcdef").status == 200
    assert session.get(path_of(key) + f"?wait=10ms&since={head}-{epoch}").status == 304


@pytest.mark.parametrize(
    "query",
    [
        "wait=x",
        "wait=-1s",
        "wait=601s",
        "wait=1s&since=x",
        "since=1",
        "wait=1s&revision=1",
        "wait=1s&since=-1",
    ],
)
def test_what_is_no_wait_is_refused(session: Session, key: str, query: str) -> None:
    session.put(path_of(key), b"1")
    code = "invalid_cursor" if query.endswith(("since=-1", "since=x")) else "bad_request"
    assert_problem(session.get(path_of(key) + f"?{query}"), code)


def test_many_may_wait_for_one_key(session: Session, poll: Poll, key: str) -> None:
    waiting = [poll(path_of(key) + "?wait=10m&since=0") for _ in range(8)]
    session.put(path_of(key), b"1")
    assert [one.result(30).body for one in waiting] == [b"1"] * 8


def test_a_stopping_service_ends_the_waits(service: Service, key: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_get, service.url, path_of(key) + "?wait=10m&since=0")
        # a second poll, which is answered, comes after the first on its way through the service
        _get(service.url, path_of(key) + "?wait=50ms&since=0")
        service.facade.stop()
        assert waiting.result(30).status == 304
