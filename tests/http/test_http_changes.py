"""The changes in pages: /v1/changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from support.metrics import scrape
from support.servers import Daemon, Facade, Service, wait_until
from support.session import Answer, Session, assert_problem, connect, path_of
from support.streams import open_stream

Poll = Callable[..., "Future[Answer]"]
NDJSON = "application/x-ndjson"


def address(**parameters: Any) -> str:
    """Lists are repeated parameters."""
    return "/v1/changes?" + urlencode(parameters, doseq=True)


def changes(session: Session, **parameters: Any) -> dict[str, Any]:
    answer = session.get(address(**parameters))
    assert answer.status == 200, answer
    page: dict[str, Any] = answer.json
    return page


def get(url: str, target: str) -> Answer:
    with closing(Session(url)) as session:
        return session.get(target)


@pytest.fixture
def poll(shared_service: Service) -> Iterator[Poll]:
    """Asks for changes beside the test."""
    with ThreadPoolExecutor(8) as pool:
        yield lambda **parameters: pool.submit(get, shared_service.url, address(**parameters))


def put(session: Session, key: str, value: str = "v") -> int:
    revision: int = session.put(path_of(key), value.encode(), content_type="text/plain").json["revision"]
    return revision


def shown(page: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [(event["op"], event["key"], event["revision"]) for event in page["events"]]


def test_page_after_page_is_every_change_once_and_in_whole_revisions(session: Session, key: str) -> None:
    begin = changes(session)["cursor"]
    expected = []
    for number in range(6):
        expected.append(("put", f"{key}/{number}", put(session, f"{key}/{number}")))
        together = [{"op": "put", "key": f"{key}/{number}/{part}", "value": "x"} for part in range(3)]
        revision = session.batch(*together, atomic=True).json["results"][0]["revision"]
        expected += [("put", op["key"], revision) for op in together]
    expected.append(("delete", f"{key}/0", session.delete(path_of(f"{key}/0")).json["revision"]))
    for limit in (1, 2, 3, 5, 1000):
        cursor, found, more = begin, [], True
        while more:
            page = changes(session, since=cursor, limit=limit)
            assert len({event["revision"] for event in page["events"]}) <= limit
            assert all(event["index"] < event["count"] for event in page["events"])
            if page["events"]:
                last = page["events"][-1]
                assert last["index"] == last["count"] - 1, "a page ends with a revision"
            found += shown(page)
            cursor, more = page["cursor"], page["more"]
        assert found == expected, limit
        assert int(cursor.partition("-")[0]) == page["head"]


def test_a_page_has_what_the_query_asks_for(session: Session, key: str) -> None:
    begin = changes(session)["cursor"]
    put(session, f"{key}/a/1", "1")
    put(session, f"{key}/b/1")
    put(session, f"{key}/c")
    put(session, f"{key}/a/1", "2")
    session.delete(path_of(f"{key}/c"))

    def keys(**parameters: Any) -> list[str]:
        found = changes(session, since=begin, **parameters)["events"]
        return [event["op"] + event["key"].removeprefix(key) for event in found]

    assert keys(prefix=f"{key}/a/") == ["put/a/1", "put/a/1"]
    assert keys(prefix=[f"{key}/a/", f"{key}/b/"]) == ["put/a/1", "put/b/1", "put/a/1"]
    assert keys(prefix=f"{key}/b/", key=f"{key}/c") == ["put/b/1", "put/c", "delete/c"]
    assert keys(key=[f"{key}/c", f"{key}/nothing"], ops="delete,expire") == ["delete/c"]
    page = changes(session, since=begin, key=f"{key}/a/1", values=0)
    assert not any("value" in event for event in page["events"])
    page = changes(session, since=begin, key=f"{key}/a/1", prev=1)
    assert [event.get("previous", {}).get("value") for event in page["events"]] == [None, "1"]
    assert [event["value"] for event in page["events"]] == ["1", "2"]


def test_a_value_that_is_json_can_be_inline(session: Session, key: str) -> None:
    begin = changes(session)["cursor"]
    session.put(path_of(key), b'{"n": 1}', content_type="application/json")
    assert changes(session, since=begin, json=1)["events"][0]["value_json"] == {"n": 1}


def test_as_lines_the_last_one_says_where_the_next_page_begins(session: Session, key: str) -> None:
    begin = changes(session)["cursor"]
    for number in range(3):
        put(session, f"{key}{number}")
    answer = session.get(address(since=begin, limit=2), accept=NDJSON)
    assert answer.headers["content-type"] == NDJSON
    *events, end = map(json.loads, answer.body.splitlines())
    page = changes(session, since=begin, limit=2)
    assert events == page.pop("events")
    assert end == page
    assert end["more"] is True


def moment_after_now() -> str:
    """A time between what was committed and what will be, as a date: times of commits have whole
    milliseconds."""
    now = datetime.now(UTC)
    wait_until(lambda: datetime.now(UTC) > now + timedelta(milliseconds=5))
    return (now + timedelta(milliseconds=2)).isoformat(timespec="milliseconds")


def test_without_since_the_page_is_empty_and_its_cursor_is_now(session: Session, key: str) -> None:
    revision = put(session, key)
    page = changes(session, prefix=key)
    assert page["events"] == []
    assert not page["more"]
    assert int(page["cursor"].partition("-")[0]) >= revision
    later = put(session, key)
    assert shown(changes(session, since=page["cursor"], prefix=key)) == [("put", key, later)]


def test_a_page_may_begin_at_a_revision_or_a_time(session: Session, key: str) -> None:
    first = put(session, key)
    assert shown(changes(session, since=first - 1, key=key)) == [("put", key, first)]
    assert shown(changes(session, since=0, key=key)) == [("put", key, first)]
    assert ("put", key, first) in shown(changes(session, since="1h-ago", key=key))
    between = moment_after_now()
    second = put(session, key)
    assert shown(changes(session, since=between, key=key)) == [("put", key, second)]
    assert shown(changes(session, since="2999-01-01T00:00:00Z", key=key)) == []


def test_a_cursor_that_is_too_old_is_refused_with_the_floor(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], key: str
) -> None:
    daemon = start_daemon(retain_events=10)
    with closing(Session(start_facade(daemon).url)) as session:
        begin = changes(session)["cursor"]
        put(session, key)

        def floor() -> int:
            put(session, "elsewhere")
            found: int = session.get("/v1/status").json["floor"]
            return found

        wait_until(floor, what="the log is trimmed")
        for since in (0, begin, "1h-ago", "2020-01-01T00:00:00Z"):
            for more in ({}, {"wait": "10m"}):
                problem = assert_problem(session.get(address(since=since, **more)), "cursor_expired")
                assert problem["floor"] > 0
                assert problem["reason"] == "expired"
        page = changes(session, since=problem["floor"])
        assert page["floor"] == problem["floor"]
        # a stream begins again there instead
        stream = session.request("HEAD", "/v1/subscribe?since=1h-ago")
        assert stream.status == 200


def test_a_cursor_of_another_history_is_refused(session: Session, key: str) -> None:
    head = put(session, key)
    for since in (f"{head}-0123456789abcdef", head + 1000):
        assert assert_problem(session.get(address(since=since)), "cursor_expired")["reason"] == "epoch"


def test_a_wait_is_answered_by_the_first_change_below_a_prefix(
    session: Session, poll: Poll, key: str
) -> None:
    begin = changes(session)["cursor"]
    waiting = poll(since=begin, prefix=[f"{key}/a/", f"{key}/b/"], key=f"{key}/k", wait="10m")
    put(session, f"{key}/c/1")
    put(session, f"{key}/k2")
    assert not waiting.done()
    revision = put(session, f"{key}/b/1")
    answer = waiting.result(60)
    assert shown(answer.json) == [("put", f"{key}/b/1", revision)]


def test_a_wait_for_everything_or_for_some_ops(session: Session, poll: Poll, key: str) -> None:
    put(session, key)
    begin = changes(session)["cursor"]
    anything, deletes = poll(since=begin, wait="10m"), poll(since=begin, prefix=key, ops="delete", wait="10m")
    revision = put(session, key)
    assert shown(anything.result(60).json) == [("put", key, revision)]
    deleted = session.delete(path_of(key)).json["revision"]
    assert shown(deletes.result(60).json) == [("delete", key, deleted)]


def test_a_wait_that_ends_without_a_change_moves_the_cursor(session: Session, poll: Poll, key: str) -> None:
    begin = changes(session)["cursor"]
    last = put(session, "elsewhere")
    answer = session.get(address(since=begin, prefix=key, wait="50ms"))
    assert (answer.status, answer.json["events"], answer.json["more"]) == (200, [], False)
    assert int(answer.json["cursor"].partition("-")[0]) >= last


def test_what_is_there_already_is_not_waited_for(session: Session, key: str) -> None:
    begin = changes(session)["cursor"]
    revision = put(session, key)
    assert shown(changes(session, since=begin, prefix=key, wait="10m")) == [("put", key, revision)]


def test_waits_one_after_the_other_miss_nothing_beside_a_writer(
    session: Session, poll: Poll, key: str
) -> None:
    cursor, found, written = changes(session)["cursor"], [], []
    for number in range(40):
        waiting = poll(since=cursor, prefix=f"{key}/", wait="10m", limit=3)
        written += [put(session, f"{key}/{number}/{part}") for part in range(number % 4 + 1)]
        page = waiting.result(60).json
        found += [event["revision"] for event in page["events"]]
        cursor = page["cursor"]
    while found[-1] < written[-1]:
        page = changes(session, since=cursor, prefix=f"{key}/")
        found += [event["revision"] for event in page["events"]]
        cursor = page["cursor"]
    assert found == written


def test_a_wait_goes_on_while_the_daemon_is_killed_and_comes_back(service: Service, key: str) -> None:
    with ThreadPoolExecutor(1) as pool, closing(Session(service.url)) as session:
        begin = changes(session)["cursor"]
        waiting = pool.submit(get, service.url, address(since=begin, prefix=key, wait="10m"))
        get(service.url, address(since=begin, wait="50ms"))  # comes behind it
        service.daemon.kill()
        service.daemon.start()
        wait_until(lambda: session.get("/readyz").status == 200, what="the facade has found the daemon")
        revision = put(session, key)
        assert shown(waiting.result(60).json) == [("put", key, revision)]


def test_a_stopping_service_answers_those_who_wait(service: Service, key: str) -> None:
    with ThreadPoolExecutor(1) as pool, closing(Session(service.url)) as session:
        begin = changes(session)["cursor"]
        waiting = pool.submit(get, service.url, address(since=begin, wait="10m"))
        get(service.url, address(since=begin, wait="50ms"))
        service.facade.stop()
        page = waiting.result(60).json
        assert (page["events"], page["cursor"]) == ([], begin)


def test_a_client_that_leaves_is_not_waited_for(shared_service: Service, key: str) -> None:
    def connections() -> int:
        return int(scrape(shared_service.url).value("kvstore_http_connections"))

    before = connections()
    sock = connect(shared_service.url)
    sock.sendall(f"GET {address(prefix=key, wait='10m')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    wait_until(lambda: connections() == before + 1, what="it is there")
    sock.close()
    wait_until(lambda: connections() == before, what="it is gone")


# ── caches ───────────────────────────────────────────────────────────────────────────────────────


def test_a_full_page_after_a_cursor_may_be_kept_and_stays_as_it_is(session: Session, key: str) -> None:
    begin = changes(session)["cursor"]
    for _ in range(3):
        put(session, key)
    full = session.get(address(since=begin, limit=2, cache="1d"))
    assert full.headers["cache-control"] == "max-age=86400, immutable"
    assert full.headers["vary"] == "Accept"
    assert full.json.keys() == {"events", "cursor", "more"}, "what changes is not in it"
    put(session, key)
    again = session.get(address(since=begin, limit=2, cache="1d"))
    assert (again.body, again.headers["etag"]) == (full.body, full.headers["etag"])
    known = session.get(
        address(since=begin, limit=2, cache="1d"), if_none_match=f'"x", W/{full.headers["etag"]}'
    )
    assert (known.status, known.body) == (304, b"")
    assert known.headers["etag"] == full.headers["etag"]


def test_what_may_still_change_is_asked_for_again(session: Session, key: str) -> None:
    begin = changes(session)["cursor"]
    revision = int(begin.partition("-")[0])
    for _ in range(3):
        put(session, key)
    for parameters in (
        {"since": begin, "cache": "1d"},  # the last page
        {"since": begin, "limit": 2},
        {"since": revision, "limit": 2, "cache": "1d"},  # in a restored store that is another one
        {"since": "1h-ago", "limit": 1, "cache": "1d"},
        {"cache": "1d"},
    ):
        answer = session.get(address(**parameters))
        assert answer.headers["cache-control"] == "no-cache", parameters
        assert {"floor", "head"} <= answer.json.keys()
    idle = session.get(address(since=begin))
    assert session.get(address(since=begin), if_none_match=idle.headers["etag"]).status == 304
    put(session, key)
    assert session.get(address(since=begin), if_none_match=idle.headers["etag"]).status == 200


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("since=x", "invalid_cursor"),
        ("since=-1", "invalid_cursor"),
        ("since=", "invalid_cursor"),
        ("since=1-ABCDEF0123456789", "invalid_cursor"),
        ("since=10x-ago", "bad_request"),
        ("since=-ago", "bad_request"),
        ("since=2026-13-01T00:00:00Z", "bad_request"),
        ("since=2026-01-01T00:00:00", "bad_request"),
        ("limit=0", "bad_request"),
        ("limit=1001", "bad_request"),
        ("wait=601s", "bad_request"),
        ("wait=x", "bad_request"),
        ("ops=put,get", "bad_request"),
        ("key=", "invalid_key"),
        ("key=%00", "invalid_key"),
        ("prefix=" + "x" * 512, "bad_request"),
        ("cache=0", "bad_request"),
        ("cache=400d", "bad_request"),
        ("values=2", "bad_request"),
        ("snapshot=1", "bad_request"),
        ("since=1&since=2", "bad_request"),
    ],
)
def test_what_is_no_page_is_refused(session: Session, query: str, code: str) -> None:
    assert_problem(session.get(f"/v1/changes?{query}"), code)


def test_what_streams_begin_at_is_the_same(session: Session, shared_service: Service, key: str) -> None:
    revision = put(session, key)
    between = moment_after_now()
    later = put(session, key)
    for since, expected in (("1h-ago", revision), (between, later)):
        with closing(open_stream(shared_service.url, urlencode({"since": since, "key": key}))) as stream:
            assert stream.first().json["revision"] == expected
    for wrong in ("10x-ago", "2026-13-01T00:00:00Z"):
        assert_problem(session.get(f"/v1/subscribe?since={wrong}"), "bad_request")
        assert_problem(session.post("/v1/subscribe", {"since": wrong}), "bad_request")
    assert session.request("HEAD", "/v1/subscribe?since=10m-ago").status == 200
