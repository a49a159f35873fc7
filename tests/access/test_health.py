"""Health and metrics of a service with access on: who may ask, and with what."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.markdown import ROOT
from support.metrics import Prometheus
from support.protected import Protected
from support.servers import Daemon, clean_environment, run_kvstore, wait_until
from support.session import call

CONFIGURATION = (ROOT / "deploy/prometheus/prometheus.yaml").read_text()


def test_health_needs_no_credential(protected: Protected, tmp_path: Path) -> None:
    for path in ("/livez", "/readyz"):
        assert call(protected.url, "GET", path).status == 200
        assert call(protected.url, "HEAD", path).status == 200
    done = run_kvstore("ping", "--url", protected.url, env=clean_environment(tmp_path))
    assert done.returncode == 0, done.stderr


def test_the_daemon_is_asked_with_the_facades_key_where_that_can_be_read(
    protected: Protected, tmp_path: Path
) -> None:
    where = {"KVSTORE_REQUESTS": protected.requests}
    beside = clean_environment(tmp_path, **where, KVSTORE_DATA=str(protected.data))
    done = run_kvstore("ping", "--daemon", env=beside)
    assert (done.returncode, done.stdout.decode()) == (0, f"{protected.requests} is ready\n"), done.stderr
    done = run_kvstore("ping", "--daemon", env=clean_environment(tmp_path, **where))
    assert done.returncode == 5
    assert b"login file" in done.stderr
    # of a user without a home
    without = {name: value for name, value in os.environ.items() if name != "HOME"}
    assert run_kvstore("ping", "--daemon", env={**without, **where}).returncode == 5


def test_a_daemon_whose_access_was_turned_off_is_asked_without_a_key(daemon: Daemon, tmp_path: Path) -> None:
    for name in ("access.key", "facade.key"):  # as they were left behind
        (daemon.data / name).touch(0o600)
    where = {"KVSTORE_REQUESTS": daemon.requests, "KVSTORE_DATA": str(daemon.data), "KVSTORE_ACCESS": "off"}
    done = run_kvstore("ping", "--daemon", env=clean_environment(tmp_path, **where))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def prometheus(tmp_path: Path, protected: Protected) -> Iterator[Prometheus]:
    """A Prometheus with the part of the shipped configuration that says how to ask."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: []\n")
    token = tmp_path / "kvstore.token"
    token.write_text(protected.token("prometheus", "monitor") + "\n")
    (shown,) = re.findall(r"^    authorization:\n.*\n", CONFIGURATION, re.MULTILINE)
    running = Prometheus(tmp_path / "prometheus", urlsplit(protected.url).netloc, rules)
    text = running.file.read_text()
    assert text.count("    static_configs:") == 1
    shown = shown.replace("/etc/prometheus/kvstore.token", str(token))
    running.file.write_text(text.replace("    static_configs:", f"{shown}    static_configs:"))
    with running:
        yield running


def test_prometheus_scrapes_with_a_token_of_its_own(protected: Protected, prometheus: Prometheus) -> None:
    wait_until(lambda: prometheus.value("up") == 1, what="it is let in")
    protected.token("ends-soon", "ro:x/", credential_expires_at=4_000_000_000_000)
    end = 'kvstore_access_expires_at_seconds{name="ends-soon"}'
    wait_until(lambda: prometheus.value(end) == 4e9, what="it knows when a token ends")
    assert call(protected.url, "GET", "/metrics").status == 401


def test_a_token_without_monitor_sees_no_metrics(protected: Protected) -> None:
    known = {"Authorization": f"Bearer {protected.token('not-a-monitor', 'rw:*')}"}
    wait_until(lambda: call(protected.url, "GET", "/v1/status", headers=known).status == 200)
    assert call(protected.url, "GET", "/metrics", headers=known).status == 403
