"""What only the LMDB engine has: its files, its lock, damage, a full store and a full disk."""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvstore_core.digest import MODULUS
from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import (
    EventFilter,
    EventPage,
    EvictionLimit,
    Folding,
    Write,
    WriteAnswer,
    WriteRequest,
)
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.free_space import BALLAST_BYTES
from kvstore_daemon.storage.lmdb_store.journaling import journal
from kvstore_daemon.storage.lmdb_store.journaling.overlay import Generation
from kvstore_daemon.storage.lmdb_store.row_format import LogCounters
from support.disk import run_script
from support.engine_store import OpenStore, Store, fill, refused
from support.lengths import examples
from support.patience import PATIENCE_SECONDS
from support.servers import wait_until

pytestmark = pytest.mark.lmdb_only("its file, its disk and its syncs")

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


def test_a_level_is_shown_though_a_record_below_is_damaged(damaged_store: Store) -> None:
    folded = {"values": False, "max_bytes": MIB, "folding": Folding(b"a", counts=True)}
    page = damaged_store.engine.range(b"b", b"c", 10, **folded)
    assert (page.prefixes, page.counts) == ([b"ba"], [1])
    with refused("damaged"):
        damaged_store.engine.range(b"b", b"c", 10, values=False, max_bytes=MIB, reverse=True)
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


@pytest.mark.parametrize("op", ["put", "delete", "delete_prefix"])
def test_the_digest_is_not_known_once_a_damaged_record_is_gone_until_all_is_added_up(
    damaged_store: Store, open_store: OpenStore, op: str
) -> None:
    engine = damaged_store.engine
    assert engine.position().digest is not None, "it is still that of what was written"
    with refused("damaged"):
        engine.digest(b"b", None)
    damaged_store.write(op, b"bad")
    damaged_store.write("put", b"more")
    assert engine.position().digest is damaged_store.feed[-1].digest is None
    whole = engine.digest(b"", None)  # read record by record instead
    assert whole.records == 3 - (op != "put")
    engine.close()
    again = open_store()
    assert again.engine.position().digest == whole.digest % MODULUS
    again.write("put", b"more")
    assert len(again.faults()) == 1, "of the damaged event alone"
    again.engine.close()


def test_the_digest_stays_unknown_while_another_record_is_damaged(
    damaged_store: Store, open_store: OpenStore, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    damaged_store.engine.close()
    with lmdb.open(str((tmp_path / FILE).parent), max_dbs=8) as env, env.begin(write=True) as txn:
        meta = env.open_db(b"meta", txn)
        counters = LogCounters.decode(txn.get(b"position", db=meta))
        txn.put(b"position", counters._replace(digest=None).encode(), db=meta)
    store = open_store()
    assert store.engine.position().digest is None
    assert "the digest of all records stays unknown: the record of 'bad' is damaged" in caplog.text
    store.engine.close()


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


def test_a_full_disk_refuses_writes_and_takes_deletes(small_disk: Path, open_store: OpenStore) -> None:
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
    assert statistics.disk_free_bytes <= BALLAST_BYTES
    assert statistics.writes_refused is not None
    assert statistics.writes_refused.message == caught.value.message
    for key in keys:
        assert store.get(key) is not None
        store.write("delete", key)
    (small_disk / "filler").unlink()
    store.write("put", b"again")
    assert store.get(b"again") is not None


def refusal_of(answer: WriteAnswer) -> KvError | None:
    """Why the one write of a request was not done."""
    result = answer.error or (answer.results or [None])[0]
    return result if isinstance(result, KvError) else None


def test_a_disk_that_fills_up_within_a_commit_loses_nothing(
    small_disk: Path, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the check before the commit is blinded, so that LMDB itself meets the end of the disk
    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.free_space.FreeSpace.refusal", lambda *_: None)
    store = open_store(data=small_disk / "data")
    store.write("put", b"kept", value=b"here")
    _fill(small_disk)
    requests = [WriteRequest([Write("put", b"big%d" % n, b"x" * 900_000, "t")], ticket=n) for n in range(40)]
    answers = store.submit(*requests, WriteRequest([Write("delete", b"kept")], ticket="delete"))
    refusals = {answer.ticket: error for answer in answers if (error := refusal_of(answer)) is not None}
    stored = {answer.ticket for answer in answers} - refusals.keys()
    assert {error.code for error in refusals.values()} == {"store_full"}
    assert "delete" in stored
    for n in range(40):
        assert (store.get(b"big%d" % n) is not None) == (n in stored)
    assert store.get(b"kept") is None


def test_numbered_requests_of_a_commit_that_was_undone_are_applied_once(
    small_disk: Path, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
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


def test_deletes_alone_bring_writes_back_on_a_full_disk(small_disk: Path, open_store: OpenStore) -> None:
    store = open_store(data=small_disk / "data")
    keys = fill(store)
    assert len(keys) > 90
    for key in keys:
        store.write("delete", key)

    def is_taken() -> bool:
        store.engine.trim()
        store.engine.poll()
        return store.engine.statistics().writes_refused is None

    wait_until(is_taken, what="a checkpoint has freed the pages of what was deleted")
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

    monkeypatch.setattr(journal, "encode_rows", fail)
    (answer,) = store.submit(WriteRequest([Write("put", b"k", b"", "t")]))
    monkeypatch.undo()
    assert answer.error is not None
    assert answer.error.details["outcome"] == "unknown"
    (later,) = store.submit(WriteRequest([Write("put", b"k", b"", "t")]))
    assert later.error is not None
    assert "restarted" in later.error.message
    assert store.engine.statistics().writes_refused is later.error
    assert store.get(b"before") is not None


class HangingDisk:
    """Lets the syncs of the journal wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hangs, self.may_go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(
            "kvstore_daemon.storage.lmdb_store.journaling.journal_thread.os.fdatasync", self._sync
        )

    def _sync(self, file: int) -> None:
        self.hangs.set()
        assert self.may_go_on.wait(30)
        os.fsync(file)

    def wait(self, store: Store) -> None:
        """Wait until it hangs; what is planned in slices goes on meanwhile."""

        def hangs() -> bool:
            assert not store.engine.poll().answers
            return self.hangs.is_set()

        wait_until(hangs, what="the disk hangs")


def test_steps_of_trimming_do_not_pile_up_before_a_group(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon asks for one each second that it is idle, also of a disk that hangs."""
    disk, transactions = HangingDisk(monkeypatch), []
    original = journal.encode_rows

    def encode_rows(staged: Generation) -> Generator[None, None, bytes]:
        transactions.append(staged)
        return original(staged)

    monkeypatch.setattr(journal, "encode_rows", encode_rows)
    store.engine.commit([WriteRequest([Write("put", b"a", b"", "t")])])
    disk.wait(store)
    for _ in range(20):
        store.engine.trim()
    disk.may_go_on.set()
    store.answers(1)
    assert len(transactions) == 1


def test_what_is_not_on_the_disk_is_not_shown(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("put", b"a", value=b"old")
    disk = HangingDisk(monkeypatch)
    store.engine.commit([WriteRequest([Write("put", b"a", b"new", "t"), Write("put", b"b", b"", "t")])])
    disk.wait(store)
    before = store.engine.position()
    found = store.get(b"a")
    assert found is not None
    assert (found.value, store.get(b"b"), before.head) == (b"old", None, found.revision)
    assert store.engine.count(b"", None).total == 1
    assert [key for key, _ in store.engine.range(b"", None, 9, values=True, max_bytes=MIB).items] == [b"a"]
    page = store.engine.log(0, EventFilter(), 9, values=True, previous=True, max_bytes=MIB)
    assert isinstance(page, EventPage)
    assert len(page.events) == 1
    # what is planned meanwhile builds on it all the same
    store.engine.commit([WriteRequest([Write("delete", b"b")])])
    disk.may_go_on.set()
    (_, deleted) = store.answers(2)
    assert deleted.results == [{"revision": 4, "deleted": 1}]
    found = store.get(b"a")
    assert found is not None
    assert (found.value, store.get(b"b")) == (b"new", None)


PUTS = [Write("put", b"%02d" % number, b"", "t") for number in range(50)]


@pytest.fixture
def planned_by_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop looks at everything else after each write."""
    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.planner._SLICE_SECONDS", 0.0)


@pytest.mark.usefixtures("planned_by_the_step")
def test_a_long_request_is_planned_in_slices_and_shown_whole(store: Store) -> None:
    store.engine.commit([WriteRequest(PUTS)])
    polls = 0
    while not (done := store.engine.poll()).answers:
        polls += 1
        assert not done.events
        assert (store.engine.position().head, store.keys()) == (0, [])
        assert select.select([store.engine.fileno()], [], [], 30)[0]
    assert polls >= len(PUTS) - 2
    assert [event.key for event in done.events] == [put.key for put in PUTS] == store.keys()


@pytest.mark.usefixtures("planned_by_the_step")
def test_a_step_of_evicting_is_planned_to_its_end_though_nobody_writes(
    store: Store, open_store: OpenStore
) -> None:
    store.submit(WriteRequest(PUTS))
    store.engine.close()
    engine = open_store(eviction=EvictionLimit((b"",), 1000)).engine
    engine.trim()
    while (cache := engine.statistics().eviction) is not None and cache.bytes > cache.max_bytes:
        assert select.select([engine.fileno()], [], [], PATIENCE_SECONDS)[0]
        engine.poll()
    assert cache is not None
    assert cache.evicted_records > 0


@pytest.mark.usefixtures("planned_by_the_step")
def test_a_close_commits_what_is_planned_in_part(store: Store, open_store: OpenStore) -> None:
    store.engine.commit([WriteRequest(PUTS)])
    store.engine.close()
    assert len(open_store().keys()) == len(PUTS)


@pytest.mark.usefixtures("planned_by_the_step")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_is_planned_in_part_is_on_top_of_nothing_that_failed(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    begins, fails, write = threading.Event(), threading.Event(), os.pwrite

    def fail_once(*arguments: Any) -> int:
        if begins.is_set():
            return write(*arguments)
        begins.set()
        assert fails.wait(30)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.journaling.journal_thread.os.pwrite", fail_once)
    store.engine.commit([WriteRequest([Write("put", b"first", b"", "t")])])
    wait_until(lambda: bool(store.engine.poll()) and begins.is_set())
    store.engine.commit([WriteRequest(PUTS)])
    fails.set()
    # not by a poll, which would go on planning
    wait_until(lambda: not vars(store.engine)["_news"].empty())
    first, second = store.answers(2)
    if number == errno.ENOSPC:  # for want of room each is tried once more, by itself
        answers = (first.results or []) + (second.results or [])
        assert [answer["revision"] for answer in answers] == list(range(1, len(PUTS) + 2))
        return
    assert first.error is not None
    assert second.error is not None
    assert (first.error.details, second.error.details) == ({"outcome": "unknown"}, {})
    assert (store.engine.position().head, store.keys()) == (0, [])


@pytest.mark.slow
def test_after_a_failed_sync_on_a_timer_no_write_is_taken_either(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(sync="interval")

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.journaling.journal_thread.os.fdatasync", fail)
    store.write("put", b"before")

    def has_failed() -> bool:
        store.engine.poll()
        return store.engine.statistics().writes_refused is not None

    wait_until(has_failed, what="the sync has failed")
    with refused("internal"):
        store.write("put")
    assert store.get(b"before") is not None
    monkeypatch.undo()


def test_the_sync_of_a_commit_is_a_part_of_it(store: Store) -> None:
    store.write("put")
    commits = store.engine.statistics().commits
    assert sum(commits.seconds.counts) == sum(commits.sync_seconds.counts) == 1
    assert 0 < commits.sync_seconds.total < commits.seconds.total


@pytest.mark.slow
def test_syncs_on_a_timer_are_counted_apart_from_commits(open_store: OpenStore) -> None:
    store = open_store(sync="interval")
    store.write("put")
    store.write("put")
    commits = store.engine.statistics().commits
    assert sum(commits.seconds.counts) == 2

    def is_synced() -> bool:
        store.engine.poll()
        return sum(commits.sync_seconds.counts) == 1

    wait_until(is_synced, what="one sync serves both")


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
    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.engine.boot_id", lambda: "another boot")
    assert open_store(data=tmp_path / "rebooted", sync=sync).engine.position().epoch != epoch


def test_a_clean_stop_of_a_weaker_store_keeps_its_epoch(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(sync="none")
    epoch = store.engine.position().epoch
    store.write("put")
    store.engine.close()
    monkeypatch.setattr("kvstore_daemon.storage.lmdb_store.engine.boot_id", lambda: "another boot")
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
