"""What is shipped for Prometheus and Grafana, against a real service and a real Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from support.markdown import ROOT, anchors
from support.metrics import NOT_ALWAYS, Prometheus, Scrape, let_things_happen, scrape
from support.programs import require_program
from support.servers import Daemon, Facade, Service, wait_until
from support.session import Session

pytestmark = pytest.mark.slow

PROMETHEUS = ROOT / "deploy/prometheus"
RULES_FILE = PROMETHEUS / "kvstore.rules.yaml"
PAGE = (ROOT / "docs/monitoring.md").read_text()
RULES = yaml.safe_load(RULES_FILE.read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "deploy/grafana/kvstore.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]

NAME = re.compile(r"\b((?:kvstore|process)_[a-z0-9_]+)\b")


@pytest.fixture(scope="module")
def seen(shared_service: Service) -> Scrape:
    """What is exposed once everything has happened that is counted."""
    let_things_happen(shared_service.url)
    return scrape(shared_service.url)


def series_of(found: Scrape) -> set[str]:
    """The names that a query can ask for."""
    there = {sample.name for family in found.families.values() for sample in family.samples}
    return there | NOT_ALWAYS


CREDENTIALS = "credentials_file: /etc/prometheus/kvstore.token"


def with_token(folder: Path, token: str) -> Path:
    """The configuration that is shipped, with a token in a file of the test's."""
    file = folder / "kvstore.token"
    file.write_text(token)
    text = (PROMETHEUS / "prometheus.yaml").read_text()
    assert CREDENTIALS in text
    text = text.replace(CREDENTIALS, f"credentials_file: {file}")
    configuration = folder / "prometheus.yaml"
    configuration.write_text(text.replace("kvstore.rules.yaml", str(RULES_FILE)))
    return configuration


# ── the rules ────────────────────────────────────────────────────────────────────────────────────


def test_rules_and_configuration_are_in_order_and_do_what_their_tests_say(tmp_path: Path) -> None:
    promtool = require_program("promtool")
    configured = with_token(tmp_path, "kv_…")
    for command in (
        ["check", "config", configured],
        ["check", "rules", "kvstore.rules.yaml"],
        ["test", "rules", "kvstore.tests.yaml"],
    ):
        done = subprocess.run(
            [promtool, *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "FAILED" not in done.stdout + done.stderr


def test_every_rule_is_tested() -> None:
    tests = (PROMETHEUS / "kvstore.tests.yaml").read_text()
    for rule in RULES:
        assert f'alertname="{rule["alert"]}"' in tests


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_a_rule_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, Any], seen: Scrape) -> None:
    assert set(NAME.findall(rule["expr"])) <= series_of(seen)
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "action", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (ROOT / page).read_text() == PAGE
    assert anchor == rule["alert"].lower()
    assert anchor in anchors(PAGE)


def test_the_page_tells_of_every_alert_what_its_rule_says() -> None:
    section = PAGE.split("\n## Alerts\n")[1].split("\n## ")[0]
    described = re.findall(
        r"^### (\w+)\n\n(\w+), when `(.+)`(?:, for (\d+) minutes?)?\.$", section, re.MULTILINE
    )
    assert described == [
        (
            rule["alert"],
            rule["labels"]["severity"].capitalize(),
            rule["expr"],
            rule.get("for", "").removesuffix("m"),
        )
        for rule in RULES
    ]


# ── the dashboard ────────────────────────────────────────────────────────────────────────────────


def test_the_dashboard_asks_for_what_there_is(seen: Scrape) -> None:
    for expression in EXPRESSIONS:
        names = set(NAME.findall(expression))
        assert names
        assert names <= series_of(seen), expression


def test_the_dashboard_shows_nearly_all_there_is() -> None:
    from kvstore_http.metrics.exposition import CATALOGUE

    shown = set(NAME.findall(" ".join(EXPRESSIONS)))
    shown |= {name.removesuffix(suffix) for name in shown for suffix in ("_bucket", "_sum", "_count")}
    assert set(CATALOGUE) - shown == {
        "kvstore_log_floor_revision",
        "kvstore_clock_steps_total",
        "process_virtual_memory_bytes",
        "process_start_time_seconds",
    }


def test_the_dashboard_can_be_imported() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for text in (*EXPRESSIONS, *(variables[name]["definition"] for name in ("job", "instance"))):
        assert set(re.findall(r"\$(\w+)", text)) <= {*variables, "__rate_interval"}
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"]
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


# ── with a real Prometheus ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The rules, with alerts that fire after seconds instead of minutes."""
    quick = tmp_path / "rules.yaml"
    quick.write_text(re.sub(r"^(\s+for:) .+$", r"\1 2s", RULES_FILE.read_text(), flags=re.MULTILINE))
    return quick


@pytest.fixture
def facade(daemon: Daemon, start_facade: Callable[..., Facade]) -> Facade:
    return start_facade(daemon, workers=2)


@pytest.fixture
def prometheus(tmp_path: Path, rules: Path, facade: Facade) -> Iterator[Prometheus]:
    with Prometheus(tmp_path / "prometheus", urlsplit(facade.url).netloc, rules) as running:
        yield running


def test_prometheus_scrapes_two_workers_and_tells_when_the_daemon_is_gone(
    prometheus: Prometheus, daemon: Daemon, facade: Facade
) -> None:
    for number in range(30):
        session = Session(facade.url)
        assert session.put(f"/v1/kv/{number}", b"x").status == 201
        session.close()
    puts = 'sum(kvstore_http_requests_total{route="/v1/kv/{key}",method="PUT"})'
    wait_until(lambda: prometheus.value(puts) == 30, what="all puts of both workers are counted")
    wait_until(lambda: prometheus.value("kvstore_keys") == 30)
    assert prometheus.value("kvstore_http_workers") == 2
    assert prometheus.value('up{job="kvstore"}') == 1
    assert prometheus.alerts() == {}

    daemon.kill()
    states: list[str] = []

    def is_firing() -> bool:
        state = prometheus.alerts().get("KvstoreDown", "none")
        if state not in states:
            states.append(state)
        return state == "firing"

    wait_until(is_firing, what="KvstoreDown fires")
    assert states[-2:] == ["pending", "firing"]
    wait_until(lambda: prometheus.value("kvstore_up") == 0, what="the facade says why")

    daemon.start()
    wait_until(lambda: "KvstoreDown" not in prometheus.alerts(), what="all is well again")
    assert prometheus.value(puts) == 30


def test_every_expression_is_one_for_prometheus_and_has_something_to_show(
    prometheus: Prometheus, facade: Facade
) -> None:
    asked = [
        expression.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")
        for expression in EXPRESSIONS
    ]
    # a quotient of errors has nothing to show where there is none
    missing = [expression for expression in asked if 'status=~"5.."' not in expression]
    missing = [expression for expression in missing if NOT_ALWAYS.isdisjoint(NAME.findall(expression))]

    def nothing_is_missing() -> bool:
        let_things_happen(facade.url)
        missing[:] = [expression for expression in missing if not prometheus.query(expression)]
        return not missing

    wait_until(nothing_is_missing, timeout=40, what="every panel has something to show", every=0.5)
    for expression in asked:
        prometheus.query(expression)
