"""What etcd's revisions change in a mirror, within one LMDB transaction."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import lmdb

from kvstore_core.limits import MAX_KEY_BYTES
from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.layout import Gone, Names
from kvstore_daemon.storage.etcd_store.mirroring import digest, kept_replies
from kvstore_daemon.storage.etcd_store.mirroring.revisions import Change, KeyValue, Revision
from kvstore_daemon.storage.interface import StoredEvent, StoredRecord
from kvstore_daemon.storage.lmdb_store.row_format import LogCounters
from kvstore_daemon.storage.lmdb_store.tables import Tables
from kvstore_daemon.storage.lmdb_store.write_transaction import WriteTransaction

log = logging.getLogger("kvstore.daemon")

_FORM = 2
# form, cluster, watched, digest, revision of head, its sum, its time; then the prefix
_STATE = struct.Struct(">BQQQQQQ")
# of the last number: the number, and the revision of etcd that put it
_NUMBER = struct.Struct(">QQ")
# how many revisions back a digest of another daemon can be compared with
_KEPT_DIGESTS = 4096
_DELETED = Gone("delete")


class LastNumber(NamedTuple):
    """The last number that was given to a key which numbers itself, and the revision of etcd that says so;
    zeros where none was."""

    number: int = 0
    revision: int = 0

    @classmethod
    def read(cls, tables: Tables, txn: lmdb.Transaction[Any]) -> LastNumber:
        """What the mirror has of it, as ``txn`` sees it."""
        row = txn.get(b"number", db=tables.meta)
        return cls() if row is None else cls(*_NUMBER.unpack(row))


class UnfitError(Exception):
    """The mirror cannot be continued with what came, and must be made new."""


class MirrorState(NamedTuple):
    """How far a mirror is. ``watched`` is the last revision of etcd that is in it, ``cluster`` the id of that
    etcd, ``head_sum`` tells one value of ``head`` from another."""

    cluster: int = 0
    watched: int = 0
    digest: int = 0
    head_revision: int = 0
    head_sum: int = 0
    head_time: int = 0

    def encode(self, prefix: bytes) -> bytes:
        """The row of a mirror of the store below ``prefix``."""
        return _STATE.pack(_FORM, *self) + prefix

    @classmethod
    def decode(cls, data: bytes, prefix: bytes) -> MirrorState | None:
        """What :meth:`encode` wrote; None if it was in another form or for another prefix."""
        if len(data) < _STATE.size or data[_STATE.size :] != prefix:
            return None
        form, *fields = _STATE.unpack_from(data)
        return cls(*fields) if form == _FORM else None


class Digests:
    """The digests of the last revisions, and what other daemons said of theirs."""

    def __init__(self) -> None:
        self._of: dict[int, int] = {}
        self.differing: str | None = None
        """A node whose mirror was found to differ from this one, and nothing was done about it yet."""

    def begin(self) -> None:
        """Another history begins, or another copy."""
        self._of.clear()
        self.differing = None

    def keep(self, revision: int, value: int) -> None:
        """Remember the digest at a revision."""
        if len(self._of) >= _KEPT_DIGESTS:
            del self._of[next(iter(self._of))]
        self._of[revision] = value

    def compare(self, head: layout.Head) -> None:
        """Look whether the writer of ``head`` had the same digest."""
        if head.digest_at and self._of.get(head.digest_at, head.digest) != head.digest:
            self.differing = head.node


class MirrorTransaction:
    """Changes that readers see all at once, when ``txn`` commits after :meth:`finish`, or never."""

    def __init__(
        self,
        names: Names,
        tables: Tables,
        replies: Any,
        txn: lmdb.Transaction[bytes],
        counters: LogCounters,
        state: MirrorState,
        digests: Digests,
    ) -> None:
        self._names = names
        self._tables = tables
        self._replies = replies
        self._txn = txn
        self._digests = digests
        self._epoch = tables.epoch_of(txn)
        self._cluster, self._watched, self._digest, *head = state
        self._head_revision, self._head_sum, self._time = head
        self._write = WriteTransaction(tables, txn, counters, 0)

    def add_all(self, revisions: Sequence[Revision]) -> list[StoredEvent]:
        """Take in revisions, each unless it is there already. Returns their events. Raises UnfitError."""
        for revision in revisions:
            if revision.revision > self._watched:
                self._add(revision)
        return self._write.events

    def skip_to(self, revision: int, clients: Iterable[bytes]) -> None:
        """Go on from ``revision``, up to which nothing was changed but replies forgotten: those of all others
        than ``clients``."""
        kept = {client: row for client in clients if (row := self._txn.get(client, db=self._replies))}
        self._txn.drop(self._replies, delete=False)
        for client, row in kept.items():
            self._txn.put(client, row, db=self._replies)
        self._watched = revision
        self._digests.keep(revision, self._digest % digest.MODULUS)

    def finish(self) -> tuple[MirrorState, LogCounters]:
        """Write what changes with every transaction; call it last, right before the commit."""
        digest_now = self._digest % digest.MODULUS
        head = (self._head_revision, self._head_sum, self._time)
        state = MirrorState(self._cluster, self._watched, digest_now, *head)
        self._txn.put(b"mirror", state.encode(self._names.all), db=self._tables.meta)
        return state, self._write.finish()

    # ── revisions ────────────────────────────────────────────────────────────────────────────────

    def _add(self, revision: Revision) -> None:
        number, changes = revision
        prefix = self._names.keys
        start = len(prefix)
        of_users: list[tuple[bytes, Change]] = []
        gone: tuple[Gone, ...] = ()
        for change in changes:
            name = change.kv.key
            if name.startswith(prefix):
                key = name[start:]
                if is_key(key):
                    of_users.append((key, change))
            elif name == self._names.head:
                gone = self._see_head(change)
            else:
                self._add_other(change)
        if of_users:
            self._add_events(number, of_users, gone)
        self._watched = number
        self._digests.keep(number, self._digest % digest.MODULUS)

    def _add_events(self, revision: int, changes: list[tuple[bytes, Change]], gone: tuple[Gone, ...]) -> None:
        reasons, count, time = iter(gone), len(changes), self._time
        for index, (key, change) in enumerate(changes):
            if change.is_put:
                self._put(key, change.kv, index, count, time)
            else:
                self._delete(key, revision, next(reasons, _DELETED), index, count, time)

    def _put(self, key: bytes, kv: KeyValue, index: int, count: int, time: int) -> None:
        _, value, created, revision = kv
        record = layout.decode_record(value, revision, created, time)
        current, before = self._current(key, value=False)
        before_revision = 0
        if current is not None:
            before_revision = current.revision
            self._digest -= digest.term(key, before_revision)
        if created != (revision if current is None else current.create_revision):
            raise UnfitError(f"the key {key!r} was made at revision {created}, and another is here")
        self._digest += digest.term(key, revision)
        event = StoredEvent(
            "put",
            key,
            revision,
            index,
            count,
            time,
            record,
            None,
            before_revision,
            record.author,
            record.message,
        )
        self._write.apply(event, current, before)

    def _delete(self, key: bytes, revision: int, gone: Gone, index: int, count: int, time: int) -> None:
        op, author, message = gone
        current, before = self._current(key, value=op == "expire")
        if current is None:
            raise UnfitError(f"the key {key!r} was deleted at revision {revision}, and is not here")
        self._digest -= digest.term(key, current.revision)
        previous = current if op == "expire" else None
        event = StoredEvent(
            op, key, revision, index, count, time, None, previous, current.revision, author, message
        )
        self._write.apply(event, current, before)

    def _current(self, key: bytes, *, value: bool) -> tuple[StoredRecord | None, bytes]:
        try:
            return self._write.current(key, value=value)
        except DamageError as damage:
            raise UnfitError(f"the record of {key!r} is damaged: {damage}") from damage

    def _see_head(self, change: Change) -> tuple[Gone, ...]:
        """Take in a change of ``head``; what it says of this revision's deletes."""
        if not change.is_put:
            self._head_revision = self._head_sum = 0
            return ()
        value = change.kv.value
        self._head_revision, self._head_sum = change.kv.mod_revision, sum_of(value)
        head = layout.decode_head(value)
        if head is None:
            return ()
        self._time = head.time
        self._digests.compare(head)
        return head.gone

    def _add_other(self, change: Change) -> None:
        name, value = change.kv[:2]
        client = self._names.client(name)
        if client is not None:
            self._see_reply(client.encode(), change)
        elif name == self._names.floor and change.is_put:
            self._write.trim_to(layout.decode_floor(value))
        elif name == self._names.number:
            self._see_number(change)
        elif name == self._names.epoch and value != self._epoch.encode():
            raise UnfitError("another history of the store has begun")

    def _see_number(self, change: Change) -> None:
        if change.is_put:
            row = _NUMBER.pack(layout.decode_number(change.kv.value), change.kv.mod_revision)
            self._txn.put(b"number", row, db=self._tables.meta)
        else:
            self._txn.delete(b"number", db=self._tables.meta)

    def _see_reply(self, client: bytes, change: Change) -> None:
        if not is_client(client):
            return
        if not change.is_put:
            self._txn.delete(client, db=self._replies)
            return
        before = self._txn.get(client, db=self._replies)
        row = kept_replies.row_with(before, change.kv.value, change.kv.mod_revision)
        self._txn.put(client, row, db=self._replies)

    # ── a copy ───────────────────────────────────────────────────────────────────────────────────

    def replace(
        self, cluster: int, base: int, records: Iterable[KeyValue], later: Iterable[Sequence[Revision]]
    ) -> None:
        """Start over with a copy of the store as of revision ``base`` and what came after it."""
        self._digests.begin()
        self._cluster, self._watched, self._digest = cluster, base, 0
        self._head_revision = self._head_sum = self._time = 0
        self._epoch = ""
        self._txn.drop(self._replies, delete=False)
        self._txn.delete(b"number", db=self._tables.meta)
        self._write.begin_at(base)
        if self._load(records) == base:
            # the history begins here, and it began with nothing
            self._write.begin_at(0)
        if not self._epoch:
            raise UnfitError("the store has no epoch")
        self._txn.put(b"epoch", self._epoch.encode(), db=self._tables.meta)
        self._digests.keep(base, self._digest % digest.MODULUS)
        for revisions in later:
            self.add_all(revisions)
            self._write.events.clear()

    def _load(self, records: Iterable[KeyValue]) -> int:
        """Load all records; the revision at which the store began if none is a user's, 0 otherwise."""
        prefix, began, has_keys = self._names.keys, 0, False
        for kv in records:
            name, value, created, revision = kv
            if name.startswith(prefix):
                key = name[len(prefix) :]
                if is_key(key):
                    self._write.load(key, layout.decode_record(value, revision, created, self._time))
                    self._digest += digest.term(key, revision)
                    has_keys = True
            elif name == self._names.epoch:
                self._epoch = value.decode(errors="replace")
                began = revision if created == revision else 0
            elif name == self._names.head:
                self._see_head(Change(True, kv))
            else:
                self._add_other(Change(True, kv))
        return 0 if has_keys else began


def sum_of(value: bytes) -> int:
    """A number that tells one value of ``head`` from another."""
    return int.from_bytes(blake2b(value, digest_size=8).digest())


def is_client(name: bytes) -> bool:
    """Whether a table takes a row of that name. No daemon puts a reply under another."""
    return 0 < len(name) <= MAX_KEY_BYTES


def is_key(key: bytes) -> bool:
    """Whether ``key`` is a user's key. No daemon puts another, and no request could name it."""
    if not 0 < len(key) <= MAX_KEY_BYTES or b"\0" in key:
        return False
    if key.isascii():
        return True
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
