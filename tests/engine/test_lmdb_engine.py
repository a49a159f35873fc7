"""What only the LMDB engine has: its files, its lock, damage, a full store and a full disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import EventFilter, Write, WriteRequest
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.free_space import BALLAST_BYTES
from kvstore_daemon.storage.lmdb_store.write_transaction import WriteTransaction
from support.disk import run_script
from support.engine_store import OpenStore, Store, refused
from support.lengths import examples
from support.servers import wait_until

MIB = 1024 * 1024
FILE = "data/lmdb/data.mdb"


def test_the_folder_is_free_again_after_closing(open_store: OpenStore) -> None:
    open_store().engine.close()
    open_store().write("put")


def test_a_folder_that_cannot_be_used_is_named(open_store: OpenStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with refused("not_allowed") as caught:
        open_store(data=tmp_path / "file" / "data")
    assert str(tmp_path / "file") in caught.value.message


@pytest.mark.parametrize(("number", "said"), [(b"999", "newer"), (b"1", "format 1")])
def test_a_store_of_another_format_is_refused(
    open_store: OpenStore, tmp_path: Path, number: bytes, said: str
) -> None:
    open_store().engine.close()
    with lmdb.open(str(tmp_path / "data" / "lmdb"), max_dbs=8) as env, env.begin(write=True) as txn:
        txn.put(b"format", number, db=env.open_db(b"meta", txn))
    with refused("unsupported_version") as caught:
        open_store()
    assert said in caught.value.message


def test_a_file_that_is_no_store_is_refused(open_store: OpenStore, tmp_path: Path) -> None:
    (tmp_path / "data" / "lmdb").mkdir(parents=True)
    (tmp_path / FILE).write_bytes(b"\xff" * 100_000)
    with refused("damaged"):
        open_store()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_file_whose_end_is_missing_is_refused(open_store: OpenStore, tmp_path: Path, kept: float) -> None:
    store = open_store()
    for number in range(200):
        store.write("put", b"%d" % number, value=b"x" * 10_000)
    store.engine.close()
    file = tmp_path / FILE
    os.truncate(file, int(file.stat().st_size * kept))
    with refused("damaged") as caught:
        open_store()
    assert "interrupted copy" in caught.value.message


def test_a_file_that_lacks_only_pages_without_content_is_opened(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = open_store()
    store.write("put", b"k", value=b"v")
    store.engine.close()
    file = tmp_path / FILE
    with lmdb.open(str(file.parent), max_dbs=8) as environment:
        with environment.begin(write=True) as txn:
            for number in range(3000):
                txn.put(b"%d" % number, b"x" * 1000)
            for number in range(3000):
                txn.delete(b"%d" % number)
        expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    assert file.stat().st_size < expected
    store = open_store()
    found = store.get(b"k")
    assert found is not None
    assert found.value == b"v"


def test_an_empty_file_is_not_taken_for_a_new_store(open_store: OpenStore, tmp_path: Path) -> None:
    open_store().engine.close()
    os.truncate(tmp_path / FILE, 0)
    with refused("damaged") as caught:
        open_store()
    assert "is empty" in caught.value.message


def test_a_file_in_place_of_the_store_s_folder_is_named(open_store: OpenStore, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lmdb").write_text("")
    with refused("damaged") as caught:
        open_store()
    assert "lmdb is a file" in caught.value.message


def test_the_folder_is_for_its_owner_alone(open_store: OpenStore, tmp_path: Path) -> None:
    open_store()
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


@pytest.fixture
def damaged_store(open_store: OpenStore, tmp_path: Path) -> Store:
    """A store whose record ``bad`` has one bit of its value flipped, in both of its rows."""
    store = open_store()
    store.write("put", b"bad", value=b"the value that will be damaged", ttl_ms=1000)
    store.write("put", b"good")
    store.engine.close()
    file = tmp_path / FILE
    data = bytearray(file.read_bytes())
    for found in re.finditer(b"value that will be damaged", bytes(data)):
        data[found.start()] ^= 1
    file.write_bytes(data)
    return open_store()


def test_damage_is_reported_and_never_returned(damaged_store: Store) -> None:
    with refused("damaged") as caught:
        damaged_store.get(b"bad")
    assert caught.value.details["key"] == "bad"
    with refused("damaged"):
        damaged_store.engine.range(b"", None, 10, values=True, max_bytes=MIB)
    with refused("damaged"):
        damaged_store.engine.log(0, EventFilter(), 10, values=True, previous=True, max_bytes=MIB)
    assert damaged_store.get(b"good") is not None
    damaged_store.write("delete", b"bad")
    damaged_store.engine.close()


@pytest.mark.parametrize("op", ["incr", "touch", "persist"])
def test_no_write_builds_on_a_damaged_record(damaged_store: Store, op: str) -> None:
    with refused("damaged"):
        damaged_store.write(op, b"bad", ttl_ms=5)
    with refused("damaged"):
        damaged_store.write("put", b"bad", if_revision=1)
    damaged_store.engine.close()


@pytest.mark.parametrize("op", ["put", "delete", "delete_prefix"])
def test_a_damaged_record_can_be_replaced_or_removed(damaged_store: Store, op: str) -> None:
    damaged_store.write(op, b"bad")
    found = damaged_store.get(b"bad")
    assert (found is not None) == (op == "put")
    damaged_store.clock.now += 1000
    assert damaged_store.engine.due(10) == ([], None)
    # what remains is the damaged event, which leaves with the log's end
    assert damaged_store.faults() == ["event 1.0: the checksum does not match"]
    damaged_store.engine.close()


DAMAGE = {"CorruptedError", "PageNotFoundError", "InvalidError", "VersionMismatchError", "IncompatibleError"}


@pytest.mark.parametrize("kind", [lmdb.Error, *lmdb.Error.__subclasses__()], ids=lambda kind: kind.__name__)
def test_only_what_speaks_of_the_bytes_themselves_is_reported_as_damage(kind: type[lmdb.Error]) -> None:
    error = file_error(Path("data.mdb"), kind("what LMDB said"))
    assert (error.code == "damaged") == (kind.__name__ in DAMAGE)
    assert ("restore" in error.message) == (kind.__name__ in DAMAGE)


def errors_of_a_sound_store(folder: Path) -> Iterator[Callable[[], Any]]:
    """Calls that LMDB refuses, each for another reason."""
    env = lmdb.open(str(folder), max_dbs=1, map_size=MIB)
    env.open_db(b"one")
    yield lambda: env.open_db(b"two")
    yield lambda: lmdb.open(str(folder))
    txn = env.begin(write=True)
    yield lambda: txn.put(b"", b"")
    yield lambda: txn.put(b"large", bytes(2 * MIB))
    yield txn.commit
    txn.abort()
    yield lambda: txn.get(b"key")
    env.close()
    yield env.begin


def test_no_error_that_a_sound_store_gives_is_reported_as_damage(tmp_path: Path) -> None:
    for call in errors_of_a_sound_store(tmp_path):
        with pytest.raises(lmdb.Error) as caught:
            call()
        error = file_error(tmp_path / "data.mdb", caught.value)
        assert error.code == ("store_full" if isinstance(caught.value, lmdb.MapFullError) else "internal")
        assert "kvstore check" in error.message or "--max-store-bytes" in error.message


def test_a_file_that_says_it_is_of_another_version_of_lmdb_is_damage(
    open_store: OpenStore, tmp_path: Path
) -> None:
    open_store().engine.close()
    file = tmp_path / FILE
    whole = bytearray(file.read_bytes())
    with lmdb.open(str(file.parent), readonly=True) as env:
        size = env.stat()["psize"]
    for page in (0, size):
        assert whole[page + 20] == 1
        whole[page + 20] = 9
    file.write_bytes(whole)
    with refused("damaged"):
        open_store()


@pytest.mark.slow
def test_every_flipped_bit_of_the_file_is_harmless_or_reported(open_store: OpenStore, tmp_path: Path) -> None:
    """Each in a child process: LMDB itself may kill the process at a page it cannot trust."""
    store = open_store()
    for n in range(40):
        store.write("put", b"k%02d" % n, value=b"value %02d" % n * 20)
    store.engine.close()
    run_script("flip_bits.py", tmp_path / "data", examples(60))


def fill(store: Store) -> list[bytes]:
    """Put until the store refuses it; the keys."""
    written: list[bytes] = []
    with refused("store_full"):
        while True:
            store.write("put", key := b"k%03d" % len(written), value=os.urandom(100_000))
            written.append(key)
    return written


def test_a_full_store_refuses_writes_and_takes_deletes(open_store: OpenStore) -> None:
    store = open_store(max_store_bytes=4 * MIB)
    written = fill(store)
    assert len(written) > 10
    refusal = store.engine.statistics().writes_refused
    assert refusal is not None
    for op in ("put", "incr"):
        with refused("store_full") as caught:
            store.write(op, b"x")
        assert "--max-store-bytes" in caught.value.message
        assert (refusal.code, refusal.message) == ("store_full", caught.value.message)
    with refused("store_full"):
        store.atomic(Write("delete", written[0]), Write("put", b"x", b"", "t"))
    assert store.get(written[0]) is not None
    for key in written:
        assert store.get(key) is not None
        store.write("delete", key)
    assert store.keys() == []
    assert store.engine.statistics().writes_refused is None


def test_a_full_store_takes_writes_again_once_its_log_is_short(open_store: OpenStore) -> None:
    store = open_store(max_store_bytes=4 * MIB)
    fill(store)
    store.write("delete_prefix", b"k", limit=1000)
    store.clock.now += 8 * 86_400_000
    store.submit(WriteRequest([Write("delete", b"none")]))
    store.write("put", b"again")


SMALL_DISK_BYTES = 5 * BALLAST_BYTES


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, which is soon full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size={SMALL_DISK_BYTES}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        if os.environ.get("CI"):
            pytest.fail(f"no small file system could be mounted: {mounted.stderr.decode()}")
        pytest.skip("mounting a small file system needs root; CI has it")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"\0" * 4096)
            except OSError:
                return


def test_a_full_disk_refuses_writes_and_takes_deletes(open_store: OpenStore, small_disk: Path) -> None:
    store = open_store(data=small_disk / "data")
    keys = [b"k%03d" % n for n in range(40)]
    for key in keys:
        store.write("put", key, value=b"x" * 100_000)
    _fill(small_disk)
    with refused("store_full") as caught:
        for n in range(100):
            store.write("put", b"more%03d" % n, value=b"x" * 100_000)
    assert str(small_disk) in caught.value.message
    statistics = store.engine.statistics()
    assert statistics.disk_bytes == SMALL_DISK_BYTES
    assert statistics.disk_free_bytes < BALLAST_BYTES
    assert statistics.writes_refused is not None
    assert statistics.writes_refused.message == caught.value.message
    for key in keys:
        assert store.get(key) is not None
        store.write("delete", key)
    (small_disk / "filler").unlink()
    store.write("put", b"again")
    assert store.get(b"again") is not None


def test_a_disk_that_fills_up_within_a_commit_loses_nothing(
    open_store: OpenStore, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the check before the commit is blinded, so that LMDB itself meets the end of the disk
    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.free_space.FreeSpace.refusal", lambda *_: None)
    store = open_store(data=small_disk / "data")
    store.write("put", b"kept", value=b"here")
    _fill(small_disk)
    requests = [WriteRequest([Write("put", b"big%d" % n, b"x" * 900_000, "t")], ticket=n) for n in range(40)]
    answers = store.submit(*requests, WriteRequest([Write("delete", b"kept")], ticket="delete"))
    stored = {answer.ticket for answer in answers if answer.error is None}
    assert {answer.error.code for answer in answers if answer.error is not None} == {"store_full"}
    assert "delete" in stored
    for n in range(40):
        assert (store.get(b"big%d" % n) is not None) == (n in stored)
    assert store.get(b"kept") is None


def test_numbered_requests_of_a_commit_that_was_undone_are_applied_once(
    open_store: OpenStore, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.free_space.FreeSpace.refusal", lambda *_: None)
    store = open_store(data=small_disk / "data")
    _fill(small_disk)
    count = WriteRequest([Write("incr", b"count")], client="counting", seq=1)
    big = [
        WriteRequest([Write("put", b"big%d" % n, b"x" * 900_000, "t")], client=f"c{n}", seq=1)
        for n in range(40)
    ]
    (first, *others) = store.submit(count, *big)
    assert any(answer.error is not None for answer in others)
    assert first.error is None
    (again,) = store.submit(count)
    assert again.results == first.results
    found = store.get(b"count")
    assert found is not None
    assert found.value == b"1"


def test_deletes_alone_bring_writes_back_on_a_full_disk(open_store: OpenStore, small_disk: Path) -> None:
    store = open_store(data=small_disk / "data")
    keys = fill(store)
    assert len(keys) > 100
    for key in keys:
        store.write("delete", key)
    assert store.engine.statistics().writes_refused is None
    for key in keys[: len(keys) // 3]:
        store.write("put", key, value=os.urandom(100_000))


def test_a_late_copy_of_a_request_that_was_refused_for_want_of_room_is_not_applied(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(max_store_bytes=4 * MIB)
    fill(store)
    request = WriteRequest([Write("put", b"late", b"v", "text/plain")], client="c", seq=1)
    (answer,) = store.submit(request)
    assert answer.results is not None
    (refusal,) = answer.results
    assert isinstance(refusal, KvError)
    store.write("delete_prefix", b"k", limit=1000)
    (again,) = store.submit(request)
    assert again.results == answer.results
    assert store.get(b"late") is None
    # a new number is a new attempt, and so is the same one after a while
    (later,) = store.submit(request._replace(seq=2))
    assert later.results is not None
    assert not isinstance(later.results[0], KvError)


def test_after_a_failed_sync_no_write_is_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("put", b"before")

    def fail(*_: Any) -> None:
        raise lmdb.Error("Input/output error")

    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.write_transaction.WriteTransaction.finish", fail)
    (answer,) = store.submit(WriteRequest([Write("put", b"k", b"", "t")]))
    monkeypatch.undo()
    assert answer.error is not None
    assert answer.error.details["outcome"] == "unknown"
    (later,) = store.submit(WriteRequest([Write("put", b"k", b"", "t")]))
    assert later.error is not None
    assert "restarted" in later.error.message
    assert store.engine.statistics().writes_refused is later.error
    assert store.get(b"before") is not None


def test_steps_of_trimming_do_not_pile_up_before_a_group(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon asks for one each second that it is idle, also of a disk that hangs."""
    hangs, may_go_on, transactions = threading.Event(), threading.Event(), []
    original = WriteTransaction.finish

    def finish(transaction: WriteTransaction) -> Any:
        transactions.append(transaction)
        hangs.set()
        assert may_go_on.wait(30)
        return original(transaction)

    monkeypatch.setattr(WriteTransaction, "finish", finish)
    store.engine.trim()
    assert hangs.wait(30)
    for _ in range(20):
        store.engine.trim()
    may_go_on.set()
    store.write("put")
    # the one that hung, at most one behind it, and the put
    assert len(transactions) <= 3


class FailingSync:
    """An LMDB environment on a disk that no longer takes anything."""

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env

    def sync(self, _force: bool) -> None:
        raise lmdb.Error("Input/output error")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


@pytest.mark.slow
def test_after_a_failed_sync_on_a_timer_no_write_is_taken_either(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(sync="interval")
    tables = store.engine._tables  # type: ignore[attr-defined]
    monkeypatch.setattr(tables, "env", FailingSync(tables.env))
    store.write("put", b"before")
    wait_until(lambda: store.engine.statistics().writes_refused, what="the sync has failed")
    with refused("internal"):
        store.write("put")
    assert store.get(b"before") is not None
    monkeypatch.undo()


@pytest.mark.slow
def test_syncs_on_a_timer_are_counted_apart_from_commits(open_store: OpenStore) -> None:
    store = open_store(sync="interval")
    store.write("put")
    store.write("put")
    commits = store.engine.statistics().commits
    assert sum(commits.seconds.counts) == 2
    wait_until(lambda: sum(commits.sync_seconds.counts) == 1, what="one sync serves both")


@pytest.mark.parametrize("sync", ["interval", "none"])
def test_weaker_sync_begins_a_new_epoch_after_a_crash_of_the_machine(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str
) -> None:
    store = open_store(sync=sync)
    epoch = store.engine.position().epoch
    store.write("put")
    # a copy of the open store is what a crash leaves; another boot id is what makes it the machine's
    shutil.copytree(tmp_path / "data", tmp_path / "crashed")
    assert open_store(data=tmp_path / "crashed", sync=sync).engine.position().epoch == epoch
    shutil.copytree(tmp_path / "data", tmp_path / "rebooted")
    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.writer.boot_id", lambda: "another boot")
    assert open_store(data=tmp_path / "rebooted", sync=sync).engine.position().epoch != epoch


def test_a_clean_stop_of_a_weaker_store_keeps_its_epoch(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(sync="none")
    epoch = store.engine.position().epoch
    store.write("put")
    store.engine.close()
    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.writer.boot_id", lambda: "another boot")
    assert open_store(sync="none").engine.position().epoch == epoch


def test_a_smaller_map_is_tried_where_address_space_is_short(tmp_path: Path) -> None:
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30));"
        "from pathlib import Path; from kvstore_daemon.storage.lmdb_store.tables import Tables;"
        "from kvstore_daemon.storage.clock import machine_clock;"
        "tables = Tables(Path(sys.argv[1]), map_size=1 << 40, sync=True, clock=machine_clock());"
        "tables.open(); print(tables.env.info()['map_size'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert 1 << 30 <= int(done.stdout) < 8 << 30


def test_the_error_of_a_full_store_is_no_accident_of_one_write(open_store: OpenStore) -> None:
    store = open_store(max_store_bytes=4 * MIB)
    (answer,) = store.submit(WriteRequest([Write("put", b"k%d" % n, os.urandom(MIB), "t") for n in range(8)]))
    assert answer.error is None
    (answer,) = store.submit(WriteRequest([Write("put", b"more", b"", "t"), Write("delete", b"k0")]))
    assert answer.results is not None
    assert isinstance(answer.results[0], KvError)
    assert not isinstance(answer.results[1], KvError)
