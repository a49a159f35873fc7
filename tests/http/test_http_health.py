"""``/livez`` and ``/readyz``: what is looked at, what makes the service unready, and what only warns."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from typing import Any, cast
from urllib.parse import urlsplit

import falcon
import pytest
from falcon.testing import TestClient

from kvstore_core.access.principal import UNRESTRICTED
from kvstore_core.errors import KvError
from kvstore_http.metrics.counters import SharedCounters, WorkerCounters
from kvstore_http.protocol.environ import RAW_QUERY, WHO
from kvstore_http.protocol.query_params import CHECKS, USUAL_CHECKS
from kvstore_http.resources.service import health
from kvstore_http.resources.service.health import ReadyzResource
from support.markdown import ROOT
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, Facade, Service, free_port, wait_until
from support.session import Session, assert_problem

TEXT = "text/plain"
PAGE = (ROOT / "docs/monitoring.md").read_text()


def checks(session: Session, target: str = "/readyz?verbose") -> dict[str, dict[str, Any]]:
    """What the checks found, by their names."""
    return {check["name"]: check for check in session.get(target).json["checks"]}


OF_A_CLUSTER = {"cluster", "mirror"}
"""The checks that there are only with such a store."""


def test_all_is_well_with_a_new_service(session: Session) -> None:
    assert session.get("/readyz").json == {"status": "ready"}
    found = checks(session)
    assert tuple(name for name in found if name not in OF_A_CLUSTER) == USUAL_CHECKS
    assert {check["status"] for check in found.values()} <= {"ok", "warning"}
    assert found["daemon"]["status"] == found["writes"]["status"] == "ok"
    assert 0 < found["daemon"]["round_trip_seconds"] < 30


def test_the_last_commit_is_told_with_its_age(own: Session) -> None:
    assert checks(own)["writes"]["last_commit_at"] is None
    own.put("/v1/kv/a", b"x")
    writes = checks(own)["writes"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", writes["last_commit_at"])
    assert writes["last_commit_age_seconds"] >= 0
    assert "ago" in writes["message"]


def test_plain_text_is_as_etcd_and_kubernetes_write_it(session: Session) -> None:
    answer = session.get("/readyz", accept=TEXT)
    assert (answer.body, answer.headers["content-type"]) == (b"ok\n", "text/plain; charset=utf-8")
    *lines, verdict = session.get("/readyz?verbose", accept=TEXT).body.decode().splitlines()
    assert verdict == "readyz check passed"
    shown = [re.fullmatch(r"\[([+!])\]([a-z]+) (ok|warning): \S.*", line) for line in lines]
    names = [match and match[2] for match in shown]
    assert [name for name in names if name not in OF_A_CLUSTER] == list(USUAL_CHECKS)
    assert all(match and (match[1] == "+") == (match[3] == "ok") for match in shown)


@pytest.mark.parametrize("target", ["exclude=disk,log", "exclude=disk&exclude=log"])
def test_checks_can_be_left_out(session: Session, target: str) -> None:
    found = checks(session, f"/readyz?verbose&{target}")
    assert set(found) - OF_A_CLUSTER == set(USUAL_CHECKS) - {"disk", "log"}


@pytest.mark.parametrize("excluded", ["", "dusk", "disk,", "disk,dusk"])
def test_a_check_that_there_is_not_is_named_with_those_that_there_are(
    session: Session, excluded: str
) -> None:
    problem = assert_problem(session.get(f"/readyz?exclude={excluded}"), "bad_request")
    assert all(name in problem["detail"] for name in CHECKS)


def test_the_page_lists_the_checks() -> None:
    listed = re.findall(r"^\| `([a-z]+)` \|", PAGE.split("## Metrics")[0], re.MULTILINE)
    assert tuple(listed) == CHECKS
    shown = re.findall(r"^\[[+!-]\]([a-z]+) ", PAGE, re.MULTILINE)
    assert tuple(shown) == USUAL_CHECKS


# ── what makes it unready ────────────────────────────────────────────────────────────────────────


def test_without_the_daemon_it_is_not_ready_and_says_so(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    session = Session(start_facade(daemon, daemon_timeout="500ms").url)
    daemon.kill()
    problem = assert_problem(session.get("/readyz"), "unavailable")
    first, *_ = problem["checks"]
    assert (first["name"], first["status"]) == ("daemon", "failed")
    answer = session.get("/readyz", accept=TEXT)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    lines = answer.body.decode().splitlines()
    assert lines[0].startswith("[-]daemon failed: ")
    assert lines[-1] == "readyz check failed"
    assert session.get("/readyz?exclude=daemon").status == 200
    assert session.get("/livez").json == {"status": "alive"}
    daemon.start()
    wait_until(lambda: session.get("/readyz").status == 200)
    session.close()


def test_a_full_store_is_a_warning(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon(max_store_bytes="8MiB", sync="none", retain_events=1)
    session = Session(start_facade(daemon).url)
    number = 0
    while session.put(f"/v1/kv/{number}", os.urandom(500_000)).status == 201:
        number += 1
    found = checks(session)
    assert (found["writes"]["status"], found["writes"]["code"]) == ("warning", "store_full")
    assert "--max-store-bytes" in found["writes"]["message"]
    assert found["store"]["status"] == "warning"
    assert session.get("/readyz").status == 200
    begin = "writes are refused: the store holds "
    wait_until(lambda: begin in daemon.stderr, what="the log says so")
    assert "writes are taken again" not in daemon.stderr
    for each in range(number):
        session.delete(f"/v1/kv/{each}")
    wait_until(lambda: "writes are taken again" in daemon.stderr, what="the log says so")
    assert daemon.stderr.count(begin) == 1
    session.close()


def test_a_log_that_reaches_back_for_minutes_is_a_warning(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    session = Session(start_facade(start_daemon(retain_events=3)).url)
    assert checks(session)["log"]["status"] == "ok"

    def is_cut() -> bool:
        session.put("/v1/kv/a", b"x")
        return checks(session)["log"]["shortened_by"] is not None

    wait_until(is_cut, what="the log is trimmed")
    log = checks(session)["log"]
    assert (log["status"], log["shortened_by"]) == ("warning", "--retain-events")
    assert log["floor"] > 0
    assert log["reach_seconds"] >= 0
    session.close()


def test_a_wrong_address_of_changes_is_a_warning(daemon: Daemon, start_facade: Callable[..., Facade]) -> None:
    facade = start_facade(daemon, changes=f"tcp://127.0.0.1:{free_port()}")
    session = Session(facade.url)
    wait_until(lambda: checks(session)["feed"]["status"] == "warning", what="the silence is noticed")
    assert "--changes" in checks(session)["feed"]["message"]
    assert session.get("/readyz").status == 200
    session.close()


def test_a_daemon_that_stands_still_for_a_moment_does_not_make_it_unready(service: Service) -> None:
    probe = HTTPConnection(urlsplit(service.url).netloc, timeout=PATIENCE_SECONDS)
    service.daemon.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: _state(service.daemon.pid) == b"T", what="the daemon is stopped")
        probe.request("GET", "/readyz")
    finally:
        service.daemon.signal(signal.SIGCONT)
    assert probe.getresponse().status == 200
    probe.close()


def _state(pid: int) -> bytes:
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        return file.read().rpartition(b")")[2].split()[0]


# ── what cannot be brought about from outside ────────────────────────────────────────────────────


class Answers:
    """A link on which ``status`` is answered with ``outcome``, and a feed that heard something just now."""

    silent_seconds = 0.0

    def __init__(self, outcome: dict[str, Any] | KvError) -> None:
        self._outcome = outcome

    def call(self, _op: dict[str, Any], **_: Any) -> dict[str, Any]:
        if isinstance(self._outcome, KvError):
            raise self._outcome
        return self._outcome


class WithRawQuery:
    """Leaves the query where the server does."""

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        req.env[RAW_QUERY], req.env[WHO] = req.query_string, UNRESTRICTED


def readyz_where(outcome: dict[str, Any] | KvError, shared_counters: SharedCounters | None = None) -> Any:
    """``/readyz?verbose`` as text, where ``status`` is answered with ``outcome``."""
    app = falcon.App(middleware=[WithRawQuery()])
    both = Answers(outcome)
    app.add_route(
        "/readyz", ReadyzResource(cast(Any, both), cast(Any, both), shared_counters or SharedCounters(1))
    )
    return TestClient(app).simulate_get("/readyz", query_string="verbose", headers={"Accept": TEXT})


def test_a_daemon_with_much_to_do_is_a_warning() -> None:
    answer = readyz_where(KvError("timed_out", "the daemon did not answer within 5 s"))
    assert answer.status_code == 200
    assert answer.text.startswith("[!]daemon warning: the daemon did not answer within 5 s, though")


def test_after_a_failed_commit_it_is_not_ready(session: Session) -> None:
    broken = {"code": "internal", "message": "a commit failed (Input/output error)"}
    fields = {**raw_status(session), "writes_refused": broken}
    answer = readyz_where(fields)
    assert answer.status_code == 503
    assert "[-]writes failed: writes are refused: a commit failed (Input/output error)" in answer.text


def test_a_disk_with_little_room_is_a_warning(session: Session) -> None:
    fields = {**raw_status(session), "disk_bytes": 100 * 2**30, "disk_free_bytes": 2**30 - 1}
    assert "[!]disk warning: 1024.0 MiB of 100.0 GiB are free, less than 1.0 GiB" in readyz_where(fields).text
    fields |= {"disk_bytes": 2**30, "disk_free_bytes": 2**28}
    assert "[+]disk ok: 256.0 MiB of 1.0 GiB are free" in readyz_where(fields).text


def test_a_disk_for_which_writes_are_refused_is_a_warning_whatever_is_free(session: Session) -> None:
    full = {"code": "store_full", "message": "the disk under /data is full"}
    fields = {**raw_status(session), "disk_bytes": 40 * 2**20, "disk_free_bytes": 6 * 2**20}
    assert "[+]disk ok" in readyz_where(fields).text
    answer = readyz_where({**fields, "writes_refused": full})
    assert "[!]disk warning: 6.0 MiB of 40.0 MiB are free, too little to take writes" in answer.text
    answer = readyz_where({**fields, "writes_refused": {**full, "limit": 2**20}})
    assert "[+]disk ok" in answer.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "by --retain-bytes before it is 7.0 days old; raise --retain-bytes\n"),
        (
            {"max_log_bytes": 2**21},
            "a quarter (2.0 MiB), before it is 7.0 days old; raise --max-store-bytes\n",
        ),
        (
            {"max_log_bytes": 2**21, "max_store_bytes": 2**40},
            "by the size of the disk, of which it may take a quarter (2.0 MiB), before it is 7.0 days old\n",
        ),
    ],
)
def test_what_cuts_the_log_by_its_bytes_is_named(
    session: Session, changes: dict[str, int], words: str
) -> None:
    fields = raw_status(session)
    fields |= {"floor": 7, "oldest_event_at": fields["clock"]["now"] - 1000, "log_bytes": 2**21}
    fields |= {"max_store_bytes": 2**23, "disk_bytes": 2**30, "max_log_bytes": fields["retention"]["bytes"]}
    assert words in readyz_where({**fields, **changes}).text


def test_as_many_connections_as_the_daemon_takes_are_a_warning(session: Session) -> None:
    fields = {**raw_status(session), "connections": 29, "max_connections": 30}
    assert "[+]connections ok: 29 of at most 30 " in readyz_where(fields).text
    answer = readyz_where(fields | {"connections": 30})
    assert answer.status_code == 200
    assert "[!]connections warning: 30 of at most 30 " in answer.text
    assert "LimitNOFILE=" in answer.text


def test_streams_that_wait_for_the_daemon_are_a_warning(session: Session) -> None:
    shared_counters = SharedCounters(2)
    for number in range(2):
        counting = WorkerCounters(shared_counters, number)
        counting.note_streams(5)
        counting.note_catching_up(2)
    answer = readyz_where(raw_status(session), shared_counters)
    assert "[+]streams ok: 10 streams are open, 4 of them catch up\n" in answer.text
    answer = readyz_where(KvError("unavailable", "the daemon cannot be reached"), shared_counters)
    assert "[!]streams warning: 4 of 10 streams wait for the daemon\n" in answer.text


def test_streams_without_room_are_a_warning_for_a_while(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_counters = SharedCounters(2)
    WorkerCounters(shared_counters, 0).stream_refused()
    WorkerCounters(shared_counters, 1).stream_refused()
    answer = readyz_where(raw_status(session), shared_counters)
    assert answer.status_code == 200
    assert "[!]streams warning: 0 streams are open, 0 of them catch up; 2 were refused" in answer.text
    assert "--max-streams" in answer.text
    monkeypatch.setattr(health, "monotonic", lambda: time.monotonic() + health.REFUSED_SECONDS + 1)
    assert "[+]streams ok" in readyz_where(raw_status(session), shared_counters).text


def test_a_held_stream_and_one_without_room_are_seen_by_the_operator(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon()
    daemon.stop()
    facade = start_facade(daemon, max_streams=1, daemon_timeout="300ms")
    session = Session(facade.url)
    with ExitStack() as connections:
        for _ in range(2):
            connection = HTTPConnection(cast(str, urlsplit(facade.url).netloc), timeout=60)
            connections.enter_context(closing(connection))
            connection.request("GET", "/v1/subscribe", headers={"Accept": "text/event-stream"})
            response = connection.getresponse()
            assert response.status == 200
            # it lives as long as what was read from it
            connections.enter_context(closing(response))
        answer = session.get("/readyz")
        found = {check["name"]: check for check in assert_problem(answer, "unavailable")["checks"]}
        assert found["streams"]["status"] == "warning"
        assert found["streams"]["message"].startswith("1 of 1 streams wait for the daemon; 1 were refused")
    session.close()


def raw_status(session: Session) -> dict[str, Any]:
    """The daemon's status, with the times as the protocol has them."""
    status = session.get("/v1/status").json
    return {**status, "newest_event_at": None, "oldest_event_at": None}


# ── where a cluster keeps the store ──────────────────────────────────────────────────────────────


def member(number: int, **more: Any) -> dict[str, Any]:
    return {
        "endpoint": f"n{number}:2379",
        "name": f"n{number}",
        "healthy": True,
        "leader": number == 1,
        **more,
    }


def with_cluster(session: Session, **more: Any) -> dict[str, Any]:
    """The status of a daemon whose store is kept by a cluster of three."""
    cluster = {
        "leader": "n1",
        "members": [member(1), member(2), member(3)],
        "warnings": [],
        "mirror": {"lag_ms": 12, "lag_revisions": 0, "rebuilds": 0},
    }
    return {**raw_status(session), "cluster": {**cluster, **more}}


def test_a_cluster_that_is_well_says_who_leads(session: Session) -> None:
    answer = readyz_where(with_cluster(session))
    assert answer.status_code == 200
    assert "[+]cluster ok: 3 of 3 members of the cluster serve requests, n1 leads\n" in answer.text
    assert "[+]mirror ok: the mirror was current 0.0 s ago" in answer.text


def test_a_member_that_is_away_is_a_warning_and_an_old_version_is_none(session: Session) -> None:
    old = {"about": "version", "message": "n1: etcd 3.4.23 has defects"}
    assert "[+]cluster ok" in readyz_where(with_cluster(session, warnings=[old])).text
    gone = {"about": "member", "message": "the member n2 cannot be used: connection refused"}
    members = [member(1), member(2, healthy=False), member(3)]
    answer = readyz_where(with_cluster(session, members=members, warnings=[old, gone]))
    assert answer.status_code == 200
    assert "[!]cluster warning: 2 of 3 members of the cluster serve requests, n1 leads: the member n2" in (
        answer.text
    )
    assert "defects" not in answer.text


def test_without_a_member_that_serves_it_is_not_ready(session: Session) -> None:
    members = [member(number, healthy=False, leader=False) for number in (1, 2, 3)]
    lost = {"about": "majority", "message": "no member of the cluster serves requests"}
    answer = readyz_where(with_cluster(session, members=members, leader=None, warnings=[lost]))
    assert answer.status_code == 503
    assert "[-]cluster failed: 0 of 3 members of the cluster serve requests: no member" in answer.text


def test_a_mirror_that_is_late_is_a_warning(session: Session) -> None:
    late = {"lag_ms": 7_100, "lag_revisions": 41, "rebuilds": 2}
    answer = readyz_where(with_cluster(session, mirror=late))
    assert answer.status_code == 200
    assert "[!]mirror warning: the mirror was current 7.1 s ago" in answer.text
    assert "41 revisions are known to be missing" in answer.text
