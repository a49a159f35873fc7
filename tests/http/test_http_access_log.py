"""The access log, slow requests, and that no value is ever logged."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore_client import Client
from support.lengths import examples
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, Facade, Service, wait_until
from support.session import JSON_TYPE, PATCH_TYPE, Session, connect, path_of
from support.streams import open_stream

Start = Callable[..., tuple[Facade, Session]]


@pytest.fixture
def start(daemon: Daemon, start_facade: Callable[..., Facade]) -> Iterator[Start]:
    """``start(**options)``: a facade, and a connection to it that is closed after the test."""

    def started(**options: str) -> tuple[Facade, Session]:
        facade = start_facade(daemon, **options)
        return facade, stack.enter_context(closing(Session(facade.url)))

    with ExitStack() as stack:
        yield started


def lines(facade: Facade, logger: str = "kvstore.access") -> list[dict[str, Any]]:
    """What the log holds of the access log, or of another logger."""
    found = [json.loads(line) for line in facade.stderr.splitlines()]
    return [line for line in found if line["logger"] == logger]


def test_a_line_tells_the_request_and_its_answer(start: Start) -> None:
    facade, session = start(access_log="on", log_format="json", log_level="error")
    named = {
        "user_agent": "a browser",
        "x_request_id": "id-1",
        "authorization": "Bearer no",
        "cookie": "no=1",
    }
    session.put("/v1/kv/a%2Fb?ttl=1h", b"12345", **named)
    session.get("/v1/kv/a%2Fb", **named)
    session.get("/v1/kv/none", **named)
    session.request("HEAD", "/v1/kv/a%2Fb")
    put, get, missing, head = wait_until(lambda: len(found := lines(facade)) == 4 and found)
    assert {name: put[name] for name in ("method", "path", "query", "status", "route")} == {
        "method": "PUT",
        "path": "/v1/kv/a%2Fb",
        "query": "?ttl=1h",
        "status": 201,
        "route": "/v1/kv/{key}",
    }
    assert (put["client"], put["user_agent"], put["request_id"]) == ("127.0.0.1", "a browser", "id-1")
    assert (put["level"], put["worker"]) == ("info", 0)
    assert 0 < put["seconds"] < 60
    assert (get["method"], get["status"], get["bytes"]) == ("GET", 200, 5)
    assert (missing["status"], missing["path"]) == (404, "/v1/kv/none")
    assert missing["bytes"] > 0
    assert (head["method"], head["bytes"], head["user_agent"]) == ("HEAD", 0, "-")
    assert "no=1" not in facade.stderr
    assert "Bearer" not in facade.stderr


def test_in_text_a_request_is_one_readable_line(start: Start) -> None:
    facade, session = start(access_log="on")
    session.get("/v1/kv?prefix=a&limit=5", user_agent="a\x9bb", x_request_id="id-1")
    line = wait_until(lambda: [each for each in facade.stderr.splitlines() if "kvstore.access" in each])[0]
    assert ' INFO kvstore.access: 127.0.0.1 "GET /v1/kv?prefix=a&limit=5" 200 ' in line
    assert line.endswith('"a\\x9bb" (request id-1)')


def test_refused_and_unknown_requests_are_in_it(start: Start) -> None:
    facade, session = start(access_log="errors", log_format="json")
    session.get("/livez")
    session.get("/nowhere")
    session.get("/v1/kv?limit=x")
    with connect(facade.url) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert b"400" in connection.recv(65536)
    found = wait_until(lambda: len(found := lines(facade)) == 3 and found)
    answered = [(line["status"], line["route"]) for line in found]
    assert answered == [(404, "other"), (400, "/v1/kv"), (400, "other")]


def test_off_is_silent_below_debug_level(start: Start) -> None:
    facade, session = start(log_format="json")
    session.get("/nowhere")
    facade.signal(signal.SIGUSR1)
    wait_until(lambda: "the log level is now debug" in facade.stderr)
    session.get("/v1/status")
    [line] = wait_until(lambda: lines(facade))
    assert (line["path"], line["level"]) == ("/v1/status", "debug")


@pytest.mark.parametrize("how", ["client", "stop"])
def test_a_stream_is_told_of_when_it_opens_and_when_it_ends(daemon: Daemon, start: Start, how: str) -> None:
    facade, session = start(access_log="on", log_format="json")
    for number in range(3):
        session.put(path_of(f"before-{number}"), b"v")
    stream = open_stream(facade.url, "snapshot=1&ops=put")
    wait_until(lambda: len(lines(facade)) == 4)
    for number in range(4):
        session.put(path_of(f"after-{number}"), b"v")
    seen = 0
    for event in stream:
        seen += event.name == "put"
        if seen == 7:
            break
    if how == "client":
        stream.close()
    else:
        facade.stop()
    found = wait_until(lambda: [line for line in lines(facade) if "reason" in line])
    stream.close()
    [opened] = [line for line in lines(facade) if line["message"].endswith("opened")]
    [ended] = found
    assert opened["path"] == ended["path"] == "/v1/subscribe"
    assert opened["request_id"] == ended["request_id"]
    assert ended["reason"] == {"client": "the client is gone", "stop": "the service is stopping"}[how]
    assert ended["events"] == 7
    assert ended["bytes"] > 0


def test_a_slow_request_is_said_with_its_id_and_a_wait_is_not(daemon: Daemon, start: Start) -> None:
    facade, session = start(slow_request="300ms", log_format="json")
    assert session.get("/v1/kv/none?wait=500ms&since=0").status == 304
    assert not [line for line in lines(facade, "kvstore.http") if "took" in line["message"]]
    daemon.signal(signal.SIGSTOP)
    threading.Timer(0.6, daemon.signal, [signal.SIGCONT]).start()
    assert session.get("/v1/kv/none", x_request_id="slow-1").status == 404
    assert session.get("/v1/kv/none").status == 404
    [line] = wait_until(lambda: [each for each in lines(facade, "kvstore.http") if "took" in each["message"]])
    assert (line["level"], line["request_id"], line["path"]) == ("warning", "slow-1", "/v1/kv/none")
    assert line["seconds"] >= 0.3


# ── values ───────────────────────────────────────────────────────────────────────────────────────

CANARY = "c4nary-"
"""Every value holds it; no key does."""


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service that logs all that it can."""
    folder = tmp_path_factory.mktemp("talkative")
    options = {"log_level": "debug"}
    daemon = Daemon(folder, options).start()
    facade = Facade(
        folder,
        {
            "requests": daemon.requests,
            "changes": daemon.changes,
            "workers": 1,
            **options,
            "access_log": "on",
            "slow_request": "1ms",
        },
    ).start()
    yield Service(daemon, facade)
    facade.stop()
    daemon.stop()
    for server in (daemon, facade):
        check_silence(server.stderr)
    assert "answered put " in daemon.stderr
    assert " 201 " in facade.stderr


def check_silence(said: str) -> None:
    """No form of a value was logged."""
    forms = [CANARY, quote(CANARY), CANARY.encode().hex()]
    # a base64 text holds it in one of three forms, by where it begins
    forms += [base64.b64encode(b"\0" * shift + CANARY.encode()).decode()[4:-4] for shift in range(3)]
    for form in forms:
        assert form not in said


def attempts(key: str, value: bytes, text: str) -> list[tuple[str, str, bytes | None, dict[str, str]]]:
    """Requests that carry a value in every place for one, right or wrong."""
    path = path_of(key)
    ops = [{"op": "put", "key": key, "value": text}, {"op": "put", "key": key, "value": text, "bad": text}]
    checks = {"op": "check", "key": key, "if_value": text}
    return [
        ("PUT", path, value, {"Content-Type": "text/plain"}),
        ("PUT", path, value, {"If-None-Match": "*"}),
        ("PUT", path, value, {"Content-Encoding": "gzip"}),
        ("PUT", path + "?ttl=never", value, {}),
        ("PUT", path + f"?value={CANARY}", value, {}),
        ("PUT", path + f"?{CANARY}", value, {}),
        ("PUT", path + f"?if_value={CANARY}", value, {}),
        ("DELETE", path + f"?if_value={CANARY}&if_value={CANARY}", None, {}),
        ("POST", path_of(key, "persist") + f"?if_value={CANARY}", None, {"If-Match": "*"}),
        ("POST", path, value, {}),
        ("POST", path + "?ttl=never", value, {}),
        ("GET", path + f"?wait=1ms&until=equals%20{CANARY}", None, {}),
        ("GET", path + f"?wait=1ms&until={CANARY}", None, {}),
        ("PUT", path, value * 1000, {"Idempotency-Key": "same"}),
        ("PATCH", path, json.dumps({"a": text}).encode(), PATCH_TYPE),
        ("PATCH", path, value, PATCH_TYPE),
        ("POST", path_of(key, "incr"), None, {}),
        ("POST", path_of(key, "incr") + f"?by={CANARY}", None, {}),
        ("POST", path_of(key, "incr"), value, {}),
        ("POST", "/v1/batch", json.dumps({"ops": ops[:1]}).encode(), JSON_TYPE),
        ("POST", "/v1/batch", json.dumps({"ops": ops}).encode(), JSON_TYPE),
        ("POST", "/v1/batch", json.dumps({"atomic": True, "ops": ops[:1] * 2}).encode(), JSON_TYPE),
        ("POST", "/v1/batch", value, JSON_TYPE),
        ("POST", "/v1/batch", json.dumps({"ops": [{**ops[0], "if_value": text}]}).encode(), JSON_TYPE),
        ("POST", "/v1/batch", json.dumps({"ops": [checks], "atomic": True}).encode(), JSON_TYPE),
        ("PUT", "/", json.dumps({"key": key, "value": text}).encode(), JSON_TYPE),
        ("PUT", "/", value, JSON_TYPE),
        ("GET", path, None, {"Authorization": CANARY, "Cookie": CANARY}),
        ("GET", path + "?format=json", None, {}),
        ("GET", path_of(key, "history"), None, {}),
        ("GET", "/v1/kv", None, {"Accept": "application/x-ndjson"}),
        ("GET", "/all", None, {}),
        ("DELETE", path, None, {}),
    ]


@settings(max_examples=examples(10))
@given(
    key=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
    around=st.tuples(st.binary(max_size=30), st.binary(max_size=30)),
    text=st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_no_value_is_ever_logged(
    talkative: Service, key: str, around: tuple[bytes, bytes], text: str
) -> None:
    value = CANARY.encode().join(around)
    session = Session(talkative.url)
    for method, target, body, headers in attempts(key, value, f"{CANARY}{text}"):
        assert session.request(method, target, body, headers).status < 600
    with Client(talkative.requests, timeout=PATIENCE_SECONDS) as client:
        client.put(key, value)
    stream = open_stream(talkative.url, "snapshot=1&prev=1")
    stream.first()
    stream.close()
    session.close()
    for server in talkative:
        check_silence(server.stderr)


def test_no_number_that_is_stored_is_logged(talkative: Service) -> None:
    """An error's message may have it, where the sum does not fit."""
    stored, by = 2**63 - 1234567, 7654321
    op = {"op": "incr", "key": "counter", "by": by}
    batch = json.dumps({"atomic": True, "ops": [op]}).encode()
    session = Session(talkative.url)
    session.request("PUT", path_of("counter"), b"%d" % stored)
    for target, body in (("/v1/batch", batch), (path_of("counter", "incr") + f"?by={by}", None)):
        refused = session.request("POST", target, body, JSON_TYPE if body else {})
        assert str(stored + by) in refused.json["detail"]
    session.close()
    for server in talkative:
        assert not {str(stored), str(by), str(stored + by)} & set(re.findall(r"\d+", server.stderr))


def test_clients_that_go_away_before_their_answer_leave_no_line(start: Start) -> None:
    facade, session = start(log_format="json")
    messages = (b"\x00\x01\r\n\r\n", b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")

    def come_and_go(rounds: int) -> None:
        for number in range(rounds):
            with connect(facade.url) as client:
                client.sendall(messages[number % 2])
                # the connection is reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    come_and_go(40)
    session.get("/v1/status")
    facade.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: any("debug" in line["message"] for line in lines(facade, "kvstore.announce")))
    quiet = [line for line in lines(facade, "waitress") if line["level"] != "debug"]
    assert quiet == []
    # who looks for a fault sees them

    def is_seen() -> bool:
        come_and_go(4)
        return bool(lines(facade, "waitress"))

    wait_until(is_seen)
