"""``kvstore doctor`` with nothing in between; ``tests/service/test_proxies.py`` has what proxies do."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_cli.doctor.checks_connectivity import compared
from kvstore_cli.doctor.findings import FAILED, NOTE, OK, SKIPPED, WARNING
from kvstore_cli.doctor.probe import SCRATCH
from kvstore_cli.doctor.remedies import CAUSES
from kvstore_cli.doctor.runner import CHECKS
from kvstore_core.errors import ERRORS
from support.scripted import answer
from support.servers import Daemon, Facade, Service, wait_until
from support.surfaces import SPEED

pytestmark = pytest.mark.slow

Kvstore = Any
Start = Callable[..., Any]


def examined(kvstore: Kvstore, *flags: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the JSON of ``kvstore doctor``."""
    done = kvstore("doctor", "--json", *flags)
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


def causes(outcome: dict[str, Any]) -> set[str]:
    return {check["cause"] for check in outcome["checks"] if "cause" in check} - SPEED


def scratch_keys(kvstore: Kvstore) -> list[dict[str, Any]]:
    """The records that the doctor left behind."""
    return kvstore.lines("list", "--prefix", SCRATCH, "--json")


# ── a service that is well ───────────────────────────────────────────────────────────────────────


def test_nothing_is_wrong_with_a_service_that_nothing_stands_in_front_of(kvstore: Kvstore) -> None:
    exit_status, outcome = examined(kvstore, "--idle", "1s")
    assert (exit_status, causes(outcome)) == (0, set())
    made = [check["check"] for check in outcome["checks"]]
    assert list(dict.fromkeys(made)) == [check.name for check in CHECKS]
    assert scratch_keys(kvstore) == []


def test_every_finding_is_whole(kvstore: Kvstore) -> None:
    _, outcome = examined(kvstore, "--quick")
    assert outcome["status"] in (NOTE, WARNING)
    for check in outcome["checks"]:
        assert check["status"] in (OK, NOTE, WARNING, FAILED, SKIPPED)
        assert check["message"]
        assert ("cause" in check) == ("fix" in check) == (check["status"] in (WARNING, FAILED))


def test_read_only_writes_nothing(kvstore: Kvstore) -> None:
    before = kvstore.lines("status", "--json")[0]["revision"]
    exit_status, outcome = examined(kvstore, "--read-only", "--quick")
    assert kvstore.lines("status", "--json")[0]["revision"] == before
    assert exit_status == 0
    skipped = {check["check"] for check in outcome["checks"] if check["status"] == SKIPPED}
    assert skipped == {check.name for check in CHECKS if check.does_write} | {"idle"}


def test_a_person_reads_one_line_for_each_finding_and_where_it_writes(kvstore: Kvstore) -> None:
    done = kvstore("doctor", "--quick")
    assert done.returncode == 0
    said = done.stderr.decode()
    assert "takes at most" in said
    assert f"writes keys under {SCRATCH}" in said
    shown = done.stdout.decode().splitlines()
    statuses = [line.split()[0] for line in shown if not line.startswith(" ")]
    assert set(statuses) <= {OK, NOTE, WARNING, SKIPPED}
    assert len(statuses) >= len(CHECKS)


def test_silence_is_listened_to_for_as_long_as_was_asked(
    daemon: Daemon, start_facade: Callable[..., Facade], offline: Kvstore
) -> None:
    facade = start_facade(daemon, stream_heartbeat="200ms")
    _, outcome = examined(offline, "--url", facade.url, "--read-only", "--idle", "2s")
    (stream, wait) = [check for check in outcome["checks"] if check["check"] == "idle"]
    assert stream["figures"]["open_seconds"] == 2
    assert stream["figures"]["heartbeats"] >= 2
    assert stream["figures"]["longest_gap_seconds"] < 2
    assert wait["figures"]["waited_seconds"] >= 2


# ── a service that is not ────────────────────────────────────────────────────────────────────────


def test_a_service_that_is_not_there_ends_as_with_any_command(offline: Kvstore) -> None:
    exit_status, outcome = examined(offline, "--url", "http://127.0.0.1:1")
    assert exit_status == ERRORS["unavailable"].exit
    assert [(check["check"], check["cause"]) for check in outcome["checks"]] == [("reachable", "unreachable")]


def test_a_name_that_leads_nowhere_is_told_as_such(offline: Kvstore) -> None:
    exit_status, outcome = examined(offline, "--url", "http://nowhere.invalid")
    assert exit_status == ERRORS["unavailable"].exit
    assert "nowhere.invalid" in outcome["checks"][0]["message"]


def test_a_daemon_that_is_away_is_told_apart_from_a_service_that_is(
    service: Service, offline: Kvstore
) -> None:
    service.daemon.kill()
    exit_status, outcome = examined(offline, "--url", service.url)
    assert exit_status == ERRORS["unavailable"].exit
    assert causes(outcome) == {"daemon_away"}
    assert outcome["checks"][0]["status"] == OK


def test_something_else_at_the_address_is_not_taken_for_kvstore(offline: Kvstore, script: Any) -> None:
    script.plays = [answer(b"hello")]
    exit_status, outcome = examined(offline, "--url", script.url)
    assert (exit_status, causes(outcome)) == (1, {"not_kvstore"})
    assert {seen.method for seen in script.seen} == {"GET"}


def test_a_weaker_sync_is_a_warning(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], offline: Kvstore
) -> None:
    facade = start_facade(start_daemon(sync="none"))
    exit_status, outcome = examined(offline, "--url", facade.url, "--read-only", "--quick")
    assert (exit_status, causes(outcome)) == (0, {"weak_sync"})


def test_a_full_store_fails_and_what_only_reads_is_looked_at(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], offline: Kvstore
) -> None:
    facade = start_facade(start_daemon(max_store_bytes="1MiB"))
    at = ("--url", facade.url)
    number = 0
    while offline("put", f"filler/{number}", "-", *at, stdin=b"x" * 60_000).returncode == 0:
        number += 1
    exit_status, outcome = examined(offline, *at, "--quick")
    assert exit_status == 1
    assert "store_full" in causes(outcome)
    assert [check["message"] for check in outcome["checks"] if check["message"].startswith("store: ")]
    assert {"streams", "clock"} <= {check["check"] for check in outcome["checks"] if check["status"] == OK}


# ── cleaning up ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def listening(kvstore: Kvstore, start: Start) -> Any:
    """A doctor that has written, and now listens to silence."""
    running = start(kvstore, "doctor", "--idle", "10m")
    wait_until(lambda: b"events" in running.stdout, timeout=60, what="the doctor has written")
    wait_until(lambda: running.stdout.count(b"\nok       events") == 2, timeout=60, what="all of it")
    assert scratch_keys(kvstore)
    return running


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_leaves_nothing(listening: Any, kvstore: Kvstore, how: int) -> None:
    listening.process.send_signal(how)
    assert listening.wait() == 128 + how
    assert scratch_keys(kvstore) == []


def test_what_a_killed_run_leaves_has_a_ttl(listening: Any, kvstore: Kvstore) -> None:
    listening.process.kill()
    listening.wait()
    left = scratch_keys(kvstore)
    assert left
    assert all("expires_at" in record for record in left)


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────


@given(
    ahead=st.floats(-1e5, 1e5),
    before=st.floats(1e9, 2e9),
    took=st.floats(0, 30),
    moment=st.floats(0, 1),
    step=st.sampled_from([0.001, 1.0]),
)
def test_no_clock_is_said_to_differ_by_more_than_it_does_and_none_that_does_is_missed(
    ahead: float, before: float, took: float, moment: float, step: float
) -> None:
    stamp = (before + took * moment + ahead) // step * step
    finding = compared("a clock", stamp, step, before, before + took)
    skew, doubt = finding.figures["skew_seconds"], finding.figures["doubt_seconds"]
    rounding = 0.003
    assert abs(skew) <= abs(ahead) + rounding
    assert abs(ahead - skew) <= doubt + rounding
    assert (finding.status == WARNING) == (abs(skew) > 2) or abs(abs(skew) - 2) < rounding


# ── the table ────────────────────────────────────────────────────────────────────────────────────


def test_each_cause_says_what_to_do() -> None:
    assert all(fix.others for fix in CAUSES.values())
    assert not [name for name, fix in CAUSES.items() if fix.others.endswith(".") or "\n" in fix.others]
