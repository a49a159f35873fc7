"""The mirror has what etcd has, whether it saw all of it or was made later."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvstore_core.digest import record_hash
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE
from kvstore_daemon.storage.clock import boot_id
from kvstore_daemon.storage.etcd_store.layout import Names
from kvstore_daemon.storage.etcd_store.mirroring.kept_replies import KeptReply
from kvstore_daemon.storage.etcd_store.mirroring.mirror import EtcdMirror
from kvstore_daemon.storage.etcd_store.mirroring.mirror_transaction import UnfitError
from kvstore_daemon.storage.etcd_store.mirroring.revisions import Change, KeyValue, Revision
from kvstore_daemon.storage.interface import LogPosition, StoredRecord
from support.mirrored import EPOCH, NAMES, Etcd, mirror_in, reads_of, record

CLUSTER = 7


def test_what_etcd_says_is_read_from_the_mirror(tmp_path: Path) -> None:
    etcd = Etcd()
    created = etcd.put(b"k", b"one")
    put = etcd.put(b"k", b"two")
    gone = etcd.delete(b"k", "expire")
    with mirror_in(tmp_path / "mirror") as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [])
        assert reads_of(mirror).position() == LogPosition(EPOCH.decode(), 0, 0, 0)
        assert mirror.apply(etcd.after(1)[:2])[1].previous_revision == created
        (found,), head = reads_of(mirror).read([b"k"])
        assert isinstance(found, StoredRecord)
        assert (found.value, found.revision, found.create_revision, found.author) == (
            b"two",
            put,
            created,
            "bob",
        )
        assert head == mirror.watched == put
        # what it has already is passed over
        (event,) = mirror.apply(etcd.revisions)
        assert (event.op, event.revision, event.author, event.message) == ("expire", gone, "ann", "why")
        assert event.previous is not None
        assert event.previous.value == b"two"
        assert reads_of(mirror).read([b"k"]) == ([None], gone)


def test_a_wait_ends_with_the_revision_or_in_time(tmp_path: Path) -> None:
    etcd = Etcd()
    put = etcd.put(b"k")
    with mirror_in(tmp_path / "mirror") as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [])
        assert not mirror.wait_for(put, 0.01)
        found: list[bool] = []
        waiter = threading.Thread(target=lambda: found.append(mirror.wait_for(put, 30)))
        waiter.start()
        mirror.apply(etcd.after(1))
        waiter.join()
        assert found == [True]
        assert mirror.wanted == put


def test_events_are_handed_on_before_anybody_who_waits_is_told(tmp_path: Path) -> None:
    """Or a write would be answered before its event is published."""
    etcd = Etcd()
    put = etcd.put(b"k")
    handed_on: list[tuple[int, bool]] = []
    with mirror_in(tmp_path / "mirror") as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [])
        mirror.apply(etcd.after(1), lambda new: handed_on.append((len(new), mirror.wait_for(put, 0))))
        assert handed_on == [(1, False)]
        assert mirror.wait_for(put, 0)


def _missed_put(etcd: Etcd) -> list[Revision]:
    etcd.put(b"a")
    etcd.put(b"a")
    return etcd.revisions[-1:]


def _missed_delete(etcd: Etcd) -> list[Revision]:
    etcd.delete(b"k")
    etcd.put(b"k")
    return etcd.revisions[-1:]


def _missed_creation(etcd: Etcd) -> list[Revision]:
    etcd.put(b"a")
    etcd.delete(b"a")
    return etcd.revisions[-1:]


def _new_epoch(etcd: Etcd) -> list[Revision]:
    etcd.txn({NAMES.epoch: b"f" * 16})
    return etcd.revisions[-1:]


def _epoch_deleted(etcd: Etcd) -> list[Revision]:
    etcd.txn({}, (NAMES.epoch,))
    return etcd.revisions[-1:]


@pytest.mark.parametrize("fault", [_missed_put, _missed_delete, _missed_creation, _new_epoch, _epoch_deleted])
def test_revisions_that_do_not_fit_change_nothing(
    fault: Callable[[Etcd], list[Revision]], tmp_path: Path
) -> None:
    etcd = Etcd()
    put = etcd.put(b"k")
    with mirror_in(tmp_path / "mirror") as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [etcd.after(1)])
        good = Revision(put + 1, [Change(True, KeyValue(NAMES.of_key(b"other"), record(), put + 1, put + 1))])
        before = mirror.state
        etcd.txn({}, skip=1)
        with pytest.raises(UnfitError):
            mirror.apply([good, *fault(etcd)])
        assert mirror.state == before
        assert reads_of(mirror).read([b"other"]) == ([None], put)
        mirror.apply([good])
        assert mirror.watched == put + 1


def test_a_store_that_had_keys_already_begins_with_them(tmp_path: Path) -> None:
    etcd = Etcd(epoch=None)
    etcd.txn({NAMES.of_key(b"old"): b"raw"})
    base = etcd.txn({NAMES.epoch: EPOCH})
    with mirror_in(tmp_path / "mirror") as mirror:
        position = mirror.replace(CLUSTER, base, etcd.at(base), [])
        digest = int.from_bytes(record_hash(b"old", base - 1, b"raw"))
        assert position == LogPosition(EPOCH.decode(), base, base, digest)
        (found,), head = reads_of(mirror).read([b"old"])
        assert isinstance(found, StoredRecord)
        assert (found.value, found.content_type, head) == (b"raw", DEFAULT_CONTENT_TYPE, base)


@pytest.mark.parametrize("said", [b"", b"soon", b"-1", b"1", b"9" * 18, b"9" * 30])
def test_a_floor_that_cannot_be_changes_nothing_beyond_the_head(said: bytes, tmp_path: Path) -> None:
    etcd = Etcd()
    etcd.put(b"a")
    floor = etcd.put(b"b") + 1
    etcd.txn({}, skip=3)
    head = etcd.put(b"c")
    etcd.txn({NAMES.floor: b"%d" % floor})
    etcd.txn({NAMES.floor: said})
    with mirror_in(tmp_path / "mirror") as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [])
        mirror.apply(etcd.after(1))
        assert reads_of(mirror).position()[1:3] in ((floor, head), (head, head))


def test_another_digest_is_noticed_until_the_mirror_is_made_again(tmp_path: Path) -> None:
    etcd = Etcd()
    with mirror_in(tmp_path / "mirror") as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [])
        put = etcd.put(b"a")
        mirror.apply(etcd.after(1))
        etcd.put(b"b", digest_at=put, digest=mirror.state.digest)
        etcd.put(b"c", digest_at=1, digest=0)
        mirror.apply(etcd.after(put))
        assert mirror.digests.differing is None
        etcd.put(b"d", digest_at=put, digest=mirror.state.digest)
        mirror.apply(etcd.after(put))
        assert mirror.digests.differing == "n1"
        mirror.replace(CLUSTER, 1, etcd.at(1), [])
        assert mirror.digests.differing is None


def test_what_the_machine_did_not_finish_writing_is_thrown_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, etcd = tmp_path / "mirror", Etcd()
    with mirror_in(folder) as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [])
    assert not (folder / "boot").exists()
    with mirror_in(folder) as mirror:
        assert mirror.watched == 1
        mirror.tables.env.sync(True)
        mirror.tables.close()
        # not even LMDB must look at such a file: it may be anything
        (folder / "data.mdb").write_bytes(b"half" * 4096)
        (folder / "boot").write_text("another boot")
        mirror.open()
        assert mirror.watched == 0
        assert "the machine stopped" in caplog.text
        assert (folder / "boot").read_text() == boot_id()


def test_a_process_that_was_killed_leaves_a_mirror_that_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "mirror"
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from support.mirrored import Etcd, NAMES, EtcdMirror
etcd = Etcd()
etcd.put(b"k")
mirror = EtcdMirror(Path({str(folder)!r}), NAMES, map_size=1 << 26)
mirror.open()
mirror.replace({CLUSTER}, 1, etcd.at(1), [])
mirror.apply(etcd.revisions)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    with mirror_in(folder) as mirror:
        assert mirror.watched == 2
        assert reads_of(mirror).read([b"k"])[1] == 2


@pytest.mark.parametrize("prefix", [b"/other", b"/kvstore/inner"])
def test_the_mirror_of_another_store_is_thrown_away(prefix: bytes, tmp_path: Path) -> None:
    folder, etcd = tmp_path / "mirror", Etcd()
    with mirror_in(folder) as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [])
    other = EtcdMirror(folder, Names(prefix), map_size=1 << 26)
    other.open()
    assert other.watched == 0
    other.close()


def test_a_damaged_mirror_is_thrown_away(tmp_path: Path) -> None:
    folder, etcd = tmp_path / "mirror", Etcd()
    with mirror_in(folder) as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [])
    (folder / "data.mdb").write_bytes(b"")
    with mirror_in(folder) as mirror:
        assert mirror.watched == 0


def test_a_copy_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    etcd = Etcd()
    put = etcd.put(b"k")

    def broken() -> Iterator[KeyValue]:
        yield from etcd.at(put)[:-1]
        raise ConnectionError

    with mirror_in(tmp_path / "mirror") as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [etcd.after(1)])
        before, position = mirror.state, reads_of(mirror).position()
        for records in (broken(), iter(etcd.at(put)[1:])):  # the second has no epoch
            with pytest.raises((ConnectionError, UnfitError)):
                mirror.replace(CLUSTER, put, records, [])
        assert (mirror.state, reads_of(mirror).position()) == (before, position)
        mirror.apply([])
        assert mirror.state == before


def test_what_another_program_put_among_the_replies_breaks_nothing(tmp_path: Path) -> None:
    etcd = Etcd()
    put = etcd.txn({NAMES.of_reply("c"): b"?", NAMES.of_reply(""): b"?", NAMES.of_reply("x" * 600): b"?"})
    with mirror_in(tmp_path / "mirror") as mirror:
        mirror.replace(CLUSTER, 1, etcd.at(1), [etcd.after(1)])
        with mirror.tables.snapshot() as txn:
            assert mirror.kept_reply(txn, "c") == KeptReply(put, -1, 0, 0, [], None)
        etcd.txn({}, (NAMES.of_reply("c"), NAMES.of_reply(""), NAMES.of_reply("x" * 600)))
        mirror.apply(etcd.revisions)
        with mirror.tables.snapshot() as txn:
            assert mirror.kept_reply(txn, "c") is None
