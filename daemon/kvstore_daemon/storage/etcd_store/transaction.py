"""One etcd transaction in the making: what is asserted, and what is put and deleted.

It is planned against a snapshot of the mirror and asserts all that it read there, so it is committed only if
the mirror was as new as etcd in all that mattered. Nested transactions, each with the conditions of one
request, would let the others through where one fails. But they take twice the time, older servers do not
count them towards the quota, and the answer of a request that is refused would not be asserted by anything.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import lmdb
import orjson

from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.layout import Gone, Head, Names, ReplyRow
from kvstore_daemon.storage.etcd_store.mirroring.mirror_transaction import LastNumber
from kvstore_daemon.storage.interface import StoredEvent, StoredRecord, Write
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.tables import Tables, keys_from

MAX_OPS = 128
"""etcd's own limit (``--max-txn-ops``) to the compares, and to the ops, of a transaction."""

MAX_BYTES = 1_400_000
"""Below etcd's own limit (``--max-request-bytes``, 1.5 MiB) to a request."""

_OWN_OPS = 2
"""``head`` and the key of the writer."""

_RESULT_BYTES = 256
"""About the most that one result takes in a reply."""

_NUMBER_BYTES = 20

_MANY = 100

_OP_BYTES = 64
"""About what a compare or an op takes beside its key and value."""


class DoesNotFitError(Exception):
    """A change does not fit the transaction: it has no room, or has changed the key already."""


class MirrorDamageError(Exception):
    """A record of the mirror is damaged; etcd has it still."""


class _Mark(NamedTuple):
    """How far a transaction was, and the room that it had left."""

    compares: int
    ranges: int
    ops: int
    replies: int
    gone: int
    number: int
    room: tuple[int, int, int]


class _Op(NamedTuple):
    """A put of ``value``, or a delete where it is None."""

    name: bytes
    value: bytes | None
    is_expire: bool = False


class EtcdTransaction:
    """The changes for an Applier to make: see :class:`kvstore_daemon.storage.applier.Changes`.

    The snapshot is that of ``txn``, at revision ``watched`` of etcd. Every key is read as it is there: one
    that this transaction has changed cannot be read again, and raises DoesNotFitError. Revisions are
    ``THIS_REVISION``. To read a key is to assert it: a condition on one that is not changed would need no
    more than that. Used by the committer's thread only.
    """

    head = layout.THIS_REVISION - 1

    def __init__(
        self, names: Names, tables: Tables, txn: lmdb.Transaction[Any], watched: int, now: int
    ) -> None:
        self.now = now
        self._names = names
        self._tables = tables
        self._txn = txn
        self._watched = watched
        self._seen: dict[bytes, int] = {}
        self._ranges: list[bytes] = []
        self._ops: list[_Op] = []
        self._replies: dict[bytes, bytes] = {}
        self._changed: set[bytes] = set()
        self._gone: list[Gone] = []
        # the last number that was given out here, 0 if none was
        self._number = 0
        # what still fits: compares, ops and bytes
        self._compare_room = MAX_OPS - 1
        self._op_room = MAX_OPS - _OWN_OPS
        self._byte_room = MAX_BYTES

    # ── what an Applier asks for ─────────────────────────────────────────────────────────────────

    def current(self, key: bytes, *, value: bool) -> tuple[StoredRecord | None, bytes]:
        name = self._names.of_key(key)
        if name in self._changed:
            raise DoesNotFitError
        row = self._txn.get(key, db=self._tables.data)
        try:
            record = None if row is None else row_format.decode_record(key, row, value=value)
        except DamageError as damage:
            raise MirrorDamageError from damage
        self._assert(name, 0 if record is None else record.revision)
        return record, b""

    def next_number(self) -> int:
        """One above all revisions up to now and above the last number, which is asserted and moved on: so
        they are in the order of the transactions, whichever daemon makes them. The revision itself is not
        known before etcd gives it."""
        if not self._number:
            last = LastNumber.read(self._tables, self._txn)
            self._assert(self._names.number, last.revision)
            self._take(len(self._names.number) + _NUMBER_BYTES, ops=1)
            self._number = max(last.number, self._watched)
        self._number += 1
        return self._number

    def last_number(self, prefix: bytes, number: int) -> int:
        """As the mirror has it; that the key is a new one is asserted with the key. The last number is moved
        there too, so that it is not looked for, nor given, again."""
        last = self._tables.last_number(self._txn, prefix, number)
        if last >= number:
            self._number = last + 1
        return last

    @property
    def most(self) -> int:
        """How many keys one op may change; raises DoesNotFitError if another transaction would have more
        room."""
        most = min(self._compare_room - 1, self._op_room)  # one compare is for the range itself
        if self._ops and most < _MANY:
            raise DoesNotFitError
        return most

    def keys(self, prefix: bytes, limit: int) -> list[bytes]:
        name = self._names.of_key(prefix)
        if any(changed.startswith(name) for changed in self._changed):
            raise DoesNotFitError
        self._take(len(name), compares=1)
        self._ranges.append(name)
        found: list[bytes] = []
        for key in keys_from(self._txn.cursor(self._tables.data), prefix):
            if len(found) == limit or not key.startswith(prefix):
                break
            found.append(key)
        return found

    def apply(self, event: StoredEvent, current: StoredRecord | None, before: bytes) -> bytes:  # noqa: ARG002
        name, record = self._names.of_key(event.key), event.record
        if name in self._changed:
            raise DoesNotFitError
        if record is None:
            # which become JSON in ``head``, with quotes escaped
            self._take(2 * len(event.author.encode() + event.message.encode()))
            self._gone.append(Gone(event.op, event.author, event.message))
            self._add(_Op(name, None, is_expire=event.op == "expire"))
        else:
            self._add(_Op(name, layout.encode_record(record)))
        return before

    def forget_expiry(self, key: bytes) -> bytes:  # noqa: ARG002
        """Nothing is to be done: the mirror forgets it when the key is changed."""
        return b""

    # ── what the committer asks for ──────────────────────────────────────────────────────────────

    def mark(self) -> _Mark:
        """How far it is, for :meth:`undo_to`."""
        return _Mark(
            len(self._seen),
            len(self._ranges),
            len(self._ops),
            len(self._replies),
            len(self._gone),
            self._number,
            (self._compare_room, self._op_room, self._byte_room),
        )

    def undo_to(self, mark: _Mark) -> None:
        """Forget the changes made since ``mark``, but not that a key has expired: that is so, whatever
        becomes of the rest. Then the rest can be done in the next transaction, and only there."""
        undone = self._ops[mark.ops :]
        expired = [op for op in undone if op.is_expire]
        names = {op.name for op in expired}
        self._changed.difference_update(op.name for op in undone)
        for name in list(self._replies)[mark.replies :]:
            self.drop_reply(name)
        kept = [
            (name, revision) for name, revision in list(self._seen.items())[mark.compares :] if name in names
        ]
        for name in list(self._seen)[mark.compares :]:
            del self._seen[name]
        del self._ranges[mark.ranges :], self._ops[mark.ops :], self._gone[mark.gone :]
        self._number = mark.number
        self._compare_room, self._op_room, self._byte_room = mark.room
        for name, revision in kept:
            self._assert(name, revision)
        for op in expired:
            self._gone.append(Gone("expire"))
            self._add(op)

    def expect_reply(self, client: str, seen: int) -> bytes:
        """Make room for a client's reply, whose present row is of revision ``seen`` (0: there is none); the
        name of the row."""
        name = self._names.of_reply(client)
        if name in self._changed:
            raise DoesNotFitError
        self._assert(name, seen)
        self._take(len(name), ops=1)
        self._changed.add(name)
        self._replies[name] = b""
        return name

    def grow_reply(self, write: Write) -> None:
        """Make room for the result of one more write in a reply. Some name their keys: the error of a check
        does it twice."""
        names_key = write.sequence or write.op == "check"
        self._take(_RESULT_BYTES + (2 * len(orjson.dumps(write.key.decode())) if names_key else 0))

    def keep_reply(self, name: bytes, row: ReplyRow) -> None:
        """Put the reply that is expected under ``name``."""
        self._replies[name] = layout.encode_reply(row)

    def drop_reply(self, name: bytes) -> None:
        """Put no reply under ``name`` after all."""
        del self._replies[name]
        self._changed.discard(name)

    def move_floor(self, floor: int) -> None:
        """Put the log's agreed floor. Mirrors never go back to a lower one, so it does not matter if two
        daemons do this at once."""
        self._add(_Op(self._names.floor, b"%d" % floor))

    @property
    def changes(self) -> bool:
        """Whether it puts or deletes anything."""
        return bool(self._ops or self._replies)

    @property
    def is_empty(self) -> bool:
        """Whether it neither changes nor asserts anything."""
        return not (self.changes or self._seen or self._ranges)

    def message(self, head: Head, writer: bytes, fence: int, said: bytes, lease: int) -> api.Message:
        """etcd's TxnRequest. ``writer`` is the name of the writer's own key, ``fence`` the revision at which
        it was put last, and ``said`` what it is to hold from now on. ``lease`` is what it and replies go
        with.

        Where the transaction fails, the answer tells who has put the writer's key, and where ``head`` is;
        where it changes nothing, where ``head`` is.
        """
        names, request = self._names, api.TxnRequest()
        for name, revision in self._seen.items():
            api.compare_revision(request.compare, name, revision)
        for name in self._ranges:
            api.compare_unchanged(request.compare, name, layout.range_end(name), self._watched)
        if self.changes:
            api.compare_revision(request.compare, writer, fence)
            for name, value, _ in self._ops:
                if value is None:
                    api.add_delete(request.success, name)
                else:
                    api.add_put(request.success, name, value)
            for name, value in self._replies.items():
                api.add_put(request.success, name, value, lease)
            if self._number:
                api.add_put(request.success, names.number, b"%d" % self._number)
            api.add_put(
                request.success, names.head, layout.encode_head(head._replace(gone=tuple(self._gone)))
            )
            api.add_put(request.success, writer, said, lease)
        else:
            api.add_range(request.success, names.head)
        api.add_range(request.failure, writer)
        api.add_range(request.failure, names.head)
        return request

    def first_stale(self, txn: lmdb.Transaction[Any]) -> int | None:
        """The number of the first compare, in the order of :attr:`compares`, that would fail by the snapshot
        ``txn`` of the mirror; None if that shows none."""
        for number, (name, revision) in enumerate(self._seen.items()):
            key = self._names.user_key(name)
            if key is not None:
                row = txn.get(key, db=self._tables.data)
                found = 0
                if row is not None:
                    found = row_format.EventId.decode(row_format.record_event_id(row)).revision
            elif name == self._names.number:
                found = LastNumber.read(self._tables, txn).revision
            else:
                continue
            if revision != found:
                return number
        return None

    @property
    def compares(self) -> int:
        """How many keys are asserted so far."""
        return len(self._seen)

    def _assert(self, name: bytes, revision: int) -> None:
        if name not in self._seen:
            self._take(len(name), compares=1)
            self._seen[name] = revision

    def _add(self, op: _Op) -> None:
        name, value, _ = op
        self._take(len(name) if value is None else len(name) + len(value), ops=1)
        self._ops.append(op)
        self._changed.add(name)

    def _take(self, size: int, *, compares: int = 0, ops: int = 0) -> None:
        """Take some of the room; raises DoesNotFitError if there is too little."""
        self._compare_room -= compares
        self._op_room -= ops
        self._byte_room -= size + _OP_BYTES
        if self._compare_room < 0 or self._op_room < 0 or self._byte_room < 0:
            raise DoesNotFitError
