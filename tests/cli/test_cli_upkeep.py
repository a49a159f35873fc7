"""``kvstore backup``, ``restore``, ``check`` and ``compact`` as an operator calls them."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvstore_client import Client, commands
from support.engine_store import opened
from support.servers import Daemon, Service, children, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("backup, check, compaction and restore of its file")]

Kvstore = Any


def fill(daemon: Daemon) -> Daemon:
    """Store 300 keys."""
    with Client(daemon.requests) as client:
        client.batch([commands.put(f"k{n:03}", b"value %d " % n * 20) for n in range(300)])
    return daemon


def fill_large(daemon: Daemon, count: int) -> Daemon:
    """Store ``count`` values of a megabyte."""
    with Client(daemon.requests) as client:
        for n in range(count):
            client.put(f"large{n}", b"x" * 1_000_000)
    return daemon


@pytest.fixture
def filled(daemon: Daemon) -> Daemon:
    """A daemon with 300 keys."""
    return fill(daemon)


@pytest.fixture(scope="module")
def shared(shared_daemon: Daemon) -> Daemon:
    """One for tests that neither stop it nor write to it."""
    return fill(shared_daemon)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a store of 60 MB, which takes a while to copy."""
    data = tmp_path_factory.mktemp("large")
    store = opened(data, sync="none")
    for n in range(60):
        store.write("put", b"large%d" % n, value=b"x" * 1_000_000)
    store.engine.close()
    return data


def test_a_backup_beside_a_daemon_is_restored_into_a_new_folder(
    offline: Kvstore, filled: Daemon, start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    done = offline("backup", "b.kvb", "--data", str(filled.data))
    assert done.returncode == 0
    assert b"revision 300, 300 keys, 300 events" in done.stderr
    assert done.stdout == b""
    assert (tmp_path / "b.kvb").stat().st_mode & 0o777 == 0o600
    with Client(filled.requests) as client:
        client.put("later", b"")
    assert offline("check", "b.kvb").returncode == 0
    done = offline("restore", "b.kvb", "--data", "new")
    assert done.returncode == 0, done.stderr
    assert b"restored 300 keys as of revision 300" in done.stderr
    again = start_daemon(data=tmp_path / "new")
    with Client(filled.requests) as old, Client(again.requests) as new:
        assert list(new.list()) == [record for record in old.list() if record.key != "later"]
        assert new.status()["epoch"] != old.status()["epoch"]
        assert new.status()["revision"] >= 10**9


@pytest.mark.parametrize("command", ["backup", "export"])
def test_what_is_no_ordinary_file_is_not_replaced(
    offline: Kvstore, shared: Daemon, tmp_path: Path, command: str
) -> None:
    os.mkfifo(tmp_path / "fifo")  # /dev/null, for a root who is in a hurry
    data = ["--data", str(shared.data)] if command == "backup" else []
    done = offline(command, "fifo", "--force", *data)
    assert done.returncode in (1, 2)
    assert b"not a regular file" in done.stderr
    assert (tmp_path / "fifo").is_fifo()


def test_a_backup_goes_through_a_pipe(offline: Kvstore, shared: Daemon, tmp_path: Path) -> None:
    image = offline.out("backup", "-", "--data", str(shared.data))
    done = offline("restore", "-", "--data", "new", stdin=image)
    assert done.returncode == 0, done.stderr
    assert json.loads(offline.out("check", "--data", "new", "--json"))["keys"] == 300
    for part in (image[:-1], image[: len(image) // 2], b""):
        done = offline("restore", "-", "--data", "other", stdin=part)
        assert done.returncode == 1
        assert not (tmp_path / "other" / "lmdb" / "data.mdb").exists()


def test_what_a_backup_holds_is_given_to_programs(offline: Kvstore, shared: Daemon) -> None:
    (said,) = offline.lines("backup", "b.kvb", "--json", "--data", str(shared.data))
    (found,) = offline.lines("check", "b.kvb", "--json")
    assert found["whole"]
    assert found["faults"] == []
    assert said.items() <= found.items()
    assert (said["revision"], said["keys"], said["events"]) == (300, 300, 300)


def test_a_file_that_exists_is_replaced_only_when_told(
    offline: Kvstore, shared: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "b.kvb").write_text("precious")
    done = offline("backup", "b.kvb", "--data", str(shared.data))
    assert done.returncode == 2
    assert b"--force" in done.stderr
    assert (tmp_path / "b.kvb").read_text() == "precious"
    assert offline("backup", "b.kvb", "--force", "--data", str(shared.data)).returncode == 0
    assert offline("check", "b.kvb").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_backup_that_is_interrupted_leaves_nothing(
    offline: Kvstore, large: Path, tmp_path: Path, start: Callable[..., Any], number: int
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    running = start(offline, "backup", "b.kvb", "--data", str(large))
    wait_until(lambda: list(tmp_path.glob(".b.kvb*")), what="the backup has begun")
    running.process.send_signal(number)
    assert running.wait() == 128 + number
    assert sorted({path.name for path in tmp_path.iterdir()} - {"0.out", "0.err"}) == before
    assert running.stderr.strip() == ""


def test_a_full_disk_leaves_nothing(offline: Kvstore, filled: Daemon, tmp_path: Path) -> None:
    fill_large(filled, 5)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting a small file system needs root; CI has it")
    try:
        done = offline("backup", str(disk / "b.kvb"), "--data", str(filled.data))
        assert done.returncode == 1
        assert b"No space left" in done.stderr
        assert list(disk.iterdir()) == []
        image = offline.out("backup", "-", "--data", str(filled.data))
        done = offline("restore", "-", "--data", str(disk / "data"), stdin=image)
        assert done.returncode == 1
        assert b"No space left" in done.stderr
        assert not (disk / "data").exists()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_restore_says_which_file_is_no_backup(offline: Kvstore, tmp_path: Path) -> None:
    (tmp_path / "not\x1bone").write_bytes(b"something else")
    done = offline("restore", "not\x1bone", "--data", str(tmp_path / "data"))
    assert done.returncode == 1
    why = b"this is not a backup, or its end is missing; nothing was restored"
    assert b"kvstore: not\\x1bone: " + why in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_damaged_or_compressed_backup_leaves_no_folder_and_is_called_that(
    offline: Kvstore, shared: Daemon, tmp_path: Path
) -> None:
    image = offline.out("backup", "-", "--data", str(shared.data))
    for name, content, why in (
        ("damaged", b"x" * 4096 + image[4096:], b"its SHA-256 does not match"),
        ("packed", gzip.compress(image), b"it is compressed: unpack it first"),
    ):
        (tmp_path / name).write_bytes(content)
        checked = offline("check", name)
        assert (checked.returncode, why in checked.stdout) == (1, True)
        restored = offline("restore", name, "--data", str(tmp_path / "new" / "data"))
        assert (restored.returncode, why in restored.stderr) == (1, True)
        assert not (tmp_path / "new" / "data").exists()
    piped = offline("check", "-", stdin=image)
    assert (piped.returncode, b"in a file" in piped.stderr) == (2, True)


def test_a_backup_is_shown_to_be_equal_to_the_service_by_its_digest(
    offline: Kvstore, service: Service
) -> None:
    offline.out("put", "digest/of", "a backup", "--url", service.url)
    offline.out("backup", "d.kvb", "--data", str(service.daemon.data), "--force")
    digest = offline.out("digest", "--url", service.url).decode().strip()
    assert offline.lines("check", "d.kvb", "--json")[0]["digest"] == digest
    assert digest in offline("check", "d.kvb").stderr.decode()
    offline.out("put", "digest/of", "another", "--url", service.url)
    (whole,) = offline.lines("check", "--data", str(service.daemon.data), "--json")
    assert whole["digest"] == offline.out("digest", "--url", service.url).decode().strip() != digest


def test_a_backup_has_no_free_pages_to_tell_of(offline: Kvstore, shared: Daemon) -> None:
    offline.out("backup", "b.kvb", "--data", str(shared.data))
    said = offline("check", "b.kvb").stderr.decode()
    assert "b.kvb is whole" in said
    assert "free" not in said
    assert "of it free" in offline("check", "--data", str(shared.data)).stderr.decode()


@pytest.mark.parametrize("command", [["daemon"], ["restore", "b.kvb"]])
def test_a_data_folder_that_is_a_file_is_called_that(
    offline: Kvstore, shared: Daemon, tmp_path: Path, command: list[str]
) -> None:
    assert offline("backup", "b.kvb", "--data", str(shared.data)).returncode == 0
    (tmp_path / "file").touch()
    done = offline(*command, "--data", "file")
    assert done.returncode in (1, 5)
    assert "file is not a folder; choose another --data" in done.stderr.decode()
    assert b"Errno" not in done.stderr


def test_damage_is_told_line_by_line(offline: Kvstore, filled: Daemon) -> None:
    filled.stop()
    file = filled.data / "lmdb" / "data.mdb"
    file.write_bytes(file.read_bytes().replace(b"value 7 value", b"value 7 velue"))
    done = offline("check", "--data", str(filled.data))
    assert done.returncode == 1
    assert done.stdout.decode().splitlines() == [
        "record 'k007': the checksum does not match",
        "event 8.0: the checksum does not match",
    ]
    assert b"2 faults; restore a backup" in done.stderr
    (found,) = offline("check", "--json", "--data", str(filled.data)).stdout.splitlines()
    assert json.loads(found)["fault_count"] == 2


@pytest.mark.parametrize("command", ["backup", "check", "compact", "restore"])
def test_what_is_not_there_is_named(offline: Kvstore, command: str, tmp_path: Path) -> None:
    arguments = [command, "b.kvb"] if command in ("backup", "restore") else [command]
    done = offline(*arguments, "--data", "nowhere")
    assert done.returncode == (2 if command == "restore" else 1)
    assert (b"b.kvb" if command == "restore" else b"nowhere") in done.stderr
    assert not (tmp_path / "nowhere").exists()
    assert not list(tmp_path.glob("*.kvb"))


@pytest.mark.parametrize("command", ["restore", "compact"])
def test_a_store_in_use_is_not_replaced(offline: Kvstore, shared: Daemon, command: str) -> None:
    offline.out("backup", "b.kvb", "--data", str(shared.data))
    arguments = ["restore", "--force", "b.kvb"] if command == "restore" else ["compact"]
    done = offline(*arguments, "--data", str(shared.data))
    assert done.returncode == 5
    assert f"pid {shared.pid}" in done.stderr.decode()


def test_compacting_gives_room_back(offline: Kvstore, daemon: Daemon) -> None:
    fill_large(daemon, 10)
    daemon.restart(retain_events=1)
    with Client(daemon.requests) as client:
        client.delete_prefix("large")
        client.put("kept", b"v")
        file = daemon.data / "lmdb" / "data.mdb"
        wait_until(lambda: client.status()["log_events"] <= 1)
        before, status = file.stat().st_size, client.status()
    assert b"would become" in offline("compact", "--dry-run", "--data", str(daemon.data)).stderr
    daemon.stop()
    done = offline("compact", "--data", str(daemon.data))
    assert done.returncode == 0, done.stderr
    assert file.stat().st_size < before / 10
    daemon.start()
    with Client(daemon.requests) as client:
        assert [record.key for record in client.list()] == ["kept"]
        after = client.status()
        assert (after["epoch"], after["revision"]) == (status["epoch"], status["revision"])


def test_a_reader_whose_place_is_taken_is_told_so(offline: Kvstore, shared: Daemon) -> None:
    """As by a reader with the same process id in another container on the same volume."""
    with (shared.data / "lmdb" / "lock.mdb").open("r+b") as lock:
        # LMDB locks the byte that has the reader's process id as its number
        own = sorted((shared.pid, *children(shared.pid)))
        for start, end in pairwise((1, *own, 2**22)):
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, end - start - 1, start + 1)
        done = offline("backup", "b.kvb", "--data", str(shared.data))
    assert done.returncode == 1
    assert b"is taken" in done.stderr
    assert offline("backup", "b.kvb", "--data", str(shared.data)).returncode == 0


def test_a_folder_that_is_mounted_read_only_is_read_while_nobody_writes_to_it(
    offline: Kvstore, filled: Daemon, tmp_path: Path
) -> None:
    """LMDB cannot take part in the locking there, and the daemon would not know of the reader."""
    view = tmp_path / "view"
    view.mkdir()
    if subprocess.run(["mount", "--bind", "-o", "ro", str(filled.data), str(view)], check=False).returncode:
        pytest.skip("mounting needs root; CI has it")
    try:
        done = offline("backup", "b.kvb", "--data", str(view))
        assert done.returncode == 5
        assert b"read-only" in done.stderr
        filled.stop()
        assert offline("backup", "b.kvb", "--data", str(view)).returncode == 0
        assert offline("check", "--data", str(view)).returncode == 0
    finally:
        subprocess.run(["umount", "--lazy", str(view)], check=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root; CI has it")


@needs_root
def test_root_leaves_everything_to_the_owner(offline: Kvstore, filled: Daemon, tmp_path: Path) -> None:
    """The data folder is another user's, as a service's is; and the way to it is root's alone."""
    filled.stop()
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    data = filled.data.rename(private / "data")
    (data / "lmdb" / "lock.mdb").unlink()
    for path in (data, *data.rglob("*")):
        os.chown(path, 4711, 4711)
    for arguments in ("backup b.kvb", "check", "compact", "restore --force b.kvb", "check"):
        done = offline(*arguments.split(), "--data", str(data))
        assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in (data, *data.rglob("*"))} == {4711}
    assert (tmp_path / "b.kvb").stat().st_uid == 0


@needs_root
def test_a_user_who_may_not_read_the_store_is_told_who_may(filled: Daemon) -> None:
    # in one process: a stranger may be unable to run this very Python
    program = (
        "import os, sys; from kvstore_daemon.storage.offline import reader_process as reader;"
        "os.setgroups([]); os.setuid(4711); reader.main('copy', sys.argv[1])"
    )
    for path in list(filled.data.parents)[:-2]:
        path.chmod(path.stat().st_mode | 0o011)
    filled.data.chmod(0o711)
    done = subprocess.run([sys.executable, "-c", program, filled.data], check=True, capture_output=True)
    error = json.loads(done.stderr)
    assert error["code"] == "not_allowed"
    assert "the user who runs the daemon" in error["message"]
