"""What an operator sees and does of a service whose store is kept by a cluster: real members, two daemons,
their facades, and the commands as docs/cluster.md shows them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command_line import CommandLine
from support.etcd import EtcdCluster, etcd_program, fresh_prefix
from support.markdown import ROOT, blocks
from support.metrics import OF_CLUSTER, scrape
from support.programs import require_program
from support.servers import Daemon, Facade, dies_with_us, free_port, wait_until
from support.session import Session, assert_problem, call

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("they choose their engines themselves")]

PAGE = (ROOT / "docs/cluster.md").read_text()

StartDaemon = Callable[..., Daemon]
StartFacade = Callable[..., Facade]


def shown(heading: str, has: str) -> str:
    """The block below ``heading`` on the page that has a text in it."""
    (text,) = [each.text for each in blocks(PAGE) if heading in each.headings and has in each.text]
    return text


def checks(url: str) -> dict[str, Any]:
    """What ``/readyz`` found, by the names of its checks."""
    answer = call(url, "GET", "/readyz?verbose")
    return {check["name"]: check for check in answer.json["checks"]}


@pytest.fixture
def own(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, None)


def test_status_health_metrics_and_the_doctor_tell_of_the_cluster(
    start_etcd: Callable[..., EtcdCluster],
    start_daemon: StartDaemon,
    start_facade: StartFacade,
    own: CommandLine,
) -> None:
    cluster = start_etcd(3)
    daemons = [start_daemon(engine=cluster.address()) for _ in range(2)]
    urls = [start_facade(daemon).url for daemon in daemons]
    for number, url in enumerate(urls):
        assert call(url, "PUT", f"/v1/kv/{number}", b"x").status == 201

    status = call(urls[0], "GET", "/v1/status").json
    assert status["engine"] == cluster.address().partition("?")[0]
    found = status["cluster"]
    assert {member["name"] for member in found["members"]} == {member.name for member in cluster.members}
    assert found["leader"] == cluster.leader().name
    assert found["mirror"]["lag_revisions"] == 0

    def clocks_after_a_write_there() -> dict[str, int]:
        call(urls[1], "PUT", "/v1/kv/again", b"x")
        clocks: dict[str, int] = call(urls[0], "GET", "/v1/status").json["cluster"]["clocks"]
        return clocks

    (ahead,) = wait_until(clocks_after_a_write_there, what="the other daemon's clock is seen").values()
    assert abs(ahead) < 10_000, "one machine has one clock"

    seen = scrape(urls[0])
    for name in OF_CLUSTER - {"kvstore_etcd_database_quota_bytes"}:  # from 3.6 on
        assert seen.families[name].samples, name
    assert seen.total("kvstore_etcd_member_healthy") == 3
    assert seen.total("kvstore_etcd_member_leader") == 1
    for number in range(1, 4):
        assert f"member {number}" in own.on_terminal("status", "--url", urls[0])
    assert f"cluster.leader\t{found['leader']}".encode() in own.out("status", "--url", urls[0])

    assert checks(urls[0])["cluster"]["healthy"] == 3
    cluster.followers()[0].kill()
    for url in urls:
        wait_until(lambda: checks(url)["cluster"]["status"] == "warning", what="the loss is warned of")  # noqa: B023
    assert checks(urls[0])["cluster"]["healthy"] == 2
    assert call(urls[0], "GET", "/readyz").status == 200
    found = json.loads(own("doctor", "--quick", "--json", "--url", urls[1]).stdout)
    warned = [check["message"] for check in found["checks"] if check["status"] == "warning"]
    assert any("cannot be used" in message for message in warned)
    assert not [check for check in found["checks"] if check["status"] == "failed"]


def test_without_a_majority_the_service_is_not_ready(
    start_etcd: Callable[..., EtcdCluster],
    start_daemon: StartDaemon,
    start_facade: StartFacade,
    own: CommandLine,
) -> None:
    cluster = start_etcd(3)
    url = start_facade(start_daemon(engine=cluster.address())).url
    assert call(url, "GET", "/readyz").status == 200
    for member in cluster.members[:2]:
        member.kill()
    wait_until(lambda: call(url, "GET", "/readyz").status == 503, what="its loss is seen", every=0.2)
    text = call(url, "GET", "/readyz?verbose", headers={"Accept": "text/plain"}).body.decode()
    assert "[-]cluster failed: 0 of 3 members" in text
    assert "[-]writes failed" in text
    done = own("doctor", "--url", url, "--quick", "--json")
    assert done.returncode == 6
    found = [check for check in json.loads(done.stdout)["checks"] if check["status"] == "failed"]
    assert [check["cause"] for check in found] == ["service_fails"], "nothing about the proxy"
    for member in cluster.members[:2]:
        member.begin()
    wait_until(lambda: call(url, "GET", "/readyz").status == 200, what="they are back", every=0.2)


def test_the_doctor_says_once_that_etcd_does_not_take_writes(
    start_etcd: Callable[..., EtcdCluster],
    start_daemon: StartDaemon,
    start_facade: StartFacade,
    own: CommandLine,
) -> None:
    """And says nothing against the proxy for it, also where the service itself has not noticed yet."""
    cluster = start_etcd()
    url = start_facade(start_daemon(engine=cluster.address())).url
    assert call(url, "PUT", "/v1/kv/k", b"x").status == 201
    with cluster.members[0].paused():
        done = own("doctor", "--url", url, "--quick", "--json")
    assert done.returncode in (1, 6)
    found = [check for check in json.loads(done.stdout)["checks"] if check["status"] == "failed"]
    assert [check["cause"] for check in found] == ["service_fails"]


def test_a_daemon_whose_clock_is_wrong_is_found_by_the_others(
    etcd: EtcdCluster, start_daemon: StartDaemon, start_facade: StartFacade, tmp_path: Path
) -> None:
    require_program("faketime")
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    moved = {
        "LD_PRELOAD": str(library),
        "FAKETIME": "+3s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    address = etcd.address(fresh_prefix())
    right = start_facade(start_daemon(engine=address)).url
    wrong = start_facade(start_daemon(moved, engine=address)).url

    def ahead() -> list[int]:
        assert call(wrong, "PUT", "/v1/kv/k", b"x").status in (200, 201)
        return list(call(right, "GET", "/v1/status").json["cluster"]["clocks"].values())

    (found,) = wait_until(ahead, what="the other clock is seen")
    assert 0 < found <= 3_000, "three seconds, less what the change took to come"
    wait_until(lambda: checks(right)["cluster"]["status"] == "warning", what="it is warned of")
    assert "ahead of this one's" in checks(right)["cluster"]["message"]
    assert scrape(right).total("kvstore_clock_offset_seconds") > 0


# ── moving there and back ────────────────────────────────────────────────────────────────────────


def moved(own: CommandLine, old: str, new: str) -> str:
    """Do what the page shows, with the addresses of a test; what it printed."""
    script = shown("Moving there and back", "kvstore export")
    script = script.replace("http://old:5000", old).replace("http://new:5000", new)
    done = subprocess.run(
        ["sh", "-ec", script],
        cwd=own.folder,
        env=own.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for file in own.folder.glob("store.ndjson.gz*"):
        file.unlink()
    return done.stdout


def records(url: str) -> list[dict[str, Any]]:
    """What an export keeps, of all keys."""
    session = Session(url)
    items = session.get("/v1/kv?limit=1000").json["items"]
    session.close()
    kept = ("key", "value", "value_b64", "content_type", "expires_at")
    return [{name: item[name] for name in kept if name in item} for item in items]


def test_keys_move_to_the_cluster_and_back_as_the_page_shows(
    etcd: EtcdCluster, start_daemon: StartDaemon, start_facade: StartFacade, own: CommandLine
) -> None:
    old = start_facade(start_daemon()).url
    new = start_facade(start_daemon(engine=etcd.address(fresh_prefix()))).url
    back = start_facade(start_daemon()).url
    session = Session(old)
    for number in range(250):
        session.put(f"/v1/kv/n/{number:03}", b"%d" % number)
    session.put("/v1/kv/soon?ttl=1h", b"x")
    session.put("/v1/kv/picture", bytes(range(256)), content_type="image/png")
    session.put("/v1/kv/empty", b"")
    session.close()
    before = records(old)
    assert len(before) == 253
    assert moved(own, old, new).split() == ["253", "253"]
    assert records(new) == before
    assert call(new, "GET", "/v1/history/soon").json["events"][0]["message"] == "moved to the cluster"
    assert moved(own, new, back).split() == ["253", "253"]
    assert records(back) == before


def test_a_value_that_no_cluster_takes_is_named_and_nothing_is_lost(
    etcd: EtcdCluster, start_daemon: StartDaemon, start_facade: StartFacade, own: CommandLine
) -> None:
    old = start_facade(start_daemon(max_value_bytes="2MiB")).url
    new = start_facade(start_daemon(engine=etcd.address(fresh_prefix()))).url
    assert call(old, "PUT", "/v1/kv/large", b"x" * (3 << 19)).status == 201
    own.out("export", "all.ndjson", "--url", old)
    done = own("import", "all.ndjson", "--url", new)
    assert done.returncode == 1
    assert "line 2: the value has 1572864 bytes" in done.stderr.decode()
    assert "nothing was put" in done.stderr.decode()
    assert records(new) == []


def test_a_backup_is_refused_with_what_to_do_instead(
    etcd: EtcdCluster, start_daemon: StartDaemon, start_facade: StartFacade, own: CommandLine
) -> None:
    url = start_facade(start_daemon(engine=etcd.address(fresh_prefix()))).url
    problem = assert_problem(call(url, "POST", "/v1/backups"), "bad_request")
    assert "docs/cluster.md" in problem["detail"]
    assert "kvstore export" in problem["detail"]
    done = own("backup", "all.kvb", "--url", url)
    assert done.returncode == 1
    assert not list(own.folder.glob("all.kvb*"))


# ── set up as the page shows ─────────────────────────────────────────────────────────────────────


class Walk:
    """The steps of "Setting it up" on one machine: each name of a host is an address of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {
            f"{name}:{port}": f"127.0.0.1:{free_port()}"
            for name in ("n1", "n2", "n3")
            for port in (2379, 2380)
        }
        self._members: list[subprocess.Popen[bytes]] = []

    def here(self, text: str) -> str:
        """``text`` with the addresses and the folders of the test."""
        for name, address in self.ports.items():
            text = text.replace(name, address)
        return text.replace("/etc/etcd/", f"{self.folder}/").replace("/var/lib/etcd", f"{self.folder}/data")

    def make_certificates(self) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("there is no openssl")
        script = shown("Setting it up", "openssl req")
        subprocess.run(["sh", "-ec", script], cwd=self.folder, check=True, capture_output=True)

    def start_etcd(self, name: str) -> None:
        lines = shown("Setting it up", "ETCD_NAME").split()
        own = ("NAME=", "ADVERTISE", "CERT_FILE", "KEY_FILE")
        lines = [line.replace("n1", name) if any(part in line for part in own) else line for line in lines]
        settings = dict(self.here(line).split("=", 1) for line in lines)
        for kind, port in (("CLIENT", 2379), ("PEER", 2380)):
            assert settings[f"ETCD_LISTEN_{kind}_URLS"] == f"https://0.0.0.0:{port}"
            settings[f"ETCD_LISTEN_{kind}_URLS"] = f"https://{self.ports[f'{name}:{port}']}"
        settings["ETCD_DATA_DIR"] += name
        with (self.folder / f"{name}.log").open("wb") as log:
            self._members.append(
                subprocess.Popen(
                    dies_with_us([etcd_program()]), cwd=self.folder, env=settings, stdout=log, stderr=log
                )
            )

    def health(self) -> str:
        """What the page's look at the members prints."""
        command = shown("Setting it up", "endpoint health").splitlines()[-1].split()
        assert command[0] == "etcdctl"
        done = subprocess.run(
            [etcd_program("etcdctl"), *map(self.here, command[1:])],
            capture_output=True,
            text=True,
            check=False,
            env={"ETCDCTL_API": "3"},
        )
        return done.stdout + done.stderr

    def stop(self) -> None:
        for member in self._members:
            member.terminate()
        for member in self._members:
            member.wait(30)


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    folder = tmp_path / "walk"
    folder.mkdir()
    walk = Walk(folder)
    yield walk
    walk.stop()


def test_the_cluster_is_set_up_with_tls_as_the_page_shows(walk: Walk, start_daemon: StartDaemon) -> None:
    walk.make_certificates()
    for name in ("n1", "n2", "n3"):
        walk.start_etcd(name)
    wait_until(lambda: walk.health().count("is healthy") == 3, timeout=60, what="all members are healthy")
    (address,) = re.findall(r"kvstore daemon --engine '(etcd:[^']+)'", PAGE)
    daemon = start_daemon(engine=walk.here(address))
    from kvstore_client import Client

    with Client(daemon.requests) as client:
        client.put("k", "v")
        assert client.get("k").text == "v"
        found = client.status()["cluster"]
    assert all(member["healthy"] for member in found["members"])
    assert {member["name"] for member in found["members"]} == {"n1", "n2", "n3"}
