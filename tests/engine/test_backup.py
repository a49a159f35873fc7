"""A backup holds one revision, all of it; it is restored whole or not at all."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import Retention, Write, WriteRequest
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.row_format import LogCounters
from kvstore_daemon.storage.lmdb_store.schema import open_tables
from kvstore_daemon.storage.offline import no_progress, reader_client
from kvstore_daemon.storage.offline.backup import Backup, back_up, check_backup, read_image, read_trailer
from kvstore_daemon.storage.offline.replace_store import compact
from kvstore_daemon.storage.offline.restore import Restored, restore
from support.engine_store import FakeClock, OpenStore, Store, flipped, lmdb_engine, opened, refused
from support.lengths import examples
from support.servers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("backup, check and compaction of its file")]

Tables = dict[str, list[tuple[bytes, bytes]]]

KEYS = st.sampled_from([b"a", b"a/b", b"b", "ü".encode(), b"z" * 511])
WRITES = st.tuples(  # not builds(), which would make up the other fields too, and values that no request has
    st.sampled_from(["put", "put", "put", "delete", "incr", "touch", "persist", "delete_prefix"]),
    KEYS,
    st.binary(max_size=40) | st.integers(1, 5).map(lambda n: b"x" * 3000 * n) | st.just(b"7"),
    st.just("t/t"),
    st.none() | st.integers(1, 5000),
).map(lambda fields: Write(*fields))
REQUESTS = st.lists(
    st.tuples(
        st.lists(WRITES, min_size=1, max_size=5, unique_by=lambda write: write.key),
        st.booleans(),
        st.none() | st.sampled_from(["client", "another"]),
        st.integers(0, 3000),
    ),
    max_size=30,
)


_BRANCH = 1
"""The flag of a page of LMDB's that leads to others."""


def silent(_step: str) -> Callable[[int, int], None]:
    return no_progress


def backed_up(folder: Path, now: int = 1_700_000_000_000) -> tuple[bytes, Backup]:
    file = io.BytesIO()
    backup = back_up(folder, file.write, now)
    return file.getvalue(), backup


def restored(data: bytes, folder: Path, now: int = 1_700_000_000_000, *, replace: bool = False) -> Restored:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return restore(file, folder, now, replace=replace, steps=silent)


def faults_of(folder: Path) -> list[str]:
    """What `kvstore check` says of the store."""
    faults: list[str] = []
    reader_client.check(folder, faults.append)
    return faults


def rows_of(env: lmdb.Environment) -> Tables:
    with env.begin() as txn:
        return {name: list(txn.cursor(table)) for name, table in open_tables(env, txn).items()}


def rows_in(folder: Path) -> Tables:
    with lmdb.open(str(folder / "lmdb"), max_dbs=8, readonly=True, lock=False) as env:
        return rows_of(env)


def without_meta(tables: Tables) -> Tables:
    return {name: rows for name, rows in tables.items() if name != "meta"}


@pytest.fixture
def filled(open_store: OpenStore) -> Store:
    """A store with something of everything."""
    store = open_store()
    for n in range(200):
        store.write("put", b"key/%03d" % n, value=b"value of %d " % n * 5)
    for n in range(0, 200, 7):
        store.write("delete", b"key/%03d" % n)
    for n in range(20):
        store.write("put", b"expiring/%d" % n, ttl_ms=100_000 + n // 4)
    store.write("put", b"large", value=random.Random(1).randbytes(50_000))
    store.atomic(*(Write("put", b"batch/%d" % n, b"together", "t") for n in range(5)))
    for seq in range(1, 4):
        store.submit(WriteRequest([Write("incr", b"count")], client="counting", seq=seq))
    return store


# ── what comes back ──────────────────────────────────────────────────────────────────────────────


@settings(max_examples=examples(8))
@given(requests=REQUESTS)
def test_what_is_restored_is_what_was_there(requests: list[Any]) -> None:
    clock, seq, retention = FakeClock(), 0, Retention(40, 1 << 30, 10**9)
    with tempfile.TemporaryDirectory() as name:
        data, copy = Path(name) / "data", Path(name) / "copy"
        store = opened(data, clock, sync="none", retention=retention)
        for writes, atomic, client, pause in requests:
            seq += 1
            is_atomic = atomic and all(write.op != "delete_prefix" for write in writes)
            store.submit(WriteRequest(writes, is_atomic, client, seq if client else 0))
            clock.now += pause
        image, backup = backed_up(data)
        epoch, _, head, digest = store.engine.position()
        store.engine.close()
        rows = rows_in(data)
        assert (backup.revision, backup.epoch, backup.keys) == (head, epoch, len(rows["data"]))
        found = restored(image, copy)
        assert without_meta(rows_in(copy)) == without_meta(rows)
        again = opened(copy, clock, sync="none", retention=retention)
        assert again.engine.position().digest == digest is not None
        assert again.write("put", b"new")["revision"] == found.head + 1
        assert again.engine.position().epoch != epoch
        faults = again.faults()
        again.engine.close()
        assert not faults


def test_a_backup_is_an_lmdb_file(filled: Store, tmp_path: Path) -> None:
    image, _ = backed_up(tmp_path / "data")
    (tmp_path / "file").write_bytes(image)
    with lmdb.open(str(tmp_path / "file"), subdir=False, readonly=True, lock=False, max_dbs=8) as env:
        assert rows_of(env)["data"] == rows_of(filled.engine._tables.env)["data"]  # type: ignore[attr-defined]


def test_no_revision_is_used_twice_however_late_the_backup_is_restored(filled: Store, tmp_path: Path) -> None:
    image, backup = backed_up(tmp_path / "data", now=1_000)
    week_ms = 7 * 86_400_000
    heads = [restored(image, tmp_path / str(late), late).head for late in (0, 1_000, week_ms)]
    assert heads[0] == heads[1] >= backup.revision + 10**9
    # a million a second for all of the time that the lost store may have gone on
    assert heads[2] >= backup.revision + 1_000 * (week_ms - 1_000)


def test_no_revision_is_used_twice_when_a_backup_is_restored_again_soon(
    filled: Store, tmp_path: Path
) -> None:
    image, _ = backed_up(tmp_path / "data", now=1_000)
    first, second = (restored(image, tmp_path / str(late), late).head for late in (61_000, 62_000))
    # what the store of the first may have committed in the second between
    assert second >= first + 1_000 * 1_000


def test_a_repeat_of_what_is_in_the_backup_gets_its_answer_and_a_later_write_is_applied(
    filled: Store, open_store: OpenStore, tmp_path: Path
) -> None:
    image, _ = backed_up(tmp_path / "data")
    later = WriteRequest([Write("incr", b"count")], client="counting", seq=4)
    filled.submit(later)
    restored(image, tmp_path / "copy")
    store = open_store(data=tmp_path / "copy")
    (repeated,) = store.submit(WriteRequest([Write("incr", b"count")], client="counting", seq=3))
    assert repeated.results is not None
    assert repeated.results[0]["value"] == 3  # type: ignore[index]
    (applied,) = store.submit(later)
    assert applied.results is not None
    assert applied.results[0]["value"] == 4  # type: ignore[index]


def test_expiry_goes_on_after_a_restore(filled: Store, open_store: OpenStore, tmp_path: Path) -> None:
    image, _ = backed_up(tmp_path / "data")
    restored(image, tmp_path / "copy")
    store = open_store(data=tmp_path / "copy")
    assert store.get(b"expiring/1") is not None
    store.clock.now += 200_000
    assert store.get(b"expiring/1") is None
    store.expire_due()
    assert [change.op for change in store.feed].count("expire") == 20


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


def is_refused(data: bytes) -> bool:
    file = io.BytesIO(data)
    try:
        read_image(file, read_trailer(file))
    except KvError as error:
        return error.code in ("damaged", "unsupported_version")
    return False


def test_every_flipped_bit_of_a_backup_is_found(filled: Store, tmp_path: Path) -> None:
    image, backup = backed_up(tmp_path / "data")
    assert not is_refused(image)
    anywhere = [random.randrange(backup.bytes * 8) for _ in range(300)]
    for bit in [*anywhere, *range(backup.bytes * 8, len(image) * 8)]:
        assert is_refused(flipped(image, bit)), f"bit {bit}"


def test_a_backup_that_is_not_all_there_is_refused(filled: Store, tmp_path: Path) -> None:
    image, backup = backed_up(tmp_path / "data")
    cuts = [0, 1, 47, 48, backup.bytes, len(image) - 1, *(random.randrange(len(image)) for _ in range(50))]
    for cut in cuts:
        assert is_refused(image[:cut]), f"the first {cut} bytes"
    assert is_refused(image + b"\n")
    assert is_refused(b"\n" + image)


def test_a_damaged_backup_is_not_restored_and_changes_nothing(filled: Store, tmp_path: Path) -> None:
    image, _ = backed_up(tmp_path / "data")
    filled.engine.close()
    before = rows_in(tmp_path / "data")
    with refused("damaged"):
        restored(flipped(image, len(image) * 4), tmp_path / "data", replace=True)
    assert rows_in(tmp_path / "data") == before
    assert sorted(path.name for path in (tmp_path / "data" / "lmdb").iterdir()) == ["data.mdb", "lock.mdb"]


def test_a_backup_of_a_damaged_store_is_told_apart_by_check(filled: Store, tmp_path: Path) -> None:
    """The copy is exact, the damaged record included: its checksum cannot know, the walk does."""
    filled.engine.close()
    file = tmp_path / "data" / "lmdb" / "data.mdb"
    file.write_bytes(file.read_bytes().replace(b"value of 8 value", b"value of 8 velue"))
    image, _ = backed_up(tmp_path / "data")
    (tmp_path / "file").write_bytes(image)
    faults: list[str] = []
    with (tmp_path / "file").open("rb") as backup:
        check_backup(backup, faults.append, silent)
    assert any("record 'key/008'" in fault for fault in faults)
    with refused("damaged"):
        restored(image, tmp_path / "copy")
    assert not (tmp_path / "copy" / "lmdb" / "data.mdb").exists()


@pytest.mark.timeout(300)
def test_a_flipped_bit_of_a_store_is_found_or_changes_nothing_that_is_read(
    filled: Store, tmp_path: Path
) -> None:
    """All pages of a compact store are live. A bit that is not found is in the unused room of a page, or is
    one of those that no checksum covers: the epoch and the kept replies."""
    filled.engine.close()
    data = tmp_path / "data"
    compact(data, silent)
    file = data / "lmdb" / "data.mdb"
    whole, rows = file.read_bytes(), rows_in(data)
    assert reader_client.check(data, pytest.fail)
    chooser, found = random.Random(), 0
    for _ in range(FLIPS):
        bit = chooser.randrange(len(whole) * 8)
        file.write_bytes(flipped(whole, bit))
        faults = faults_of(data)
        found += bool(faults)
        if not faults:
            read = rows_in(data)
            for name in ("data", "log", "expiry", "graves", "client_ages"):
                assert read[name] == rows[name], f"bit {bit} was flipped unnoticed in {name}"
    assert found > FLIPS // 3


FLIPS = int(os.environ.get("FLIPS", "15"))


def test_what_is_missing_from_an_index_is_found_both_ways(filled: Store, tmp_path: Path) -> None:
    filled.engine.close()
    rows = rows_in(tmp_path / "data")
    for table, expected in [
        ("expiry", "its expiry is not in the expiry table"),
        ("graves", "there is neither record nor tombstone"),
        ("log", "is not in the log"),
        ("data", "neither record nor tombstone"),
        ("client_ages", "not in the table of ages"),
        ("clients", "no such reply"),
    ]:
        folder = tmp_path / "copies" / table
        shutil.copytree(tmp_path / "data", folder)
        key, value = rows[table][-1]
        with lmdb.open(str(folder / "lmdb"), max_dbs=8) as env, env.begin(write=True) as txn:
            assert txn.delete(key, value, db=open_tables(env, txn)[table])
        faults = faults_of(folder)
        assert any(expected in fault for fault in faults), (table, faults)


def test_a_digest_that_is_not_that_of_the_records_is_found(filled: Store, tmp_path: Path) -> None:
    filled.engine.close()
    data = tmp_path / "data"

    def faults_with(table: str, key: bytes, row: bytes) -> list[str]:
        folder = tmp_path / "copies" / table
        shutil.copytree(data, folder)
        with lmdb.open(str(folder / "lmdb"), max_dbs=8) as env, env.begin(write=True) as txn:
            assert txn.put(key, row, db=open_tables(env, txn)[table])
        return faults_of(folder)

    rows = rows_in(data)
    counters = LogCounters.decode(dict(rows["meta"])[b"position"])
    assert counters.digest is not None
    wrong = counters._replace(digest=counters.digest ^ 1)
    (fault,) = faults_with("meta", b"position", wrong.encode())
    assert "the digest of all records is said to be" in fault
    key, row = rows["data"][0]
    body = flipped(row_format.decode_body(key, row), 8 * 50)  # the first byte of the hash
    sealed = row_format.encode_record(body, row_format.checksum(key, body))
    assert faults_with("data", key, sealed) == [f"record {key.decode()!r}: the hash it keeps is not its own"]


def test_a_file_of_noise_is_damage_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "data" / "lmdb").mkdir(parents=True)
    (tmp_path / "data" / "lmdb" / "data.mdb").write_bytes(random.randbytes(100_000))
    faults: list[str] = []
    assert reader_client.check(tmp_path / "data", faults.append) == {}
    assert faults
    with refused("damaged"):
        backed_up(tmp_path / "data")


def lead_astray(data: Path, target: int | None) -> None:
    """Let all branch pages of a closed store lead to the page ``target``; None: to themselves."""
    file = data / "lmdb" / "data.mdb"
    whole = bytearray(file.read_bytes())
    with lmdb.open(str(file.parent), readonly=True, max_dbs=8) as env:
        size = env.stat()["psize"]
    for page in range(2 * size, len(whole), size):
        if whole[page + 10] == _BRANCH:
            for at in range(page + 16, page + int.from_bytes(whole[page + 12 : page + 14], "little"), 2):
                node = page + int.from_bytes(whole[at : at + 2], "little")
                whole[node : node + 4] = (page // size if target is None else target).to_bytes(4, "little")
    file.write_bytes(whole)


@pytest.fixture
def large(open_store: OpenStore) -> None:
    """A closed store whose tables have more than one page."""
    store = open_store()
    for n in range(300):
        store.write("put", b"key%03d" % n, value=bytes(100))
    store.engine.close()


@pytest.mark.usefixtures("large")
def test_a_tree_that_leads_back_into_itself_is_found_by_check(tmp_path: Path) -> None:
    """LMDB calls that a full cursor, which a reader cannot take for damage; a check has to say."""
    lead_astray(tmp_path / "data", None)
    faults = faults_of(tmp_path / "data")
    assert any("MDB_CURSOR_FULL" in fault for fault in faults), faults


@pytest.mark.usefixtures("large")
def test_a_page_that_cannot_be_copied_makes_no_backup(tmp_path: Path) -> None:
    lead_astray(tmp_path / "data", 10**8)
    with refused("damaged"):
        backed_up(tmp_path / "data")


@pytest.mark.parametrize("task", ["facts", "check", "copy"])
def test_a_reader_that_somebody_ended_is_no_damage(filled: Store, tmp_path: Path, task: str) -> None:
    with reader_client._reader(task, tmp_path / "data") as process:
        process.kill()
        with refused("internal") as caught:
            reader_client._expect_success(process, tmp_path / "data")
    assert "SIGKILL" in caught.value.message


def test_a_file_whose_end_is_missing_is_damage_and_no_crash(filled: Store, tmp_path: Path) -> None:
    filled.engine.close()
    file = tmp_path / "data" / "lmdb" / "data.mdb"
    os.truncate(file, file.stat().st_size // 2)
    assert faults_of(tmp_path / "data")
    with refused("damaged"):
        backed_up(tmp_path / "data")


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        (signal.SIGBUS, "damaged", "SIGBUS"),
        (signal.SIGKILL, "internal", "SIGKILL"),
        (signal.SIGRTMIN + 5, "internal", f"signal {signal.SIGRTMIN + 5}"),
    ],
)
def test_a_reader_that_a_signal_ended_is_an_error_that_names_it(number: int, code: str, name: str) -> None:
    command = ["/bin/sh", "-c", f"kill -{number} $$"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        refused(code) as raised,
    ):
        reader_client._expect_success(process, Path("file"))
    assert f"({name})" in raised.value.message


# ── beside others ────────────────────────────────────────────────────────────────────────────────


def test_a_store_that_is_there_is_replaced_only_when_told_and_kept(
    filled: Store, open_store: OpenStore, tmp_path: Path
) -> None:
    image, _ = backed_up(tmp_path / "data")
    filled.write("put", b"later")
    filled.engine.close()
    before = rows_in(tmp_path / "data")
    with refused("not_allowed") as caught:
        restored(image, tmp_path / "data")
    assert "--force" in caught.value.message
    assert rows_in(tmp_path / "data") == before
    found = restored(image, tmp_path / "data", replace=True)
    assert open_store().get(b"later") is None
    assert found.kept is not None
    with lmdb.open(str(found.kept), subdir=False, readonly=True, lock=False, max_dbs=8) as env:
        assert rows_of(env) == before


def test_what_an_ended_restore_left_is_removed_at_the_next_start(
    open_store: OpenStore, tmp_path: Path
) -> None:
    open_store().engine.close()
    left = tmp_path / "data" / "lmdb" / "new.mdb"
    left.write_bytes(b"a part of a store")
    open_store()
    assert not left.exists()


def test_nothing_is_replaced_under_a_daemon(filled: Store, tmp_path: Path) -> None:
    image, _ = backed_up(tmp_path / "data")
    for replacing in (
        lambda: restored(image, tmp_path / "data", replace=True),
        lambda: compact(tmp_path / "data", silent),
    ):
        with refused("not_allowed") as caught:
            replacing()
        assert f"pid {os.getpid()} " in caught.value.message
    filled.write("put", b"goes on")


def test_a_compact_store_is_smaller_and_the_same(
    filled: Store, open_store: OpenStore, tmp_path: Path
) -> None:
    for n in range(300):
        filled.write("put", b"room/%03d" % n, value=b"x" * 10_000)
    filled.engine.close()
    filled = open_store()
    filled.write("delete_prefix", b"room/")
    filled.clock.now += 8 * 86_400_000
    for _ in range(60):
        filled.write("put", b"trims the log")
    filled.engine.close()
    before = rows_in(tmp_path / "data")
    done = compact(tmp_path / "data", silent)
    assert done.after_bytes < done.before_bytes / 4
    assert (tmp_path / "data" / "lmdb" / "data.mdb").stat().st_size == done.after_bytes
    assert rows_in(tmp_path / "data") == before
    open_store().write("put", b"goes on")


def test_what_a_killed_reader_held_is_used_again(filled: Store, tmp_path: Path) -> None:
    """A reader keeps the pages of its revision; one that was killed must not do so for ever."""
    filled.write("put", b"large", value=b"x" * 1_000_000)
    filled.engine.close()
    store = opened(tmp_path / "data", filled.clock, kind=lmdb_engine(journal_bytes=1))
    env = store.engine._tables.env  # type: ignore[attr-defined]
    module = "kvstore_daemon.storage.offline.reader_process"
    command = [sys.executable, "-m", module, "copy", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        # its pipe is full long before the large value is through
        assert str(reader.pid) in env.readers()
        reader.send_signal(signal.SIGKILL)
        reader.wait()
    assert str(reader.pid) in env.readers()
    for _ in range(2):
        store.write("put", b"k")
    wait_until(lambda: str(reader.pid) not in env.readers(), what="the next checkpoint has cleared its place")
    store.engine.close()


STEPS_BETWEEN_KILLS = 25

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from kvstore_daemon.storage.offline import replace_store, restore
REPLACING = ("offline/restore.py", "offline/replace_store.py")
stop_at, count = int(sys.argv[3]), 0
def trace(frame, event, argument):
    global count
    if frame.f_code.co_filename.endswith(REPLACING) and event == "line":
        count += 1
        if count == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
sys.settrace(trace)
steps = lambda name: lambda done, total: None
"""
RESTORE = """
with open(sys.argv[1], "rb") as file:
    restore.restore(file, Path(sys.argv[2]), 1, replace=True, steps=steps)
"""
COMPACT = """
replace_store.compact(Path(sys.argv[2]), steps)
"""


def ends_of(program: str, backup: Path, data: Path) -> Iterator[Tables]:
    """What is in the store each time after the program was killed, some steps later than the last time, until
    it comes to its own end. The store is whole each time. Where the first kill is differs from run to run."""
    for line in range(random.randint(1, STEPS_BETWEEN_KILLS), 2000, STEPS_BETWEEN_KILLS):
        command = [sys.executable, "-c", KILLED_AT + program, str(backup), str(data), str(line)]
        done = subprocess.run(command, check=False)
        assert not faults_of(data)
        yield rows_in(data)
        if done.returncode == 0:
            return
        assert done.returncode == -signal.SIGKILL
    pytest.fail("the program never came to its end")


@pytest.mark.timeout(300)
def test_a_restore_that_is_killed_leaves_the_old_store_or_the_new_one(filled: Store, tmp_path: Path) -> None:
    image, _ = backed_up(tmp_path / "data")
    (tmp_path / "backup").write_bytes(image)
    restored(image, tmp_path / "expected")
    filled.write("put", b"later")
    filled.engine.close()
    old, new = rows_in(tmp_path / "data"), rows_in(tmp_path / "expected")
    outcomes = []
    for found in ends_of(RESTORE, tmp_path / "backup", tmp_path / "data"):
        outcomes.append(found == old)
        assert found == old or without_meta(found) == without_meta(new)
    # the old one until some step, and from there on the new one
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {True, False}
    assert not list((tmp_path / "data" / "lmdb").glob("new*"))


@pytest.mark.timeout(300)
def test_a_compaction_that_is_killed_changes_nothing_that_is_stored(filled: Store, tmp_path: Path) -> None:
    filled.engine.close()
    file = tmp_path / "data" / "lmdb" / "data.mdb"
    before, rows = file.stat().st_size, rows_in(tmp_path / "data")
    sizes = set()
    for found in ends_of(COMPACT, tmp_path, tmp_path / "data"):
        assert found == rows
        sizes.add(file.stat().st_size)
    assert before in sizes
    assert min(sizes) < before
    assert not list(file.parent.glob("new*"))
