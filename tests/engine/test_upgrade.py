"""A store of an older format is taken over by itself, whole or not at all, and everything in it stays.

``format_2.mdb.gz`` and its backup ``format_2.kvb.gz`` were written by the last kvstore of that format, at
``MADE_AT`` by the clock of the tests; those of formats 3 and 4 are the same, taken over by the last of each.
"""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import lmdb
import pytest

from kvstore_core.digest import MODULUS, SetHash, record_hash
from kvstore_daemon.storage.interface import EventFilter, Retention, Write, WriteRequest
from kvstore_daemon.storage.lmdb_store.schema import FORMAT, TABLES
from kvstore_daemon.storage.offline import no_progress, reader_client
from kvstore_daemon.storage.offline.backup import back_up
from kvstore_daemon.storage.offline.reader_process import facts, open_store
from kvstore_daemon.storage.offline.replace_store import compact
from kvstore_daemon.storage.offline.restore import restore
from kvstore_daemon.storage.offline.verify import verify
from support.engine_store import WIDE, FakeClock, Store, opened, refused
from support.recorded import Recorded
from support.servers import StartDaemon

pytestmark = pytest.mark.lmdb_only("formats of its file")

HERE = Path(__file__).parent
EPOCH, FLOOR, HEAD = "eea49c40af9e3150", 4, 42
MADE_AT = 1_700_000_003_000
KEYS = ["count", "large", "often", "pair/b", "schlüssel", "text", "ttl/hour", "ttl/long"]


def unpacked(name: str, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(gzip.decompress((HERE / name).read_bytes()))
    return to


@pytest.fixture(params=[2, 3, 4])
def old(request: pytest.FixtureRequest) -> int:
    """The format of the store."""
    return int(request.param)


@pytest.fixture
def data(old: int, tmp_path: Path) -> Path:
    """A data folder with the store of an older format."""
    unpacked(f"format_{old}.mdb.gz", tmp_path / "data" / "lmdb" / "data.mdb")
    return tmp_path / "data"


@pytest.fixture
def backup(old: int, tmp_path: Path) -> Path:
    return unpacked(f"format_{old}.kvb.gz", tmp_path / "old.kvb")


def opened_then(data: Path, retention: Retention = WIDE) -> Store:
    """The store, opened right after it was made."""
    clock = FakeClock()
    clock.now = MADE_AT
    return opened(data, clock, retention=retention)


def rows(data: Path) -> dict[str, list[tuple[bytes, bytes]]]:
    """All rows but those that every start may write."""
    with lmdb.open(str(data / "lmdb"), readonly=True, lock=False, max_dbs=8) as env, env.begin() as txn:
        found = {name: list(txn.cursor(env.open_db(name.encode(), txn, create=False))) for name in TABLES}
    found["meta"] = [row for row in found["meta"] if row[0] not in (b"format", b"clock", b"position")]
    return found


def check(path: Path) -> int:
    """The format of the store, in which nothing is wrong."""
    faults: list[str] = []
    found = reader_client.check(path, faults.append)
    assert faults == []
    assert (found["epoch"], found["floor"], found["revision"]) == (EPOCH, FLOOR, HEAD)
    return int(found["store_format"])


def test_it_is_taken_over_once_and_said(data: Path, old: int, caplog: pytest.LogCaptureFixture) -> None:
    assert check(data) == old
    before = rows(data)
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            opened_then(data).engine.close()
        assert check(data) == FORMAT == 5
        assert rows(data) == before
    assert [record.getMessage() for record in caplog.records] == [
        f"took over a store of format {old}, which is now of format 5: an older kvstore refuses it"
    ]


def test_everything_in_it_is_there(data: Path) -> None:
    store = opened_then(data)
    assert list(map(bytes.decode, store.keys())) == KEYS
    assert store.engine.position()[:3] == (EPOCH, FLOOR, HEAD)
    for key, value in (("text", "zweite Fassung ü"), ("schlüssel", ""), ("often", "24"), ("count", "7")):
        found = store.get(key.encode())
        assert found is not None
        assert (found.value, found.author, found.message) == (value.encode(), "", "")
    large, hour = store.get(b"large"), store.get(b"ttl/hour")
    assert large is not None
    assert (large.value, large.content_type) == (bytes(range(256)) * 24, "image/png")
    assert hour is not None
    assert hour.expires_at == MADE_AT + 7_200_000
    events = store.log(since=FLOOR).events
    assert [event.revision for event in events if event.index == 0] == list(range(FLOOR + 1, HEAD + 1))
    assert {(event.author, event.message) for event in events} == {("", "")}
    expired, deleted = (
        store.log(since=FLOOR, wanted=EventFilter(keys=frozenset((key,)))).events
        for key in (b"ttl/short", b"deleted")
    )
    assert [event.op for event in expired] == ["put", "expire"]
    assert expired[1].previous is not None
    assert expired[1].previous.value == b"gone"
    assert [event.op for event in deleted] == ["put", "delete"]
    assert [event.op for event in store.history(b"prefix/a").events] == ["delete", "put"]
    store.clock.now += 7_200_000
    store.expire_due()
    assert store.get(b"ttl/hour") is None
    store.engine.close()


def test_its_digest_is_added_up_and_then_kept_up(data: Path) -> None:
    store = opened_then(data)
    page = store.engine.range(b"", None, 100, values=True, max_bytes=1 << 20)
    there = SetHash()
    for key, record in page.items:
        there.replace(b"", record_hash(key, record.revision, record.value or b""))
    assert store.engine.position().digest == there.total % MODULUS
    store.write("put", b"text", value=b"new")  # over a row that keeps no hash
    store.write("delete", b"large")
    assert not store.faults()
    store.engine.close()


def test_a_request_from_before_it_is_still_applied_once(data: Path) -> None:
    store = opened_then(data)
    request = WriteRequest([Write("incr", b"count", by=7)], client="c", seq=3, fingerprint=12345)
    (answer,) = store.submit(request)
    assert answer.results == [{"value": 7, "revision": 42, "create_revision": 42, "version": 1}]
    assert store.engine.position().head == HEAD
    store.engine.close()


def test_old_rows_and_new_ones_go_together(data: Path) -> None:
    store = opened_then(data, Retention(40, 1 << 30, 10**12))
    said = {"author": "ann", "message": "why"}
    for key in (b"text", b"deleted", b"ttl/hour", b"large"):
        store.write("put", key, **said)
    store.write("delete", b"often", **said)
    store.write("delete_prefix", b"pair/", **said)
    for event in store.log(since=HEAD).events:
        assert (event.author, event.message) == ("ann", "why")
        assert event.previous is None or event.previous.message == ""
    for _ in range(50):  # the old events leave the log, and their tombstones with them
        store.write("put", b"other", **said)
    assert not store.faults()
    store.engine.close()


def test_a_newer_format_is_refused_and_left_as_it_is(data: Path) -> None:
    with lmdb.open(str(data / "lmdb"), max_dbs=8) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"%d" % (FORMAT + 1), db=env.open_db(b"meta", txn))
    with refused("unsupported_version") as caught:
        opened_then(data)
    assert "install the newer version" in caught.value.message
    with refused("unsupported_version"):
        reader_client.facts(data)


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_backup_and_compaction_keep_the_format(
    data: Path, old: int, tmp_path: Path, is_taken_over: bool
) -> None:
    if is_taken_over:
        opened_then(data).engine.close()
    expected = FORMAT if is_taken_over else old
    pieces: list[bytes] = []
    assert back_up(data, pieces.append, MADE_AT).store_format == expected
    saved = tmp_path / "saved.kvb"
    saved.write_bytes(b"".join(pieces))
    assert check(saved) == expected
    compact(data, lambda _: no_progress)
    assert check(data) == expected


def test_a_backup_of_it_is_restored_and_then_taken_over(backup: Path, old: int, tmp_path: Path) -> None:
    assert check(backup) == old
    folder = tmp_path / "restored"
    with backup.open("rb") as source:
        restored = restore(source, folder, MADE_AT, replace=False, steps=lambda _: no_progress)
    assert reader_client.facts(folder)["store_format"] == old
    store = opened_then(folder)
    assert list(map(bytes.decode, store.keys())) == KEYS
    assert store.engine.position().head == restored.head
    assert not store.faults()
    store.engine.close()
    assert reader_client.facts(folder)["store_format"] == FORMAT


@pytest.mark.slow
def test_whenever_it_ends_in_between_the_old_store_or_the_new_one_is_there(
    backup: Path, old: int, root: Path, recorded: Recorded, start_daemon: StartDaemon
) -> None:
    """By SIGKILL, which leaves all that was written, or by a power cut, which leaves what was synced."""
    folder = root / "data"
    recorded.run("restore", backup, "--data", folder)
    since, before = recorded.steps(), reader_client.facts(folder)
    assert before["store_format"] == old
    start_daemon(data=folder, environment=recorded.preloaded).stop()
    found: list[int] = []
    for left, _ in recorded.cuts(since, "WDST"):
        with open_store(left / "data") as store:
            assert list(verify(store.env, store.txn, store.frames)) == []
            now = facts(store)
        expired = now["revision"] - before["revision"]  # the hour of a key is over
        assert (now["epoch"], now["keys"] + expired) == (before["epoch"], before["keys"])
        found.append(now["store_format"])
    assert (found[0], found[-1]) == (old, FORMAT)
    assert set(found) == {old, FORMAT}
