"""A store that was not closed: what its journal has belongs to it, when it is read, copied or replaced."""

from __future__ import annotations

import io
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import Retention, Write, WriteRequest
from kvstore_daemon.storage.lmdb_store.journaling import journal
from kvstore_daemon.storage.offline import no_progress, reader_client
from kvstore_daemon.storage.offline.backup import back_up, check_backup, read_trailer
from kvstore_daemon.storage.offline.replace_store import compact
from kvstore_daemon.storage.offline.restore import Restored, restore
from support.engine_store import FakeClock, OpenStore, Store, flipped, lmdb_engine, opened, refused

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("a journal beside its file")]

State = dict[bytes, tuple[int, bytes | None]]


def silent(_step: str) -> Callable[[int, int], None]:
    return no_progress


def state_of(store: Store) -> State:
    page = store.engine.range(b"", None, 10_000, values=True, max_bytes=1 << 30)
    return {key: (record.revision, record.value) for key, record in page.items}


def killed(data: Path, copy: Path) -> Path:
    """What SIGKILL leaves of a daemon that is idle: its files as the system has them."""
    shutil.copytree(data, copy)
    return copy


def all_files(folder: Path) -> dict[str, bytes]:
    """The files that hold data: not who has the folder, who reads the store, and the ballast."""
    beside = ("owner", "lock.mdb", "ballast")
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in beside]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def restored(file: Path, folder: Path, *, replace: bool = False) -> Restored:
    with file.open("rb") as source:
        return restore(source, folder, 1_700_000_000_000, replace=replace, steps=silent)


def backed_up(folder: Path, file: Path) -> Path:
    with file.open("wb") as target:
        back_up(folder, target.write, 1_700_000_000_000)
    return file


def contents(folder: Path, clock: FakeClock) -> State:
    store = opened(folder, clock)
    try:
        assert store.faults() == []
        return state_of(store)
    finally:
        store.engine.close()


@pytest.fixture
def running(open_store: OpenStore) -> Store:
    """A store of which LMDB has one part and the journal the other: records, deletes, expiry, replies."""
    store = open_store()
    for number in range(60):
        store.write("put", b"key/%02d" % number, value=b"old" * number)
        store.write("put", b"due/%02d" % number, ttl_ms=50_000 + number // 3)
    store.write("put", b"large", value=random.Random(1).randbytes(50_000))
    store.submit(WriteRequest([Write("incr", b"count")], client="counting", seq=1))
    store.engine.close()
    store = open_store()
    for number in range(0, 60, 3):
        store.write("put", b"key/%02d" % number, value=b"new" * number)
        store.write("delete", b"key/%02d" % (number + 1))
        store.write("persist", b"due/%02d" % number)
        store.write("touch", b"due/%02d" % (number + 1), ttl_ms=90_000)
        store.write("put", b"more/%02d" % number, ttl_ms=70_000)
    store.atomic(*(Write("put", b"batch/%d" % number, b"together", "t") for number in range(5)))
    store.submit(WriteRequest([Write("incr", b"count")], client="counting", seq=2))
    return store


@pytest.fixture
def left(running: Store, tmp_path: Path) -> Path:
    """The folder of such a store whose daemon was killed."""
    return killed(tmp_path / "data", tmp_path / "killed")


def test_check_reads_what_the_journal_has_and_writes_nothing(running: Store, left: Path) -> None:
    before, faults = all_files(left), list[str]()
    found = reader_client.check(left, faults.append)
    assert faults == []
    assert found["journal_bytes"] > 0
    assert found["revision"] == running.engine.position().head
    assert found["keys"] == len(state_of(running))
    assert all_files(left) == before


@pytest.mark.parametrize("of", ["data", "killed"])
def test_a_backup_has_what_the_journal_has(running: Store, left: Path, tmp_path: Path, of: str) -> None:
    """Beside the daemon that runs, and of a store whose daemon was killed."""
    file, faults = backed_up(tmp_path / of, tmp_path / "saved.kvb"), list[str]()
    with file.open("rb") as backup:
        found = check_backup(backup, faults.append, silent)
    assert faults == []
    assert (found["revision"], found["epoch"]) == (
        running.engine.position().head,
        running.engine.position().epoch,
    )
    assert found["journal_bytes"] > 0
    restored(file, tmp_path / "copy")
    # one file that needs no journal
    assert sorted(all_files(tmp_path / "copy")) == ["lmdb/data.mdb"]
    assert contents(tmp_path / "copy", running.clock) == state_of(running)


def test_a_changed_bit_of_the_frames_in_a_backup_is_found(left: Path, tmp_path: Path) -> None:
    file = backed_up(left, tmp_path / "saved.kvb")
    whole = file.read_bytes()
    with io.BytesIO(whole) as source:
        start, length = read_trailer(source).section
    for _ in range(5):
        bit = random.randrange(8 * start, 8 * (start + length))
        file.write_bytes(flipped(whole, bit))
        faults: list[str] = []
        with file.open("rb") as backup:
            check_backup(backup, faults.append, silent)
        assert any("SHA-256" in fault for fault in faults), bit
        with refused("damaged"):
            restored(file, tmp_path / "copy")
    assert not (tmp_path / "copy" / "lmdb" / "data.mdb").exists()


def test_compact_leaves_one_file_that_needs_no_journal(running: Store, left: Path, tmp_path: Path) -> None:
    expected, epoch = state_of(running), running.engine.position()
    compact(left, silent)
    alone = tmp_path / "alone"
    (alone / "lmdb").mkdir(parents=True)
    shutil.copy(left / "lmdb" / "data.mdb", alone / "lmdb")
    assert contents(alone, running.clock) == expected
    # the files of the old journal are there still, and mean nothing
    store = opened(left, running.clock)
    assert state_of(store) == expected
    assert store.engine.position() == epoch
    store.engine.close()


def test_a_restore_over_it_brings_nothing_back_of_its_journal(
    open_store: OpenStore, running: Store, left: Path, tmp_path: Path
) -> None:
    another = open_store(data=tmp_path / "another")
    another.write("put", b"another", value=b"store")
    file = backed_up(tmp_path / "another", tmp_path / "saved.kvb")
    done = restored(file, left, replace=True)
    assert contents(left, running.clock) == state_of(another)
    assert done.kept is not None


def test_what_a_restore_replaced_can_be_brought_back_with_its_journal(
    open_store: OpenStore, running: Store, left: Path, tmp_path: Path
) -> None:
    another = open_store(data=tmp_path / "another")
    done = restored(backed_up(tmp_path / "another", tmp_path / "saved.kvb"), left, replace=True)
    opened(left, running.clock).engine.close()  # the files of the journal are used by another daemon
    assert done.kept is not None
    assert another.keys() == []
    for kept in (left / "lmdb").glob("replaced-1.*"):
        name = "data.mdb" if kept.suffix == ".mdb" else kept.name.partition(".")[2]
        kept.replace(left / "lmdb" / name)
    assert contents(left, running.clock) == state_of(running)


def test_the_file_of_a_store_that_was_closed_can_be_copied_alone(
    running: Store, tmp_path: Path, left: Path
) -> None:
    """Also over one whose daemon was killed: its journal is not this file's."""
    expected = state_of(running)
    running.write("delete", b"large")
    running.engine.close()
    del expected[b"large"]
    shutil.copy(tmp_path / "data" / "lmdb" / "data.mdb", left / "lmdb" / "data.mdb")
    assert contents(left, running.clock) == expected


def test_a_copy_that_was_made_before_is_not_rolled_forward(
    open_store: OpenStore, running: Store, tmp_path: Path
) -> None:
    running.engine.close()
    shutil.copy(tmp_path / "data" / "lmdb" / "data.mdb", tmp_path / "before.mdb")
    store = open_store()
    before = state_of(store)
    for number in range(10):
        store.write("put", b"later/%d" % number)
    again = killed(tmp_path / "data", tmp_path / "again")
    shutil.copy(tmp_path / "before.mdb", again / "lmdb" / "data.mdb")
    assert contents(again, running.clock) == before


@pytest.mark.parametrize("missing", [journal.NAMES, journal.NAMES[:1], journal.NAMES[1:]])
def test_without_its_journal_a_store_that_was_not_closed_is_refused(
    running: Store, left: Path, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    for name in missing:
        (left / "lmdb" / name).replace(tmp_path / name)
    faults: list[str] = []
    for attempt in (
        lambda: opened(left, running.clock),
        lambda: backed_up(left, tmp_path / "saved.kvb"),
        lambda: compact(left, silent),
    ):
        with refused("damaged") as caught:
            attempt()
        assert "journal" in caught.value.message
        assert "; " in caught.value.message
    reader_client.check(left, faults.append)
    assert any("journal" in fault for fault in faults)
    # nobody has thrown anything away: it only has to be brought back
    for name in missing:
        (tmp_path / name).replace(left / "lmdb" / name)
    assert contents(left, running.clock) == state_of(running)


def test_the_journal_of_another_store_does_not_do(open_store: OpenStore, left: Path, tmp_path: Path) -> None:
    """As where the file of a store that was not closed is copied over that of another one."""
    another = open_store(data=tmp_path / "another")
    another.write("put", b"another", value=b"store")
    folder = killed(tmp_path / "another", tmp_path / "left")
    shutil.copy(left / "lmdb" / "data.mdb", folder / "lmdb" / "data.mdb")
    with refused("damaged") as caught:
        opened(folder)
    assert "journal" in caught.value.message
    with refused("damaged"):
        backed_up(folder, tmp_path / "saved.kvb")


def test_a_backup_beside_a_daemon_has_all_that_was_acknowledged_before_it_began(tmp_path: Path) -> None:
    """While files of the journal fill up, go into LMDB and are used again, a few times a second."""
    data, retention = tmp_path / "data", Retention(500, 1 << 30, 10**9)
    store = opened(data, kind=lmdb_engine(journal_bytes=4096), sync="none", retention=retention)
    acknowledged, results, is_over = [0], list[Any](), threading.Event()

    def reader() -> None:
        while not is_over.is_set():
            least, faults, file = acknowledged[0], list[str](), tmp_path / "saved.kvb"
            try:
                backed_up(data, file)
                with file.open("rb") as backup:
                    found = check_backup(backup, faults.append, silent)
                results.append((least, found, faults))
            except KvError as error:
                results.append((least, {}, [error.message]))

    thread = threading.Thread(target=reader)
    thread.start()
    number = 0
    while len(results) < 6 and thread.is_alive():
        number += 1
        answer = store.write("put", b"key/%d" % (number % 40), value=b"%d" % number * 40, ttl_ms=10**7)
        acknowledged[0] = answer["revision"]
        if number % 3 == 0:
            store.write("delete_prefix", b"key/%d" % (number % 7))
    is_over.set()
    thread.join()
    store.engine.close()
    for least, found, faults in results:
        assert faults == []
        assert found["revision"] >= least
    assert number > 200
