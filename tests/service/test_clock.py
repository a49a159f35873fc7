"""Somebody sets the clock of the machine while the service runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.patience import PATIENCE_SECONDS
from support.programs import require_program
from support.servers import Serve, wait_until
from support.session import call

pytestmark = pytest.mark.lmdb_only("a clock whose steps are noticed")

HOUR = 3600
MINUTE = 60


class Machine:
    """A service whose wall clock, and nothing else, is moved: by libfaketime, from a file."""

    def __init__(self, folder: Path, start_serve: Callable[..., Serve]) -> None:
        require_program("faketime")
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        self._file = folder / "clock"
        self.set(0)
        environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.serve = start_serve(environment, workers=1, log_format="text")
        self.url = self.serve.url

    def set(self, ahead: int) -> None:
        """Let the clock be ``ahead`` seconds before the right time."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{ahead:+d}\n", encoding="ascii")
        draft.replace(self._file)
        self._ahead = ahead

    def step(self, ahead: int) -> None:
        """:meth:`set`, and wait until it was noticed."""
        if ahead == self._ahead:
            return
        steps = self.steps()
        self.set(ahead)
        wait_until(lambda: self.steps() > steps, what="the step is noticed")

    def steps(self) -> int:
        """How many steps were noticed since the start."""

        def status() -> dict[str, Any] | None:
            # a daemon that is busy may refuse this one question
            answer = call(self.url, "GET", "/v1/status")
            return answer.json if answer.status == 200 else None

        steps: int = wait_until(status, what="the daemon tells its status")["clock"]["steps"]
        return steps

    def clock(self) -> dict[str, Any]:
        """The check of the same name."""

        def found() -> dict[str, Any] | None:
            # a daemon that is busy may leave this one question open
            checks = call(self.url, "GET", "/readyz?verbose").json["checks"]
            return next((check for check in checks if check["name"] == "clock"), None)

        return wait_until(found, what="the clock is checked")

    def seconds_to_live(self, key: str) -> float:
        """How long a key lives from now, by our own clock; it must be gone then."""
        began = time.monotonic()
        wait_until(lambda: call(self.url, "GET", f"/v1/kv/{key}").status == 404, what=f"{key} expires")
        return time.monotonic() - began


@pytest.fixture
def machine(tmp_path: Path, start_serve: Callable[..., Serve]) -> Machine:
    return Machine(tmp_path, start_serve)


@pytest.fixture(scope="module")
def _shared_machine(tmp_path_factory: pytest.TempPathFactory, _shared_starter: Any) -> Machine:
    return Machine(
        tmp_path_factory.mktemp("clock"),
        lambda environment, **options: _shared_starter.start(Serve, options, environment),
    )


@pytest.fixture
def shared_machine(_shared_machine: Machine) -> Machine:
    """One whose clock is right, for tests that keep to keys of their own, however many steps there were."""
    _shared_machine.step(0)
    return _shared_machine


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_a_key_lives_as_long_as_it_was_said(shared_machine: Machine, ahead: int) -> None:
    """Whatever the clock shows when it is put, and whatever then."""
    shared_machine.step(ahead)
    assert call(shared_machine.url, "PUT", f"/v1/kv/lock{ahead}?ttl=2s", b"mine").status == 201
    assert call(shared_machine.url, "PUT", f"/v1/kv/session{ahead}?ttl=20m", b"mine").status == 201
    shared_machine.step(0)
    shared_machine.seconds_to_live(f"lock{ahead}")
    found = call(shared_machine.url, "GET", f"/v1/kv/session{ahead}")
    shown = datetime.fromisoformat(found.headers["x-kvstore-expires-at"]).timestamp()
    assert found.status == 200
    assert 0 < shown - time.time() <= 20 * MINUTE + 0.5
    assert call(shared_machine.url, "PUT", f"/v1/kv/again{ahead}?ttl=1500ms", b"mine").status == 201
    shared_machine.seconds_to_live(f"again{ahead}")


def test_a_step_is_told_wherever_an_operator_looks(machine: Machine) -> None:
    assert machine.clock()["status"] == "ok"
    machine.step(HOUR)
    found = machine.clock()
    assert (found["status"], found["steps"]) == ("warning", 1)
    assert found["last_step_seconds"] == pytest.approx(HOUR, abs=2)
    assert call(machine.url, "GET", "/readyz").status == 200
    wait_until(lambda: "the machine's clock was set forward by 3600" in machine.serve.stderr)
    assert "kvstore_clock_steps_total 1.0" in call(machine.url, "GET", "/metrics").body.decode()
    assert call(machine.url, "GET", "/v1/status").json["clock"]["steps"] == 1
    # kvstore doctor says each check that warns, and compares this with its own clock
    machine.step(0)
    assert machine.clock()["steps"] == 2
    call(machine.url, "PUT", "/v1/kv/k", b"x")
    stamp = call(machine.url, "GET", "/v1/kv/k?format=json").json["modified_at"]
    assert datetime.fromisoformat(stamp).timestamp() < time.time() + 1


def test_a_value_that_was_stored_with_the_clock_ahead_is_not_of_the_future(shared_machine: Machine) -> None:
    shared_machine.step(HOUR)
    put = call(shared_machine.url, "PUT", "/v1/kv/ahead", b"x")
    assert put.status == 201
    etag = put.headers["etag"]
    shared_machine.step(0)
    told = []
    for query in ("/ahead", "/ahead?format=json", "?key=ahead", f"/ahead?revision={put.json['revision']}"):
        for method in ("GET", "HEAD"):
            for headers in ({}, {"If-None-Match": etag}, {"Range": "bytes=0-0"}):
                answer = call(shared_machine.url, method, f"/v1/kv{query}", headers=headers)
                if "last-modified" in answer.headers:
                    told.append(answer.status)
                    modified, date = (
                        parsedate_to_datetime(answer.headers[name]) for name in ("last-modified", "date")
                    )
                    assert modified <= date
    assert set(told) == {200, 206, 304}
    # nor is a copy of it taken for a fresh one before the moment that was stored
    later = {"If-Modified-Since": call(shared_machine.url, "GET", "/v1/kv/ahead").headers["last-modified"]}
    assert call(shared_machine.url, "GET", "/v1/kv/ahead", headers=later).status == 200


def test_a_repeat_is_none_after_half_an_hour_that_was_none(shared_machine: Machine) -> None:
    headers = {"Idempotency-Key": "one"}
    assert call(shared_machine.url, "POST", "/v1/incr/n", headers=headers).json["value"] == 1
    shared_machine.step(30 * MINUTE)
    call(shared_machine.url, "PUT", "/v1/kv/other", b"x")
    assert call(shared_machine.url, "POST", "/v1/incr/n", headers=headers).json["value"] == 1
    shared_machine.step(-30 * MINUTE)
    assert call(shared_machine.url, "POST", "/v1/incr/n", headers=headers).json["value"] == 1


def test_a_wrong_date_trims_no_event_and_ends_no_connection(shared_machine: Machine) -> None:
    connection = HTTPConnection(urlsplit(shared_machine.url).netloc, timeout=PATIENCE_SECONDS)
    connection.request("PUT", "/v1/kv/dated", b"1")
    connection.getresponse().read()
    used = connection.sock
    shared_machine.step(30 * 24 * HOUR)
    call(shared_machine.url, "PUT", "/v1/kv/dated", b"2")
    shared_machine.step(0)
    call(shared_machine.url, "PUT", "/v1/kv/dated", b"3")
    connection.request("GET", "/v1/history/dated")
    assert len(json.loads(connection.getresponse().read())["events"]) == 3
    assert connection.sock is used
    connection.close()


def test_a_step_while_nothing_runs_is_found_at_the_start(machine: Machine) -> None:
    call(machine.url, "PUT", "/v1/kv/lock?ttl=3s", b"mine")
    machine.serve.stop()
    machine.set(-HOUR)
    machine.serve.start()
    assert "the machine's clock was set back by 3600" in machine.serve.stderr
    assert machine.clock()["status"] == "warning"
    machine.seconds_to_live("lock")
