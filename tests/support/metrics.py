"""What ``/metrics`` says, read with Prometheus' own parser and scraped by a real Prometheus."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode
from urllib.request import urlopen

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from support.programs import require_program
from support.servers import free_port, wait_until
from support.session import Session
from support.streams import open_stream
from support.surfaces import Answer


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
    with urlopen(f"{url}/metrics", timeout=30) as answer:  # noqa: S310
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


STOP_SECONDS = 20

CONFIG = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: kvstore
    scrape_timeout: {timeout}
    scrape_interval: {timeout}
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """Prometheus with the given ``rules``, asking ``target`` (host and port) twice a second."""

    def __init__(self, folder: Path, target: str, rules: Path) -> None:
        self._folder = folder
        self._program = require_program("prometheus")
        self._address = f"127.0.0.1:{free_port()}"
        config = folder / "prometheus.yaml"
        config.write_text(CONFIG.format(target=target, rules=rules, timeout="500ms"))
        self._config = config

    def __enter__(self) -> Self:
        with (self._folder / "prometheus.stderr").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._folder / 'tsdb'}",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_ready, what="Prometheus is ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(STOP_SECONDS) == 0

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "prometheus.stderr").read_text()
        try:
            with urlopen(f"http://{self._address}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _ask(self, path: str, **query: str) -> Any:
        with urlopen(f"http://{self._address}/api/v1/{path}?{urlencode(query)}", timeout=30) as answer:
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
