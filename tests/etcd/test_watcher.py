"""The mirror follows etcd whatever happens to it, and is made new by itself where it cannot go on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore_core.errors import KvError
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE
from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.connection import api, cluster
from kvstore_daemon.storage.etcd_store.connection.address import parse_address
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError
from kvstore_daemon.storage.etcd_store.layout import Gone, Head, Names, ReplyRow
from kvstore_daemon.storage.etcd_store.mirroring import revision_feed, store_reader, watcher
from kvstore_daemon.storage.etcd_store.mirroring.mirror import EtcdMirror
from kvstore_daemon.storage.etcd_store.mirroring.revision_feed import RevisionFeed
from kvstore_daemon.storage.etcd_store.mirroring.watcher import Watcher
from kvstore_daemon.storage.interface import EventFilter, LogPosition, StoredEvent, StoredRecord
from kvstore_daemon.storage.lmdb_store.snapshot_reads import SnapshotReads
from support.etcd import EtcdCluster, fresh_prefix
from support.mirrored import record
from support.servers import wait_until

pytestmark = pytest.mark.slow

T0 = 1_700_000_000_000
ALL = 1 << 24


class Follower:
    """A watcher with its mirror, and what it told."""

    def __init__(self, address: str, folder: Path, rebuild: str | None = None) -> None:
        parsed = parse_address(address)
        self.names = Names(parsed.prefix)
        self.cluster = Cluster(parsed)
        self.mirror = EtcdMirror(folder, self.names, map_size=1 << 28)
        self.mirror.open()
        self.reads = SnapshotReads(self.mirror.tables)
        self.events: list[StoredEvent] = []
        self.restarts: list[LogPosition] = []
        self.watcher = Watcher(self.cluster, self.mirror, self.names, self._deliver)
        if rebuild is not None:
            self.watcher.rebuild(rebuild)
        self.watcher.start()
        self._sequence = 0

    def _deliver(self, events: list[StoredEvent], restarted: LogPosition | None) -> None:
        last = max((event.revision for event in events), default=0)
        assert self.reads.position().head >= last, "what is told can be read"
        self.events += events
        if restarted is not None:
            self.restarts.append(restarted)

    def close(self) -> None:
        self.watcher.stop()
        self.cluster.close()
        self.mirror.close()

    def catch_up(self) -> Follower:
        self.watcher.wait_until_current(30)
        return self

    def commit(self, *keys: bytes, value: bytes = b"v", gone: tuple[bytes, ...] = (), **head: Any) -> int:
        """Put keys, and delete others, as a daemon does; the revision."""
        request = api.TxnRequest()
        for key in keys:
            api.add_put(request.success, self.names.of_key(key), record(value))
        for key in gone:
            api.add_delete(request.success, self.names.of_key(key))
        self._sequence += 1
        reasons = tuple(Gone("expire", "ann", key.decode()[:9]) for key in gone)
        said = Head(T0 + self._sequence, "n", self._sequence, reasons, **head)
        api.add_put(request.success, self.names.head, layout.encode_head(said))
        revision: int = self.cluster.ask(api.TXN, request, 30).header.revision
        return revision

    def record(self, key: bytes) -> StoredRecord | None:
        (found,), _ = self.reads.read([key])
        assert found is None or isinstance(found, StoredRecord)
        return found

    def log(self) -> list[tuple[str, bytes, int, int]]:
        position = self.reads.position()
        page = self.reads.log(position.floor, EventFilter(), ALL, values=True, previous=True, max_bytes=ALL)
        assert not isinstance(page, LogPosition)
        return [(event.op, event.key, event.revision, event.index) for event in page.events]


Follow = Callable[..., Follower]


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Follow]:
    """``follow(address, "name")``: one that begins, or goes on with the mirror of that name."""
    open_ones: dict[str, Follower] = {}

    def begin(address: str, name: str = "one", **settings: Any) -> Follower:
        if name in open_ones:
            open_ones.pop(name).close()
        open_ones[name] = Follower(address, tmp_path / name, **settings)
        return open_ones[name].catch_up()

    yield begin
    for one in open_ones.values():
        one.close()


def stopped(one: Follower) -> None:
    """Stop the watcher, and leave the rest: as a daemon that does not run."""
    one.watcher.stop()


def test_what_is_committed_is_told_in_order_and_read(follow: Follow, etcd_address: str) -> None:
    one = follow(etcd_address)
    assert one.reads.position()[1:] == (0, 0, 0)
    assert one.restarts == [one.reads.position()]
    first = one.commit(b"a", b"b")
    second = one.commit(b"c", gone=(b"a",))
    one.catch_up()
    told = [(event.op, event.key, event.revision, event.index) for event in one.events]
    assert told == [
        ("put", b"a", first, 0),
        ("put", b"b", first, 1),
        ("put", b"c", second, 0),
        ("expire", b"a", second, 1),
    ]
    assert told == one.log()
    assert one.record(b"a") is None
    assert one.reads.position()[1:3] == (0, second)


def test_one_that_comes_later_has_the_same_log(follow: Follow, etcd_address: str) -> None:
    one = follow(etcd_address)
    one.commit(b"a")
    floor = one.commit(b"b")
    one.commit(b"c")
    txn = api.TxnRequest()
    api.add_put(txn.success, one.names.floor, b"%d" % floor)
    one.cluster.call(api.TXN, txn, 10)
    last = one.commit(b"a", gone=(b"b",))
    one.catch_up()
    other = follow(etcd_address, "other")
    assert other.log() == one.log()
    assert other.reads.position() == one.reads.position()
    assert one.reads.position()[:3] == (one.mirror.epoch, floor, last)
    assert other.mirror.state == one.mirror.state
    assert not other.events


def test_what_another_program_writes_is_there_as_bytes(follow: Follow, etcd: EtcdCluster) -> None:
    prefix = fresh_prefix()
    one = follow(etcd.address(prefix))
    etcd.etcdctl("put", f"{prefix}/key/theirs", "raw")
    etcd.etcdctl("put", f"{prefix}/key/", "of no key")
    etcd.etcdctl("put", f"{prefix}/of nobody", "?")
    wait_until(lambda: one.record(b"theirs"), what="the foreign put is mirrored")
    found = one.record(b"theirs")
    assert found is not None
    assert (found.value, found.content_type) == (b"raw", DEFAULT_CONTENT_TYPE)
    etcd.etcdctl("del", "--prefix", f"{prefix}/key/")
    wait_until(lambda: len(one.events) == 2, what="the foreign delete is told")
    assert one.record(b"theirs") is None
    assert [(event.op, event.key) for event in one.events] == [("put", b"theirs"), ("delete", b"theirs")]
    etcd.etcdctl("del", "--prefix", f"{prefix}/")
    wait_until(lambda: len(one.restarts) == 2, what="the store begins again")
    assert one.restarts[1][0] != one.restarts[0][0]
    assert one.restarts[1][1:] == (0, 0, 0)


def test_one_that_was_away_goes_on_where_it_was(follow: Follow, etcd_address: str) -> None:
    one = follow(etcd_address)
    before = one.commit(b"a")
    one.catch_up()
    other = follow(etcd_address, "other")
    again = follow(etcd_address)
    assert not again.events
    assert not again.restarts
    last = other.commit(b"b")
    again.catch_up()
    assert [event.revision for event in again.events] == [last]
    assert again.log() == other.log()
    assert before < last


def test_a_mirror_that_etcd_has_compacted_away_is_made_new(
    follow: Follow, start_etcd: Callable[..., EtcdCluster]
) -> None:
    etcd = start_etcd()
    one, other = follow(etcd.address()), follow(etcd.address(), "other")
    one.commit(b"a")
    one.catch_up()
    epoch = one.mirror.epoch
    stopped(one)
    other.commit(b"b", gone=(b"a",))
    last = other.commit(b"c")
    etcd.compact(last)
    again = follow(etcd.address())
    assert again.restarts == [LogPosition(epoch, last, last, again.reads.position().digest)]
    assert again.record(b"a") is None
    assert again.record(b"b") == other.catch_up().record(b"b")
    after = other.commit(b"d")
    assert [event.revision for event in again.catch_up().events] == [after]


def test_an_idle_store_goes_on_however_much_of_others_etcd_forgot(
    follow: Follow, start_etcd: Callable[..., EtcdCluster]
) -> None:
    etcd = start_etcd()
    one, other = follow(etcd.address()), follow(etcd.address("/other"), "other")
    txn = api.TxnRequest()
    for client in ("kept", "forgotten"):
        api.add_put(txn.success, one.names.of_reply(client), layout.encode_reply(ReplyRow(1, 1, 0, 1, [])))
    one.cluster.call(api.TXN, txn, 10)
    one.commit(b"a")
    position = one.catch_up().reads.position()
    stopped(one)
    for _ in range(5):
        last = other.commit(b"k")
    etcd.etcdctl("del", one.names.of_reply("forgotten").decode())
    etcd.compact(last)
    one = follow(etcd.address())
    wait_until(lambda: one.mirror.watched > last, what="it went on from the present")
    assert (one.restarts, one.watcher.rebuilds) == ([], 0)
    assert one.reads.position() == position
    with one.mirror.tables.snapshot() as snapshot:
        assert one.mirror.kept_reply(snapshot, "kept") is not None
        assert one.mirror.kept_reply(snapshot, "forgotten") is None
    after = one.commit(b"b")
    one.catch_up()
    assert [event.revision for event in one.events] == [after]
    # one change of another program is enough
    stopped(one)
    etcd.etcdctl("put", one.names.of_key(b"a").decode(), "raw")
    etcd.compact(other.commit(b"k"))
    one = follow(etcd.address())
    wait_until(lambda: one.watcher.rebuilds == 1, what="the mirror is made new")


@pytest.mark.parametrize("writes_after", [0, 5], ids=["behind", "ahead"])
def test_a_restored_etcd_begins_a_new_history_for_all(
    writes_after: int, follow: Follow, start_etcd: Callable[..., EtcdCluster], tmp_path: Path
) -> None:
    etcd = start_etcd()
    one, other = follow(etcd.address()), follow(etcd.address(), "other")
    one.commit(b"kept")
    saved = etcd.snapshot(tmp_path / "saved")
    one.commit(b"lost")
    one.commit(b"lost too")
    one.catch_up()
    other.catch_up()
    epoch = one.mirror.epoch
    stopped(other)
    if writes_after:
        stopped(one)
    etcd.restore(saved)
    for number in range(writes_after):
        one.commit(b"new%d" % number)
    if writes_after:
        # that it is to be made new anyhow does not make it the same history
        one = follow(etcd.address(), rebuild="somebody has asked for it")
    else:
        wait_until(lambda: len(one.restarts) == 2, what="the restored etcd is noticed", timeout=60)
    assert one.restarts[-1].epoch != epoch
    assert one.record(b"kept") is not None
    assert one.record(b"lost") is None
    again = follow(etcd.address(), "other")
    assert again.reads.position() == one.catch_up().reads.position()
    assert again.restarts == [one.restarts[-1]]
    last = one.commit(b"more")
    assert again.catch_up().reads.position() == one.catch_up().reads.position()
    assert again.reads.position().head == last


def receive_at_most(bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients that are made from now on refuse longer responses of a watch."""
    limit = {"name": [{"service": "etcdserverpb.Watch"}], "maxResponseMessageBytes": bytes_}
    options = dict(cluster.OPTIONS) | {"grpc.service_config": json.dumps({"methodConfig": [limit]})}
    monkeypatch.setattr(cluster, "OPTIONS", tuple(options.items()))


@pytest.mark.parametrize("most_bytes", [cluster.WATCH_BYTES, 2 << 20], ids=["whole", "fragments"])
def test_a_revision_in_however_many_messages_is_one(
    most_bytes: int, follow: Follow, etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive_at_most(most_bytes, monkeypatch)
    prefix = fresh_prefix()
    one = follow(etcd.address(prefix))
    keys = [b"%06d" % number + b"x" * 500 for number in range(5000)]  # more than 2 MiB in one revision
    for begin in range(0, len(keys), 100):
        one.commit(*keys[begin : begin + 100])
    one.catch_up()
    seen: set[int] = set()
    etcd.etcdctl("del", "--prefix", f"{prefix}/key/")
    while 0 not in seen:
        seen.add(one.reads.count(b"", None).total)
    assert seen <= {0, len(keys)}
    wait_until(lambda: len(one.events) > len(keys), what="the deletes are told")
    deletes = one.events[len(keys) :]
    assert [event.key for event in deletes] == keys
    assert {(event.revision, event.count) for event in deletes} == {(deletes[0].revision, len(keys))}


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_the_member_that_is_watched_fails(
    fault: str, follow: Follow, start_etcd: Callable[..., EtcdCluster]
) -> None:
    etcd = start_etcd(3)
    one = follow(etcd.address())
    writer = follow(etcd.address(), "writer")
    expected = [writer.commit(b"k") for _ in range(20)]
    one.catch_up()
    watched = next(member for member in etcd.members if member.endpoint == one.cluster.endpoint)
    getattr(watched, fault)()
    expected += [writer.commit(b"k") for _ in range(20)]
    wait_until(lambda: one.mirror.watched >= expected[-1], what="it goes on with another", timeout=60)
    assert one.cluster.endpoint != watched.endpoint
    watched.resume() if fault == "pause" else watched.start()
    expected += [writer.commit(b"k") for _ in range(20)]
    one.catch_up()
    # an unknown outcome may have been two commits
    told = [event.revision for event in one.events]
    assert told == sorted(set(told))
    assert set(expected) <= set(told)
    assert len(one.restarts) == 1


def test_a_member_without_what_others_have_is_left(
    follow: Follow, start_etcd: Callable[..., EtcdCluster]
) -> None:
    etcd = start_etcd(3)
    one = follow(etcd.address())
    before = one.cluster.rotations
    assert not one.mirror.wait_for(one.mirror.watched + 1, 0)
    wait_until(lambda: one.cluster.rotations > before, what="another member is asked", timeout=60)
    one.commit(b"k")
    one.catch_up()
    assert one.record(b"k") is not None


def test_a_member_that_is_busy_with_a_long_log_is_not_left(
    follow: Follow, etcd_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = follow(etcd_address)
    one.commit(b"k")
    one.catch_up()
    stopped(one)
    monkeypatch.setattr(revision_feed, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(revision_feed, "SILENCE_SECONDS", -1.0)
    with RevisionFeed(one.cluster, one.names, one.mirror.watched, 1 << 62, 1 << 62) as feed:
        assert feed.is_behind
        for _ in range(5):
            feed.take(0)
        monkeypatch.setattr(revision_feed, "PATIENT_SECONDS", -1.0)
        with pytest.raises(EtcdError, match="nothing of what comes after"):
            wait_until(lambda: feed.take(0) is None, what="it is given up")


def test_a_catch_up_with_many_small_events_is_cheap_for_etcd(follow: Follow, etcd: EtcdCluster) -> None:
    address = etcd.address(fresh_prefix())
    one = follow(address)
    stopped(one)
    spent = etcd.members[0].cpu_seconds()
    for number in range(400):  # with half as many etcd would cut nothing into fragments
        one.commit(*(b"%d/%d" % (number, key) for key in range(100)))
    to_take, spent = etcd.members[0].cpu_seconds() - spent, etcd.members[0].cpu_seconds()
    resumed = follow(address)
    new = follow(address, "new")
    to_give = etcd.members[0].cpu_seconds() - spent
    assert new.mirror.state == resumed.mirror.state
    assert resumed.reads.count(b"", None).total == len(resumed.events) == 40_000
    assert to_give < to_take, "it takes less to read two times what was written one by one"


def test_large_values_are_taken_some_at_a_time(follow: Follow, etcd_address: str) -> None:
    one = follow(etcd_address)
    start = one.mirror.watched
    stopped(one)
    for number in range(30):
        last = one.commit(b"%d" % number, value=bytes(1 << 20))
    sizes = list[int]()
    with RevisionFeed(one.cluster, one.names, start, last, last) as feed:
        revisions = feed.wait_until_created()
        while True:
            sizes.append(sum(len(change.kv.value) for each in revisions for change in each.changes))
            if not feed.is_behind:
                break
            assert feed.current_at is None, "what is still to come is not here"
            revisions = feed.take(1)
        wait_until(lambda: not feed.take(0) and feed.current_at is not None, what="it has all")
    assert sum(sizes) > 29 << 20
    assert max(sizes) < 18 << 20


def test_a_start_waits_while_the_mirror_comes_nearer(
    follow: Follow, etcd_address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = follow(etcd_address)
    stopped(one)
    for number in range(8):
        one.commit(b"%d" % number)
    one.close()
    monkeypatch.setattr(revision_feed, "_MOST_CHANGES", 1)
    apply = EtcdMirror.apply

    def slowly(*args: Any) -> list[StoredEvent]:
        time.sleep(0.5)
        return apply(*args)

    monkeypatch.setattr(EtcdMirror, "apply", slowly)
    again = Follower(etcd_address, tmp_path / "one")
    try:
        again.watcher.wait_until_current(3)
        assert len(again.events) == 8
    finally:
        again.close()


def test_the_log_says_how_far_a_mirror_is(
    follow: Follow, etcd_address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watcher, "_SAY_SECONDS", 0.0)
    monkeypatch.setattr(watcher, "_SAY_RECORDS", 10)
    monkeypatch.setattr(revision_feed, "_MOST_CHANGES", 1)
    caplog.set_level("INFO", "kvstore.daemon")
    one = follow(etcd_address)
    stopped(one)
    revisions = [one.commit(*(b"%d/%d" % (number, key) for key in range(10))) for number in range(5)]
    follow(etcd_address)
    assert f"the mirror catches up with etcd: it is at revision {revisions[1]}" in caplog.text
    txn = api.TxnRequest()
    api.add_put(txn.success, one.names.floor, b"%d" % revisions[1])
    with Cluster(parse_address(etcd_address)) as client:
        client.call(api.TXN, txn, 10)
    follow(etcd_address, "new")
    assert "the mirror is being made, 20 records so far" in caplog.text
    assert f"the mirror is being made, its log is at revision {revisions[3]} so far" in caplog.text


def test_a_mirror_that_is_asked_for_while_it_is_made_is_made_once(
    follow: Follow, etcd_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = follow(etcd_address)
    one.commit(b"k")
    one.catch_up()
    replace, made = EtcdMirror.replace, one.watcher.made

    def asked_for_again(*args: Any) -> LogPosition:
        one.watcher.rebuild("somebody else wants it")
        return replace(*args)

    monkeypatch.setattr(EtcdMirror, "replace", asked_for_again)
    assert not one.watcher.wait_until_made(made, 0)
    one.watcher.rebuild("the test wants it", made)
    assert one.watcher.wait_until_made(made, 60)
    # of a fault that was there before nothing is done
    one.watcher.rebuild("the test saw it", made)
    one.commit(b"k")
    one.catch_up()
    one.commit(b"k")
    one.catch_up()
    assert (one.watcher.rebuilds, one.watcher.made) == (1, made + 1)
    one.watcher.rebuild("there is another fault", made + 1)
    assert one.watcher.wait_until_made(made + 1, 60)


def test_a_mirror_is_made_new_although_the_first_attempt_failed(
    follow: Follow, etcd_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = follow(etcd_address)
    one.commit(b"k")
    one.catch_up()
    replace, failures = (
        EtcdMirror.replace,
        [EtcdError("unknown", "the first"), EtcdError("unknown", "the second")],
    )

    def failing(*args: Any) -> LogPosition:
        if failures:
            raise failures.pop()
        return replace(*args)

    monkeypatch.setattr(EtcdMirror, "replace", failing)
    one.watcher.rebuild("the test wants it")
    wait_until(lambda: one.watcher.rebuilds == 1, what="the mirror is made new")
    assert not failures


def test_who_has_a_doubt_has_the_history_looked_at_and_nothing_made_new(
    follow: Follow, etcd_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = follow(etcd_address)
    one.commit(b"k")
    one.catch_up()
    looks: list[object] = []
    look = store_reader.look
    monkeypatch.setattr(store_reader, "look", lambda *args: (looks.append(args), look(*args))[1])
    one.watcher.look("a read found an earlier revision")
    wait_until(lambda: bool(looks), what="etcd is looked at")
    one.commit(b"k")
    one.catch_up()
    assert (len(one.events), one.watcher.rebuilds, len(one.restarts)) == (2, 0, 1)


@pytest.mark.parametrize("table", ["data", "log_rows"])
def test_a_damaged_row_is_found_by_the_check(
    table: str, follow: Follow, etcd_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = follow(etcd_address)
    one.commit(b"a", b"b")
    one.catch_up()
    with one.mirror.tables.env.begin(write=True) as txn:
        rows = txn.cursor(getattr(one.mirror.tables, table))
        assert rows.last()
        row = rows.value()
        assert rows.put(rows.key(), row[:-1] + bytes((row[-1] ^ 1,)))
    monkeypatch.setattr(watcher, "CHECK_SECONDS", 0.0)
    wait_until(lambda: one.watcher.rebuilds > 0, what="the mirror is made new")
    assert len(one.log()) == 2
    assert one.record(b"b") is not None


def test_readers_see_the_old_mirror_or_the_new_one(follow: Follow, etcd_address: str) -> None:
    one = follow(etcd_address)
    for number in range(50):
        one.commit(*(b"k%d" % key for key in range(20)), value=b"%d" % number)
    one.catch_up()
    wanted = one.reads.position(), one.log()
    stopping, faults = threading.Event(), list[object]()

    def read() -> None:
        while not stopping.is_set():
            seen = one.reads.position(), one.log()
            if seen != wanted:
                faults.append(seen[0])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 5):
        one.watcher.rebuild("the test wants it")
        wait_until(lambda number=number: one.watcher.rebuilds == number, what="the mirror is made new")
    stopping.set()
    reader.join()
    assert not faults
    assert one.restarts == [one.restarts[0], *[wanted[0]] * 4]


def test_a_mirror_that_differs_is_found_and_made_new(
    follow: Follow, etcd_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = follow(etcd_address)
    at = one.commit(b"a", b"b")
    one.catch_up()
    digest = one.mirror.state.digest
    with one.mirror.tables.env.begin(write=True) as txn:
        txn.delete(b"a", db=one.mirror.tables.data)
    assert one.record(b"a") is None
    # the digest itself is still right here, so another's being wrong is what leads to a look at the rows
    one.commit(b"c", digest_at=at, digest=digest + 1)
    wait_until(lambda: one.watcher.rebuilds == 1, what="the mirror is made new")
    assert one.record(b"a") is not None
    assert "differs from this one" in caplog.text


def test_a_mirror_that_is_right_stays(follow: Follow, etcd_address: str) -> None:
    one = follow(etcd_address)
    at = one.commit(b"a", b"b")
    one.catch_up()
    one.commit(b"c", digest_at=at, digest=one.mirror.state.digest + 1)
    wait_until(lambda: one.watcher.checks == 1, what="it was compared")
    one.commit(b"d")
    one.catch_up()
    assert one.watcher.rebuilds == 0


def test_a_start_without_etcd_says_why(tmp_path: Path) -> None:
    one = Follower("etcd://127.0.0.1:1", tmp_path / "one")
    try:
        with pytest.raises(KvError, match=r"127\.0\.0\.1:1"):
            one.watcher.wait_until_current(7)
    finally:
        one.close()
