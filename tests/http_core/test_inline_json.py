"""Values that are JSON, as such, wherever records come as JSON; and the one form of events in a stream."""

# ruff: noqa: E501 - what is sent is shown as it is

from __future__ import annotations

import json
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.servers import Service
from support.session import Session
from support.streams import open_stream

JSON = "application/json"
WRITTEN = '{"big": 123456789012345678901234567890, "exact": 0.10000000000000000000000001, "e": 1E5, "t": "a\\nb\u2028"}'


@pytest.fixture
def session(shared_service: Service) -> Any:
    with closing(Session(shared_service.url)) as session:
        yield session


def both(session: Session, prefix: str) -> list[str]:
    """What a list, a record, a history, a batch and two streams with a snapshot say of one key, as text."""
    key = f"{prefix}k"
    lines = session.request(
        "GET", f"/v1/kv?prefix={prefix}&json=1", headers={"Accept": "application/x-ndjson"}
    )
    found = [
        session.get(f"/v1/kv?prefix={prefix}&json=1").body.decode(),
        lines.body.decode(),
        session.get(f"/v1/kv/{key}?format=json&json=1").body.decode(),
        session.get(f"/v1/kv/{key}?json=1").body.decode(),
        session.get(f"/v1/history/{key}?json=1").body.decode(),
        session.post("/v1/batch?json=1", {"ops": [{"op": "get", "key": key}]}).body.decode(),
    ]
    for start in ("snapshot=1", "since=0"):
        with closing(open_stream(url_of(session), f"prefix={prefix}&{start}&json=1")) as stream:
            found.append(next(event.data for event in stream if event.name == "put"))
        found.append(ndjson_event(url_of(session), f"prefix={prefix}&{start}&json=1"))
    return found


def url_of(session: Session) -> str:
    return f"http://{session._connection.host}:{session._connection.port}"


def ndjson_event(url: str, query: str) -> str:
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.request("GET", f"/v1/subscribe?{query}", headers={"Accept": "application/x-ndjson"})
        response = connection.getresponse()
        with closing(response):
            while True:
                line = response.readline().decode()
                if json.loads(line)["event"] == "put":
                    return line


@pytest.mark.parametrize(
    "content_type", [JSON, "application/json; charset=utf-8", "Application/Problem+JSON"]
)
def test_json_comes_as_it_was_written_everywhere(session: Session, content_type: str) -> None:
    prefix = f"inline-{content_type[-4:]}/"
    session.put(f"/v1/kv/{prefix}k", WRITTEN.encode(), content_type=content_type)
    for text in both(session, prefix):
        assert f'"value_json":{WRITTEN}' in text
        assert '"value":' not in text
        json.loads(text)


@pytest.mark.parametrize(
    ("content_type", "value"),
    [
        ("text/plain", b'{"a": 1}'),
        ("application/jsonp", b'{"a": 1}'),
        (JSON, b""),
        (JSON, b"{"),
        (JSON, b"NaN"),
        (JSON, b'{"a": 1} {"b": 2}'),
        (JSON, b"[" * 101 + b"]" * 101),
        (JSON, b'"\xff"'),
    ],
)
def test_what_is_no_json_for_everybody_stays_what_it_was(
    session: Session, content_type: str, value: bytes
) -> None:
    session.put("/v1/kv/outline/k", value, content_type=content_type)
    for text in both(session, "outline/"):
        assert "value_json" not in text
        assert '"value":' in text or '"value_b64":' in text


def test_line_breaks_between_tokens_break_no_line(session: Session) -> None:
    session.put("/v1/kv/lines/k", b'{\r\n  "a": [1,\n 2]\r}\n', content_type=JSON)
    for text in both(session, "lines/"):
        assert '"value_json":{    "a": [1,  2] } ' in text
        assert text.rstrip("\n").count("\n") == 0


def test_without_being_asked_values_are_texts(session: Session) -> None:
    session.put("/v1/kv/asked", b"[1]", content_type=JSON)
    for query in ("format=json", "format=json&json=0"):
        assert session.get(f"/v1/kv/asked?{query}").json["value"] == "[1]"
    assert session.get("/v1/kv/asked?format=raw&json=1").body == b"[1]"


def test_brackets_in_texts_are_no_depth(session: Session) -> None:
    value = json.dumps(["[" * 500 + '\\"' + "{" * 500]).encode()
    session.put("/v1/kv/brackets", value, content_type=JSON)
    assert session.get("/v1/kv/brackets?json=1").json["value_json"] == json.loads(value)


def test_the_events_of_a_snapshot_have_the_form_of_live_ones(session: Session) -> None:
    session.put("/v1/kv/form/k", b"1")
    session.put("/v1/kv/form/k?ttl=1h", b"2")
    url = url_of(session)
    with closing(open_stream(url, "prefix=form/&snapshot=1")) as stream:
        events = (event for event in stream if event.name == "put")
        shown = next(events)
        session.put("/v1/kv/form/k?ttl=1h", b"3")
        live = next(events)
    assert shown.id is None
    assert shown.json.keys() - {"snapshot"} == live.json.keys()
    assert {name: type(member) for name, member in shown.json.items() if name != "snapshot"} == {
        name: type(member) for name, member in live.json.items()
    }
    record = session.get("/v1/history/form/k").json["events"][1]
    assert shown.json["snapshot"] is True
    assert shown.json["time"] == record["time"] == shown.json["modified_at"]
    assert (shown.json["index"], shown.json["count"], shown.json["previous_revision"]) == (0, 1, 0)


@pytest.mark.parametrize("name", ["lastEventId", "last-event-id"])
def test_a_client_may_resume_by_its_address(session: Session, name: str) -> None:
    first = session.put("/v1/kv/resume/k", b"1").json["revision"]
    second = session.put("/v1/kv/resume/k", b"2").json["revision"]
    epoch = session.get("/v1/status").json["epoch"]
    url = url_of(session)

    def begins_with(query: str, last_id: str | None = None) -> int:
        with closing(open_stream(url, f"prefix=resume/&{query}", last_id)) as stream:
            return next(event.json["revision"] for event in stream if event.name in ("put", "sync"))

    one, two, three = f"{first - 1}-{epoch}", f"{first}-{epoch}", f"{second}-{epoch}"
    assert begins_with(f"{name}={one}") == first
    assert begins_with(f"{name}={one}&{name}={two}") == second  # what it added counts
    assert begins_with(f"since={one}&{name}={two}") == second
    assert begins_with(f"{name}=&since={two}") == second
    assert begins_with(f"{name}={one}&snapshot=1") == first
    assert begins_with(f"{name}={one}", two) == second  # the header counts more
    assert begins_with("values=1", f"{one}, {two}") == second  # two of them, as fetch joins them
    assert begins_with(f"{name}={three}") >= second
    refused = session.get(f"/v1/subscribe?{name}=nonsense")
    assert refused.status == 400
