"""``/metrics``: what is counted is what happened, whichever worker is asked."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics

from kvstore_http.metrics.exposition import CATALOGUE, HISTOGRAM
from support.markdown import ROOT, table_rows
from support.metrics import NOT_ALWAYS, Scrape, let_things_happen, scrape
from support.patience import PATIENCE_SECONDS
from support.programs import require_program
from support.servers import Daemon, Facade, Service, children, wait_until
from support.session import Session
from support.streams import open_stream

PAGE = (ROOT / "docs/monitoring.md").read_text()
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def seen(shared_service: Service) -> Scrape:
    """What is exposed once everything has happened that is counted."""
    let_things_happen(shared_service.url)
    return scrape(shared_service.url)


# ── what there is ────────────────────────────────────────────────────────────────────────────────


def test_what_is_exposed_is_what_the_catalogue_says(seen: Scrape) -> None:
    assert {name: family.type for name, family in seen.families.items()} == {
        name: row.kind for name, row in CATALOGUE.items()
    }
    for name, row in CATALOGUE.items():
        family = seen.families[name]
        assert family.documentation == row.meaning
        assert family.samples or name in NOT_ALWAYS, f"{name} has nothing to tell"
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(row.labels)


def test_the_page_lists_every_metric_and_no_other() -> None:
    rows = [
        row
        for part in ("The facade", "The daemon", "The cluster", "Processes")
        for row in table_rows(PAGE, part)
    ]
    described = {
        name.strip("`"): (kind, labels.replace("`", "").replace(" ", ""), meaning)
        for name, kind, labels, meaning in rows
    }
    assert len(described) == len(rows)
    assert described == {
        name: (row.kind, ",".join(row.labels), row.meaning) for name, row in CATALOGUE.items()
    }


def test_histograms_are_whole(seen: Scrape) -> None:
    for name, row in CATALOGUE.items():
        if row.kind != HISTOGRAM:
            continue
        for labels in seen.labels(f"{name}_count"):
            buckets = [
                sample.value
                for sample in seen.families[name].samples
                if sample.name == f"{name}_bucket" and labels.items() <= sample.labels.items()
            ]
            assert all(low <= high for low, high in pairwise(buckets))
            assert buckets[-1] == seen.value(f"{name}_count", **labels)
            # not every engine syncs by itself, and a checkpoint comes when a file of the journal is full
            assert buckets[-1] > 0 or "sync" in name or "checkpoint" in name


def test_open_metrics_is_given_to_who_asks_for_it(shared_service: Service) -> None:
    session = Session(shared_service.url)
    answer = session.get("/metrics", accept="application/openmetrics-text; version=1.0.0; charset=utf-8")
    session.close()
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family.type for family in open_metrics(answer.body.decode())}
    assert families == {name.removesuffix("_total"): row.kind for name, row in CATALOGUE.items()}


def test_prometheus_own_linter_has_nothing_to_say(seen: Scrape) -> None:
    promtool = require_program("promtool")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=seen.text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# ── what is counted ──────────────────────────────────────────────────────────────────────────────


def test_requests_are_counted_by_method_route_and_status(service: Service, own: Session) -> None:
    own.put("/v1/kv/a%2Fb", b"x")
    for target in ("/v1/kv/a%2Fb", "/v1/kv/missing", "/v1/kv/missing", "/v1/kv?limit=0", "/nowhere"):
        own.get(target)
    own.request("HEAD", "/v1/kv/a%2Fb")
    own.request("POST", "/v1/kv/a%2Fb")
    own.request("REPORT", "/v1/kv/a%2Fb")
    found = scrape(service.url)

    def count(**labels: str) -> float:
        return found.value("kvstore_http_requests_total", **labels)

    assert count(method="PUT", route="/v1/kv/{key}", status="201") == 1
    assert count(method="GET", route="/v1/kv/{key}", status="200") == 1
    assert count(method="GET", route="/v1/kv/{key}", status="404") == 2
    assert count(method="GET", route="/v1/kv", status="400") == 1
    assert count(method="GET", route="other", status="404") == 1
    assert count(method="HEAD", route="/v1/kv/{key}", status="200") == 1
    assert count(method="POST", route="/v1/kv/{key}", status="201") == 1
    assert count(method="other", route="/v1/kv/{key}", status="405") == 1
    assert found.total("kvstore_http_requests_total") == 9
    assert found.total("kvstore_http_request_duration_seconds_count") == 9
    assert found.value("kvstore_http_requests_in_progress") == 1, "the scrape"
    assert found.value("kvstore_http_connections") == 2


def test_what_clients_make_up_makes_no_series(service: Service, own: Session) -> None:
    own.get("/metrics")
    before = len(scrape(service.url).labels("kvstore_http_requests_total"))
    for number in range(50):
        own.request(f"METHOD{number}", f"/path{number}")
    found = scrape(service.url)
    assert len(found.labels("kvstore_http_requests_total")) == before + 1
    assert found.value("kvstore_http_requests_total", method="other", route="other", status="404") == 50


def test_how_long_a_wait_or_a_stream_took_is_not_counted(service: Service, own: Session) -> None:
    revision = own.put("/v1/kv/k", b"x").json["revision"]
    own.get(f"/v1/kv/k?wait=10ms&since={revision}")
    own.get("/v1/kv", accept="application/x-ndjson")
    stream = open_stream(service.url, "since=0")
    assert scrape(service.url).value("kvstore_http_streams") == 1
    stream.close()
    wait_until(lambda: scrape(service.url).value("kvstore_http_streams") == 0)
    measured = scrape(service.url).labels("kvstore_http_request_duration_seconds_count")
    assert {labels["route"] for labels in measured} == {"/v1/kv/{key}", "/metrics"}
    assert {labels["method"] for labels in measured if labels["route"] == "/v1/kv/{key}"} == {"PUT"}


def test_writes_of_one_moment_share_requests_and_commits(service: Service, own: Session) -> None:
    own.batch(*({"op": "put", "key": f"k{number}", "value": "x"} for number in range(30)))
    revision = own.batch({"op": "get", "key": "k29"}).json["results"][0]["revision"]
    found = scrape(service.url)
    assert found.value("kvstore_operations_total", op="put") == 30
    assert found.value("kvstore_commits_total") == found.value("kvstore_commit_requests_total") == 1
    assert found.value("kvstore_commit_ops_sum") == 30
    assert found.value("kvstore_http_daemon_request_ops_bucket", le="20.0") == 2, "the get, the status"
    assert found.value("kvstore_http_daemon_request_ops_sum") >= 31
    seconds = found.value("kvstore_commit_duration_seconds_sum")
    assert 0 <= found.value("kvstore_sync_duration_seconds_sum") < seconds
    assert (found.value("kvstore_keys"), found.value("kvstore_revision")) == (30, revision)


def test_streams_are_counted_with_what_they_were_sent(service: Service, own: Session) -> None:
    own.put("/v1/kv/before", b"x")
    streams = [open_stream(service.url, query) for query in ("since=0", "prefix=a", "prefix=b", "prefix=b")]
    for stream in streams:
        events = iter(stream)
        while next(events).name != "sync":
            pass
    own.put("/v1/kv/b", b"x")
    next(events)
    found = scrape(service.url)
    assert found.value("kvstore_http_streams") == found.value("kvstore_http_streams_opened_total") == 4
    assert found.value("kvstore_http_streams_resumed_total") == 1
    assert found.value("kvstore_http_stream_events_total") == 4
    assert found.value("kvstore_http_stream_bytes_total") > 4 * len(b"event: put")
    assert found.value("kvstore_http_stream_lag_seconds_count") == 1
    assert found.value("kvstore_subscriptions") == 1
    for stream in streams:
        stream.close()


def test_a_stream_that_is_refused_or_reset_is_counted(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(start_daemon(), max_streams=1)
    stream = open_stream(facade.url, "since=7-0123456789abcdef")
    assert stream.first().name == "reset"
    session = Session(facade.url)
    assert session.get("/v1/subscribe").status == 503
    session.close()
    stream.close()
    found = scrape(facade.url)
    assert found.value("kvstore_http_stream_resets_total") == 1
    assert found.value("kvstore_http_streams_dropped_total", reason="no_room") == 1


def test_a_slow_reader_is_seen_in_the_backlog_and_then_among_the_dropped(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, stream_buffer_bytes=8 * MIB, stream_heartbeat="1s")
    stream = open_stream(facade.url, "prefix=big", receive_buffer=16_384)
    session = Session(facade.url)
    for number in range(6):
        session.put(f"/v1/kv/big{number}", b"x" * MIB)

    def backlog() -> float:
        return scrape(facade.url).value("kvstore_http_stream_backlog_bytes")

    wait_until(lambda: backlog() > MIB, what="the backlog is seen")

    def dropped() -> float:
        session.put("/v1/kv/big", b"x" * MIB)
        return scrape(facade.url).value("kvstore_http_streams_dropped_total", reason="slow")

    assert wait_until(dropped, what="the reader is cut off") == 1
    wait_until(lambda: backlog() == 0, what="nothing waits any more")
    session.close()
    stream.close()


# ── several workers ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two_workers(daemon: Daemon, start_facade: Callable[..., Facade]) -> Facade:
    return start_facade(daemon, workers=2)


def gets(found: Scrape) -> float:
    return found.value("kvstore_http_requests_total", method="GET", route="/livez", status="200")


def test_any_worker_answers_for_all(two_workers: Facade) -> None:
    for _ in range(40):  # each on a connection of its own, which the kernel gives to one of the two
        urlopen(f"{two_workers.url}/livez", timeout=PATIENCE_SECONDS).close()  # noqa: S310
    for _ in range(10):
        found = scrape(two_workers.url)
        assert gets(found) == 40
        assert found.value("kvstore_http_workers") == 2
        assert {labels["process"] for labels in found.labels("process_open_fds")} == {
            "daemon",
            "worker-0",
            "worker-1",
        }


def test_processes_are_told_as_the_system_has_them(daemon: Daemon, two_workers: Facade) -> None:
    found = scrape(two_workers.url)
    for process in ("daemon", "worker-0", "worker-1"):
        of = {name: found.value(name, process=process) for name in CATALOGUE if name.startswith("process_")}
        assert all(of.values()), (process, of)
        assert of["process_open_fds"] < of["process_max_fds"]
        assert MIB < of["process_resident_memory_bytes"] < of["process_virtual_memory_bytes"]
        assert abs(time.time() - of["process_start_time_seconds"]) < 3600
    in_proc = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
    assert abs(found.value("process_open_fds", process="daemon") - in_proc) <= 2


def test_a_worker_that_is_started_again_goes_on_counting(two_workers: Facade) -> None:
    streams = [open_stream(two_workers.url, "since=0") for _ in range(10)]
    for _ in range(20):
        urlopen(f"{two_workers.url}/livez", timeout=PATIENCE_SECONDS).close()  # noqa: S310
    assert scrape(two_workers.url).value("kvstore_http_streams") == 10
    os.kill(children(two_workers.pid)[0], signal.SIGKILL)
    wait_until(lambda: scrape_if_any(two_workers.url, "kvstore_http_worker_restarts_total") == 1)
    wait_until(lambda: scrape_if_any(two_workers.url, "kvstore_http_workers") == 2)
    found = scrape(two_workers.url)
    assert gets(found) == 20
    assert found.value("kvstore_http_streams_opened_total") == 10
    assert found.value("kvstore_http_streams") < 10, "those of the worker that ended are gone"
    for stream in streams:
        stream.close()


def scrape_if_any(url: str, name: str) -> float | None:
    """The value, None where the connection was one of the worker that ended."""
    try:
        return scrape(url).value(name)
    except OSError:
        return None


# ── without the daemon ───────────────────────────────────────────────────────────────────────────


def test_metrics_are_there_while_the_daemon_is_away(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, daemon_timeout="500ms")
    wait_until(lambda: scrape(facade.url).value("kvstore_up") == 1)
    daemon.kill()
    found = scrape(facade.url)
    assert "kvstore_up 0.0" in found.text
    assert "kvstore_keys" not in found.families
    assert found.value("kvstore_http_workers") == 1
    daemon.start()
    wait_until(lambda: scrape(facade.url).value("kvstore_up") == 1)
