"""A cache keeps to its room: the oldest records go, in the commit of the write that needs it."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from kvstore_core.digest import SetHash, digest_text, record_hash
from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import EvictionLimit, EvictionState, Retention, Write, WriteRequest
from kvstore_daemon.storage.lmdb_store import eviction
from kvstore_daemon.storage.lmdb_store.pages import record_bytes
from support.engine_store import MIB, FakeClock, OpenStore, Store, fill, opened, refused
from support.lengths import examples
from support.servers import wait_until

pytestmark = pytest.mark.lmdb_only("etcd evicts nothing")

CACHE = (b"cache/", b"seen/")
LIMIT = EvictionLimit(CACHE, 2_000)
PLACE = "kvstore_daemon.storage.lmdb_store.journaling.journal_thread.os"


def cache_of(store: Store) -> EvictionState:
    found = store.engine.statistics().eviction
    assert found is not None
    return found


def rows_of(store: Store) -> dict[bytes, int]:
    """The records of the cache with the bytes that they take, as their rows are now."""
    tables = store.engine._tables  # type: ignore[attr-defined]
    with tables.snapshot() as txn:
        return {bytes(key): record_bytes(len(key), len(row)) for key, row in tables.below(txn, CACHE)}


def put(key: bytes, size: int = 500, **fields: Any) -> Write:
    return Write("put", key, b"x" * size, "text/plain", **fields)


def shrunk(store: Store) -> None:
    """Let the daemon's timer tick until the cache has come down to its limit."""
    while cache_of(store).bytes > cache_of(store).max_bytes:
        store.engine.trim()
        store.submit(WriteRequest([Write("check", b"k")]))


# ── the promise, with random steps ───────────────────────────────────────────────────────────────


class Seen(NamedTuple):
    """A record as the events tell it."""

    at: tuple[int, int]
    value: bytes
    size: int


KEYS = st.sampled_from([*(b"cache/%d" % n for n in range(8)), b"seen/a", b"seen/b", b"other", b"cache"])
VALUES = st.integers(0, 700).map(lambda size: b"%0*d" % (size, 7))


@st.composite
def writes(draw: st.DrawFn) -> Write:
    op = draw(st.sampled_from(["put", "put", "put", "put", "delete", "incr", "touch", "persist", "check"]))
    ttl = {"touch": st.integers(1, 5000), "put": st.none() | st.integers(1, 5000)}.get(op, st.none())
    message = draw(st.sampled_from(["", "because"])) if op == "put" else ""
    return Write(op, draw(KEYS), draw(VALUES), "t/t", draw(ttl), message=message)


class EvictionModel(RuleBasedStateMachine):
    """``self.seen`` is built from the events alone, which are looked at one by one."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.seen: dict[bytes, Seen] = {}
        self.store = self._open()

    def _open(self) -> Store:
        data = Path(self.folder.name) / "data"
        keep = Retention(40, 1 << 30, 10**9)
        return opened(data, self.clock, sync="none", retention=keep, eviction=LIMIT)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            faults = self.store.faults()
            self.store.engine.close()
            self.folder.cleanup()
            assert not faults

    @rule(write=writes())
    def one(self, write: Write) -> None:
        self._submit([write], atomic=False)

    @rule(size=st.integers(1_500, 2_500))
    def large(self, size: int) -> None:
        """It is refused if it could not stay by itself, and all others stay then."""
        before = dict(self.seen)
        (result,) = self._submit([put(b"cache/large", size)], atomic=False)
        if record_bytes(len(b"cache/large"), size + 92) > LIMIT.max_bytes:
            assert isinstance(result, KvError)
            assert (result.code, result.details["limit"]) == ("value_too_large", LIMIT.max_bytes)
            assert self.seen == before
        else:
            assert result["version"] >= 1

    @rule(batch=st.lists(writes(), min_size=2, max_size=6, unique_by=lambda write: write.key))
    def together(self, batch: list[Write]) -> None:
        self._submit(batch, atomic=True)

    @rule(batch=st.lists(writes(), min_size=2, max_size=6))
    def several(self, batch: list[Write]) -> None:
        self._submit(batch, atomic=False)

    @rule(prefix=st.sampled_from([b"cache/", b"c", b"seen/"]), limit=st.integers(1, 3))
    def delete_prefix(self, prefix: bytes, limit: int) -> None:
        self._submit([Write("delete_prefix", prefix, limit=limit)], atomic=False)

    @rule(milliseconds=st.integers(1, 4000))
    def wait(self, milliseconds: int) -> None:
        self.clock.now += milliseconds

    @rule()
    def expire(self) -> None:
        self.store.expire_due()
        self._follow()

    @rule()
    def reopen(self) -> None:
        self.store.engine.close()
        self.store = self._open()

    def _submit(self, batch: list[Write], *, atomic: bool) -> list[Any]:
        (answer,) = self.store.submit(WriteRequest(batch, atomic=atomic))
        self._follow(atomic=atomic)
        if answer.error is not None and answer.error.code == "request_too_large":
            sizes = [self._size_if_put(write) for write in batch]
            assert sum(sizes) > LIMIT.max_bytes
        return answer.results or []

    def _size_if_put(self, write: Write) -> int:
        """At most, where it is not a put."""
        old = self.seen.get(write.key)
        if write.op != "put":
            return 0 if old is None else old.size + 20
        return record_bytes(len(write.key), 200 + len(write.value))

    def _follow(self, *, atomic: bool = False) -> None:
        """Take in what was told: each record that goes was there, and one that was evicted had to be."""
        written: set[bytes] = set()
        for event in self.store.feed:
            if event.record is not None:
                by = bool(event.author or event.message)
                row = 82 + len(event.record.content_type) + len(event.record.value or b"")
                row += by * (2 + len(event.author) + len(event.message))
                size = record_bytes(len(event.key), row)
                written |= {event.key} if atomic else set()
                self.seen[event.key] = Seen((event.revision, event.index), event.record.value or b"", size)
                continue
            if event.op == "expire" and not self._is_over(event):
                assert event.key == min(self._cached(), key=lambda key: self.seen[key].at)
                assert self._held() > LIMIT.max_bytes
                assert event.key not in written
                assert (event.author, event.message) == ("", "")
            if event.op == "expire":
                assert event.previous is not None
                assert event.previous.value == self.seen[event.key].value
            del self.seen[event.key]
        self.store.feed = []

    def _is_over(self, event: Any) -> bool:
        """Whether its time had come."""
        ends = event.previous.expires_at
        return ends is not None and ends <= event.time

    def _cached(self) -> list[bytes]:
        return [key for key in self.seen if key.startswith(CACHE)]

    def _held(self) -> int:
        return sum(self.seen[key].size for key in self._cached())

    @invariant()
    def the_cache_keeps_to_its_room_and_says_what_it_takes(self) -> None:
        if not hasattr(self, "store"):
            return
        found = cache_of(self.store)
        sizes = {key: self.seen[key].size for key in self._cached()}
        assert rows_of(self.store) == sizes
        assert (found.bytes, found.records) == (sum(sizes.values()), len(sizes))
        assert found.bytes <= found.max_bytes == LIMIT.max_bytes

    @invariant()
    def the_digest_is_that_of_what_the_events_left(self) -> None:
        if not hasattr(self, "store"):
            return
        whole = SetHash()
        for key, (at, value, _) in self.seen.items():
            whole.replace(b"", record_hash(key, at[0], value))
        digest = self.store.engine.position().digest
        assert digest is not None
        assert digest_text(digest) == whole.hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_whatever_is_done_the_oldest_records_make_room_and_nothing_else_is_evicted() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        EvictionModel, settings=settings(max_examples=examples(8), stateful_step_count=40)
    )


# ── what is evicted, and when ────────────────────────────────────────────────────────────────────


def test_the_oldest_goes_in_a_revision_right_after_the_write_as_if_its_time_had_come(
    open_store: OpenStore,
) -> None:
    store = open_store(eviction=LIMIT)
    for number in range(3):
        store.write("put", b"cache/%d" % number, value=b"x" * 500)
    store.write("touch", b"cache/0", ttl_ms=10**6)
    store.feed.clear()
    head = store.write("put", b"seen/a", value=b"x" * 500, author="ann", message="new")["revision"]
    stored, gone = store.feed
    assert (stored.op, stored.key, stored.revision, stored.count) == ("put", b"seen/a", head, 1)
    assert (gone.op, gone.key, gone.revision, gone.count) == ("expire", b"cache/1", head + 1, 1)
    assert gone.previous is not None
    assert (gone.previous.value, gone.previous.expires_at) == (b"x" * 500, None)
    assert (gone.author, gone.message) == ("", "")
    assert store.log(since=head).events == [gone]
    assert store.history(b"cache/1").events[0] == gone
    assert store.keys() == [b"cache/0", b"cache/2", b"seen/a"]
    assert (cache_of(store).evicted_records, cache_of(store).evicted_bytes) == (1, 609)


def test_reads_do_not_make_a_record_younger_and_other_prefixes_count_for_nothing(
    open_store: OpenStore,
) -> None:
    store = open_store(eviction=LIMIT)
    store.write("put", b"plain", value=b"x" * 10_000)
    for number in range(4):
        store.write("put", b"cache/%d" % number, value=b"x" * 500)
        store.get(b"cache/0")
    assert store.keys() == [b"cache/1", b"cache/2", b"cache/3", b"plain"]


def test_conditions_are_those_of_before_and_what_an_atomic_request_writes_stays(
    open_store: OpenStore,
) -> None:
    store = open_store(eviction=LIMIT)
    old = store.write("put", b"cache/old", value=b"x" * 500)["revision"]
    store.write("put", b"cache/mid", value=b"x" * 500)
    store.atomic(
        Write("check", b"cache/old", if_revision=old), put(b"cache/a"), put(b"cache/b", if_revision=0)
    )
    assert store.keys() == [b"cache/a", b"cache/b", b"cache/mid"]
    # the oldest is written itself: it keeps its version, and another goes
    store.write("put", b"cache/mid", value=b"x" * 900)
    record = store.get(b"cache/mid")
    assert record is not None
    assert record.version == 2
    assert store.keys() == [b"cache/b", b"cache/mid"]
    with refused("request_too_large") as caught:
        store.atomic(*[put(b"cache/%d" % number) for number in range(4)])
    assert "--evict-bytes" in caught.value.message
    assert caught.value.details["limit"] == LIMIT.max_bytes
    assert store.keys() == [b"cache/b", b"cache/mid"]


def test_a_value_that_could_not_stay_is_refused_and_evicts_nothing(open_store: OpenStore) -> None:
    store = open_store(eviction=LIMIT)
    store.write("put", b"cache/a", value=b"x" * 500)
    with refused("value_too_large") as caught:
        store.write("put", b"cache/b", value=b"x" * 2000)
    assert "'cache/', 'seen/'" in caught.value.message
    assert store.keys() == [b"cache/a"]
    store.write("put", b"elsewhere", value=b"x" * 2000)


def test_one_request_evicts_so_many_and_the_rest_goes_in_steps(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "MOST_EVICTED", 20)
    monkeypatch.setattr(eviction, "STEP_RECORDS", 7)
    store = open_store(eviction=EvictionLimit(CACHE, 20_000))
    store.submit(WriteRequest([put(b"cache/%03d" % number, 0) for number in range(170)]))
    store.feed.clear()
    store.write("put", b"cache/large", value=b"x" * 15_000)
    assert [event.op for event in store.feed] == ["put"] + ["expire"] * 20
    assert cache_of(store).bytes > 20_000
    shrunk(store)
    counts = {event.revision: event.count for event in store.feed[21:]}
    assert max(counts.values()) == 7
    assert [event.key for event in store.feed[1:]] == [
        b"cache/%03d" % number for number in range(len(store.feed) - 1)
    ]
    assert cache_of(store).bytes > 20_000 - 200


# ── what is there when the store is opened ───────────────────────────────────────────────────────


def test_a_lower_limit_takes_effect_in_steps_and_writes_are_answered_in_between(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "STEP_RECORDS", 7)
    store = open_store(eviction=EvictionLimit(CACHE, MIB))
    store.submit(WriteRequest([put(b"cache/%03d" % number) for number in range(200)]))
    before = cache_of(store)
    store.engine.close()
    store = open_store(eviction=LIMIT)
    assert cache_of(store) == before._replace(max_bytes=LIMIT.max_bytes)
    store.write("put", b"cache/new", value=b"x" * 500)
    # it makes twice the room that it takes, and does not wait for the rest
    assert [event.key for event in store.feed] == [b"cache/new", b"cache/000", b"cache/001"]
    shrunk(store)
    assert store.keys() == [b"cache/198", b"cache/199", b"cache/new"]


def test_what_was_evicted_before_stays_so_and_other_prefixes_find_their_records(
    open_store: OpenStore,
) -> None:
    store = open_store()
    for number in range(30):
        store.write("put", b"%s/%d" % (b"seen" if number % 3 else b"other", number), value=b"x" * 500)
    assert store.engine.statistics().eviction is None
    store.engine.close()
    store = open_store(eviction=EvictionLimit((b"seen/",), 6_100))
    shrunk(store)
    assert sorted(store.keys()) == sorted(
        [b"other/%d" % number for number in range(0, 30, 3)]
        + [b"seen/%d" % number for number in range(15, 30) if number % 3]
    )
    store.engine.close()
    store = open_store(eviction=EvictionLimit((b"other/",), 1_250))
    shrunk(store)
    keys = store.keys()
    assert keys[:2] == [b"other/24", b"other/27"]
    assert len(keys) == 12


# ── room ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [100, 1_200, 2_100, 5_000])
def test_what_a_record_is_said_to_take_is_what_it_takes_of_the_file(open_store: OpenStore, size: int) -> None:
    store = open_store(sync="none", eviction=EvictionLimit(CACHE, 1 << 30))
    store.submit(WriteRequest([put(b"cache/%05d" % number, size) for number in range(1_000)]))
    said = cache_of(store).bytes
    store.engine.close()
    store = open_store(eviction=EvictionLimit(CACHE, 1 << 30))
    assert cache_of(store).bytes == said
    taken = store.engine.statistics().data_bytes
    assert 0.6 * taken < said <= taken


@pytest.mark.parametrize("ticks", [True, False], ids=["idle", "asked all the time"])
def test_a_full_store_evicts_until_it_takes_writes_again(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, ticks: bool
) -> None:
    monkeypatch.setattr(eviction, "FULL_SECONDS", 0.0)
    store = open_store(
        max_store_bytes=8 * MIB,
        retention=Retention(10, MIB, 10**9),
        eviction=EvictionLimit(CACHE, 4 * MIB),
    )
    for number in range(35):
        store.write("put", b"cache/%d" % number, value=os.urandom(100_000))
    fill(store)

    def takes_writes() -> bool:
        if ticks:
            store.engine.trim()
        (answer,) = store.submit(WriteRequest([put(b"new")]))
        return not isinstance((answer.results or [answer.error])[0], KvError)

    wait_until(takes_writes, what="the store takes writes", every=0.001)
    assert cache_of(store).evicted_records > 0
    assert cache_of(store).records > 0


def test_a_full_store_takes_its_time_to_evict(open_store: OpenStore) -> None:
    store = open_store(
        max_store_bytes=8 * MIB,
        retention=Retention(10, MIB, 10**9),
        eviction=EvictionLimit(CACHE, 4 * MIB),
    )
    store.submit(WriteRequest([put(b"cache/%04d" % number, 900) for number in range(3_000)]))
    fill(store)
    began = time.monotonic()
    for _ in range(20):
        store.submit(WriteRequest([put(b"new")]))
    steps = 2 + (time.monotonic() - began) / eviction.FULL_SECONDS
    assert 0 < cache_of(store).evicted_bytes <= steps * (4 * MIB / 64 + 1_100)


def test_entries_of_records_that_were_written_again_do_not_gather(open_store: OpenStore) -> None:
    store = open_store(sync="none", eviction=EvictionLimit(CACHE, MIB))
    order: eviction.EvictionOrder = store.engine._planner._order  # type: ignore[attr-defined]
    for number in range(12):
        store.submit(WriteRequest([put(b"cache/%d" % key, 10) for key in range(1 + number % 3, 1_000)]))
    assert order._entries() < 4_000
    assert cache_of(store).records == 999


def test_what_could_not_be_written_has_evicted_nothing(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(eviction=LIMIT)
    for number in range(3):
        store.write("put", b"cache/%d" % number, value=b"x" * 500)
    before = cache_of(store)
    write = os.pwrite

    def pwrite(file: int, data: bytes, at: int) -> int:
        if b"cache/new" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data, at)

    monkeypatch.setattr(f"{PLACE}.pwrite", pwrite)
    for _ in range(3):
        with refused("store_full"):
            store.write("put", b"cache/new", value=b"x" * 900)
        assert cache_of(store) == before
    monkeypatch.undo()
    store.write("put", b"cache/next", value=b"x" * 500)
    assert store.keys() == [b"cache/1", b"cache/2", b"cache/next"]
    store.write("put", b"cache/new", value=b"x" * 900)
    assert store.keys() == [b"cache/new", b"cache/next"]
