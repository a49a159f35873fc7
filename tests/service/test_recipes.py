"""What ``docs/recipes.md`` shows, run as it is shown, and attacked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvstore_client import Client
from support.lengths import Survived, times
from support.load import whole_log
from support.markdown import ROOT, blocks
from support.programs import require_program
from support.servers import Service, clean_environment, wait_until

RECIPES = {block.headings[-1]: block.text for block in blocks((ROOT / "docs/recipes.md").read_text())}
LOCK, STATE = "locks/deploy", "state"
ATTACKS = times(2, full=40)

INSTALL = """#!/bin/sh -e
: > "begun $1"
until [ -e "done $1" ]; do sleep 0.02; done
"""
"""In place of what is installed: says that it has begun, and goes on until it is told that it is done."""

pytestmark = pytest.mark.timeout(120 + 20 * ATTACKS)


class Holder:
    """The recipe as a process, with all that it starts in a group of its own."""

    def __init__(self, folder: Path, environment: dict[str, str], version: str) -> None:
        self.version = version
        self._begun, self._done = folder / f"begun {version}", folder / f"done {version}"
        self._process = subprocess.Popen(
            ["sh", "-e", f"deploy {version}", version],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def wait_until_it_works(self) -> None:
        """Return once it has the lock."""
        wait_until(self._begun.exists, timeout=60, what="the holder has the lock")

    def is_done(self) -> None:
        """Let its work be done, now or as soon as it begins."""
        self._done.touch()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> tuple[int, str]:
        """Its exit status, and what it said, once it has ended."""
        _, said = self._process.communicate(timeout=90)
        return self._process.returncode, said


@pytest.fixture
def environment(service: Service, tmp_path: Path) -> dict[str, str]:
    """That of a shell in which ``kvstore`` is found, and finds the service."""
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    return clean_environment(tmp_path, KVSTORE_URL=service.url) | {"PATH": path}


@pytest.fixture
def holder(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Holder]]:
    """``holder("v1")``: the recipe for a lock, begun; its lock lasts a second, or ``ttl``, and not half a
    minute."""
    yield from _holders("A lock that holds", environment, tmp_path)


@pytest.fixture
def renewing_holder(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Holder]]:
    """As ``holder``, of the recipe that renews its lock, with a pause of half a second."""
    require_program("jq")
    yield from _holders("A lock that is renewed", environment, tmp_path)


def _holders(name: str, environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Holder]]:
    recipe = RECIPES[name].replace("sleep 10 ", "sleep 0.5 ")
    assert "30s" in recipe
    (tmp_path / "install").write_text(INSTALL)
    (tmp_path / "install").chmod(0o755)
    begun: list[Holder] = []

    def begin(version: str, ttl: str = "1s") -> Holder:
        (tmp_path / f"deploy {version}").write_text(recipe.replace("30s", ttl))
        begun.append(Holder(tmp_path, environment, version))
        return begun[-1]

    yield begin
    for each in begun:
        each.send(signal.SIGKILL)


def test_a_holder_that_is_stopped_until_another_has_the_lock_writes_nothing(
    service: Service, holder: Callable[..., Holder]
) -> None:
    with Client(service.requests) as client:
        first = holder("v1")
        first.wait_until_it_works()
        first.send(signal.SIGSTOP)
        second = holder("v2", ttl="1h")
        second.wait_until_it_works()
        assert (client.get(LOCK).value or b"").endswith(b" %d" % second.pid)
        first.is_done()
        first.send(signal.SIGCONT)
        status, said = first.end()
        assert (status, STATE in [record.key for record in client.list()]) == (4, False), said
        assert f"'{LOCK}'" in said.splitlines()[-1]
        second.is_done()
        status, said = second.end()
        assert status == 0, said
        assert client.get(STATE).value == b"v2"
        assert [record.key for record in client.list()] == [STATE], "the lock is given back"


def test_a_holder_that_is_stopped_until_the_lock_has_expired_writes_nothing(
    service: Service, holder: Callable[..., Holder]
) -> None:
    with Client(service.requests) as client:
        first = holder("v1")
        first.wait_until_it_works()
        first.send(signal.SIGSTOP)
        wait_until(lambda: not list(client.list()), timeout=60, what="the lock expires")
        first.is_done()
        first.send(signal.SIGCONT)
        assert first.end()[0] == 4
        assert not list(client.list())


def test_a_lock_that_is_renewed_outlasts_its_time_and_its_holder_writes(
    service: Service, renewing_holder: Callable[..., Holder]
) -> None:
    with Client(service.requests) as client:
        first = renewing_holder("v1", ttl="20s")
        first.wait_until_it_works()
        taken = client.get(LOCK).revision
        wait_until(lambda: client.get(LOCK).revision >= taken + 2, timeout=60, what="it is renewed twice")
        first.is_done()
        status, said = first.end()
        assert status == 0, said
        assert client.get(STATE).value == b"v1"
        assert [record.key for record in client.list()] == [STATE], "the lock is given back"


def test_a_holder_that_renews_and_has_lost_the_lock_writes_nothing_and_leaves_it_alone(
    service: Service, renewing_holder: Callable[..., Holder]
) -> None:
    with Client(service.requests) as client:
        first = renewing_holder("v1", ttl="20s")
        first.wait_until_it_works()
        client.put(LOCK, b"another")
        first.is_done()
        status, said = first.end()
        assert status == 4, said
        assert [(record.key, record.value) for record in client.list()] == [(LOCK, b"another")]


@pytest.mark.torture
def test_whenever_holders_are_stopped_each_write_is_made_by_who_has_the_lock(
    service: Service, holder: Callable[..., Holder], survived: Survived
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    pids: dict[str, int] = {}
    statuses: dict[str, int] = {}
    for number in range(ATTACKS):
        holders = [holder(f"{number}-{each}") for each in range(3)]
        for each in holders:
            pids[each.version] = each.pid
            each.is_done()
        stopped = chance.sample(holders, 2)
        for each in stopped:  # at any of its commands, or between two
            threading.Event().wait(chance.random() * 0.5)  # this is the fault
            each.send(signal.SIGSTOP)
        (running,) = set(holders) - set(stopped)
        statuses[running.version], said = running.end()
        assert statuses[running.version] in (0, 4), said  # where all is slow, a second is soon over
        for each in stopped:
            each.send(signal.SIGCONT)
            statuses[each.version], said = each.end()
            assert statuses[each.version] in (0, 4), said
    with Client(service.requests) as client:
        log = whole_log(client)
    owner, written = None, []
    for event in log:
        if event.key == LOCK:
            owner = None if event.record is None else int((event.record.value or b"").split()[-1])
        else:
            assert event.record is not None
            written.append((event.record.value or b"").decode())
            assert owner == pids[written[-1]], f"{event} was written by one who had lost the lock"
    assert written == list(dict.fromkeys(written)), "a version was written twice"
    assert set(written) == {version for version, status in statuses.items() if status == 0}
    refused = sum(status == 4 for status in statuses.values())
    survived(holders_stopped=2 * ATTACKS, of_them_refused=refused)


def test_no_change_is_lost_to_another(service: Service, environment: dict[str, str], tmp_path: Path) -> None:
    require_program("jq")
    with Client(service.requests) as client:
        client.put("config", b'{"port":1,"host":"a"}', content_type="application/json")
        recipe = ["sh", "-c", RECIPES["An update that loses no other"]]
        running = [subprocess.Popen(recipe, env=environment, cwd=tmp_path) for _ in range(3)]
        assert [each.wait(90) for each in running] == [0, 0, 0]
        assert client.get("config").value == b'{"port":4,"host":"a"}'


def test_jobs_come_out_in_the_order_in_which_they_came(environment: dict[str, str], tmp_path: Path) -> None:
    require_program("jq")
    add, *take = RECIPES["Jobs in the order in which they came"].splitlines()
    taken = [add.replace("ann", name) for name in ("ann", "bo")] + [*take, 'echo "$job" | jq -r .value'] * 2
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join(taken)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "to" in line] == ['{"to": "ann"}', '{"to": "bo"}']
