"""``?stale=1``, and what becomes of reads while the daemon cannot hear what others have written. The engine
is LMDB's, which the test lets lag."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from kvstore_core.media_types import NDJSON
from kvstore_http import routes
from kvstore_http.protocol.query_params import AGE_HEADER, STALE
from support.lagging import NO_QUORUM, LaggingDaemon
from support.servers import Service, wait_until
from support.session import Answer, Session, assert_problem, path_of
from support.streams import open_stream

AGE = 4321


@pytest.fixture(scope="module")
def shared_daemon(_shared_starter: Any) -> LaggingDaemon:
    daemon: LaggingDaemon = _shared_starter.start(LaggingDaemon, {}, None)
    return daemon


@pytest.fixture(autouse=True)
def daemon(shared_daemon: LaggingDaemon) -> Iterator[LaggingDaemon]:
    """The daemon, whose reads are current again after the test."""
    shared_daemon.order("age", AGE)
    yield shared_daemon
    shared_daemon.order("catch_up", "current")


Begin = Callable[..., "Future[Answer]"]


@pytest.fixture
def begin(shared_service: Service) -> Iterator[Begin]:
    """``begin("GET", "/v1/kv/k")``: a request that may take long, beside the test."""

    def request(*arguments: Any) -> Answer:
        with closing(Session(shared_service.url)) as session:
            return session.request(*arguments)

    with ThreadPoolExecutor(8) as pool:
        yield lambda *arguments: pool.submit(request, *arguments)


def with_stale(target: str) -> str:
    return target + ("&" if "?" in target else "?") + "stale=1"


READS: dict[str, tuple[str, dict[str, str]]] = {
    "a value": ("/v1/kv/{key}", {}),
    "a record": ("/v1/kv/{key}?format=json", {}),
    "by query": ("/v1/kv?key={key}", {}),
    "a part": ("/v1/kv/{key}", {"Range": "bytes=0-0"}),
    "unmodified": ("/v1/kv/{key}", {"If-None-Match": '"{revision}"'}),
    "missing": ("/v1/kv/{key}.not", {}),
    "the past": ("/v1/kv/{key}?revision={revision}", {}),
    "not in the past": ("/v1/kv/{key}.not?revision={revision}", {}),
    "no wait": ("/v1/kv/{key}?wait=0&since={revision}", {}),
    "news": ("/v1/kv/{key}?wait=1m&since={before}", {}),
    "a list": ("/v1/kv?prefix={key}", {}),
    "lines": ("/v1/kv?prefix={key}", {"Accept": NDJSON}),
    "a count": ("/v1/kv?prefix={key}&count=1", {}),
    "a level": ("/v1/kv?prefix={key}&delimiter=/&counts=1&reverse=1", {}),
    "no older": ("/v1/kv/{key}?min_revision={revision}", {}),
    "history": ("/v1/history/{key}", {}),
    "no history": ("/v1/history/{key}.not", {}),
    "history by query": ("/v1/history?key={key}", {}),
    "recent": ("/v1/history?prefix={key}", {}),
    "changes": ("/v1/changes?since={before}&key={key}", {}),
    "conditions": ("/v1/kv/{key}?wait=1m&until=exists", {}),
    "changes of a condition": ("/v1/kv/{key}?wait=1m&until=exists&since={before}", {}),
    "a digest": ("/v1/digest?prefix={key}", {}),
    "the digest of all": ("/v1/digest", {}),
    "text": ("/?key={key}", {}),
    "all": ("/all", {}),
}


@pytest.mark.parametrize("name", READS)
def test_each_read_has_a_stale_form_that_waits_for_nothing(
    daemon: LaggingDaemon, session: Session, key: str, name: str
) -> None:
    revision = session.put(path_of(key), b"value").json["revision"]
    names = {"key": key, "revision": revision, "before": revision - 1}
    target = READS[name][0].format(**names)
    headers = {header: text.format(**names) for header, text in READS[name][1].items()}
    current = session.request("GET", target, None, headers)
    assert AGE_HEADER not in current.headers
    daemon.order("catch_up", "hold")
    stale = session.request("GET", with_stale(target), None, headers)
    assert (stale.status, stale.headers[AGE_HEADER]) == (current.status, str(AGE))
    if stale.status != 404:
        assert stale.body == current.body
    head = session.request("HEAD", with_stale(target), None, headers)
    whole = 200 if current.status == 206 else current.status  # RFC 9110 section 14.2: a range is GET's alone
    assert (head.status, head.headers[AGE_HEADER]) == (whole, str(AGE))
    assert daemon.order("held") == 0
    daemon.order("catch_up", "fail")
    refused = session.request("GET", target, None, headers)
    problem = assert_problem(refused, "unavailable")
    assert NO_QUORUM in problem["detail"]
    assert "stale" in problem["detail"]
    assert refused.headers["retry-after"] == "1"
    assert AGE_HEADER not in refused.headers


def test_each_route_that_reads_keys_has_it() -> None:
    of_keys = {
        "/v1/kv",
        "/v1/kv/{key}",
        "/v1/history",
        "/v1/history/{key}",
        "/v1/changes",
        "/v1/digest",
        "/v1/batch",
        "/",
        "/all",
    }
    endpoints = [row for row in routes.ENDPOINTS if row.method == "GET" or row.path == "/v1/batch"]
    assert {row.path for row in endpoints if STALE.name in row.query} == of_keys
    others = {row.path for row in endpoints if row.needs == "by_ops"} - of_keys
    assert others == {"/v1/subscribe"}, "which is of what the daemon has in any case"


def test_a_batch_reads_stale_too(daemon: LaggingDaemon, session: Session, key: str) -> None:
    daemon.order("catch_up", "fail")
    ops = [{"op": "put", "key": key, "value": "1"}, {"op": "get", "key": key}]
    refused = session.post("/v1/batch", {"ops": ops[1:]})
    assert_problem(refused, "unavailable")
    written, read = session.post("/v1/batch", {"ops": ops}).json["results"]
    assert written["status"] == 201
    assert (read["status"], read["error"]["code"]) == (503, "unavailable")
    answer = session.post("/v1/batch?stale=1", {"ops": ops})
    assert [result["status"] for result in answer.json["results"]] == [200, 200]
    assert answer.headers[AGE_HEADER] == str(AGE)
    own = session.post("/v1/batch", {"ops": [{"op": "get", "key": key, "stale": True}]})
    assert own.headers[AGE_HEADER] == str(AGE)


def test_a_read_waits_for_what_others_wrote_and_stale_ones_pass_it(
    daemon: LaggingDaemon, session: Session, key: str, begin: Begin
) -> None:
    session.put(path_of(key), b"old")
    daemon.order("catch_up", "hold")
    waiting = [begin("GET", path_of(key)) for _ in range(3)]
    wait_until(lambda: daemon.order("held"))
    session.put(path_of(key), b"new")
    assert session.get(path_of(key) + "?stale=1").body == b"new"
    assert session.get(path_of(key) + "?stale=0&format=raw&stale=1").status == 400
    assert not any(each.done() for each in waiting)
    daemon.order("catch_up", "current")
    assert [each.result().body for each in waiting] == [b"new"] * 3


def test_a_poll_goes_on_without_the_others(
    daemon: LaggingDaemon, session: Session, key: str, begin: Begin
) -> None:
    revision = session.put(path_of(key), b"old").json["revision"]
    daemon.order("catch_up", "fail")
    poll = begin("GET", f"{path_of(key)}?wait=1m&since={revision}&stale=1")
    session.put(path_of(key), b"new")
    answer = poll.result()
    assert (answer.status, answer.body) == (200, b"new")
    assert answer.headers[AGE_HEADER] == str(AGE)


@pytest.mark.parametrize("query", ["wait=1m&since={}", "revision={}"])
def test_what_another_daemon_said_is_not_contradicted_by_one_that_lags(
    daemon: LaggingDaemon, session: Session, key: str, begin: Begin, query: str
) -> None:
    """A revision that this daemon has not reached is waited for, though the read is stale."""
    revision = session.put(path_of(key), b"old").json["revision"]
    target = f"{path_of(key)}?{query.format(revision + 2)}&stale=1"
    daemon.order("catch_up", "fail")
    assert_problem(session.get(target), "unavailable")
    daemon.order("catch_up", "hold")
    waiting = begin("GET", target)
    wait_until(lambda: daemon.order("held"))
    session.put(path_of(key), b"newer")
    session.put(path_of(key), b"newest")
    if query.startswith("wait"):
        begun = begin("PUT", path_of(key), b"last")
        begun.result()
    daemon.order("catch_up", "current")
    answer = waiting.result()
    assert (answer.status, answer.body) == (200, b"last" if query.startswith("wait") else b"newest")


def test_streams_go_on_without_the_others(
    daemon: LaggingDaemon, session: Session, shared_service: Service, key: str
) -> None:
    revision = session.put(path_of(key), b"1").json["revision"]
    query = f"prefix={key}&snapshot=1"
    with closing(open_stream(shared_service.url, query)) as stream:
        assert stream.first().json["value"] == "1"
        daemon.order("catch_up", "fail")
        session.put(path_of(key), b"2")
        shown = (event for event in stream if '"value"' in event.data)
        assert next(shown).json["value"] == "2"
    for begun in (f"prefix={key}&since={revision}", query):
        with closing(open_stream(shared_service.url, begun)) as stream:
            assert stream.first().json["value"] == "2"
