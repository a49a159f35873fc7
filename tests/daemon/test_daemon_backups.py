"""The backup that a daemon keeps: for how long, how much of the disk is left, and who may have it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore_client import Client
from kvstore_core.errors import KvError
from kvstore_daemon.backups import MAX_KEPT_SECONDS, UNUSED_SECONDS, BackUp, Backups, OnBegun, require_room
from kvstore_daemon.storage.offline.backup import back_up
from support.engine_store import Store, opened, refused
from support.servers import Daemon, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("a cluster has a backup of its own")]

ID, OTHER = "0123456789abcdef", "f" * 16


class Hand:
    """A clock that is moved by hand."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with a record."""
    store = opened(tmp_path / "data")
    store.write("put", b"k", value=b"v" * 100_000)
    yield store
    store.engine.close()


@pytest.fixture
def clock() -> Hand:
    """The clock of the backups."""
    return Hand()


@pytest.fixture
def keep(store: Store, tmp_path: Path, clock: Hand) -> Iterator[Callable[..., Backups]]:
    """``keep(back_up)``: the backups of the store, made by that or by what a daemon uses."""
    folder = tmp_path / "data"
    kept: list[Backups] = []

    def make(write: Callable[[bytes], Any], now: int, on_begun: OnBegun) -> dict[str, Any]:
        return back_up(folder, write, now, on_begun=on_begun)._asdict()

    def keep(how: BackUp = make) -> Backups:
        kept.append(Backups(store.engine, str(folder), how, clock))
        return kept[-1]

    yield keep
    for backups in kept:
        backups.close()


def made(backups: Backups, backup_id: str = ID) -> dict[str, Any]:
    """The backup, once the making of it has ended."""
    backups.make(backup_id, "me")
    wait_until(lambda: backups.described()[0]["state"] != "making")
    return backups.described()[0]


def test_a_backup_ends_an_hour_after_it_was_last_read(keep: Callable[..., Backups], clock: Hand) -> None:
    backups = keep()
    told = made(backups)
    assert round(UNUSED_SECONDS * 1000) - 60_000 < told["expires_at"] - told["created_at"]
    for _ in range(3):
        clock.seconds += UNUSED_SECONDS - 1
        backups.tick()
        assert len(backups.read(ID, 0, 10, "me")) == 10
    clock.seconds += UNUSED_SECONDS
    assert backups.taken == told["bytes"]
    backups.tick()
    assert (backups.described(), backups.taken) == ([], 0)
    with refused("not_found"):
        backups.read(ID, 0, 10, "me")


def test_a_backup_that_is_read_all_the_time_ends_after_a_day(
    keep: Callable[..., Backups], clock: Hand
) -> None:
    backups, read = keep(), 0
    made(backups)
    while backups.described():
        backups.read(ID, 0, 1, "me")
        read += 1
        clock.seconds += UNUSED_SECONDS / 2
        backups.tick()
    assert read == MAX_KEPT_SECONDS // (UNUSED_SECONDS / 2)


def test_one_that_is_not_read_any_more_leaves_its_room_to_the_disk(
    keep: Callable[..., Backups], tmp_path: Path
) -> None:
    backups = keep()
    made(backups)
    (held,) = files_without_name(tmp_path)
    assert os.stat(held).st_size == backups.taken  # noqa: PTH116 - a link in /proc
    with refused("backup_exists") as told:
        backups.make(OTHER, "me")
    assert told.value.details["id"] == ID
    backups.delete(ID, "me")
    assert not files_without_name(tmp_path)
    assert made(backups, OTHER)["state"] == "ready"


def files_without_name(folder: Path) -> list[str]:
    """Links to the open files of this process in ``folder`` that have no name."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]  # noqa: PTH208 - one of them is it
    targets = {link: os.readlink(link) for link in links if os.path.lexists(link)}  # noqa: PTH115
    return [link for link, name in targets.items() if name.startswith(str(folder)) and "(deleted)" in name]


def test_a_disk_that_fills_up_meanwhile_fails_the_backup_and_the_next_may_begin(
    keep: Callable[..., Backups], tmp_path: Path
) -> None:
    def fail(write: Callable[[bytes], Any], _now: int, _on_begun: OnBegun) -> dict[str, Any]:
        write(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    backups = keep(fail)
    told = made(backups)
    assert (told["state"], told["error"]["code"]) == ("failed", "store_full")
    assert "make room on the disk" in told["error"]["message"]
    with refused("store_full"):
        backups.read(ID, 0, 10, "me")
    assert not files_without_name(tmp_path)
    assert backups.taken == 0
    assert made(backups, OTHER)["id"] == OTHER


def test_a_deleted_backup_stops_being_made(keep: Callable[..., Backups], tmp_path: Path) -> None:
    ended: list[Exception] = []

    def without_end(write: Callable[[bytes], Any], _now: int, _on_begun: OnBegun) -> dict[str, Any]:
        try:
            while True:
                write(b"more")
        except Exception as error:
            ended.append(error)
            raise

    backups = keep(without_end)
    backups.make(ID, "me")
    wait_until(lambda: backups.taken > 100)
    backups.delete(ID, "me")
    wait_until(lambda: ended and not files_without_name(tmp_path))
    assert backups.described() == []


def test_another_is_begun_once_the_making_of_a_deleted_one_has_ended(
    keep: Callable[..., Backups], tmp_path: Path
) -> None:
    may_end = threading.Event()

    def slowly(write: Callable[[bytes], Any], _now: int, _on_begun: OnBegun) -> dict[str, Any]:
        write(b"part")
        may_end.wait()
        write(b"more")
        raise AssertionError("it was deleted")

    backups = keep(slowly)
    backups.make(ID, "me")
    wait_until(lambda: backups.taken > 0)
    backups.delete(ID, "me")
    with refused("too_busy") as told:
        backups.make(OTHER, "me")
    assert "id" not in told.value.details, "it goes away by itself, so clients repeat the request"
    assert len(files_without_name(tmp_path)) == 1
    may_end.set()
    wait_until(lambda: not files_without_name(tmp_path))
    wait_until(lambda: begins(backups))


def begins(backups: Backups) -> bool:
    """Whether the making of another one can begin."""
    try:
        backups.make(OTHER, "me")
    except KvError:
        return False
    return True


def test_a_share_of_the_disk_stays_free(tmp_path: Path) -> None:
    whole, _, free = shutil.disk_usage(tmp_path)
    require_room(str(tmp_path), 0)
    with refused("store_full") as told:
        require_room(str(tmp_path), free - whole // 50)
    assert "kvstore backup" in told.value.message


def test_a_native_client_reads_one_piece_after_another(daemon: Daemon, tmp_path: Path) -> None:
    with Client(daemon.requests) as client:
        client.put("k", b"v")
        assert client.backups() == []
        told = client.backup_make()
        wait_until(lambda: client.backups()[0]["state"] == "ready")
        file, size = b"", client.backups()[0]["bytes"]
        assert client.status()["backup_bytes"] == size
        while piece := client.backup_read(told["id"], len(file), size=10_000):
            file += piece
        assert len(file) == size
        assert file.endswith(b"kvbackup")
        client.backup_delete(told["id"])
        with pytest.raises(KvError) as gone:
            client.backup_delete(told["id"])
    assert gone.value.code == "not_found"
    assert f"backup_read of {told['id']}, asked for by ''" in daemon.stderr
