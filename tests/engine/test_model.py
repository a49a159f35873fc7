"""The engine against a plain dict, over all operations, with random steps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from kvstore_core.digest import SetHash, digest_text, record_hash
from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import EventFilter, Retention, StoredEvent, Write, WriteRequest
from support.engine_store import LMDB, EngineKind, FakeClock, Store, opened, refused
from support.lengths import examples

pytestmark = pytest.mark.slow

KEYS = st.sampled_from([b"a", b"a/", b"a/b", b"a/c", b"b", "ü".encode(), b"z" * 511])
VALUES = st.one_of(st.binary(max_size=40), st.integers(-(10**6), 10**6).map(lambda n: b"%d" % n))
AUTHORS, MESSAGES = st.sampled_from(["", "ann", "zoë"]), st.sampled_from(["", "why not", "ü" * 100])
TTLS = st.none() | st.integers(1, 5000)
AS_IT_IS = b"as it is now"


class Entry(NamedTuple):
    value: bytes
    revision: int
    create_revision: int
    version: int
    expires_at: int | None
    author: str
    message: str


class EngineModel(RuleBasedStateMachine):
    """``self.model`` is what the store must hold; ``self.replica`` is built from the feed alone."""

    kind: EngineKind

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.model: dict[bytes, Entry] = {}
        self.replica: dict[bytes, tuple[int, bytes]] = {}
        self.head = 0
        self.last_numbered = b""
        self.fed: list[tuple[int, int]] = []
        self.seq = 0
        self.store = self._open()

    def _open(self) -> Store:
        data = Path(self.folder.name) / "data"
        return opened(data, self.clock, kind=self.kind, sync="none", retention=Retention(40, 1 << 30, 10**9))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            faults = self.store.faults()
            self.store.engine.close()
            self.folder.cleanup()
            assert not faults

    # ── the model ────────────────────────────────────────────────────────────────────────────────

    def _bury(self) -> None:
        """Forget what has expired: from then on it is as if it had been deleted."""
        self.model = {
            key: entry
            for key, entry in self.model.items()
            if entry.expires_at is None or entry.expires_at > self.clock.now
        }

    def _expect(self, write: Write) -> Entry | str | None:
        """The entry that the write leaves (None: none), or the code with which it fails."""
        old = self.model.get(write.key)
        if not self._is_as_wanted(write, old):
            return "condition_failed"
        if write.op == "check":
            return old
        if write.op == "put":
            expires_at = None if write.ttl_ms is None else self.clock.now + write.ttl_ms
            return self._next(write, write.value, old, expires_at)
        if write.op == "incr":
            return self._expect_incr(write, old)
        if old is None:
            return "not_found"
        if write.op == "delete":
            return None
        if write.op == "touch":
            return self._again(write, old, self.clock.now + (write.ttl_ms or 0))
        return old if old.expires_at is None else self._again(write, old, None)

    def _is_as_wanted(self, write: Write, old: Entry | None) -> bool:
        if write.if_revision is not None:
            return write.if_revision == (old.revision if old else 0)
        if write.if_value is not None:
            return old is not None and old.value == write.if_value
        return old is not None or not write.must_exist

    def _next(self, write: Write, value: bytes, old: Entry | None, expires_at: int | None) -> Entry:
        version, created = (old.version + 1, old.create_revision) if old else (1, -1)
        return Entry(value, -1, created, version, expires_at, write.author, write.message)

    def _again(self, write: Write, old: Entry, expires_at: int | None) -> Entry:
        return old._replace(revision=-1, expires_at=expires_at, author=write.author, message=write.message)

    def _expect_incr(self, write: Write, old: Entry | None) -> Entry | str:
        if old is None:
            return self._next(write, b"%d" % write.by, None, None)
        digits = old.value.removeprefix(b"-")
        if not digits.isdigit() or len(digits) > 19:
            return "not_an_integer"
        return self._next(write, b"%d" % (int(old.value) + write.by), old, old.expires_at)

    def _take(self, key: bytes, entry: Entry | None, revision: int) -> None:
        if entry is None:
            self.model.pop(key, None)
            return
        created = revision if entry.create_revision == -1 else entry.create_revision
        at = revision if entry.revision == -1 else entry.revision
        self.model[key] = entry._replace(revision=at, create_revision=created)

    # ── the steps ────────────────────────────────────────────────────────────────────────────────

    @st.composite
    @staticmethod
    def writes(draw: st.DrawFn) -> Write:
        op = draw(st.sampled_from(["put", "put", "put", "delete", "incr", "touch", "persist", "check"]))
        ttl = draw(st.integers(1, 5000)) if op == "touch" else draw(TTLS) if op == "put" else None
        write = Write(op, draw(KEYS), draw(VALUES), "t/t", ttl, None, draw(st.integers(-9, 9)))
        write = write._replace(author=draw(AUTHORS), message=draw(MESSAGES))
        condition: dict[str, Any] = draw(
            st.fixed_dictionaries({"if_revision": st.integers(0, 8) | st.just(-1)})
            | st.fixed_dictionaries({"if_value": VALUES | st.just(AS_IT_IS)})
            | st.just({"must_exist": True} if op == "check" else {})
        )
        return write._replace(**condition)

    def _aim(self, write: Write) -> Write:
        """Turn the condition -1, or AS_IT_IS, into "as it is now", so that conditions often hold."""
        old = self.model.get(write.key)
        if write.if_value == AS_IT_IS:
            return write._replace(if_value=b"none" if old is None else old.value)
        return write._replace(if_revision=old.revision if old else 0) if write.if_revision == -1 else write

    @rule(write=writes())
    def one(self, write: Write) -> None:
        self._bury()
        write = self._aim(write)
        expected = self._expect(write)
        if isinstance(expected, str):
            with refused(expected):
                self.store.write(**write._asdict())
            return
        result = self.store.write(**write._asdict())
        if write.op == "check":
            assert result == {"revision": expected.revision if expected else 0}
        else:
            self._take(write.key, expected, result["revision"])

    @rule(
        writes=st.lists(writes(), min_size=1, max_size=5, unique_by=lambda write: write.key),
        checks=st.lists(writes().filter(lambda write: write.op == "check"), max_size=2),
    )
    def atomic(self, writes: list[Write], checks: list[Write]) -> None:
        """What the checks say is of the keys as they were before, also of those that are written."""
        self._bury()
        writes = [self._aim(write) for write in (*writes, *checks)]
        expected = [self._expect(write) for write in writes]
        codes = [(index, code) for index, code in enumerate(expected) if isinstance(code, str)]
        if codes:
            with refused(codes[0][1]) as caught:
                self.store.atomic(*writes)
            assert caught.value.details["op"] == codes[0][0]
            return
        results = self.store.atomic(*writes)
        for write, entry, result in zip(writes, expected, results, strict=True):
            assert not isinstance(entry, str)
            if write.op == "check":
                assert result == {"revision": entry.revision if entry else 0}
            else:
                self._take(write.key, entry, result["revision"])

    @rule(count=st.integers(1, 3), atomic=st.booleans(), value=VALUES)
    def numbered(self, count: int, atomic: bool, value: bytes) -> None:
        self._bury()
        write = Write("put", b"a/", value, "t/t", sequence=True)
        if atomic:
            results = self.store.atomic(*[write] * count)
        else:
            results = [self.store.write(**write._asdict()) for _ in range(count)]
        for result in results:
            key = result["key"].encode()
            assert key not in self.model
            assert key > self.last_numbered
            self.last_numbered = key
            self._take(key, self._next(write, value, None, None), result["revision"])

    @rule(prefix=st.sampled_from([b"a", b"a/", b"z"]), limit=st.integers(1, 3))
    def delete_prefix(self, prefix: bytes, limit: int) -> None:
        self._bury()
        stored = sorted(key for key in {*self.model, *self._unburied()} if key.startswith(prefix))
        result = self.store.write("delete_prefix", prefix, limit=limit)
        gone = [key for key in stored[:limit] if key in self.model]
        assert result["deleted"] == len(gone)
        assert result["more"] == (len(stored) > limit)
        for key in gone:
            del self.model[key]

    def _unburied(self) -> list[bytes]:
        return [key for key, _ in self.store.engine.due(1000)[0]]

    @rule(key=KEYS)
    def repeated(self, key: bytes) -> None:
        self._bury()
        self.seq += 1
        request = WriteRequest([Write("incr", key)], client="c", seq=self.seq)
        expected = self._expect(request.writes[0])
        (first,), (second,) = self.store.submit(request), self.store.submit(request)
        assert first.results is not None
        assert second.results is not None
        if isinstance(first.results[0], KvError):
            assert isinstance(second.results[0], KvError)
            assert first.results[0].code == second.results[0].code == expected
            return
        assert first.results == second.results
        assert not isinstance(expected, str)
        self._take(key, expected, first.results[0]["revision"])

    @rule(milliseconds=st.integers(1, 4000))
    def wait(self, milliseconds: int) -> None:
        self.clock.now += milliseconds

    @rule()
    def expire(self) -> None:
        self.store.expire_due()
        self._bury()

    @rule()
    def reopen(self) -> None:
        feed = self.store.feed
        self.store.engine.close()
        self.store = self._open()
        self.store.feed = feed

    # ── what must hold after every step ──────────────────────────────────────────────────────────

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "store"):
            return
        self._bury()
        page = self.store.engine.range(b"", None, 1000, values=True, max_bytes=1 << 20)
        found: dict[bytes, Any] = {
            key: Entry(
                s.value or b"", s.revision, s.create_revision, s.version, s.expires_at, s.author, s.message
            )
            for key, s in page.items
        }
        assert found == self.model
        assert list(found) == sorted(found)
        assert self.store.engine.count(b"", None).total == len(self.model)

    @invariant()
    def the_feed_is_ordered_whole_and_rebuilds_the_store(self) -> None:
        if not hasattr(self, "store"):
            return
        expected_index = 0
        for change in self.store.feed:
            assert change.index == expected_index
            if change.index == 0:
                assert change.revision > self.head
            self.head = change.revision
            expected_index = (change.index + 1) % change.count
            if change.record is None:
                self.replica.pop(change.key)
            else:
                assert (change.author, change.message) == (change.record.author, change.record.message)
                self.replica[change.key] = (change.revision, change.record.value or b"")
            assert change.digest is not None
            if not expected_index:
                assert digest_text(change.digest) == digest_of(self.replica)
        assert expected_index == 0
        self.fed += _ids(self.store.feed)
        self.store.feed = []
        live = {key: value for key, (_, value) in self.replica.items() if key in self.model}
        assert live == {key: entry.value for key, entry in self.model.items()}
        self._check_digests()

    def _check_digests(self) -> None:
        """They are those of what the feed left, expired records included."""
        engine = self.store.engine
        for begin in (b"", b"a", b"a/"):
            end = begin[:-1] + bytes((begin[-1] + 1,)) if begin else None
            part = {key: entry for key, entry in self.replica.items() if key.startswith(begin)}
            found = engine.digest(begin, end)
            assert (digest_text(found.digest), found.records) == (digest_of(part), len(part))
            assert (found.next_key, found.revision) == (None, self.head)
        whole = engine.position().digest
        assert whole is not None
        assert digest_text(whole) == digest_of(self.replica)

    @invariant()
    def the_log_has_what_was_fed_above_its_floor(self) -> None:
        if not hasattr(self, "store"):
            return
        position = self.store.engine.position()
        page = self.store.log(since=position.floor)
        fed = self.fed + _ids(self.store.feed)
        assert _ids(page.events) == [at for at in fed if at[0] > position.floor]
        assert page.next_revision == position.head
        assert self.store.log(since=position.head, wanted=EventFilter()).events == []


def digest_of(records: dict[bytes, tuple[int, bytes]]) -> str:
    """Added up from nothing."""
    found = SetHash()
    for key, (revision, value) in records.items():
        found.replace(b"", record_hash(key, revision, value))
    return found.hexdigest()


def _ids(events: list[StoredEvent]) -> list[tuple[int, int]]:
    return [(event.revision, event.index) for event in events]


@pytest.mark.timeout(300)
def test_an_engine_does_what_the_model_does(engine_kind: EngineKind) -> None:
    class Model(EngineModel):
        kind = engine_kind

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Model,
        settings=settings(max_examples=examples(15 if engine_kind is LMDB else 4), stateful_step_count=40),
    )
