"""``kvstore backup --url``: the backup of a service on another machine, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore_client import Client, commands
from support.command_line import CommandLine
from support.proxy import CuttingProxy
from support.scripted import answer, problem, scripted
from support.servers import Daemon, Service
from support.session import Session, call

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("a cluster has a backup of its own")]

Kvstore = Any


@pytest.fixture(scope="module")
def stocked(shared_service: Service) -> Service:
    """The module's service with 5 MB."""
    values = random.Random(2)
    with Client(shared_service.requests) as client:
        client.batch([commands.put(f"k{n:02}", values.randbytes(100_000)) for n in range(50)])
    return shared_service


@pytest.fixture
def proxy(stocked: Service) -> Iterator[CuttingProxy]:
    """A relay in front of it."""
    with CuttingProxy(stocked.url) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def nothing_left(stocked: Service) -> Iterator[None]:
    """Each test ends without a backup at the service."""
    yield
    for kept in call(stocked.url, "GET", "/v1/backups").json["backups"]:
        call(stocked.url, "DELETE", f"/v1/backups/{kept['id']}")


def through(proxy: CuttingProxy) -> str:
    return proxy.endpoint.replace("tcp:", "http:")


def parts(kvstore: Kvstore, name: str) -> list[Path]:
    """What an interrupted command left of the file."""
    return sorted(kvstore.folder.glob(f"{name}.*.part"))


def test_a_connection_that_is_cut_again_and_again_brings_the_same_store(
    kvstore: Kvstore,
    stocked: Service,
    proxy: CuttingProxy,
    start_daemon: Callable[..., Daemon],
) -> None:
    proxy.cut_after_bytes = 400_000
    done = kvstore("backup", "cut.kvb", "--url", through(proxy), "--json")
    told = json.loads(done.stdout)
    assert proxy.connections > 10
    places = re.findall(rb"; retrying at ([\d.,]+ (?:bytes|MiB)) of [\d.]+ MiB for 60 s", done.stderr)
    assert len(set(places)) > 1, done.stderr
    assert (told["revision"], told["keys"]) == (50, 50)
    file = kvstore.folder / "cut.kvb"
    assert file.stat().st_mode & 0o777 == 0o600
    assert not parts(kvstore, "cut.kvb")
    assert call(stocked.url, "GET", "/v1/backups").json == {"backups": []}
    assert kvstore("check", "cut.kvb").returncode == 0
    assert kvstore("restore", "cut.kvb", "--data", "new").returncode == 0
    again = start_daemon(data=kvstore.folder / "new")
    with Client(stocked.requests) as old, Client(again.requests) as new:
        assert list(new.list()) == list(old.list())


def test_an_interrupted_command_goes_on_where_it_was(
    kvstore: Kvstore, stocked: Service, proxy: CuttingProxy
) -> None:
    proxy.cut_after_bytes = 2_000_000
    cut = kvstore("backup", "on.kvb", "--url", through(proxy), "--retry-for", "0s")
    assert cut.returncode == 6, cut.stderr
    (part,) = parts(kvstore, "on.kvb")
    assert part.stat().st_mode & 0o777 == 0o600
    came = part.read_bytes()
    assert 0 < len(came) < 2_000_000
    (kept,) = call(stocked.url, "GET", "/v1/backups").json["backups"]
    whole = call(stocked.url, "GET", f"/v1/backups/{kept['id']}").body
    with Client(stocked.requests) as client:
        client.put("later", b"")
        client.delete("later")
    done = kvstore("backup", "on.kvb", "--url", stocked.url)
    assert done.returncode == 0, done.stderr
    assert b"going on at 1.0 MiB of" in done.stderr
    assert (kvstore.folder / "on.kvb").read_bytes() == whole
    assert not parts(kvstore, "on.kvb")


def test_a_part_that_has_changed_is_found_out_and_the_next_time_begins_at_its_beginning(
    kvstore: Kvstore, stocked: Service, proxy: CuttingProxy
) -> None:
    proxy.cut_after_bytes = 2_000_000
    kvstore("backup", "bad.kvb", "--url", through(proxy), "--retry-for", "0s")
    (part,) = parts(kvstore, "bad.kvb")
    part.write_bytes(b"?" + part.read_bytes()[1:])
    done = kvstore("backup", "bad.kvb", "--url", stocked.url)
    assert (done.returncode, (kvstore.folder / "bad.kvb").exists()) == (1, False)
    assert b"SHA-256 does not match" in done.stderr
    kvstore.out("backup", "bad.kvb", "--url", stocked.url)
    assert kvstore("check", "bad.kvb").returncode == 0


def test_a_part_of_a_backup_that_is_gone_is_not_gone_on_with(
    kvstore: Kvstore, stocked: Service, proxy: CuttingProxy
) -> None:
    proxy.cut_after_bytes = 2_000_000
    kvstore("backup", "old.kvb", "--url", through(proxy), "--retry-for", "0s")
    (kept,) = call(stocked.url, "GET", "/v1/backups").json["backups"]
    call(stocked.url, "DELETE", f"/v1/backups/{kept['id']}")
    done = kvstore("backup", "old.kvb", "--url", stocked.url)
    assert done.returncode == 0, done.stderr
    assert b"going on" not in done.stderr
    assert kvstore("check", "old.kvb").returncode == 0
    assert not parts(kvstore, "old.kvb")


def test_another_backup_is_only_deleted_if_one_says_so(kvstore: Kvstore, stocked: Service) -> None:
    call(stocked.url, "POST", "/v1/backups")
    refused = kvstore("backup", "mine.kvb", "--url", stocked.url)
    assert refused.returncode == 1
    assert b"--restart" in refused.stderr
    assert not list(kvstore.folder.glob("mine.kvb*"))
    kvstore.out("backup", "mine.kvb", "--url", stocked.url, "--restart")
    assert kvstore("check", "mine.kvb").returncode == 0


def test_standard_output_gets_the_whole_backup(kvstore: Kvstore, stocked: Service) -> None:
    (kvstore.folder / "piped.kvb").write_bytes(kvstore.out("backup", "-", "--url", stocked.url))
    assert kvstore("check", "piped.kvb").returncode == 0


@pytest.mark.parametrize("code", ["not_allowed", "unavailable"])
def test_a_backup_that_is_here_is_made_though_the_service_does_not_remove_its_own(
    offline: CommandLine, code: str
) -> None:
    told = {
        "id": "f" * 16,
        "state": "ready",
        "bytes": 3,
        "sha256": hashlib.sha256(b"kvb").hexdigest(),
        "revision": 1,
        "keys": 1,
        "log_events": 1,
    }
    with scripted() as script:
        script.plays = [
            answer(json.dumps(told).encode(), 201),
            answer(b"kvb", 206),
            problem(code, detail="as it put it"),
        ]
        done = offline("backup", "-", "--url", script.url)
    assert (done.returncode, done.stdout) == (0, b"kvb"), done.stderr
    assert b"keeps its copy of the backup for up to an hour: as it put it" in done.stderr
    assert script.seen[-1].method == "DELETE"


def test_without_the_flag_it_is_the_folder_that_is_backed_up(kvstore: Kvstore, stocked: Service) -> None:
    done = kvstore("backup", "near.kvb", "--data", str(stocked.daemon.data))  # KVSTORE_URL is set
    assert f"{stocked.daemon.data} is backed up to near.kvb".encode() in done.stderr
    for wrong in (["--url", stocked.url, "--data", "d"], ["--restart"], ["--url", stocked.url]):
        refused = kvstore("backup", "near.kvb", *wrong)
        assert refused.returncode == 2, refused.stderr
    session = Session(stocked.url)
    assert session.get("/v1/backups").json == {"backups": []}
    session.close()
