"""Waiting until a key fulfils a condition: ?wait= and ?until=."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pytest

from kvstore_client import Client, commands
from support.metrics import scrape
from support.servers import Daemon, Facade, Service, wait_until
from support.session import Answer, Session, assert_problem, connect, path_of

Until = Callable[..., "Future[Answer]"]


def target(key: str, until: str, wait: str = "10m", since: object = None) -> str:
    """The address at which one waits."""
    begin = "" if since is None else f"&since={since}"
    return f"{path_of(key)}?wait={wait}&until={quote(until)}{begin}"


def get(url: str, address: str) -> Answer:
    with closing(Session(url)) as session:
        return session.get(address)


@pytest.fixture
def until(shared_service: Service) -> Iterator[Until]:
    """Sends a GET that waits, beside the test."""
    with ThreadPoolExecutor(8) as pool:
        yield lambda *args, **named: pool.submit(get, shared_service.url, target(*args, **named))


def put_both(session: Session, key: str, *values: str) -> int:
    """Store one value after the other in one commit, so that nobody can ever read but the last; returns the
    revision of the first."""
    answer = session.batch(*({"op": "put", "key": key, "value": value} for value in values))
    revision: int = answer.json["results"][0]["revision"]
    return revision


def test_what_holds_already_is_answered_at_once(session: Session, key: str) -> None:
    put = session.put(path_of(key), b'{"state": "done", "n": 2}', content_type="application/json")
    for condition in (
        "exists",
        '/state == "done"',
        "/n>=2",
        "/other gone",
        'equals {"state": "done", "n": 2}',
    ):
        answer = session.get(target(key, condition))
        assert (answer.status, answer.headers["etag"]) == (200, put.headers["etag"]), condition
        assert answer.json["n"] == 2
    assert session.get(target(key, "exists") + "&format=json").json["revision"] == put.json["revision"]


def test_it_is_answered_when_it_holds(session: Session, until: Until, key: str) -> None:
    session.put(path_of(key), b"1")
    waiting = until(key, "== 3")
    session.put(path_of(key), b"2")
    assert not waiting.done()
    session.put(path_of(key), b"3.0")
    answer = waiting.result(60)
    assert (answer.status, answer.body) == (200, b"3.0")


def test_that_there_is_no_key_is_answered_without_an_error(session: Session, until: Until, key: str) -> None:
    missing = session.get(target(key, "gone"))
    assert (missing.status, missing.body) == (204, b"")
    revision = session.put(path_of(key), b"{}").json["revision"]
    waiting = [until(key, condition, since=revision) for condition in ("gone", "/a/b gone")]
    assert waiting[1].result(60).status == 200  # there is no b
    deleted = session.delete(path_of(key)).json["revision"]
    answer = waiting[0].result(60)
    assert (answer.status, answer.headers["x-kvstore-revision"]) == (204, str(deleted))


def test_a_value_that_nobody_can_read_any_more_is_found(session: Session, until: Until, key: str) -> None:
    begun = session.put(path_of(key), b"0").json["revision"]
    waiting = until(key, "equals hit", since=begun)
    session.put(path_of(key), b"1")
    hit = put_both(session, key, "hit", "miss")
    for answer in (waiting.result(60), session.get(target(key, "equals hit", since=begun))):
        assert (answer.status, answer.body) == (200, b"hit")
        assert answer.headers["x-kvstore-revision"] == str(hit)


def test_where_a_wait_ended_the_next_goes_on(session: Session, key: str) -> None:
    session.put(path_of(key), b"0")
    ended = session.get(target(key, "equals hit", wait="50ms"))
    problem = assert_problem(ended, "timed_out")
    assert ended.headers["x-kvstore-revision"] == str(problem["revision"])
    put_both(session, key, "hit", "miss")
    assert_problem(session.get(target(key, "equals hit", wait="0")), "timed_out")
    assert session.get(target(key, "equals hit", since=problem["revision"])).body == b"hit"


def test_a_wait_that_ended_says_how_far_it_has_seen_of_other_keys(
    session: Session, until: Until, key: str
) -> None:
    waiting = until(key, "exists", wait="1s")
    last = 0
    while not waiting.done():
        before, last = last, session.put(path_of("elsewhere"), b"x").json["revision"]
    assert assert_problem(waiting.result(), "timed_out")["revision"] >= before - 100


def test_since_says_of_what_the_changes_are_looked_at(session: Session, key: str) -> None:
    first = session.put(path_of(key), b"a").json["revision"]
    second = session.put(path_of(key), b"b").json["revision"]
    session.delete(path_of(key))
    third = session.put(path_of(key), b"c").json["revision"]
    assert session.get(target(key, "exists", since=first)).headers["etag"] == f'"{second}"'
    assert session.get(target(key, "gone", since=first)).status == 204
    assert_problem(session.get(target(key, "equals a", since=first, wait="50ms")), "timed_out")
    assert session.get(target(key, "equals a", since=first - 1)).body == b"a"
    # nothing has happened to it since: it is as it is
    assert session.get(target(key, "equals c", since=third)).body == b"c"
    other = session.put(path_of("elsewhere"), b"x").json["revision"]
    assert session.get(target(key, "equals c", since=other)).body == b"c"


def test_a_since_of_another_history_begins_with_the_state_now(session: Session, key: str) -> None:
    head = session.put(path_of(key), b"1").json["revision"]
    for since in (f"{head}-0123456789abcdef", head + 1000):
        assert session.get(target(key, "equals 1", since=since)).body == b"1"
        assert_problem(session.get(target(key, "equals 2", since=since, wait="50ms")), "timed_out")


def test_a_large_value_is_looked_into(session: Session, until: Until, key: str) -> None:
    waiting = until(key, "/99999 == 7")
    others: list[Any] = [{"n": number} for number in range(60_000)]
    session.put(path_of(key), json.dumps([*others, *[0] * 39_999, 6]).encode())
    session.put(path_of(key), json.dumps([*others, *[0] * 39_999, 7]).encode())
    answer = waiting.result(60)
    assert answer.json[-1] == 7


@pytest.mark.parametrize(
    "query",
    [
        "until=exists",
        "wait=1s&until=",
        "wait=1s&until=exist",
        "wait=1s&until=/a",
        "wait=1s&until=/a+%3d%3d+b",
        "wait=1s&until=a+%3d%3d+1",
        "wait=1s&until=/~+exists",
        "wait=1s&until=exists&revision=1",
        "wait=1s&until=exists&until=gone",
        "wait=601s&until=exists",
        "wait=1s&until=equals+" + "x" * 4096,
    ],
)
def test_what_is_no_condition_is_refused(session: Session, key: str, query: str) -> None:
    for address in (f"{path_of(key)}?{query}", f"/v1/kv?key={key}&{query}"):
        assert_problem(session.get(address), "bad_request")


def test_a_client_that_leaves_is_not_waited_for(shared_service: Service, key: str) -> None:
    def connections() -> int:
        return int(scrape(shared_service.url).value("kvstore_http_connections"))

    before = connections()
    addresses = (target(key, "exists"), f"{path_of(key)}?wait=10m&since=0")
    leaving = [connect(shared_service.url) for _ in addresses]
    for sock, address in zip(leaving, addresses, strict=True):
        sock.sendall(f"GET {address} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    wait_until(lambda: connections() == before + 2, what="both are there")
    for sock in leaving:
        sock.close()
    wait_until(lambda: connections() == before, what="both are gone")


# ── with faults ──────────────────────────────────────────────────────────────────────────────────


def follow_targets(url: str, key: str, seed: int, last: int) -> list[int]:
    """Wait for one number after the other, each from where the last was; returns their revisions."""
    chance = random.Random(seed)
    number, since, revisions = 0, "0", []
    with closing(Session(url)) as session:
        while number < last:
            number = min(last, number + chance.randint(1, 200))
            answer = session.get(target(key, f"/n == {number}", since=since))
            assert (answer.status, answer.json) == (200, {"n": number}), f"seed {seed}"
            since = answer.headers["x-kvstore-revision"]
            revisions.append(int(since))
    return revisions


def test_no_moment_is_missed_while_the_facade_and_the_daemon_are_paused(service: Service, key: str) -> None:
    """3,000 states of the key, of which few can ever be read: the others are gone in the same commit."""
    last, seeds = 3000, [random.SystemRandom().randrange(2**32) for _ in range(6)]
    with ThreadPoolExecutor(8) as pool, Client(service.requests) as writer:
        waiting = [pool.submit(follow_targets, service.url, key, seed, last) for seed in seeds]
        for begin in range(1, last + 1, 20):
            numbers = range(begin, begin + 20)
            writer.batch([commands.put(key, json.dumps({"n": number})) for number in numbers])
            if begin % 200 == 1:  # the facade stands still for 100 states, the daemon for a moment
                service.facade.signal(signal.SIGSTOP)
            if begin % 200 == 101:
                service.facade.signal(signal.SIGCONT)
                with service.daemon.paused():
                    time.sleep(0.05)  # this is the fault
        for found in waiting:
            revisions = found.result(120)
            assert revisions == sorted(set(revisions))


def test_a_wait_goes_on_while_the_daemon_is_killed_and_comes_back(service: Service, key: str) -> None:
    with ThreadPoolExecutor(2) as pool, closing(Session(service.url)) as session:
        session.put(path_of(key), b"0")
        waiting = [pool.submit(get, service.url, target(key, "equals hit")) for _ in range(2)]
        # another one, which is answered, comes behind those on its way through the service
        get(service.url, target(key, "exists"))
        service.daemon.kill()
        service.daemon.start()
        wait_until(lambda: session.get("/readyz").status == 200, what="the facade has found the daemon")
        hit = put_both(session, key, "hit", "miss")
        for answer in waiting:
            assert answer.result(60).headers["x-kvstore-revision"] == str(hit)


def test_where_the_log_was_trimmed_the_state_counts(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], key: str
) -> None:
    daemon = start_daemon(retain_events=10)
    with closing(Session(start_facade(daemon).url)) as session:
        first = session.put(path_of(key), b"old").json["revision"]
        session.put(path_of(key), b"new")

        def is_trimmed() -> bool:
            session.put(path_of("elsewhere"), b"x")
            return bool(session.get("/v1/status").json["floor"] > first)

        wait_until(is_trimmed, what="the log is trimmed")
        assert session.get(target(key, "equals new", since=first)).body == b"new"
        problem = assert_problem(
            session.get(target(key, "equals old", since=first, wait="50ms")), "timed_out"
        )
        assert problem["revision"] > first


def test_a_stopping_service_says_from_where_to_ask_again(service: Service, key: str) -> None:
    with ThreadPoolExecutor(1) as pool, closing(Session(service.url)) as session:
        revision = session.put(path_of(key), b"0").json["revision"]
        waiting = pool.submit(get, service.url, target(key, "equals hit"))
        get(service.url, target(key, "equals hit", wait="50ms"))
        service.facade.stop()
        assert assert_problem(waiting.result(60), "unavailable")["revision"] >= revision
