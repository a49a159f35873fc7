"""A real Prometheus that scrapes a service."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode
from urllib.request import urlopen

from support.ports import free_port
from support.programs import require_program
from support.waiting import wait_until

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
