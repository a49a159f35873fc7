"""Whatever etcd says, in whatever pieces it comes: the mirror has it, and so has one that is made later."""

from __future__ import annotations

import tempfile
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from kvstore_core.digest import MODULUS, SetHash, record_hash
from kvstore_core.errors import KvError
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE
from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.layout import Gone, ReplyRow
from kvstore_daemon.storage.etcd_store.mirroring import digest
from kvstore_daemon.storage.etcd_store.mirroring.kept_replies import KeptReply
from kvstore_daemon.storage.etcd_store.mirroring.mirror import EtcdMirror
from kvstore_daemon.storage.etcd_store.mirroring.mirror_transaction import LastNumber
from kvstore_daemon.storage.interface import EventFilter, EventPage, LogPosition, StoredEvent, StoredRecord
from support.engine_store import refused
from support.lengths import examples
from support.mirrored import EPOCH, NAMES, T0, Etcd, mirror_in, reads_of, record

pytestmark = pytest.mark.slow

KEYS = [b"a", b"a/b", b"b", "ü".encode(), b"z" * 511]
NOT_KEYS = [b"", b"\xff", b"a\0", b"y" * 512]
CLIENTS = ["c1", "c2", "x" * 600]
MIB = 1 << 20
LARGE = b"large"
"""Stands for a value that takes pages of its own."""


class Seen(NamedTuple):
    """What must be told of an event, wherever it is read."""

    op: str
    key: bytes
    revision: int
    index: int
    count: int
    time: int
    record: StoredRecord | None
    previous_revision: int
    author: str
    message: str

    @classmethod
    def of(cls, event: StoredEvent) -> Seen:
        return cls(
            event.op,
            event.key,
            event.revision,
            event.index,
            event.count,
            event.time,
            event.record,
            event.previous_revision,
            event.author,
            event.message,
        )


class Model:
    """What a mirror of ``etcd`` must hold, kept while transactions are made."""

    def __init__(self) -> None:
        self.etcd = Etcd()
        self.records: dict[bytes, StoredRecord] = {}
        self.events: list[Seen] = []
        self.replies: dict[str, tuple[int, list[ReplyRow]]] = {}
        self.floor = 0
        self.number = LastNumber()
        self.time = 0
        self.floors = [(1, 0)]
        """The revisions at which the floor moved, and where to."""

    @property
    def head(self) -> int:
        return self.events[-1].revision if self.events else 0

    def commit(
        self,
        puts: dict[bytes, StoredRecord],
        deletes: dict[bytes, Gone],
        others: dict[bytes, bytes],
        skip: int,
    ) -> int:
        """What a daemon commits."""
        self.time = T0 + 10 * self.etcd.revision
        puts = {
            key: put._replace(value=LARGE * 1000) if put.value == LARGE else put for key, put in puts.items()
        }
        there = [key for key in deletes if key in self.records]
        head = layout.Head(self.time, "n", self.etcd.revision, tuple(deletes[key] for key in there))
        values = {NAMES.of_key(key): layout.encode_record(put) for key, put in puts.items()}
        values |= {NAMES.head: layout.encode_head(head), **others}
        if len(puts) > 1:
            values[NAMES.number] = b"%d" % (7 * self.etcd.revision)
        revision = self.etcd.txn(values, tuple(map(NAMES.of_key, there)), skip)
        if NAMES.number in values:
            self.number = LastNumber(int(values[NAMES.number]), revision)
        self._see(revision, puts, {key: deletes[key] for key in there})
        return revision

    def meddle(self, puts: dict[bytes, bytes], deletes: list[bytes], skip: int) -> None:
        """What another program commits."""
        there = [key for key in deletes if NAMES.of_key(key) in self.etcd.now and key not in puts]
        if not puts and not there:
            return
        values = {NAMES.of_key(key): value for key, value in puts.items()}
        revision = self.etcd.txn(values, tuple(map(NAMES.of_key, there)), skip)
        records = {
            key: StoredRecord(value, DEFAULT_CONTENT_TYPE, 0, 0, 1, self.time, None)
            for key, value in puts.items()
            if key in KEYS
        }
        self._see(revision, records, {key: Gone("delete") for key in there if key in KEYS})

    def _see(self, revision: int, puts: dict[bytes, StoredRecord], deletes: dict[bytes, Gone]) -> None:
        count, time = len(puts) + len(deletes), self.time
        for index, (key, gone) in enumerate(deletes.items()):
            old = self.records.pop(key)
            event = Seen(gone.op, key, revision, index, count, time, None, old.revision, gone[1], gone[2])
            self.events.append(event)
        for index, (key, put) in enumerate(puts.items(), len(deletes)):
            was = self.records.get(key)
            created, before = (revision, 0) if was is None else (was.create_revision, was.revision)
            new = self.records[key] = put._replace(revision=revision, create_revision=created)
            self.events.append(
                Seen("put", key, revision, index, count, time, new, before, put.author, put.message)
            )

    def request(self, client: str, seq: int, parts: range) -> None:
        """A numbered request of three writes, or as much of it as is left: no part is committed twice."""
        _, kept = self.replies.get(client, (0, []))
        done = kept[-1].first if kept and kept[-1].seq == seq else -1
        for first in parts:
            if first > done:
                self._reply(client, seq, first, 3)

    def _reply(self, client: str, seq: int, first: int, total: int) -> None:
        row = ReplyRow(seq, seq + 1, first, total, [{"revision": 0, "n": first}], None)
        revision = self.commit({}, {}, {NAMES.of_reply(client): layout.encode_reply(row)}, 0)
        _, parts = self.replies.get(client, (0, []))
        same = first and parts and (parts[-1].seq, parts[-1].total) == (seq, total)
        filled = row._replace(results=[{"revision": revision, "n": first}])
        self.replies[client] = revision, [*(parts if same else []), filled]

    def forget(self, client: str) -> None:
        """A reply whose lease is over."""
        if self.replies.pop(client, None):
            self.etcd.txn({}, (NAMES.of_reply(client),))

    def trim(self, share: float) -> None:
        """Move the floor to some event."""
        if not self.events:
            return
        self.floor = max(self.floor, self.events[int(share * (len(self.events) - 1))].revision)
        revision = self.etcd.txn({NAMES.floor: b"%d" % self.floor})
        self.floors.append((revision, self.floor))


REVISIONS = st.integers(0, 3)
RECORDS = st.builds(
    StoredRecord,
    st.binary(max_size=20) | st.just(LARGE),
    st.sampled_from(["text/plain", "a/b"]),
    st.just(0),
    st.just(0),
    st.integers(1, 9),
    st.integers(T0, T0 + 9),
    st.none() | st.integers(T0 - 5, T0 + 5),
    st.sampled_from(["", "ann", "zoë"]),
    st.sampled_from(["", "why not"]),
)
GONE = st.builds(Gone, st.sampled_from(["delete", "expire"]), st.sampled_from(["", "ann"]), st.just(""))
SOME_KEYS = st.sampled_from(KEYS)
STEPS = st.one_of(
    st.tuples(
        st.just("commit"),
        st.dictionaries(SOME_KEYS, RECORDS, max_size=3),
        st.dictionaries(SOME_KEYS, GONE, max_size=2),
        REVISIONS,
    ),
    st.tuples(
        st.just("meddle"),
        st.dictionaries(
            st.sampled_from(KEYS + NOT_KEYS), st.sampled_from([b"", b"raw", record()[:9]]), max_size=2
        ),
        st.lists(st.sampled_from(KEYS + NOT_KEYS), unique=True, max_size=2),
        REVISIONS,
    ),
    st.tuples(
        st.just("request"),
        st.sampled_from(CLIENTS),
        st.integers(0, 1),
        st.builds(range, st.integers(0, 1), st.integers(1, 3)),
    ),
    st.tuples(st.just("forget"), st.sampled_from(CLIENTS)),
    st.tuples(st.just("trim"), st.sampled_from([0.0, 0.5, 1.0])),
)


def _play(model: Model, steps: list[tuple]) -> None:
    for name, *how in steps:
        if name == "commit":
            puts, deletes, skip = how
            model.commit(puts, {key: gone for key, gone in deletes.items() if key not in puts}, {}, skip)
        else:
            getattr(model, name)(*how)


def _masked(record: StoredRecord, base: int) -> StoredRecord:
    """Nobody knows any more when another program put what was there before the mirror was made."""
    is_old = record.content_type == DEFAULT_CONTENT_TYPE and record.revision <= base
    return record._replace(modified_at=0) if is_old else record


def check(mirror: EtcdMirror, model: Model, base: int) -> None:
    """The mirror, made at ``base``, has what the model has."""
    reads = reads_of(mirror)
    assert mirror.watched == model.etcd.revision
    with mirror.tables.env.begin() as txn:
        assert LastNumber.read(mirror.tables, txn) == model.number
    records = SetHash()
    for key, stored in model.records.items():
        records.replace(b"", record_hash(key, stored.revision, stored.value or b""))
    total = records.total % MODULUS
    assert reads.position() == LogPosition(EPOCH.decode(), model.floor, model.head, total)
    page = reads.range(b"", None, 100, values=True, max_bytes=MIB)
    assert [(key, _masked(found, base)) for key, found in page.items] == [
        (key, _masked(found, base)) for key, found in sorted(model.records.items())
    ]
    for key in KEYS:
        (found,), head = reads.read([key])
        wanted = model.records.get(key)
        assert not isinstance(found, KvError)
        assert (found and _masked(found, base), head) == (wanted and _masked(wanted, base), model.head)
    check_log(mirror, model, base)
    terms = [digest.term(key, found.revision) for key, found in model.records.items()]
    assert mirror.state.digest == sum(terms) % digest.MODULUS
    assert mirror.has_seen(model.etcd.now.get(NAMES.head))
    check_replies(mirror, model, base)


def check_log(mirror: EtcdMirror, model: Model, base: int) -> None:
    reads = reads_of(mirror)
    events = [event for event in model.events if event.revision > model.floor]
    page = reads.log(model.floor, EventFilter(), 1000, values=True, previous=True, max_bytes=MIB)
    assert isinstance(page, EventPage)
    assert list(map(Seen.of, page.events)) == events
    last = {event.key: event for event in model.events if event.revision <= model.floor}
    for found in page.events:
        before = last.get(found.key)
        if found.previous is not None:
            assert before is not None
            assert before.record is not None
            assert _masked(found.previous, base) == _masked(before.record, base)
        else:
            # who was there before the floor moved may know more
            assert found.op != "expire"
            assert found.previous_revision <= model.floor
        last[found.key] = Seen.of(found)
    for key in KEYS:
        of_key = [event for event in events if event.key == key]
        if of_key or key in model.records:
            history = reads.history(key, None, None, 100, values=True, max_bytes=MIB)
            assert list(map(Seen.of, history.events)) == of_key[::-1]
        else:
            with refused("not_found"):
                reads.history(key, None, None, 100, values=True, max_bytes=MIB)
    recent = reads.recent(b"", None, None, 1000, values=True, max_bytes=MIB)
    assert list(map(Seen.of, recent.events)) == events[::-1]


def check_replies(mirror: EtcdMirror, model: Model, base: int) -> None:
    with mirror.tables.snapshot() as txn:
        for client in CLIENTS[:2]:
            found = mirror.kept_reply(txn, client)
            if client not in model.replies:
                assert found is None
                continue
            revision, parts = model.replies[client]
            wanted = [None] * (parts[-1].first + 1)
            for part in parts:
                wanted[part.first] = part.results[0]
            assert found is not None
            # of what was put before its base, a mirror has the last part
            seen = [None if result is None else wanted[at] for at, result in enumerate(found.results)]
            assert found == KeptReply(revision, parts[-1].seq, parts[-1].seq + 1, parts[-1].total, seen, None)
            known = [part.first for part in parts if part.results[0]["revision"] > base]
            assert all(seen[at] is not None for at in (*known, parts[-1].first))


@settings(max_examples=examples(80))
@given(
    st.lists(STEPS, min_size=3, max_size=25),
    st.lists(STEPS, max_size=8),
    st.lists(st.integers(1, 9), max_size=5),
)
def test_a_mirror_has_what_etcd_has_however_it_came(
    steps: list[tuple], more: list[tuple], pieces: list[int]
) -> None:
    model = Model()
    _play(model, steps)
    with tempfile.TemporaryDirectory() as folder:
        watching, late = Path(folder) / "watching", Path(folder) / "late"
        with mirror_in(watching, wall=lambda: 0) as mirror:
            mirror.replace(1, 1, model.etcd.at(1), [])
        events: list[StoredEvent] = []
        revisions = model.etcd.revisions
        for begin, end in pairwise([*accumulate(pieces, initial=0), sum(pieces) + len(revisions)]):
            with mirror_in(watching, wall=lambda: 0) as mirror:
                # one that was seen before comes again after a reconnect
                middle = (begin + end) // 2
                events += mirror.apply(revisions[max(0, begin - 1) : middle])
                events += mirror.apply(revisions[middle:end])
        assert list(map(Seen.of, events)) == model.events
        with mirror_in(watching, wall=lambda: 0) as one, mirror_in(late, wall=lambda: 0) as other:
            check(one, model, 1)
            base = max(1, model.floor)
            revisions = model.etcd.after(base)
            half = len(revisions) // 2
            position = other.replace(1, base, model.etcd.at(base), [revisions[:half], revisions[half:]])
            assert position == reads_of(other).position() == reads_of(one).position()
            check(other, model, base)
            before = len(model.etcd.revisions)
            _play(model, more)
            for mirror in (one, other):
                mirror.apply(model.etcd.revisions[before:])
            check(one, model, 1)
            check(other, model, base)
            note("a copy in place of what was there")
            base = max(1, model.floor)
            one.replace(1, base, model.etcd.at(base), [model.etcd.after(base)])
            check(one, model, base)
