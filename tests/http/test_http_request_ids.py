"""Every answer has a request id, errors too, and the daemon's log knows it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.servers import Daemon, Facade, Service, kvstore_command, wait_until
from support.session import Session, path_of

MADE = re.compile(r"[0-9a-f]{16}")
TARGETS = ("/v1/status", "/v1/kv/never-stored", "/nowhere", "/v1/kv?limit=x", "/livez", "/v1/history/none")


@given(request_id=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128))
def test_an_id_comes_back_in_header_and_problem(session: Session, request_id: str) -> None:
    for target in TARGETS:
        answer = session.get(target, x_request_id=request_id)
        assert answer.headers["x-request-id"] == request_id
        if answer.status >= 400:
            assert answer.json["request_id"] == request_id
    assert session.put(path_of("k"), b"v", x_request_id=request_id).headers["x-request-id"] == request_id


@pytest.mark.parametrize("sent", [None, "", "two words", "x" * 129, "caf\xe9"])
def test_without_an_id_that_can_be_used_one_is_made(session: Session, sent: str | None) -> None:
    headers = {} if sent is None else {"X-Request-Id": sent}
    made = set()
    for target in TARGETS:
        answer = session.request("GET", target, headers=headers)
        assert MADE.fullmatch(answer.headers["x-request-id"])
        assert answer.status < 400 or answer.json["request_id"] == answer.headers["x-request-id"]
        made.add(answer.headers["x-request-id"])
    assert len(made) == len(TARGETS)


def test_ids_do_not_tell_how_many_requests_there_were(session: Session) -> None:
    made = [session.get("/livez").headers["x-request-id"] for _ in range(9)]
    numbers = [int(each, 16) for each in made]
    steps = [abs(after - before) for before, after in pairwise(numbers)]
    assert min(steps) > 2**24  # of random ones in 2^64: once in 10^11


def test_a_stored_value_and_its_result_say_nothing_of_it(session: Session) -> None:
    answer = session.put(path_of("plain"), b"v", x_request_id="abc")
    assert "request_id" not in answer.json
    assert "request_id" not in session.get(path_of("plain") + "?format=json", x_request_id="abc").json


def refused(url: str, request: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of the answer to a request that is no HTTP."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.settimeout(30)
        connection.sendall(request)
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    return dict(line.lower().split(": ", 1) for line in head.decode().splitlines()[1:]), body


def test_refusals_by_the_parser_have_one_too(shared_service: Service) -> None:
    url = shared_service.url
    headers, body = refused(url, b"GET / HTTP/1.1\r\nX-Request-Id: mine-7\r\n\r\n")
    assert headers["x-request-id"] == json.loads(body)["request_id"] == "mine-7"
    headers, body = refused(url, b"nonsense\r\n\r\n")
    assert MADE.fullmatch(headers["x-request-id"])
    assert json.loads(body)["request_id"] == headers["x-request-id"]


def test_who_is_turned_away_gets_one(daemon: Daemon, start_facade: Callable[..., Facade]) -> None:
    facade = start_facade(daemon, max_connections=1)
    first = Session(facade.url)
    assert first.get("/livez").status == 200
    headers, body = refused(facade.url, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert json.loads(body)["request_id"] == headers["x-request-id"]
    first.close()


def test_workers_make_ids_of_their_own(daemon: Daemon, start_facade: Callable[..., Facade]) -> None:
    facade = start_facade(daemon, workers=2)

    seen: set[str] = set()

    def both() -> bool:
        with closing(Session(facade.url)) as session:
            seen.add(session.get("/livez").headers["x-request-id"].partition("-")[0])
        return len(seen) == 2

    wait_until(both, what="both workers have answered")


def test_the_daemons_log_names_the_request_of_each_op_that_was_gathered(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon(log_level="debug", log_format="json")
    facade = start_facade(daemon)

    def one(number: int) -> None:
        session = Session(facade.url)
        named = {"x_request_id": f"id-{number}", "idempotency_key": f"key-{number}"}
        assert session.put(path_of(f"k{number}"), b"v", x_request_id=f"id-{number}").status == 201
        assert session.get(path_of(f"k{number}"), x_request_id=f"id-{number}").body == b"v"
        assert session.put(path_of(f"i{number}"), b"v", **named).status == 201
        session.batch({"op": "put", "key": f"b{number}", "value": ""})
        session.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(24)))
    lines = [json.loads(line) for line in daemon.stderr.splitlines()]
    for number in range(24):
        for op in (f"put k{number}", f"get k{number}", f"put i{number}"):
            mine = [line for line in lines if re.search(rf"answered.*\b{op}\b", line["message"])]
            assert mine, op
            assert f"id-{number}" in mine[0]["request_id"]
    assert all("id-" in str(line.get("request_id", "id-")) for line in lines)


def test_a_retry_under_one_idempotency_key_may_have_another_id(session: Session, key: str) -> None:
    for named in ({"x_request_id": "a"}, {"x_request_id": "b"}, {}):
        answer = session.post(path_of(key, "incr"), idempotency_key=f"once-{key}", **named)
        assert answer.json["value"] == 1
    spelled_out = session.post(path_of(key, "incr") + "?by=1", idempotency_key=f"once-{key}")
    assert spelled_out.json["value"] == 1


def test_a_command_that_fails_for_the_services_sake_names_the_request(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, daemon_timeout="200ms")
    daemon.stop()
    command = kvstore_command("get", "k", "--url", facade.url, "--request-timeout", "2s")
    done = subprocess.run(command, env=facade.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert re.search(r"\(request [0-9a-f]{16}\)$", done.stderr.strip())
