"""Every error of the table that HTTP can give has the right status and shape."""

from __future__ import annotations

import io
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from kvstore_cli.config.resolve import resolve
from kvstore_core.access.principal import UNRESTRICTED
from kvstore_core.errors import ERRORS, KvError
from kvstore_http.app import create_app
from kvstore_http.inspection.siblings import Siblings
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.protocol.environ import RAW_PATH, RAW_QUERY, WHO
from kvstore_http.streaming.broadcaster import Broadcaster
from kvstore_http.streaming.change_feed import ChangeFeed
from support.metrics import scrape
from support.servers import Daemon, Facade, wait_until
from support.session import Answer, Session, assert_problem, connect, path_of

MIB = 1024 * 1024

# ── every code, as the application shows it ──────────────────────────────────────────────────────


class FailingDaemon:
    """A client of the daemon on which every call fails in the same way."""

    epoch, head = "", 0

    def __init__(self, error: Exception) -> None:
        self._error = error

    def call(self, *_: Any, **__: Any) -> dict[str, Any]:
        raise self._error

    request = ask = call


def through_the_application(error: Exception, method: str = "GET") -> Answer:
    """What is answered when the daemon's answer to a read is ``error``."""
    app = create_app(
        cast(Any, FailingDaemon(error)),
        cast(ChangeFeed, None),
        cast(Broadcaster, None),
        resolve({}, "http", environ={"HOME": "/nowhere"}).http_settings(),
        WorkerCounters.alone(),
        cast(Siblings, None),
    )
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        RAW_PATH: "/v1/kv/some-key",
        RAW_QUERY: "",
        WHO: UNRESTRICTED,
        "wsgi.input": io.BytesIO(b"value"),
        "wsgi.errors": sys.stderr,
        "CONTENT_LENGTH": "5" if method == "PUT" else "",
    }
    started: list[Any] = []
    body = b"".join(app(environ, lambda status, headers, _=None: started.extend((status, headers))))
    return Answer(int(started[0].split()[0]), {name.lower(): text for name, text in started[1]}, body)


@pytest.mark.parametrize("code", ERRORS)
def test_every_row_of_the_table_becomes_a_problem_document(code: str) -> None:
    error = KvError(code, "a sentence", **({"allow": ["GET"]} if code == "method_not_allowed" else {}))
    problem = assert_problem(through_the_application(error), code)
    assert problem["detail"] == "a sentence"


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("code", ["unavailable", "timed_out"])
def test_details_stand_beside_the_members(code: str, method: str) -> None:
    error = KvError(code, "who knows", outcome="unknown", revision=7)
    answer = through_the_application(error, method)
    problem = assert_problem(answer, code)
    assert (problem["outcome"], problem["revision"]) == ("unknown", 7)
    assert answer.headers["x-kvstore-revision"] == "7"


def test_details_never_replace_a_member() -> None:
    problem = assert_problem(
        through_the_application(KvError("not_found", "a sentence", status=200, title="x", detail="y")),
        "not_found",
    )
    assert problem["detail"] == "a sentence"


def test_a_fault_of_ours_is_internal_and_tells_nothing() -> None:
    answer = through_the_application(RuntimeError("a secret"))
    assert_problem(answer, "internal")
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body


def test_an_unknown_code_of_a_newer_daemon_is_internal() -> None:
    error = KvError.from_json({"code": "from_the_future", "message": "x"})
    assert "from_the_future" in assert_problem(through_the_application(error), "internal")["detail"]


# ── codes as requests provoke them ───────────────────────────────────────────────────────────────

Provoke = Callable[[Session, str], Answer]


def after(value: bytes, provoke: Provoke) -> Provoke:
    """The same where the key has a value."""

    def both(session: Session, key: str) -> Answer:
        session.put(path_of(key), value, idempotency_key=key)
        return provoke(session, key)

    return both


PROVOKED: dict[str, Provoke] = {
    "bad_request": lambda session, key: session.get(path_of(key) + "?nonsense=1"),
    "unknown_operation": lambda session, _: session.batch({"op": "nonsense"}),
    "invalid_key": lambda session, _: session.get("/v1/kv/%ff"),
    "invalid_cursor": lambda session, _: session.get("/v1/kv?cursor=!"),
    "not_allowed": lambda session, key: session.post(path_of(key, "incr"), origin="http://elsewhere.example"),
    "no_such_route": lambda session, _: session.get("/v2/kv"),
    "method_not_allowed": lambda session, key: session.delete(path_of(key, "incr")),
    "not_acceptable": lambda session, _: session.get("/v1/status", accept="image/png"),
    "value_too_large": lambda session, key: session.put(path_of(key), b"x" * (MIB + 1)),
    "request_too_large": lambda session, key: session.put(path_of(key), b"x" * (18 * MIB)),
    "uri_too_long": lambda session, _: session.get("/v1/kv?prefix=" + "x" * 70_000),
    "unsupported_media_type": lambda session, key: session.request("PATCH", path_of(key), b"{}"),
    "sequence_reused": after(b"1", lambda session, key: session.put(path_of(key), idempotency_key=key)),
    "headers_too_large": lambda session, key: session.get(path_of(key), x_padding="x" * 70_000),
    "not_found": lambda session, key: session.get(path_of(key)),
    "not_an_integer": after(b"x", lambda session, key: session.post(path_of(key, "incr"))),
    "out_of_range": after(b"%d" % (2**63 - 1), lambda session, key: session.post(path_of(key, "incr"))),
    "not_json": after(b"x", lambda session, key: session.patch(path_of(key), {})),
    "condition_failed": lambda session, key: session.put(path_of(key), b"x", if_match="*"),
}


@pytest.mark.parametrize("code", PROVOKED)
def test_requests_get_the_problem_that_they_deserve_and_the_service_goes_on(
    session: Session, key: str, code: str
) -> None:
    assert_problem(PROVOKED[code](session, key), code)
    session.close()
    assert session.put(path_of(f"{key}/after"), b"x").status == 201


NAMED = {"backups": ("DELETE", "id"), "subscribers": ("DELETE", "id"), "tokens": ("DELETE", "name")}
"""Groups of addresses whose last part is no key: a method of them, and what that part is called."""


@pytest.mark.parametrize("group", NAMED)
@pytest.mark.parametrize("raw", ["", "%00", "%zz", "%ff", "a%2Fb", "..", "x" * 9000])
def test_what_is_no_name_is_not_called_a_key(session: Session, group: str, raw: str) -> None:
    method, what = NAMED[group]
    answer = session.request(method, f"/v1/{group}/{raw}")
    detail = answer.json["detail"]
    assert "key" not in detail
    assert len(detail) < 400
    if raw in ("%zz", "%ff"):
        assert_problem(answer, "bad_request")
        assert f"the {what} in the path is not percent-encoded UTF-8" in detail
    elif group != "tokens":  # while access is off there are none
        assert_problem(answer, "not_found")
        assert ("GET /v1/subscribers" if group == "subscribers" else "POST /v1/backups") in detail


def test_a_daemon_that_is_away_is_unavailable_until_it_is_back(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    session = Session(start_facade(daemon, daemon_timeout="1s").url)
    session.put("/v1/kv/a", b"1")
    daemon.kill()
    wait_until(lambda: session.get("/v1/kv/a").status == 503, what="the facade notices")
    for answer in (
        session.get("/v1/kv/a"),
        session.get("/v1/kv"),
        session.get("/v1/status"),
        session.get("/readyz"),
        session.put("/v1/kv/a", b"2"),
        session.batch({"op": "get", "key": "a"}),
    ):
        assert_problem(answer, "unavailable")
    assert session.get("/livez").status == 200
    daemon.start()
    wait_until(lambda: session.get("/readyz").status == 200, what="the facade finds the daemon again")
    assert session.get("/v1/kv/a").status == 200
    session.close()


def test_a_write_that_got_no_answer_says_that_nobody_knows(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    session = Session(start_facade(daemon, daemon_timeout="1s").url)
    session.put("/v1/kv/a", b"0")
    daemon.signal(signal.SIGSTOP)
    try:
        answer = session.post("/v1/incr/a", idempotency_key="again")
    finally:
        daemon.signal(signal.SIGCONT)
    problem = answer.json
    assert (problem["status"], problem["retryable"], problem["outcome"]) in (
        (503, True, "unknown"),
        (504, True, "unknown"),
    )

    def again() -> bool:
        return session.post("/v1/incr/a", idempotency_key="again").status == 200

    wait_until(again, what="the daemon is back")
    assert session.get("/v1/kv/a").body == b"1"
    session.close()


def test_a_pause_of_the_whole_machine_fails_no_request(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    """As when a laptop sleeps, or a virtual machine is moved."""
    facade = start_facade(daemon, daemon_timeout="3s")
    with connect(facade.url) as put, closing(Session(facade.url)) as session:
        with daemon.paused():
            put.sendall(b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
            assert session.get("/livez").status == 200  # and the put is on its way to the daemon
            with facade.paused():
                time.sleep(4)
        assert put.recv(4096).startswith(b"HTTP/1.1 201 ")


def test_a_full_store_refuses_writes_and_goes_on_with_the_rest(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(start_daemon(max_store_bytes="8MiB", sync="none"))
    session = Session(facade.url)
    numbers = iter(range(10_000))
    refused: list[Answer] = []

    def is_full() -> bool:
        answer = session.put(f"/v1/kv/{next(numbers)}", b"x" * 500_000)
        if answer.status >= 300:
            refused.append(answer)
        return bool(refused)

    wait_until(is_full, what="the store is full")
    assert_problem(refused[0], "store_full")
    found = scrape(facade.url)
    assert found.value("kvstore_writes_refused", reason="store_full") == 1
    assert found.value("kvstore_writes_refused", reason="internal") == 0
    assert found.value("kvstore_store_used_bytes") >= found.value("kvstore_store_max_bytes")
    assert session.get("/v1/kv/0").status == 200
    assert session.delete("/v1/kv/0").status == 200
    session.close()


def test_a_damaged_record_is_said_to_be_damaged_and_others_are_read(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    session = Session(start_facade(daemon).url)
    session.put("/v1/kv/good", b"good")
    session.put("/v1/kv/bad", b"a value that nothing else in the store looks like")
    daemon.stop()
    _damage(daemon.data, b"nothing else in the store")
    daemon.start()
    wait_until(lambda: session.get("/readyz").status == 200)
    assert_problem(session.get("/v1/kv/bad", x_request_id="who-asked"), "damaged")
    wait_until(lambda: re.search(r"ERROR .*'bad' is damaged .*\(request who-asked\)", daemon.stderr))
    assert "nothing else" not in daemon.stderr
    assert session.get("/v1/kv/good").body == b"good"
    session.close()


def _damage(folder: Path, pattern: bytes) -> None:
    """Flip a bit of every occurrence of ``pattern`` in the files of a store."""
    flipped = bytes((pattern[0] ^ 1,)) + pattern[1:]
    damaged = [file for file in folder.rglob("*") if file.is_file() and pattern in file.read_bytes()]
    assert damaged
    for file in damaged:
        file.write_bytes(file.read_bytes().replace(pattern, flipped))
