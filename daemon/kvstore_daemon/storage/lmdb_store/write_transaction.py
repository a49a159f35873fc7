"""One write transaction on the tables: the only way in for a change."""

from __future__ import annotations

from typing import Any

import lmdb

from kvstore_daemon.storage.clock import GRACE_MS
from kvstore_daemon.storage.interface import Retention, StoredEvent, StoredRecord
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.row_format import (
    EXPIRY_TIME,
    NO_EVENT_ROW,
    Buffer,
    DamageError,
    EventId,
    LogCounters,
)
from kvstore_daemon.storage.lmdb_store.tables import Tables, keys_from

_PAGE_BYTES = 4096
_PAGE_HEAD = 16


class WriteTransaction:
    """Changes that readers see all at once, when ``txn`` commits after :meth:`finish`, or never.

    ``counters`` are the log's as of the last commit, and ``now`` is the time that the changes are stamped
    with. Used by the thread that owns ``txn`` only. ``head`` is the revision of the last change, ``events``
    are the events of all changes so far.
    """

    def __init__(self, tables: Tables, txn: lmdb.Transaction[Any], counters: LogCounters, now: int) -> None:
        self.now = now
        self.head = counters.head
        self.events: list[StoredEvent] = []
        self._shift = tables.clock.shift
        self._tables = tables
        self._txn = txn
        self._begun_at = counters
        self._floor = counters.floor
        self._log_events = counters.events
        self._log_bytes = counters.size
        # a cursor that has just found a key puts its new row without searching for it again
        self._data = txn.cursor(tables.data)
        self._log = txn.cursor(tables.log_rows)
        self._tombstones = txn.cursor(tables.tombstones)
        self._has_tombstones = self._tombstones.first()
        self._large: dict[bytes, int] = {}

    def current(self, key: bytes, *, value: bool) -> tuple[StoredRecord | None, bytes]:
        """The key's record, expired or not, and the encoded id of its newest event; raises DamageError."""
        row = self._data.get(key)
        if row is not None:
            if len(row) > _PAGE_BYTES - _PAGE_HEAD:
                self._large[key] = len(row)
            return self._tables.restamped(
                row_format.decode_record(key, row, value=value)
            ), row_format.record_event_id(row)
        tombstone = self._tombstones.get(key) if self._has_tombstones else None
        return None, NO_EVENT_ROW if tombstone is None else tombstone

    def keys(self, prefix: bytes, limit: int) -> list[bytes]:
        """Up to ``limit`` keys that begin with ``prefix``, in order."""
        found: list[bytes] = []
        for key in keys_from(self._txn.cursor(self._tables.data), prefix):
            if len(found) == limit or not key.startswith(prefix):
                break
            found.append(key)
        return found

    def apply(self, event: StoredEvent, current: StoredRecord | None, before: bytes) -> None:
        """Store a change: its record, its event, and the rows that go with them.

        ``current`` and ``before`` are what :meth:`current` returned for the key. The event's revision is
        ``head``, or the next above it.
        """
        key, record, revision = event.key, event.record, event.revision
        event_id = row_format.encode_event_id(revision, event.index)
        inline: Buffer = b"" if current is None else self._inline(event, current)
        self._move_expiry(key, current, record)
        if record is not None:
            body = row_format.record_body(record, event.index)
            checksum = row_format.checksum(key, body)
            self._put_record(key, row_format.encode_record(body, checksum))
            if current is None and before != NO_EVENT_ROW:
                self._txn.delete(key, db=self._tables.tombstones)
        else:
            body, checksum = b"", row_format.checksum(key, b"")
            self._txn.delete(key, db=self._tables.data)
            self._tombstones.put(key, event_id)
            self._has_tombstones = True
        row = row_format.encode_event(event, event_id, before, body, checksum, inline)
        # an append to a sorted table: LMDB fills the pages and does not split them
        self._log.put(event_id, row, append=True)
        self.head = revision
        self._log_events += 1
        self._log_bytes += len(event_id) + len(row)
        self.events.append(event)

    def _put_record(self, key: bytes, row: bytes) -> None:
        """Put the data row of ``key``.

        Where the row takes fewer pages than the one it replaces, that one is deleted first. LMDB would write
        it into the same pages, if this transaction has written them too, and leave the surplus ones as they
        are; a check that walks over the file's pages takes those for damage.
        """
        if self._large:
            before = self._large.pop(key, 0)
            if _pages_of(before) > _pages_of(len(row)):
                self._txn.delete(key, db=self._tables.data)
        self._data.put(key, row)

    def _move_expiry(self, key: bytes, current: StoredRecord | None, record: StoredRecord | None) -> None:
        old = current.expires_at if current is not None else None
        new = record.expires_at if record is not None else None
        if old == new:
            return
        if old is not None:
            self._txn.delete(EXPIRY_TIME.pack(max(0, old - self._shift)), key, db=self._tables.expiry)
        if new is not None:
            self._txn.put(EXPIRY_TIME.pack(max(0, new - self._shift)), key, db=self._tables.expiry)

    def forget_expiry(self, key: bytes) -> None:
        """Remove from the expiry table a key whose record is damaged, so that its time is not known. The
        table is in the order of times, so all of it is searched."""
        with self._txn.cursor(self._tables.expiry) as cursor:
            for _, expiring in cursor:
                if expiring == key:
                    cursor.delete()
                    return

    def _inline(self, event: StoredEvent, current: StoredRecord) -> Buffer:
        """The replaced record, if it is to be kept in the event's row; empty if not.

        The log has it already. But if it is in the oldest eighth of the log it will be trimmed soon, and the
        event could no longer give its previous value. Always keeping it would write every value three times.
        An expire always keeps it, since its old value is promised.
        """
        margin = (self.head - self._floor) // 8
        if event.op != "expire" and current.revision > self._floor + margin:
            return b""
        row = self._data.get(event.key)
        return b"" if row is None else row_format.decode_body(event.key, row)

    def trim(self, retention: Retention, budget: int, due_at: int) -> int:
        """Drop the log's oldest revisions while it exceeds ``retention``, about ``budget`` events.

        Returns when, in steady time, the oldest event left may be too old. The next call wants that as
        ``due_at``: until then it need not look at the log.
        """
        clock = self._tables.clock
        now = clock.steady()
        if now <= due_at and not self._is_too_large(retention):
            return due_at
        cursor = self._log
        more = cursor.first()
        while more:
            event_id, row = EventId.decode(cursor.key()), cursor.value()
            left_ms = retention.age_ms - clock.age_of(row_format.event_time(row), event_id.revision)
            due_at = now + min(left_ms, GRACE_MS)
            exceeds = left_ms < 0 or self._is_too_large(retention)
            if event_id.revision > self._floor and (budget <= 0 or not exceeds):
                return due_at
            self._drop(event_id, row)
            budget -= 1
            # deleting the last row succeeds too, and leaves the cursor on an empty key
            more = cursor.delete() and bool(cursor.key())
        return now + min(retention.age_ms, GRACE_MS)

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
        counters = LogCounters(self.head, self._floor, self._log_events, self._log_bytes)
        if counters != self._begun_at:
            self._txn.put(b"position", counters.encode(), db=self._tables.meta)
        return counters


def _pages_of(size: int) -> int:
    """The pages that a row of ``size`` bytes takes if it has pages of its own, at the smallest page size."""
    return (_PAGE_HEAD - 1 + size) // _PAGE_BYTES + 1
