"""How a daemon starts over a cluster: while it is away, after it has forgotten the past, with a wrong
password."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvstore_client import Client, commands
from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store import engine as etcd_engine
from kvstore_daemon.storage.etcd_store.engine import EtcdEngine
from kvstore_daemon.storage.etcd_store.mirroring import store_reader
from support.command_line import CommandLine
from support.engine_store import EngineKind, opened
from support.etcd import EtcdCluster
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, Facade, free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("they choose their engine themselves")]


def test_an_old_mirror_is_served_while_etcd_is_away(
    start_etcd: Callable[..., EtcdCluster],
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
    tmp_path: Path,
) -> None:
    cluster = start_etcd(1)
    daemon = start_daemon(engine=cluster.address())
    with Client(daemon.requests) as client:
        client.put("k", b"v")
        assert client.get("k").value == b"v"
    daemon.stop()
    cluster.kill()
    killed_at = time.monotonic()
    daemon.start()
    with Client(daemon.requests) as client:
        least = time.monotonic() - killed_at
        reply = client.request(commands.body_of_one(commands.get("k", stale=True)))
        assert commands.result_of(commands.get("k"), reply).value == b"v"
        assert reply.age is not None
        assert reply.age >= 1000 * least, "it counts from when the mirror was last known to be current"
        with pytest.raises(KvError, match="etcd"):
            client.get("k")
        url = start_facade(daemon).url
        exported = CommandLine(tmp_path, None)("export", "--url", url, "--retry-for", "0s")
        assert exported.returncode == 6, "what may lack something that was acknowledged is no export"
        assert b"etcd" in exported.stderr
        cluster.members[0].restart()
        wait_until(lambda: client.put("k", b"w", timeout=PATIENCE_SECONDS).revision, timeout=60)
        assert client.get("k").value == b"w"


def test_a_start_that_waits_for_etcd_ends_when_it_is_told_to(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvstore_cli.main", "daemon", "--data", str(tmp_path / "data")]
    for name in ("requests", "changes"):
        command += [f"--{name}", f"tcp://127.0.0.1:{free_port()}"]
    command += ["--engine", f"etcd://127.0.0.1:{free_port()}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until((tmp_path / "data" / "mirror" / "data.mdb").exists)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=50)
    assert process.returncode == 0, said
    assert "kvstore daemon:" not in said


def test_a_wrong_password_ends_a_start_in_words(
    start_etcd: Callable[..., EtcdCluster], tmp_path: Path
) -> None:
    cluster = start_etcd(1, users=("ann",))
    password = tmp_path / "password"
    password.write_text("wrong")
    password.chmod(0o600)
    address = cluster.address(user="ann", password_file=password)
    with pytest.raises(KvError, match="does not let this daemon in") as refused:
        opened(tmp_path / "data", kind=EngineKind(lambda s, _: EtcdEngine(s), lambda _: address, list))
    assert refused.value.code == "not_allowed"


def test_a_mirror_is_made_in_few_steps_however_much_was_forgotten(
    etcd: EtcdCluster, etcd_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd was compacted by hand, far above the floor that the daemons have agreed on."""
    kind = EngineKind(lambda settings, _: EtcdEngine(settings), lambda _: etcd_address, list)
    first = opened(tmp_path / "first", kind=kind)
    for number in range(200):
        first.write("put", b"k%d" % (number % 7))
    etcd.compact(etcd.revision())
    tries: list[Any] = []
    records = store_reader.records
    monkeypatch.setattr(
        store_reader, "records", lambda *words, **more: tries.append(words) or records(*words, **more)
    )
    second = opened(tmp_path / "second", kind=kind)
    assert len(tries) <= 3
    assert second.keys() == first.keys()
    for store in (first, second):
        store.engine.close()


def test_an_idle_store_is_followed_without_a_break(
    etcd_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has been written since the watch began, and the member is asked how far it is all the same."""
    from kvstore_daemon.storage.etcd_store.mirroring import revision_feed

    monkeypatch.setattr(revision_feed, "ASK_SECONDS", 0.05)
    kind = EngineKind(lambda settings, _: EtcdEngine(settings), lambda _: etcd_address, list)
    store = opened(tmp_path / "data", kind=kind)
    engine: Any = store.engine
    heard = engine._watcher.current_at
    for _ in range(3):  # each time an answer, which comes without any change
        wait_until(lambda heard=heard: engine._watcher.current_at > heard)
        heard = engine._watcher.current_at
    assert engine._cluster.rotations == 0
    assert etcd_engine.RESTART_SECONDS < etcd_engine.START_SECONDS
    engine.close()
