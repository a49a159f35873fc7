"""The journal after a crash: what of it is read, and what is never taken for whole."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb
import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.lmdb_store.journaling import checkpoint, journal
from kvstore_daemon.storage.lmdb_store.journaling.journal import Frame
from kvstore_daemon.storage.lmdb_store.schema import open_tables
from kvstore_daemon.storage.offline import reader_client
from support.disk import SECTOR_BYTES, preloaded, run_script
from support.engine_store import FakeClock, OpenStore, flipped, lmdb_engine, opened, refused
from support.lengths import Survived, times
from support.servers import wait_until

KILLS = times(4, full=200)
DAMAGES = times(30, full=2_000)
READ_BYTES = 16 * 1024
"""More than what was written; a file is longer, and these tests read it thousands of times."""

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("a journal beside its file")]


class Crashed(NamedTuple):
    """A store whose daemon was killed: its folder, and the first file of the journal as it was ``before`` and
    ``after`` the last write. It has ``frames`` of this run; behind them are some of the run before."""

    folder: Path
    before: bytes
    after: bytes
    frames: int

    @property
    def last(self) -> range:
        """The bytes that the last write has changed."""
        changed = [
            at for at, pair in enumerate(zip(self.before, self.after, strict=True)) if len(set(pair)) > 1
        ]
        return range(changed[0], changed[-1] + 1)

    @property
    def file(self) -> Path:
        return self.folder / "lmdb" / journal.NAMES[0]


@pytest.fixture
def crashed(open_store: OpenStore, tmp_path: Path, clock: FakeClock) -> Crashed:
    store = open_store()
    for number in range(40):
        store.write("put", b"first/%d" % number, value=b"run" * number)
    shutil.copytree(tmp_path / "data", tmp_path / "again")
    again = opened(tmp_path / "again", clock)
    for number in range(5):
        again.write("put", b"second/%d" % number, value=b"run" * 50)
    before = (tmp_path / "again" / "lmdb" / journal.NAMES[0]).read_bytes()[:READ_BYTES]
    again.write("put", b"last", value=random.Random(1).randbytes(1500))
    shutil.copytree(tmp_path / "again", tmp_path / "crashed")
    again.engine.close()
    after = (tmp_path / "crashed" / "lmdb" / journal.NAMES[0]).read_bytes()[:READ_BYTES]
    return Crashed(tmp_path / "crashed", before, after, 6)


Read = Callable[[bytes], list[Frame]]


@pytest.fixture
def read(crashed: Crashed) -> Iterator[Read]:
    """What a start would take from the journal if its first file had another content."""
    with lmdb.open(str(crashed.folder / "lmdb"), max_dbs=8, readonly=True) as env, env.begin() as txn:
        handles = list(open_tables(env, txn).values())

        def read_one(content: bytes) -> list[Frame]:
            return checkpoint.read(
                crashed.folder / "lmdb", txn, handles, [memoryview(content), memoryview(b"")]
            )

        yield read_one


def test_a_write_that_was_cut_off_at_any_byte_is_not_read(crashed: Crashed, read: Read) -> None:
    """Behind the cut is what was there before, zeros, or the end of the file."""
    before, after, last = crashed.before, crashed.after, crashed.last
    assert len(last) > 1000
    for at in range(last.start, last.stop):
        for rest in (before[at:], bytes(len(before) - at), b""):
            assert len(read(after[:at] + rest)) == crashed.frames - 1, at
    assert len(read(after)) == len(read(after[: last.stop])) == crashed.frames


def test_a_write_of_which_any_sectors_are_missing_is_not_read(crashed: Crashed, read: Read) -> None:
    last, seed = crashed.last, random.randrange(2**32)
    chance = random.Random(seed)
    sectors = range(last.start // SECTOR_BYTES, (last.stop - 1) // SECTOR_BYTES + 1)
    assert len(sectors) > 2
    for _ in range(100):
        content = bytearray(crashed.after)
        for sector in chance.sample(sectors, chance.randint(1, len(sectors))):
            at = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
            content[at] = crashed.before[at]
        assert len(read(bytes(content))) == crashed.frames - 1, f"seed {seed}"


def test_the_next_run_goes_on_from_a_torn_write(crashed: Crashed, clock: FakeClock) -> None:
    """And what was torn is never read, though frames of the same length come into its place."""
    middle = (crashed.last.start + crashed.last.stop) // 2
    crashed.file.write_bytes(crashed.after[:middle] + crashed.before[middle:])
    for number in range(3):
        store = opened(crashed.folder, clock)
        assert store.get(b"last") is None
        assert store.get(b"second/4") is not None
        store.write("put", b"third/%d" % number, value=b"run" * 50)
        shutil.copytree(crashed.folder, crashed.folder.with_name("next"))
        store.engine.close()
        shutil.rmtree(crashed.folder)
        crashed.folder.with_name("next").replace(crashed.folder)
    store = opened(crashed.folder, clock)
    assert store.keys()[-3:] == [b"third/0", b"third/1", b"third/2"]
    assert store.faults() == []
    store.engine.close()


def test_a_changed_bit_is_never_taken_for_the_end_of_the_journal(crashed: Crashed, read: Read) -> None:
    """Only in the last write of all can nobody tell damage from a write that was cut off."""
    seed, whole, codes = random.randrange(2**32), read(crashed.after), set[str]()
    chance = random.Random(seed)
    for _ in range(DAMAGES):
        bit = chance.randrange(8 * crashed.last.stop)
        try:
            found = read(flipped(crashed.after, bit))
        except KvError as error:
            codes.add(error.code)
        else:
            assert bit // 8 >= crashed.last.start, f"seed {seed}, bit {bit}"
            assert [frame.number for frame in found] == [frame.number for frame in whole[:-1]]
    assert codes == {"damaged"}


def test_a_damaged_journal_is_said_and_may_be_given_up(crashed: Crashed, clock: FakeClock) -> None:
    crashed.file.write_bytes(flipped(crashed.after, 8 * 100))
    faults: list[str] = []
    reader_client.check(crashed.folder, faults.append)
    (fault,) = faults
    assert "journal" in fault
    with refused("damaged") as caught:
        opened(crashed.folder, clock)
    assert caught.value.message == fault
    # as the error says
    for name in journal.NAMES:
        (crashed.folder / "lmdb" / name).write_bytes(b"")
    store = opened(crashed.folder, clock)
    assert store.get(b"first/39") is not None
    assert store.get(b"second/0") is None
    assert store.faults() == []
    store.engine.close()


@pytest.mark.torture
@pytest.mark.timeout(120 + 20 * KILLS)
def test_kill_9_of_a_process_that_writes_or_of_its_checkpoint_loses_nothing(
    tmp_path: Path, survived: Survived
) -> None:
    """Files of the journal are full after every few writes, so that mostly a checkpoint is under way."""
    (tmp_path / "root").mkdir()
    seed = random.randrange(2**32)
    said = run_script("kill_writers.py", tmp_path / "root", tmp_path / "record", seed, KILLS)
    killed, cut_short = map(int, said.split())
    survived(kills=killed, checkpoints_cut_short=cut_short)


@pytest.mark.parametrize(
    ("call", "error", "code"), [("pwrite", errno.ENOSPC, "store_full"), ("fdatasync", errno.EIO, "internal")]
)
def test_while_checkpoints_fail_writes_go_on_for_a_while_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int, code: str
) -> None:
    (data := tmp_path / "data").mkdir()
    for name, value in preloaded(data, fail=f"{call}:{error}:1:1000000:data.mdb").items():
        monkeypatch.setenv(name, value)
    store = opened(data, kind=lmdb_engine(journal_bytes=2000))
    written, refusal = list[bytes](), None
    while refusal is None:
        key = b"key/%d" % len(written)
        try:
            store.write("put", key, value=b"x" * 100)
            written.append(key)
        except KvError as failure:
            refusal = failure
    assert refusal.code == code
    assert "; " in refusal.message
    assert len(written) > 15
    assert sorted(store.keys()) == sorted(written)
    shutil.copytree(data, tmp_path / "killed")
    # the disk works again: the next attempt is made by a process that knows no other
    monkeypatch.delenv("LD_PRELOAD")

    def is_taken() -> bool:
        try:
            store.write("put", b"again")
        except KvError:
            return False
        return True

    wait_until(is_taken, timeout=60, what="writes are taken again")
    assert sorted(store.keys()) == sorted([b"again", *written])
    assert store.faults() == []
    store.engine.close()
    left = opened(tmp_path / "killed")
    assert sorted(left.keys()) == sorted(written)
    left.engine.close()
