"""The pytest plugin, in runs of pytest of its own with a real service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.servers import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

FAULTS = """
import pytest

from kvstore_client import TimedOut


def test_a_backend_finds_the_prefix(kvstore):
    from kvstore_contrib.addresses import place_of

    place = place_of(kvstore.location, "cache/")
    assert place.prefix == kvstore.prefix
    place.client.put(kvstore.key("a"), "1")
    assert kvstore.client.get(kvstore.key("a")).text == "1"
    place.client.close()


def test_http_goes_through_the_same_link(kvstore, kvstore_faults):
    import urllib.request

    kvstore.client.put(kvstore.key("a"), "over both")
    with urllib.request.urlopen(f"{kvstore.url}/v1/kv/{kvstore.key('a')}") as answer:
        assert answer.read() == b"over both"
    with kvstore_faults.stall(), pytest.raises(OSError):
        urllib.request.urlopen(f"{kvstore.url}/v1/kv/{kvstore.key('a')}", timeout=0.3)


def test_stalled_requests_are_answered_afterwards(kvstore, kvstore_faults):
    kvstore.client.put(kvstore.key("a"), "1")
    with kvstore_faults.stall(), pytest.raises(TimedOut):
        kvstore.client.get(kvstore.key("a"), timeout=0.3)
    assert kvstore.client.get(kvstore.key("a")).text == "1"


def test_a_large_answer_that_is_cut_is_asked_for_again(kvstore, kvstore_faults):
    kvstore.client.put(kvstore.key("a"), b"x" * 500_000)
    kvstore_faults.reset_after(100_000)
    assert len(kvstore.client.get(kvstore.key("a")).value) == 500_000
    assert kvstore.service.links[0].cuts == 1


def test_what_expires_is_announced(kvstore, kvstore_clock):
    from kvstore_client import Subscription

    with Subscription(kvstore.requests, changes=kvstore.changes, prefixes=[kvstore.prefix]) as events:
        kvstore.client.put(kvstore.key("a"), "1", ttl=86400)
        kvstore_clock.advance(86401)
        expired = next(event for event in events if getattr(event, "op", None) == "expire")
    assert expired.key == kvstore.key("a")
"""

ALONE = """
import os, pathlib
import pytest

@pytest.mark.parametrize("number", range(8))
def test_each_has_a_prefix_of_its_own(kvstore, number):
    assert kvstore.client.list_page(prefix=kvstore.prefix).records == []
    kvstore.client.put(kvstore.key("a"), str(number))
    [record] = kvstore.client.list_page(prefix=kvstore.prefix).records
    assert record.text == str(number)
    pids = [str(process.pid) for process in kvstore.service._processes]
    with open("pids", "a") as file:
        file.write(" ".join(pids) + "\\n")
"""


def run_pytest(folder: Path, *options: str) -> str:
    """A run of pytest in ``folder``, which passes; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ".", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/howto/testing.md").read_text(), re.DOTALL)
    (tmp_path / "test_page.py").write_text(example)
    assert "2 passed" in run_pytest(tmp_path)


def test_faults_are_those_of_a_network_and_the_clock_is_that_of_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "test_faults.py").write_text(FAULTS)
    assert "5 passed" in run_pytest(tmp_path)


def test_workers_have_a_service_each_which_ends_with_them(tmp_path: Path) -> None:
    (tmp_path / "test_alone.py").write_text(ALONE)
    assert "8 passed" in run_pytest(tmp_path, "-n", "2")
    pids = set((tmp_path / "pids").read_text().split())
    assert len(pids) == 2
    for pid in pids:
        wait_until(lambda pid=pid: not Path("/proc", pid).exists(), what=f"{pid} has ended")


def test_nothing_is_started_or_imported_for_tests_that_do_not_ask(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_other(tmp_path):\n"
        "    assert not {'zmq', 'kvstore_client', 'kvstore_daemon'} & set(sys.modules)\n"
    )
    assert "1 passed" in run_pytest(tmp_path)
