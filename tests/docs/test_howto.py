"""The how-tos, each done as it is written, with the programs that it is about where they run here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from kvstore_client import Client
from support.browser import PROCESS_FOR_EACH_TAB, open_browser
from support.markdown import ROOT
from support.programs import Program, require_program
from support.servers import Serve, free_port, wait_until
from support.tabs import Tab
from support.walkthrough import Walk


class Prometheus(Program):
    """Prometheus, with the given file as its configuration."""

    name = "prometheus"

    def arguments(self) -> list[str]:
        return [
            f"--config.file={self.file}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]


def test_configuration_reaches_a_machine_and_a_wrong_one_does_not(
    walk: Callable[..., Walk], start_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    require_program("jq")
    walk("howto/fleet-config.md", serve=start_serve(workers=1, access="required")).go()
    assert (tmp_path / "reloads").read_text().count("revision") == 2, (
        "one reload for each change that is right"
    )


def test_flags_are_evaluated_by_the_rules_of_flagd_as_they_change(
    walk: Callable[..., Walk], tmp_path: Path
) -> None:
    require_program("node")
    for file in (ROOT / "tests/docs/flagd").iterdir():
        shutil.copy(file, tmp_path)
    install = [require_program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    walk("howto/feature-flags.md").go()


def test_prometheus_gets_its_targets_from_the_store(walk: Callable[..., Walk], tmp_path: Path) -> None:
    require_program("jq")
    port = free_port()
    reader = walk("howto/prometheus-http-sd.md", ports={9090: port})
    (configuration,) = [block.text for block in reader.blocks if block.language == "yaml"]
    prometheus = Prometheus(tmp_path / "prometheus", reader.here(configuration))
    prometheus.port = port
    with prometheus:
        reader.go()


def test_traefik_gets_the_routes_as_they_were_stored(walk: Callable[..., Walk]) -> None:
    require_program("jq")
    walk("howto/traefik.md").go()


def test_each_job_is_done_once_or_is_dead_after_three_tries(
    walk: Callable[..., Walk], shared_serve: Serve
) -> None:
    reader = walk("howto/job-queue.md")
    reader.go()
    with Client(shared_serve.requests) as store:
        store.delete_prefix("queue/")
        jobs = [store.put("queue/todo/", f"{number}", sequence=True).key for number in range(1, 41)]
        wait_until(lambda: not list(store.list(prefix="queue/todo/")), what="all jobs are done", timeout=60)
        done = {record.key: record.text for record in store.list(prefix="queue/")}
        assert done == {
            key.replace("todo", "done"): str(1000 // number) for number, key in enumerate(jobs, 1)
        }, "no claim, no count of tries, and no job is left"
        assert {record.version for record in store.list(prefix="queue/done/")} == {1}, "none is done twice"


def test_a_page_shows_who_is_there_until_they_leave(
    walk: Callable[..., Walk], page_port: int, tmp_path: Path
) -> None:
    walk("howto/presence.md").go()
    page = tmp_path / "room.html"
    assert page.read_text().count('"15s"') == 1
    page.write_text(page.read_text().replace('"15s"', '"3s"').replace("5000);", "1000);"))
    address = f"http://localhost:{page_port}/room.html?name="
    with open_browser(tmp_path / "profile", PROCESS_FOR_EACH_TAB) as browser:
        ann, bo = Tab(browser, f"{address}ann"), Tab(browser, f"{address}bo")

        def wait_for(tab: Tab, *names: str) -> None:
            script = "document.querySelector('#present').textContent"
            wait_until(lambda: tab.run(script) == ", ".join(names), what=f"the page shows {names}")

        wait_for(ann, "ann", "bo")
        wait_for(bo, "ann", "bo")
        bo.kill()
        wait_for(ann, "ann")
        eve = Tab(browser, f"{address}eve")
        wait_for(ann, "ann", "eve")
        eve.close()
        wait_for(ann, "ann")


def test_a_cache_follows_the_store(walk: Callable[..., Walk]) -> None:
    walk("howto/cache-invalidation.md").go()


def test_caches_and_results_of_other_frameworks(
    walk: Callable[..., Walk], shared_serve: Serve, tmp_path: Path
) -> None:
    """In the environment that has the frameworks, but for the command, which is not in it."""
    frameworks = ROOT / ".venv/contrib"
    assert (frameworks / "suites").exists(), f"{frameworks} is not there; 'make test' makes it"
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, real in (("python3", "python"), ("celery", "celery")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{frameworks}/bin/{real}" "$@"\n')
        (programs / name).chmod(0o755)
    requests, changes = (url.rpartition(":")[2] for url in (shared_serve.requests, shared_serve.changes))
    shown = ("5555/cache/", "5555/pages/", "5555/celery/")
    addresses = {place: f"{place.replace('5555', requests)}?changes={changes}" for place in shown}
    walk("howto/caches.md", ports=addresses, programs=programs).go()
