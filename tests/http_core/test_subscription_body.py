"""A subscription in a body, by POST or QUERY: the stream that GET gives."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.errors import KvError
from kvstore_http.protocol.subscription_body import MEMBERS, read_subscription
from support.markdown import ROOT
from support.servers import Daemon, Facade, Service
from support.session import JSON_TYPE, Session, assert_problem, call
from support.streams import Stream, StreamEvent, open_stream

METHODS = ("POST", "QUERY")


@pytest.fixture
def session(shared_service: Service) -> Iterator[Session]:
    with closing(Session(shared_service.url)) as session:
        yield session


@pytest.fixture
def prefix() -> str:
    """Keys of one test in the store that tests share."""
    return f"{random.randrange(2**40):x}/"


@contextmanager
def asked(url: str, method: str, body: Any, **headers: str) -> Iterator[Stream]:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    with closing(connection):
        sent = {**JSON_TYPE, **{name.replace("_", "-"): text for name, text in headers.items()}}
        connection.request(method, "/v1/subscribe", json.dumps(body), sent)
        response = connection.getresponse()
        assert response.status == 200, (response.status, response.read())
        yield Stream(connection, response)


def through_sync(stream: Stream) -> list[StreamEvent]:
    events = []
    for event in stream:
        if event.name != "heartbeat":
            events.append(event)
        if event.name == "sync":
            return events
    raise AssertionError("the stream ended")


def put(url: str, key: str, value: str = "v") -> int:
    answer = call(url, "PUT", f"/v1/kv/{quote(key, safe='')}", value.encode(), {"Content-Type": "text/plain"})
    revision: int = answer.json["revision"]
    return revision


@pytest.mark.parametrize("method", METHODS)
def test_what_makes_an_address_too_long_goes_into_a_body(
    shared_service: Service, prefix: str, method: str
) -> None:
    url = shared_service.url
    names = [f"{prefix}{number:03}{'x' * 480}" for number in range(1000)]
    refused = call(url, "GET", "/v1/subscribe?" + "&".join(f"key={quote(name)}" for name in names))
    assert_problem(refused, "uri_too_long")
    put(url, names[999], "there")
    put(url, f"{prefix}other")
    with asked(
        url, method, {"keys": names, "prefixes": [name + "/" for name in names], "snapshot": True}
    ) as open_one:
        record, sync = through_sync(open_one)
        assert (record.json["key"], record.json["value"]) == (names[999], "there")
        revision = put(url, f"{names[3]}/below")
        put(url, f"{prefix}other")
        later = put(url, names[0])
        changes = (event for event in open_one if event.name != "heartbeat")
        assert [next(changes).json["revision"] for _ in range(2)] == [revision, later]
    with asked(url, method, {"keys": names, "since": sync.id}) as open_one:
        assert [event.json["revision"] for event in through_sync(open_one)[:-1]] == [later]


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("prefix={p}&snapshot=1", {"prefixes": ["{p}"], "snapshot": True}),
        ("prefix={p}&prefix=~&key={p}a&since=0", {"prefixes": ["{p}", "~"], "keys": ["{p}a"], "since": 0}),
        ("key={p}a&since=0&values=0", {"keys": ["{p}a"], "since": "0", "values": False}),
        (
            "prefix={p}&since=0&ops=delete,put&prev=1",
            {"prefixes": ["{p}"], "since": 0, "ops": ["delete", "put"], "prev": True},
        ),
        (
            "prefix={p}&snapshot=1&json=1",
            {"prefixes": ["{p}"], "snapshot": True, "json": True, "since": None},
        ),
        (
            "prefix={p}&since=0&values=1&prev=0&json=0",
            {"prefixes": ["{p}"], "since": 0, "values": True, "prev": False, "json": False},
        ),
    ],
)
def test_each_member_does_what_its_parameter_does(
    shared_service: Service, prefix: str, query: str, body: dict[str, Any]
) -> None:
    url = shared_service.url
    for key in ("a", "b", "a"):
        call(url, "PUT", f"/v1/kv/{quote(prefix + key, safe='')}", b'{"n": 1}', JSON_TYPE)
    call(url, "DELETE", f"/v1/kv/{quote(prefix + 'b', safe='')}")
    filled = json.loads(json.dumps(body).replace("{p}", prefix))
    with closing(open_stream(url, query.replace("{p}", quote(prefix)))) as by_address:
        expected = [event._replace(id=None) for event in through_sync(by_address)[:-1]]
    assert expected
    for method in METHODS:
        with asked(url, method, filled) as by_body:
            assert [event._replace(id=None) for event in through_sync(by_body)[:-1]] == expected


def test_the_page_shows_how_to_ask_with_curl(shared_service: Service) -> None:
    url = shared_service.url
    put(url, "motd", "hello")
    page = (ROOT / "docs/http.md").read_text().partition("### `POST /v1/subscribe`")[2]
    command = page.partition("```sh\n")[2].partition("```")[0].replace("localhost:5000", url)
    with subprocess.Popen(["sh", "-c", f"exec {command}"], stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        lines = [curl.stdout.readline() for _ in range(4)]
        curl.kill()
    assert lines[2] == b"event: put\n"
    assert b'"key":"motd"' in lines[3]


def test_last_event_id_counts_instead_of_since_and_lines_come_on_request(
    shared_service: Service, prefix: str
) -> None:
    url = shared_service.url
    first, second = put(url, f"{prefix}a"), put(url, f"{prefix}b")
    body = {"prefixes": [prefix], "since": 0}
    with asked(url, "POST", body, Last_Event_ID=str(first), Accept="application/x-ndjson") as lines:
        assert lines.response.headers["Content-Type"] == "application/x-ndjson"
        event = json.loads(lines.response.readline())
    assert (event["event"], event["revision"]) == ("put", second)


@pytest.mark.parametrize(
    ("body", "code", "parameter"),
    [
        ([], "bad_request", None),
        ("x", "bad_request", None),
        ({"prefix": "a"}, "bad_request", "prefix"),
        ({"lastEventId": "1"}, "bad_request", "lastEventId"),
        ({"prefixes": "a"}, "bad_request", "prefixes"),
        ({"prefixes": [1]}, "bad_request", "prefixes"),
        ({"prefixes": ["a"] * 1001}, "bad_request", "prefixes"),
        ({"keys": ["k"] * 1001}, "bad_request", "keys"),
        ({"prefixes": ["a" * 512]}, "bad_request", "prefix"),
        ({"prefixes": ["\0"]}, "bad_request", "prefix"),
        ({"keys": [""]}, "invalid_key", None),
        ({"keys": ["k" * 512]}, "invalid_key", None),
        ({"ops": "put"}, "bad_request", "ops"),
        ({"ops": []}, "bad_request", "ops"),
        ({"ops": ["put,delete"]}, "bad_request", "ops"),
        ({"ops": ["eat"]}, "bad_request", "ops"),
        ({"since": 1.5}, "bad_request", "since"),
        ({"since": True}, "bad_request", "since"),
        ({"since": -1}, "bad_request", "since"),
        ({"since": "nonsense"}, "invalid_cursor", None),
        ({"snapshot": 1}, "bad_request", "snapshot"),
        ({"values": None}, "bad_request", "values"),
        ({"json": "1"}, "bad_request", "json"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_a_body_that_cannot_be_is_refused(
    session: Session, method: str, body: Any, code: str, parameter: str | None
) -> None:
    answer = session.request(method, "/v1/subscribe", json.dumps(body).encode(), JSON_TYPE)
    problem = assert_problem(answer, code)
    if parameter is not None:
        assert problem["parameter"] == parameter


@pytest.mark.parametrize("method", METHODS)
def test_other_bodies_addresses_and_types_are_refused(session: Session, method: str) -> None:
    for body in (b"", b"{", b'{"keys": ["\xff"]}', b'{"keys": ["\\ud800"]}'):
        assert_problem(session.request(method, "/v1/subscribe", body, JSON_TYPE), "bad_request")
    answer = session.request(method, "/v1/subscribe", b"{}", {"Content-Type": "text/plain"})
    assert_problem(answer, "unsupported_media_type")
    assert answer.headers["accept"] == "application/json"
    assert_problem(session.request(method, "/v1/subscribe?prefix=a", b"{}", JSON_TYPE), "bad_request")
    refused = session.request(method, "/v1/subscribe", b"{}", {**JSON_TYPE, "Accept": "image/png"})
    assert_problem(refused, "not_acceptable")


@pytest.mark.parametrize("method", METHODS)
def test_what_the_head_tells_is_refused_before_the_body_is_sent(session: Session, method: str) -> None:
    connection = session._connection
    connection.putrequest(method, "/v1/subscribe?nonsense=1")
    for name, text in {**JSON_TYPE, "Content-Length": "1000", "Expect": "100-continue"}.items():
        connection.putheader(name, text)
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["parameter"]) == (400, "nonsense")


def test_pages_of_listed_origins_may_and_others_may_not(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    friend = "https://friend.example"
    facade = start_facade(daemon, cors_origins=friend)
    stranger = {**JSON_TYPE, "Origin": "https://stranger.example"}
    assert_problem(call(facade.url, "POST", "/v1/subscribe", b"{}", stranger), "not_allowed")
    for method in METHODS:
        asks = {
            "Origin": friend,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        told = call(facade.url, "OPTIONS", "/v1/subscribe", headers=asks).headers
        assert method in told["access-control-allow-methods"].split(", ")
        assert told["accept-query"] == "application/json"
        assert told["access-control-allow-origin"] == friend
        with asked(facade.url, method, {}, Origin=friend) as stream:
            assert stream.response.headers["Access-Control-Allow-Origin"] == friend
            through_sync(stream)
    counted = call(facade.url, "GET", "/metrics").body.decode()
    for method in METHODS:
        assert any(
            line.startswith("kvstore_http_requests_total{")
            and f'method="{method}"' in line
            and 'route="/v1/subscribe"' in line
            for line in counted.splitlines()
        ), method


def test_what_all_streams_ask_for_is_bounded_and_equal_filters_count_once(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, workers=1)
    fill = "x" * 500

    def body(number: int) -> dict[str, Any]:
        names = [f"{number:03}/{each:03}{fill}" for each in range(1000)]
        return {"keys": names, "prefixes": [f"p{name}" for name in names]}

    with ExitStack() as open_ones:
        for _ in range(5):
            open_ones.enter_context(asked(facade.url, "POST", body(0)))
        for number in range(1, 100):
            answer = HTTPConnection(urlsplit(facade.url).netloc, timeout=60)
            open_ones.enter_context(closing(answer))
            answer.request("POST", "/v1/subscribe", json.dumps(body(number)), JSON_TYPE)
            response = open_ones.enter_context(closing(answer.getresponse()))
            if response.status != 200:
                break
        assert response.status == 503
        assert json.loads(response.read())["code"] == "too_busy"
        assert number * 2 * 508_000 <= 65 * 2**20, "of 64 MiB, all but the last filter"
        with asked(facade.url, "QUERY", body(0)) as equal, closing(open_stream(facade.url, "")) as small:
            through_sync(equal)
            through_sync(small)
    with asked(facade.url, "POST", body(100)) as again:
        through_sync(again)


some_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@given(some_json | st.dictionaries(st.sampled_from([*MEMBERS, "other"]), some_json, max_size=4))
def test_any_json_is_taken_or_refused(body: Any) -> None:
    """In what it is, or in what the parameters that it becomes are."""
    codes = set()
    try:
        query = read_subscription(body)
        for member in MEMBERS.values():
            query.all(member.parameter)
    except KvError as error:
        codes = {error.code}
    assert codes or body.keys() <= MEMBERS.keys()
    assert codes <= {"bad_request", "invalid_key", "invalid_cursor"}
