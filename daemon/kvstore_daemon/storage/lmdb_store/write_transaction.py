"""One write transaction on the tables: the only way in for a change."""

from __future__ import annotations

from typing import Any

import lmdb

from kvstore_core.digest import MODULUS, SetHash, record_hash
from kvstore_core.limits import MAX_PAGE, MAX_PRESENT_BYTES
from kvstore_daemon.storage.clock import GRACE_MS
from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.interface import Retention, StoredEvent, StoredRecord
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.eviction import EvictionOrder
from kvstore_daemon.storage.lmdb_store.pages import PAGE_BYTES, PAGE_HEAD, pages_of
from kvstore_daemon.storage.lmdb_store.row_format import (
    EVENT_ID_BYTES,
    EXPIRY_TIME,
    NO_EVENT_ROW,
    Buffer,
    EventId,
    LogCounters,
)
from kvstore_daemon.storage.lmdb_store.tables import Tables, forward, keys_from

_UNREADABLE = b"?"
"""In place of the hash of a record that is damaged."""


class WriteTransaction:
    """Changes that readers see all at once, when ``txn`` commits after :meth:`finish`, or never.

    ``counters`` are the log's as of the last commit, and ``now`` is the time that the changes are stamped
    with. Used by the thread that owns ``txn`` only. ``head`` is the revision of the last change, ``events``
    are the events of all changes so far. ``order`` is kept up to date with what is below its prefixes.

    What is called ``before`` is the encoded id of the key's newest event, and behind it, where there is a
    record, that record's hash.
    """

    def __init__(
        self,
        tables: Tables,
        txn: lmdb.Transaction[Any],
        counters: LogCounters,
        now: int,
        order: EvictionOrder | None = None,
    ) -> None:
        self.now = now
        self.head = counters.head
        self.events: list[StoredEvent] = []
        self._shift = tables.clock.shift
        self._tables = tables
        self._txn = txn
        self._order = order
        self._begun_at = counters
        self._floor = counters.floor
        self._log_events = counters.events
        self._log_bytes = counters.size
        self._records = None if counters.digest is None else SetHash(counters.digest)
        self._large: dict[bytes, int] = {}
        self._inline_room = MAX_PRESENT_BYTES

    def next_number(self) -> int:
        """The next revision: no request but one gets it."""
        return self.head + 1

    def last_number(self, prefix: bytes, number: int) -> int:
        """See :class:`kvstore_daemon.storage.applier.Changes`."""
        return self._tables.last_number(self._txn, prefix, number)

    def current(self, key: bytes, *, value: bool) -> tuple[StoredRecord | None, bytes]:
        """The key's record, expired or not, and its ``before``; raises DamageError."""
        row = self._txn.get(key, db=self._tables.data)
        if row is not None:
            if len(row) > PAGE_BYTES - PAGE_HEAD:
                self._large[key] = len(row)
            stored = self._tables.restamped(row_format.decode_record(key, row, value=value))
            return stored, row_format.id_and_hash(key, row)
        tombstone = self._txn.get(key, db=self._tables.tombstones)
        return None, NO_EVENT_ROW if tombstone is None else tombstone

    def data_row(self, key: bytes) -> Any:
        """The row of the key's record as it is stored; None if there is none."""
        return self._txn.get(key, db=self._tables.data)

    @property
    def most(self) -> int:
        """How many keys one write may delete at once."""
        return MAX_PAGE

    def keys(self, prefix: bytes, limit: int) -> list[bytes]:
        """Up to ``limit`` keys that begin with ``prefix``, in order."""
        found: list[bytes] = []
        for key in keys_from(self._txn.cursor(self._tables.data), prefix):
            if len(found) == limit or not key.startswith(prefix):
                break
            found.append(key)
        return found

    def apply(self, event: StoredEvent, current: StoredRecord | None, before: bytes) -> bytes:
        """Store a change: its record, its event, and the rows that go with them. Returns the key's
        ``before`` from now on.

        ``current`` and ``before`` are what :meth:`current` returned for the key. The event's revision is
        ``head``, or the next above it.
        """
        key, record, revision = event.key, event.record, event.revision
        event_id, digest = row_format.encode_event_id(revision, event.index), b""
        before, old_digest = before[:EVENT_ID_BYTES], before[EVENT_ID_BYTES:]
        inline: Buffer = b"" if current is None else self._inline(event, current)
        self._move_expiry(key, current, record)
        order = self._order
        if order is not None:
            if key.startswith(order.prefixes):
                order.remove(key, self.data_row(key))
            else:
                order = None
        if record is not None:
            digest = record_hash(key, revision, record.value or b"")
            body = row_format.record_body(record, event.index, digest)
            checksum = row_format.checksum(key, body)
            self._put_record(key, row_format.encode_record(body, checksum))
            if order is not None:
                order.add(key, event_id, row_format.CRC_BYTES + len(body))
            if current is None and before != NO_EVENT_ROW:
                self._txn.delete(key, db=self._tables.tombstones)
        else:
            body, checksum = b"", row_format.checksum(key, b"")
            self._txn.delete(key, db=self._tables.data)
            self._txn.put(key, event_id, db=self._tables.tombstones)
        row = row_format.encode_event(event, event_id, before, body, checksum, inline)
        # an append to a sorted table: LMDB fills the pages and does not split them
        self._txn.put(event_id, row, db=self._tables.log_rows, append=True)
        self.head = revision
        self._log_events += 1
        self._log_bytes += len(event_id) + len(row)
        if old_digest == _UNREADABLE:
            # it cannot be taken out: the digest is not known until all is added up, when the store is opened
            self._records = None
        records = self._records
        if records is not None:
            records.replace(old_digest, digest)
            event.digest = records.total
        self.events.append(event)
        return event_id + digest

    def _put_record(self, key: bytes, row: bytes) -> None:
        """Put the data row of ``key``.

        Where the row takes fewer pages than the one it replaces, that one is deleted first. LMDB would write
        it into the same pages, if this transaction has written them too, and leave the surplus ones as they
        are; a check that walks over the file's pages takes those for damage.
        """
        if self._large:
            before = self._large.pop(key, 0)
            if pages_of(before) > pages_of(len(row)):
                self._txn.delete(key, db=self._tables.data)
        self._txn.put(key, row, db=self._tables.data)

    def _move_expiry(self, key: bytes, current: StoredRecord | None, record: StoredRecord | None) -> None:
        old = current.expires_at if current is not None else None
        new = record.expires_at if record is not None else None
        if old == new:
            return
        if old is not None:
            self._txn.delete(EXPIRY_TIME.pack(max(0, old - self._shift)), key, db=self._tables.expiry)
        if new is not None:
            self._txn.put(EXPIRY_TIME.pack(max(0, new - self._shift)), key, db=self._tables.expiry)

    def begin_at(self, revision: int) -> None:
        """Empty the store, and begin its log after ``revision``. What :meth:`load` adds was there then."""
        tables = self._tables
        for table in (tables.data, tables.log_rows, tables.expiry, tables.tombstones):
            self._txn.drop(table, delete=False)
        self._large.clear()
        self._records = SetHash()
        self.events.clear()
        self.head = self._floor = revision
        self._log_events = self._log_bytes = 0

    def load(self, key: bytes, record: StoredRecord) -> None:
        """Store a record whose event is not in the log, since it happened before that begins. Keys come in
        their order, after :meth:`begin_at` and before any :meth:`apply`."""
        digest = record_hash(key, record.revision, record.value or b"")
        body = row_format.record_body(record, 0, digest)
        row = row_format.encode_record(body, row_format.checksum(key, body))
        self._txn.put(key, row, db=self._tables.data, append=True)
        if self._records is not None:
            self._records.replace(b"", digest)
        if record.expires_at is not None:
            self._move_expiry(key, None, record)

    def forget_expiry(self, key: bytes) -> bytes:
        """Remove from the expiry table a key whose record is damaged, so that its time is not known. The
        table is in the order of times, so all of it is searched. Its newest event is not known either."""
        expiry = self._tables.expiry
        for time, expiring in self._txn.cursor(expiry):
            if expiring == key:
                self._txn.delete(time, key, db=expiry)
                break
        return NO_EVENT_ROW + _UNREADABLE

    def _inline(self, event: StoredEvent, current: StoredRecord) -> Buffer:
        """The replaced record, if it is to be kept in the event's row; empty if not.

        The log has it already. But if it is in the oldest eighth of the log it will be trimmed soon, and the
        event could no longer give its previous value. Always keeping it would write every value three times;
        and ten thousand deletes in one commit would keep ten thousand, so a commit keeps only so many bytes.
        An expire always keeps it, since its old value is promised.
        """
        margin = (self.head - self._floor) // 8
        if event.op != "expire" and (current.revision > self._floor + margin or self._inline_room <= 0):
            return b""
        row = self._txn.get(event.key, db=self._tables.data)
        if row is None:
            return b""
        self._inline_room -= len(row)
        return row_format.decode_body(event.key, row)

    def trim(self, retention: Retention, budget: int, due_at: int) -> int:
        """Drop the log's oldest revisions while it exceeds ``retention``, about ``budget`` events.

        Returns when, in steady time, the oldest event left may be too old. The next call wants that as
        ``due_at``: until then it need not look at the log.
        """
        clock = self._tables.clock
        now = clock.steady()
        if now <= due_at and not self._is_too_large(retention):
            return due_at
        begin = EventId(self._floor + 1, 0).encode()
        for event_id_row, row in forward(self._txn.cursor(self._tables.log_rows), begin):
            event_id = EventId.decode(event_id_row)
            left_ms = retention.age_ms - clock.age_of(row_format.event_time(row), event_id.revision)
            due_at = now + min(left_ms, GRACE_MS)
            exceeds = left_ms < 0 or self._is_too_large(retention)
            if event_id.revision > self._floor and (budget <= 0 or not exceeds):
                return due_at
            self._drop(event_id, row)
            self._txn.delete(event_id_row, db=self._tables.log_rows)
            budget -= 1
        return now + min(retention.age_ms, GRACE_MS)

    def trim_to(self, floor: int) -> None:
        """Drop all of the log up to revision ``floor``, which becomes the log's. It only goes up, and not
        above the head."""
        floor = min(floor, self.head)
        cursor = self._txn.cursor(self._tables.log_rows)
        more = cursor.first()
        while more and (event_id := EventId.decode(cursor.key())).revision <= floor:
            self._drop(event_id, cursor.value())
            more = cursor.delete() and bool(cursor.key())
        self._floor = max(self._floor, floor)

    def _is_too_large(self, retention: Retention) -> bool:
        return self._log_events > retention.events or self._log_bytes > retention.bytes

    def _drop(self, event_id: EventId, row: Buffer) -> None:
        """Count an event of the log as gone, and remove the tombstone that points to it."""
        self._floor = event_id.revision
        self._log_events -= 1
        self._log_bytes -= len(NO_EVENT_ROW) + len(row)
        if row_format.is_put(row):
            return
        try:
            event = row_format.decode_event(event_id, row)
        except DamageError:
            return  # its key is lost; that must not keep the log from being trimmed
        tombstone = self._txn.get(event.key, db=self._tables.tombstones)
        if tombstone is not None and EventId.decode(tombstone) == event_id:
            self._txn.delete(event.key, db=self._tables.tombstones)

    def finish(self) -> LogCounters:
        """Write the log's counters if anything changed; call it last, right before the commit."""
        if self._order is not None:
            self._order.sweep(self.data_row)
        digest = None if self._records is None else self._records.total % MODULUS
        counters = LogCounters(self.head, self._floor, self._log_events, self._log_bytes, digest)
        if counters != self._begun_at:
            self._txn.put(b"position", counters.encode(), db=self._tables.meta)
        return counters
