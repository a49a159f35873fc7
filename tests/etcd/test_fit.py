"""Options that do not fit a store in etcd are refused at the start, in words; and so is a folder that another
engine was used with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store import fit
from kvstore_daemon.storage.etcd_store.fit import checked_address
from kvstore_daemon.storage.etcd_store.layout import Names
from kvstore_daemon.storage.etcd_store.mirroring.mirror import EtcdMirror
from kvstore_daemon.storage.folder_kinds import refuse_store
from support.command_line import CommandLine
from support.servers import Daemon

pytestmark = [
    pytest.mark.slow,
    pytest.mark.lmdb_only("options are refused before an engine is chosen"),
]

ADDRESS = "etcd://h1,h2/app?ca=/ca.pem"
FITTING: dict[str, Any] = {
    "sync": "always",
    "evicts": False,
    "max_value_bytes": 1 << 20,
    "max_atomic_ops": 100,
    "max_atomic_bytes": 1 << 20,
}


@pytest.fixture
def kvstore(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, None)


def test_what_fits_gives_the_address() -> None:
    found = checked_address(ADDRESS, **FITTING)
    assert (found.endpoints, found.prefix, found.ca) == (("h1:2379", "h2:2379"), b"/app", "/ca.pem")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sync": "none"}, "--sync none"),
        ({"sync": "interval"}, "leave the option out"),
        ({"evicts": True}, "--evict-prefix is for a store in a file"),
        ({"max_value_bytes": (1 << 20) + 1}, "--max-value-bytes 1048577 does not fit"),
        ({"max_atomic_ops": 101}, "100 is the most"),
        ({"max_atomic_bytes": 2 << 20}, "--max-atomic-bytes"),
    ],
)
def test_what_etcd_cannot_keep_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(KvError, match=words) as refused:
        checked_address(ADDRESS, **{**FITTING, **given})
    assert refused.value.code == "bad_request"


def test_packages_that_are_missing_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "find_spec", lambda _: None)
    with pytest.raises(KvError, match=r"grpcio and protobuf.*pip install 'kvstored\[etcd\]'"):
        checked_address(ADDRESS, **FITTING)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "lmbd:"], "'lmbd:' is not known; write lmdb:, or etcd://"),
        (["--engine", "lmdb:/srv/kvstore"], "'lmdb:/srv/kvstore' is not known"),
        (["--engine", "etcds://h1/kv"], "'etcds://h1/kv' is not known"),
        (["--engine", "http://h1"], "'http://h1' is not known"),
        (["--engine", "etcd:h1"], "begin with etcd://"),
        (["--engine", "etcd://h1:x"], "is not HOST or HOST:PORT"),
        (["--engine", "etcd://h1?cert=/c"], "needs 'key' beside it"),
        (["--engine", "etcd://h1?password=x"], "there is no parameter 'password'"),
        (["--engine", "etcd://h1", "--sync", "none"], "leave the option out"),
        (["--engine", "etcd://h1", "--max-value-bytes", "2MiB"], "--max-value-bytes 2097152 does not fit"),
    ],
)
@pytest.mark.parametrize("command", [["daemon"], ["serve"], ["config", "check"]], ids=" ".join)
def test_a_start_that_cannot_succeed_ends_with_the_status_that_says_so(
    kvstore: CommandLine, command: list[str], options: list[str], words: str
) -> None:
    """With 2, after which systemd does not try again."""
    done = kvstore(*command, *options, "--data", str(kvstore.folder / "data"))
    assert done.returncode == 2
    assert words in done.stderr.decode()
    assert not (kvstore.folder / "data").exists()


# ── a folder has one engine ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def mirrored(tmp_path: Path) -> Path:
    """A data folder with a mirror in it, as a daemon of a cluster leaves it."""
    folder = tmp_path / "mirrored"
    mirror = EtcdMirror(folder / "mirror", Names(b"/kvstore"))
    folder.mkdir()
    mirror.open()
    mirror.close()
    return folder


def test_a_daemon_of_one_machine_does_not_begin_beside_a_mirror(kvstore: CommandLine, mirrored: Path) -> None:
    done = kvstore("daemon", "--data", str(mirrored), "--access", "off", "--requests", "ipc:///tmp/unused")
    assert done.returncode == 1
    said = done.stderr.decode()
    assert "--engine" in said
    assert f"remove {mirrored / 'mirror'}" in said
    assert not (mirrored / "lmdb" / "data.mdb").exists()


@pytest.mark.parametrize(
    "arguments", [["backup", "-"], ["check"], ["compact"], ["compact", "--dry-run"], ["restore", "file"]]
)
def test_work_on_a_store_says_where_that_of_a_cluster_is(
    kvstore: CommandLine, mirrored: Path, arguments: list[str], daemon: Daemon
) -> None:
    kvstore.out("backup", "file", "--data", str(daemon.data))
    done = kvstore(*arguments, "--data", str(mirrored))
    assert done.returncode == 1
    assert done.stdout == b""
    said = done.stderr.decode()
    assert "etcdctl snapshot save" in said
    assert "kvstore export" in said
    assert not (mirrored / "lmdb" / "data.mdb").exists()


def test_a_daemon_does_not_leave_a_store_behind_when_it_joins_a_cluster(daemon: Daemon) -> None:
    with pytest.raises(KvError, match="has a store of its own") as refused:
        refuse_store(Path(daemon.data))
    assert "export" in refused.value.message
