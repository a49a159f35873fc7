"""Slow requests: what is kept of them, by facade and daemon, and who may see it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from kvstore_core.access.tokens import new_token
from kvstore_core.limits import SLOW_KEPT
from support.command_line import CommandLine
from support.protected import Protected
from support.servers import Daemon, wait_until
from support.session import JSON_TYPE, Session, call

pytestmark = pytest.mark.slow

Row = dict[str, Any]
MANY = [{"op": "incr", "key": f"slow/{number % 50}"} for number in range(2000)]


@pytest.fixture(scope="module")
def keeping(_session_starter: Any) -> Iterator[Protected]:
    """A service that takes a millisecond for slow."""
    daemon = _session_starter.start(Daemon, {"access": "required", "slow_log": "1ms"}, None)
    key = str(daemon.data / "facade.key")
    facade = _session_starter.start_facade(daemon, facade_key_file=key, workers=2, slow_log="1ms")
    protected = Protected(daemon, facade)
    yield protected
    protected.close()


def heard(keeping: Protected) -> Row | None:
    """What is kept; None if a process did not answer in time, as on a busy machine."""
    page: Row = call(keeping.url, "GET", "/v1/slow", token=keeping.admin_token).json
    return None if page["unheard"] else page


def rows_of(keeping: Protected, name: str, side: str) -> list[Row]:
    """What is kept of an identity, by any worker or by the daemon."""
    page = wait_until(lambda: heard(keeping), what="all answer in time")
    times = [row["time"] for row in page["requests"]]
    assert times == sorted(times, reverse=True)
    return [row for row in page["requests"] if (row["name"], row["side"]) == (name, side)]


def test_a_request_that_waits_for_the_daemon_says_so(keeping: Protected) -> None:
    token = keeping.token("waiting", "rw:slow/")
    began = monotonic()
    os.kill(keeping.daemon.pid, signal.SIGSTOP)
    try:
        targets = ("/v1/kv/slow/short", "/v1/kv?key=slow/long")  # the first goes the short path
        asking = [
            threading.Thread(target=call, args=(keeping.url, "PUT", target, b"1"), kwargs={"token": token})
            for target in targets
        ]
        for thread in asking:
            thread.start()
        wait_until(lambda: monotonic() - began > 0.5, what="half a second is over")
    finally:
        os.kill(keeping.daemon.pid, signal.SIGCONT)
    for thread in asking:
        thread.join()
    kept = {row["what"]: row for row in rows_of(keeping, "waiting", "http")}
    for target in targets:
        row = kept[f"PUT {target}"]
        assert 0.1 < row["daemon_seconds"] <= row["seconds"]
        assert (row["status"], row["client_seconds"], row["queued_seconds"]) == (201, 0, None)
        assert row["address"] == "127.0.0.1"


def test_slow_requests_of_native_clients_are_kept_by_the_daemon(keeping: Protected) -> None:
    native = keeping.peer(keeping.keys("native-slow", "rw:slow/"))
    native.ask(*MANY)
    (row,) = rows_of(keeping, "native-slow", "daemon")
    assert row["seconds"] >= 0.001
    assert 0 <= row["queued_seconds"] <= row["seconds"]
    assert row["what"].startswith("incr slow/0, incr slow/1, ")
    assert row["what"].endswith(" and 1980 more")
    assert row["address"].startswith("127.0.0.1:")
    assert row["bytes"] > 10_000
    for other in ("daemon_seconds", "client_seconds", "status", "worker"):
        assert row[other] is None


def test_the_last_requests_are_kept_and_no_more(keeping: Protected) -> None:
    native = keeping.peer(keeping.keys("flood", "rw:slow/"))

    def kept() -> int:
        for _ in range(16):
            native.ask(*MANY[:100])
        page = wait_until(lambda: heard(keeping), what="all answer in time")
        return len([row for row in page["requests"] if row["side"] == "daemon"])

    wait_until(lambda: kept() == SLOW_KEPT, what="there is no more room", timeout=60)
    assert kept() == SLOW_KEPT


def test_no_value_and_no_token_is_kept(keeping: Protected) -> None:
    token, found = keeping.token("discreet", "rw:*"), new_token().text
    body = json.dumps({"ops": [{"op": "put", "key": f"slow/{n}", "value": "SECRET"} for n in range(500)]})
    answer = call(keeping.url, "POST", "/v1/batch?SECRET=1", body.encode(), JSON_TYPE, token=token)
    assert answer.status == 400
    call(keeping.url, "POST", "/v1/batch", body.encode(), JSON_TYPE, token=token)
    value = b"SECRET" * 100_000
    call(keeping.url, "PUT", f"/v1/kv/slow/{found}", value, token=token)
    call(keeping.url, "PUT", "/v1/kv/slow/compared?if_value=SECRET", value, token=token)
    native = keeping.peer(keeping.keys("discreet"))
    puts = [{"op": "put", "key": f"slow/{found}/{n}", "value": b"SECRET"} for n in range(1000)]
    native.ask(*puts)
    rows = rows_of(keeping, "discreet", "http") + rows_of(keeping, "discreet", "daemon")
    shown = json.dumps(rows)
    assert "POST /v1/batch" in shown
    assert "put slow/" in shown
    assert "SECRET" not in shown
    assert found not in shown


@pytest.mark.parametrize("grants", [(), ("monitor",), ("all:*", "monitor")])
def test_only_an_admin_sees_them(keeping: Protected, grants: tuple[str, ...]) -> None:
    name = f"curious-{len(grants)}"
    token, keys = keeping.token(name, *grants), keeping.keys(name)
    assert call(keeping.url, "GET", "/v1/slow", token=token).status == 403
    assert call(keeping.url, "GET", "/v1/slow").status == 401
    assert keeping.peer(keys).refusal({"op": "slow"})["code"] == "not_allowed"


def test_the_command_shows_them(keeping: Protected, tmp_path: Path) -> None:
    line = CommandLine(tmp_path, keeping.url)
    line.environment["KVSTORE_TOKEN"] = keeping.admin_token
    native = keeping.peer(keeping.keys("terminal", "rw:slow/"))
    native.ask(*MANY)
    rows = line.lines("slow", "--json", "--limit", "1000")
    (row,) = [row for row in rows if row["name"] == "terminal"]
    assert "QUEUED" in line.on_terminal("slow")
    cells = [text.split("\t") for text in line.out("slow", "--limit", "1000").decode().splitlines()]
    (shown,) = [each for each in cells if each[9] == "terminal"]
    assert (shown[0], shown[2], shown[8], shown[10]) == (row["time"], "daemon", row["address"], row["what"])
    assert len(line.lines("slow", "--json", "--limit", "1")) == 1


def test_nothing_is_kept_where_that_is_off(start_daemon: Any, start_facade: Any) -> None:
    daemon = start_daemon(slow_log="0")
    facade = start_facade(daemon, slow_log="0")
    with closing(Session(facade.url)) as session:
        body = json.dumps({"ops": MANY}).encode()
        assert session.request("POST", "/v1/batch", body, JSON_TYPE).status == 200
        assert session.get("/v1/slow").json == {"requests": [], "unheard": []}
