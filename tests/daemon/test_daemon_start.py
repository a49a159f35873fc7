"""How the daemon starts, refuses to start, and stops."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from kvstore_daemon.storage.folder_lock import unusable
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, StartDaemon, free_port, kvstore_command, wait_until
from support.wire import PATIENCE_MS, Connect, get, pack, put, unpack

pytestmark = pytest.mark.slow

# Keeps a broken test from hanging; says nothing about how long a stop may take.


@pytest.fixture
def ending_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that the test itself ends."""
    daemon = Daemon(tmp_path, {}).start()
    yield daemon
    if daemon.is_running:
        daemon.kill()


def status_after(daemon: Daemon, number: signal.Signals) -> int:
    assert daemon.process is not None
    daemon.signal(number)
    return daemon.process.wait(PATIENCE_SECONDS)


def run_daemon(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected to end by itself."""
    chosen = {
        "data": folder / "other",
        "requests": f"tcp://127.0.0.1:{free_port()}",
        "changes": f"tcp://127.0.0.1:{free_port()}",
        "log-format": "text",
        **options,
    }
    flags = [part for name, value in chosen.items() for part in (f"--{name}", str(value))]
    return subprocess.run(
        [*Daemon.wrapper, *kvstore_command("daemon", *flags)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("kvstore daemon: ")
    return line


def test_a_second_daemon_on_the_same_data_is_refused_and_told_who_is_first(
    daemon: Daemon, tmp_path: Path
) -> None:
    assert str(daemon.pid) in one_line(run_daemon(tmp_path, data=daemon.data))


@pytest.mark.parametrize("option", ["requests", "changes"])
def test_an_address_in_use_is_named_with_its_option(tmp_path: Path, option: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        endpoint = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        line = one_line(run_daemon(tmp_path, **{option: endpoint}))
    assert line.count(endpoint) == 1, line
    assert f"--{option}" in line


def test_a_data_folder_that_its_owner_may_not_write_to_is_not_given_to_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o555)
    denied = PermissionError(13, "Permission denied", str(folder / "owner"))
    assert f"its owner, user {os.geteuid()}, may not use it: chmod u+rwx" in unusable(folder, denied)
    missing = tmp_path / "none" / "there"
    denied = PermissionError(13, "Permission denied", str(missing.parent))
    assert f"make the folder and give it to user {os.geteuid()}" in unusable(missing, denied)


def test_port_0_takes_a_free_port_and_the_ready_line_names_it(
    start_daemon: StartDaemon, connect: Connect
) -> None:
    daemon = start_daemon(requests="tcp://127.0.0.1:0", changes="tcp://127.0.0.1:0")
    assert not daemon.requests.endswith(":0")
    assert not daemon.changes.endswith(":0")
    assert connect(daemon).ask({"op": "status"})


def test_ipc_endpoints_work(
    tmp_path: Path, start_daemon: StartDaemon, connect: Connect, subscribe: Connect
) -> None:
    daemon = start_daemon(requests=f"ipc://{tmp_path}/requests", changes=f"ipc://{tmp_path}/changes")
    subscriber = subscribe(daemon)
    connect(daemon).ask(put("k", b"v"))
    assert subscriber.change()[::2] == (b"k", b"v")


def test_more_clients_than_file_descriptors_wait_for_those_before_them(
    tmp_path: Path, connect: Connect
) -> None:
    daemon = Daemon(tmp_path, {}).start()
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (48, 48))
    peers = [connect(daemon) for _ in range(64)]
    for peer in peers:
        peer.socket.send_multipart(pack({"op": "status"}))
    poller = zmq.Poller()
    for peer in peers:
        poller.register(peer.socket, zmq.POLLIN)
    for _ in peers:
        answered, _ = poller.poll(PATIENCE_MS)[0]
        assert unpack(answered.recv_multipart())["results"]
        poller.unregister(answered)
        answered.close(0)
    daemon.stop()


def test_a_limit_of_open_files_without_room_for_clients_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Daemon, "wrapper", ("prlimit", "--nofile=60:60"))
    line = one_line(run_daemon(tmp_path))
    assert "60 open files are allowed" in line
    assert "LimitNOFILE=" in line


@pytest.mark.parametrize("option", ["requests", "changes"])
def test_the_ipc_path_of_a_living_daemon_is_left_to_it(
    tmp_path: Path, start_daemon: StartDaemon, connect: Connect, option: str
) -> None:
    first = start_daemon(requests=f"ipc://{tmp_path}/requests", changes=f"ipc://{tmp_path}/changes")
    endpoint = f"ipc://{tmp_path}/{option}"
    line = one_line(run_daemon(tmp_path, **{option: endpoint}))
    assert "address in use" in line
    assert line.count(endpoint) == 1, line
    assert f"--{option}" in line
    assert connect(first).ask({"op": "status"})


def test_ipc_sockets_that_a_crash_left_are_taken_over(
    tmp_path: Path, start_daemon: StartDaemon, connect: Connect
) -> None:
    daemon = start_daemon(requests=f"ipc://{tmp_path}/requests", changes=f"ipc://{tmp_path}/changes")
    daemon.kill()
    assert (tmp_path / "requests").is_socket()
    daemon.start()
    assert connect(daemon).ask({"op": "status"})


def test_ipc_sockets_are_removed_at_a_clean_stop(tmp_path: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(requests=f"ipc://{tmp_path}/requests", changes=f"ipc://{tmp_path}/changes")
    daemon.stop()
    assert not (tmp_path / "requests").exists()
    assert not (tmp_path / "changes").exists()


def test_a_file_at_an_ipc_path_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    assert "not a socket" in one_line(run_daemon(tmp_path, requests=f"ipc://{tmp_path}/notes"))
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_with_status_0(ending_daemon: Daemon, number: signal.Signals) -> None:
    assert status_after(ending_daemon, number) == 0


def test_what_was_accepted_is_answered_after_sigterm(start_daemon: StartDaemon, connect: Connect) -> None:
    """Every request gets a reply, and those that were acknowledged are there after a restart."""
    daemon = start_daemon()
    dealer = connect(daemon, zmq.DEALER).socket
    for number in range(300):
        dealer.send_multipart([b"%d" % number, b"", *pack(put(f"k{number}", b"%d" % number))])
    dealer.recv_multipart()
    daemon.stop()
    dealer.rcvtimeo = 500
    acknowledged = [0]
    try:
        while True:
            number, _, *frames = dealer.recv_multipart()
            reply = unpack(frames)
            if "results" in reply:
                acknowledged.append(int(number))
            else:
                assert reply["error"]["code"] == "unavailable"
    except zmq.Again:
        pass
    daemon.start()
    peer = connect(daemon)
    for number in acknowledged[1:]:
        assert peer.ask(get(f"k{number}"))[0]["value"] == b"%d" % number


def test_sigterm_under_load_ends_the_daemon_with_status_0(ending_daemon: Daemon, connect: Connect) -> None:
    peers = [connect(ending_daemon) for _ in range(16)]
    for index, peer in enumerate(peers):
        peer.socket.send_multipart(pack(*(put(f"{index}/{n}", bytes(100)) for n in range(5_000))))
    wait_until(lambda: any(peer.socket.poll(0) for peer in peers))
    assert status_after(ending_daemon, signal.SIGTERM) == 0


@pytest.mark.lmdb_only("other ways to sync than always")
@pytest.mark.parametrize(("sync", "warns"), [("always", False), ("interval", True), ("none", True)])
def test_a_sync_that_may_lose_writes_is_said_at_the_start(
    start_daemon: StartDaemon, sync: str, warns: bool
) -> None:
    assert (f"--sync {sync}: a crash of the machine may lose" in start_daemon(sync=sync).stderr) is warns


def test_values_are_never_logged(start_daemon: StartDaemon, connect: Connect) -> None:
    daemon = start_daemon(log_level="debug")
    peer = connect(daemon)
    peer.ask(put("k", b"secret"), get("k"), {"op": "incr", "key": "k"})
    peer.exchange(b"secret")
    peer.exchange(*pack(put("", b"secret")))
    daemon.stop()
    assert "secret" not in daemon.stderr
