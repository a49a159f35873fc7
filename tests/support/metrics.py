"""What ``/metrics`` says, read with Prometheus' own parser and scraped by a real Prometheus."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kvstore_http.metrics.exposition import CATALOGUE
from support.patience import PATIENCE_SECONDS
from support.programs import Program
from support.session import Answer, Session
from support.streams import open_stream

ONLY_SECURED = {"kvstore_tls_certificate_expires_at_seconds", "kvstore_access_expires_at_seconds"}
"""What a service without TLS and access has nothing to say of."""

OF_CLUSTER = {
    name
    for name in CATALOGUE
    if name.startswith(("kvstore_etcd_", "kvstore_mirror_", "kvstore_clock_offset_"))
}
"""What one whose store is on its own machine has nothing to say of."""

OF_CACHE = {name for name in CATALOGUE if name.startswith("kvstore_evict")}
"""What one that evicts nothing has nothing to say of."""

NOT_ALWAYS = ONLY_SECURED | OF_CLUSTER | OF_CACHE


class Scrape:
    """One answer of ``/metrics``."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {_exposed(family): family for family in text_string_to_metric_families(text)}
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """The value of one series; 0 where there is none."""
        return self._samples.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series that have ``labels`` among theirs."""
        wanted = frozenset(labels.items())
        return sum(value for (found, has), value in self._samples.items() if found == name and wanted <= has)

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of each series of ``name``, but for those of a histogram's buckets."""
        return [dict(has) for found, has in self._samples if found == name]


def _exposed(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def scrape(url: str) -> Scrape:
    """What the service at ``url`` exposes now; over a connection of its own, so any worker may answer."""
    with urlopen(f"{url}/metrics", timeout=PATIENCE_SECONDS) as answer:  # noqa: S310
        return Scrape(answer.read().decode())


def let_things_happen(url: str) -> None:
    """Traffic of each kind, so that every metric has something to tell."""
    session = Session(url)
    for number in range(5):
        assert_put(session.put(f"/v1/kv/metrics/{number}", b"x"))
    assert_put(session.put("/v1/kv/metrics/soon?ttl=1h", b"x"))
    session.get("/v1/kv/metrics/0")
    session.get("/v1/kv/metrics/missing")
    stream = open_stream(url, "prefix=metrics/&since=0")
    events: Callable[[], Any] = iter(stream).__next__
    while events().name != "sync":
        pass
    assert_put(session.put("/v1/kv/metrics/0", b"y"))
    while events().name != "put":
        pass
    stream.close()
    session.close()


def assert_put(answer: Answer) -> None:
    assert answer.status in (200, 201), answer


CONFIG = """
global: {scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}
rule_files: [RULES]
scrape_configs:
  - job_name: kvstore
    scrape_timeout: 500ms
    scrape_interval: 500ms
    static_configs: [{targets: ["TARGET"]}]
"""


class Prometheus(Program):
    """Prometheus with the given ``rules``, asking ``target`` (host and port) twice a second."""

    name = "prometheus"

    def __init__(self, folder: Path, target: str, rules: Path) -> None:
        super().__init__(folder, CONFIG.replace("TARGET", target).replace("RULES", str(rules)))

    def arguments(self) -> list[str]:
        return [
            f"--config.file={self.file}",
            f"--storage.tsdb.path={self.folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def _is_ready(self) -> bool:
        if not super()._is_ready():
            return False
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=10):
                return True
        except OSError:
            return False

    def _ask(self, path: str, **query: str) -> Any:
        with urlopen(
            f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(query)}", timeout=PATIENCE_SECONDS
        ) as answer:
            body = json.load(answer)
        assert body["status"] == "success"
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that ``expression`` gives now; HTTPError where it is none."""
        found: list[dict[str, Any]] = self._ask("query", query=expression)["result"]
        return found

    def value(self, expression: str) -> float | None:
        """The value of the one sample, None if there is none."""
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return float(samples[0]["value"][1]) if samples else None

    def alerts(self) -> dict[str, str]:
        """The state, pending or firing, of each alert that is one, by its name."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in self._ask("alerts")["alerts"]}
