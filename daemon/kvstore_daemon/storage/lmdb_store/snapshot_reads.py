"""The reading half of an engine: records, counts, expiry, log and history, each from one LMDB snapshot."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import lmdb

from kvstore_core.digest import SetHash
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_PRESENT_BYTES
from kvstore_daemon.storage.damage import DamageError, damaged_record
from kvstore_daemon.storage.interface import (
    EventFilter,
    EventPage,
    Folding,
    History,
    KeyCount,
    KeyDigest,
    LogPosition,
    RangePage,
    StoredEvent,
    StoredRecord,
    no_such_key,
)
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.journaling.overlay import ABSENT, NUMBERS
from kvstore_daemon.storage.lmdb_store.range_rows import RangeRows
from kvstore_daemon.storage.lmdb_store.row_format import (
    EXPIRY_TIME,
    NO_EVENT,
    EventId,
    LogRow,
    damaged_event,
)
from kvstore_daemon.storage.lmdb_store.tables import Tables, forward

# how many rows one call looks at before it hands back a cursor, so that no call holds up the loop
_SCAN_LIMIT = 10_000
_PREVIOUS_BYTES = 48 * 1024 * 1024
"""The values of a page of the log up to which events bring what they replaced; a reply holds 64 MiB. A page
does not end inside a revision, and one can have replaced ten thousand large values."""
_COUNT_LIMIT = 20_000
_READ_BYTES = 4 * 1024 * 1024
# whose checksums are verified, and whose hashes are added up, within some milliseconds
_DIGEST_SCAN_LIMIT = 4_000
_DIGEST_SCAN_BYTES = 8 * 1024 * 1024

_DATA = NUMBERS["data"]
_NEVER = b"\xff" * EXPIRY_TIME.size

_CURSOR = re.compile(r"([0-9]{1,19})\.([0-9]{1,9})")


class SnapshotReads:
    """The reads of :class:`kvstore_daemon.storage.interface.Engine`, for an engine to inherit.

    Used by the loop's thread only. Values given out are copies and outlive the transaction. An expired
    record is treated as missing from the instant it expires, or from the end of the commit that is under way
    then. ``expires_at`` is given out as the wall clock shows it now, whatever it showed when the record was
    stamped: see :mod:`kvstore_daemon.storage.clock`.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def _damaged(self, error: KvError) -> KvError:
        """What a read that found damage is answered; an engine that can mend it does so, and says so."""
        return error

    def _decode_event(self, event_id: EventId, row: Any) -> LogRow:
        try:
            return row_format.decode_event(event_id, row)
        except DamageError as damage:
            raise self._damaged(damaged_event(event_id, damage)) from damage

    def position(self) -> LogPosition:
        with self._tables.snapshot() as txn:
            return self._position(txn)

    def _position(self, txn: lmdb.Transaction[Any]) -> LogPosition:
        counters = self._tables.counters(txn)
        return LogPosition(self._tables.epoch_of(txn), counters.floor, counters.head, counters.digest)

    def _counts(self) -> dict[str, Any]:
        """The fields of :class:`kvstore_daemon.storage.interface.Statistics` that the tables tell."""
        tables = self._tables
        with tables.snapshot() as txn:
            counters = tables.counters(txn)
            oldest, newest = tables.event_times(txn)
            overlay = tables.overlay
            held, of_data = (0, 0) if overlay is None else (overlay.size, overlay.size_of(_DATA))
            return {
                "keys": txn.stat(tables.data)["entries"],
                "expiring_keys": txn.stat(tables.expiry)["entries"],
                "log_events": counters.events,
                "log_bytes": counters.size,
                "oldest_event_at": oldest,
                "newest_event_at": newest,
                "data_bytes": tables.bytes_of(txn, tables.data) + of_data,
                "store_bytes": tables.used_bytes(txn) + held,
                "file_bytes": tables.file_bytes() + held,
                "clock": tables.clock.state(),
            }

    # ── records ──────────────────────────────────────────────────────────────────────────────────

    def read(
        self, keys: Sequence[bytes], max_bytes: int = _READ_BYTES
    ) -> tuple[list[StoredRecord | KvError | None], int]:
        tables = self._tables
        now, shown = tables.clock.visible(), tables.shown
        overlay = tables.overlay
        newer = () if overlay is None else overlay.rows_of(_DATA)
        found: list[StoredRecord | KvError | None] = []
        try:
            # without snapshot(), whose context manager a read of one key would notice
            with tables.env.begin(tables.data, buffers=True) as txn:
                get, decode = txn.get, row_format.decode_record
                for key in keys:
                    for rows in newer:
                        row: Any = rows.get(key, ABSENT)
                        if row is not ABSENT:
                            break
                    else:
                        row = get(key)
                    if row is None:
                        found.append(None)
                        continue
                    try:
                        stored = decode(key, row)
                    except DamageError as damage:
                        found.append(self._damaged(damaged_record(key, damage)))
                        continue
                    found.append(stored if stored.expires_at is None else shown(stored, now))
                    max_bytes -= len(row)
                    if max_bytes <= 0:
                        break
                return found, (tables.counters(txn) if overlay is None else overlay.counters).head
        except lmdb.Error as error:
            try:
                tables.reopen(error)
            except lmdb.Error as still:
                raise file_error(tables.file, still) from still
            return self.read(keys, max_bytes)

    def range(
        self,
        start: bytes,
        end: bytes | None,
        limit: int,
        *,
        values: bool,
        max_bytes: int,
        reverse: bool = False,
        folding: Folding | None = None,
    ) -> RangePage:
        """See :meth:`kvstore_daemon.storage.interface.Engine.range`; raises ``damaged`` naming the key."""
        tables = self._tables
        now, size, scanned, to_count = tables.clock.visible(), 0, 0, _SCAN_LIMIT
        items = list[tuple[bytes, StoredRecord]]()
        prefixes, counts, sizes = list[bytes](), list[int | None](), list[int]()
        last = b""  # the lowest key that was passed, backwards
        with tables.snapshot() as txn:
            head = tables.counters(txn).head
            rows = RangeRows(tables, txn, start, end, reverse=reverse)
            for key, row in rows:
                is_full = len(items) + len(prefixes) == limit or (items and size >= max_bytes)
                if is_full or scanned == _SCAN_LIMIT:
                    return RangePage(items, last if reverse else key, head, prefixes, counts, sizes)
                scanned += 1
                last = key
                if row is None:
                    continue
                prefix = None if folding is None else folding.prefix_of(key)
                if folding is not None and prefix is not None:
                    if not tables.is_live(row, now):
                        continue
                    prefixes.append(last := prefix)
                    if folding.counts:
                        before = rows.looked_at
                        counts.append(rows.count_below(prefix, now, to_count))
                        to_count -= rows.looked_at - before
                    rows.pass_over(prefix)
                    continue
                try:
                    stored = row_format.decode_record(key, row, value=values)
                except DamageError as damage:
                    raise self._damaged(damaged_record(key, damage)) from damage
                live = stored if stored.expires_at is None else tables.shown(stored, now)
                if live is not None:
                    items.append((key, live))
                    size += len(live.value or b"")
                    if not values:
                        sizes.append(row_format.value_bytes(row))
        return RangePage(items, None, head, prefixes, counts, sizes)

    def count(self, start: bytes, end: bytes | None) -> KeyCount:
        tables = self._tables
        with tables.snapshot() as txn:
            head = tables.counters(txn).head
            gone = list(islice(self._expired(txn), _COUNT_LIMIT + 1))
            if len(gone) > _COUNT_LIMIT:  # so many that it takes less to ask each key
                now = tables.clock.visible()
                total, stop = self._count_keys(txn, start, end, lambda row: tables.is_live(row, now))
                return KeyCount(total, stop, head)
            if not start and end is None:
                total, stop = int(txn.stat(tables.data)["entries"]), None
            else:
                total, stop = self._count_keys(txn, start, end)
            bound = end if stop is None else stop
            expired = sum(key >= start and (bound is None or key < bound) for key in gone)
            return KeyCount(total - expired, stop, head)

    def _count_keys(
        self,
        txn: lmdb.Transaction[Any],
        start: bytes,
        end: bytes | None,
        counts: Callable[[Any], bool] | None = None,
    ) -> tuple[int, bytes | None]:
        """The number of keys, of those alone whose row ``counts`` if that is given; and where to go on."""
        total = 0
        rows = RangeRows(self._tables, txn, start, end, reverse=False)
        for key, row in rows:
            if rows.looked_at > _COUNT_LIMIT:
                return total, key
            total += row is not None and (counts is None or counts(row))
        return total, None

    def digest(self, start: bytes, end: bytes | None) -> KeyDigest:
        """See :meth:`kvstore_daemon.storage.interface.Engine.digest`; raises ``damaged`` naming the key."""
        tables = self._tables
        with tables.snapshot() as txn:
            counters = tables.counters(txn)
            if not start and end is None and counters.digest is not None:
                return KeyDigest(counters.digest, txn.stat(tables.data)["entries"], None, counters.head)
            found, count, size = SetHash(), 0, 0
            rows = RangeRows(tables, txn, start, end, reverse=False)
            for key, row in rows:
                if rows.looked_at > _DIGEST_SCAN_LIMIT or size >= _DIGEST_SCAN_BYTES:
                    return KeyDigest(found.total, count, key, counters.head)
                if row is None:
                    continue
                try:
                    row_format.decode_body(key, row)
                except DamageError as damage:
                    raise self._damaged(damaged_record(key, damage)) from damage
                found.replace(b"", row_format.hash_of_record(key, row))
                count, size = count + 1, size + len(row)
        return KeyDigest(found.total, count, None, counters.head)

    # ── expiry ───────────────────────────────────────────────────────────────────────────────────

    def _expired(self, txn: lmdb.Transaction[Any]) -> Iterator[bytes]:
        """The keys that are due by the expiry table, earliest first."""
        now = self._tables.clock.visible()
        for time, key in self._expiring(txn):
            if EXPIRY_TIME.unpack(time)[0] > now:
                return
            yield bytes(key)

    def _expiring(self, txn: Any) -> Iterator[tuple[Any, Any]]:
        """The expiry table. Where there is an overlay, it is remembered where the table begins: the rows that
        were deleted before it would be passed one by one, each time."""
        overlay, cursor = self._tables.overlay, txn.cursor(self._tables.expiry)
        if overlay is None:
            yield from cursor
            return
        rows = forward(cursor, overlay.first_expiry)
        first = next(rows, None)
        overlay.first_expiry = _NEVER if first is None else bytes(first[0])
        if first is not None:
            yield first
            yield from rows

    def due(self, limit: int) -> tuple[list[tuple[bytes, int]], int | None]:
        """See :meth:`kvstore_daemon.storage.interface.Engine.due`. Keys of damaged records are left out."""
        found: list[tuple[bytes, int]] = []
        tables, clock, room = self._tables, self._tables.clock, MAX_PRESENT_BYTES
        now = clock.steady()
        with tables.snapshot() as txn:
            for raw_time, raw_key in self._expiring(txn):
                time, key = EXPIRY_TIME.unpack(raw_time)[0], bytes(raw_key)
                if time > now or len(found) == limit:
                    return found, time + clock.shift
                row = txn.get(key, db=tables.data)
                if row is not None:
                    room -= len(row)
                    if room < 0 and found:
                        return found, time + clock.shift
                with contextlib.suppress(DamageError):
                    if row is not None:
                        stored = row_format.decode_record(key, row, value=False)
                        if clock.steady_of(stored.expires_at or 0, stored.revision) == time:
                            found.append((key, stored.revision))
        return found, None

    # ── the log ──────────────────────────────────────────────────────────────────────────────────

    def log(
        self, since: int, wanted: EventFilter, limit: int, *, values: bool, previous: bool, max_bytes: int
    ) -> EventPage | LogPosition:
        """See :meth:`kvstore_daemon.storage.interface.Engine.log`; raises ``damaged`` naming the revision."""
        events: list[StoredEvent] = []
        size = scanned = 0
        with self._tables.snapshot() as txn:
            position = self._position(txn)
            if not position.floor <= since <= position.head or not self._was_head(txn, position, since):
                return position
            seen = since
            start = EventId(since + 1, 0).encode()
            for raw_id, raw in forward(txn.cursor(self._tables.log_rows), start):
                event_id = EventId.decode(raw_id)
                full = len(events) >= limit or size >= max_bytes or scanned >= _SCAN_LIMIT
                if full and event_id.revision != seen:
                    return EventPage(events, seen, position)
                row = self._decode_event(event_id, raw)
                if wanted.matches(row.op, row.key):
                    event = self._event(txn, row, position.floor, values=values, previous=previous)
                    size += _size(event.record)
                    before = _size(event.previous)
                    if before and event.op != "expire" and size + before > _PREVIOUS_BYTES:
                        event.previous, previous = None, False
                    else:
                        size += before
                    events.append(event)
                seen = event_id.revision
                scanned += 1
        return EventPage(events, position.head, position)

    def revision_at(self, time: int) -> tuple[int | None, LogPosition]:
        """See :meth:`kvstore_daemon.storage.interface.Engine.revision_at`: a binary search."""
        with self._tables.snapshot() as txn:
            position = self._position(txn)
            log = txn.cursor(self._tables.log_rows)
            # the first is at or before the time; all above the other are later
            low, high = position.floor, position.head
            while low < high:
                middle = (low + high + 1) // 2
                # a restore leaves revisions out, and then there is none before the next one
                is_there = log.set_range(EventId(middle, 0).encode())
                found = EventId.decode(log.key()).revision if is_there else high + 1
                if found <= high and self._tables.event_time(log) <= time:
                    low = found
                else:
                    high = middle - 1
            if low > position.floor or not position.floor:
                return low, position
            # all that is kept came later, or nothing is kept: then all there was came before now
            is_all = not log.set_range(EventId(position.floor + 1, 0).encode())
            return (low if is_all and time >= self._tables.clock.present() else None), position

    def _was_head(self, txn: lmdb.Transaction[Any], position: LogPosition, revision: int) -> bool:
        """Whether ``revision``, which is between floor and head, ever was the head of this history.

        Each commit is one above the last, but a restore jumps: a revision in the gap can only be one of the
        history that the restore replaced. The log shows where the gap is, so it is recorded nowhere else.
        """
        if revision in (position.floor, position.head):
            return True
        return any(
            txn.get(EventId(each, 0).encode(), db=self._tables.log_rows) is not None
            for each in (revision, revision + 1)
        )

    def _event(
        self, txn: lmdb.Transaction[Any], row: LogRow, floor: int, *, values: bool, previous: bool
    ) -> StoredEvent:
        record: StoredRecord | None = row.stored(value=values)
        event_id = row.event_id
        is_first = record is not None and record.create_revision == event_id.revision
        before = NO_EVENT if is_first else row.before
        wants_previous = before != NO_EVENT and (previous or row.op == "expire")
        return StoredEvent(
            row.op,
            row.key,
            event_id.revision,
            event_id.index,
            row.count,
            row.time,
            record if record is None else self._tables.restamped(record),
            self._previous(txn, row, floor, values=values) if wants_previous else None,
            before.revision,
            row.author if record is None else record.author,
            row.message if record is None else record.message,
        )

    def _previous(
        self, txn: lmdb.Transaction[Any], row: LogRow, floor: int, *, values: bool
    ) -> StoredRecord | None:
        if row.inline:
            previous = row.inline_previous(value=values)
        elif row.before.revision <= floor:
            return None
        else:
            raw = txn.get(row.before.encode(), db=self._tables.log_rows)
            previous = None if raw is None else self._decode_event(row.before, raw).stored(value=values)
        return previous and self._tables.restamped(previous)

    def history(
        self, key: bytes, before: int | None, cursor: str | None, limit: int, *, values: bool, max_bytes: int
    ) -> History:
        events: list[StoredEvent] = []
        size = steps = 0
        with self._tables.snapshot() as txn:
            floor = self._tables.counters(txn).floor
            at = _parse_cursor(cursor) if cursor is not None else self._newest(txn, key)
            while at.revision > floor:
                if len(events) == limit or size >= max_bytes or steps == _SCAN_LIMIT:
                    return History(events, f"{at.revision}.{at.index}", False)
                raw = txn.get(at.encode(), db=self._tables.log_rows)
                row = None if raw is None else self._decode_event(at, raw)
                if row is None or row.key != key:  # the same for both: it is not for all to know
                    raise KvError("invalid_cursor", "this cursor is not of this key's history")
                if before is None or at.revision < before:
                    events.append(self._event(txn, row, floor, values=values, previous=False))
                    size += _size(events[-1].record) + _size(events[-1].previous)
                at, steps = row.before, steps + 1
        return History(events, None, at != NO_EVENT)

    def recent(
        self,
        prefix: bytes,
        before: int | None,
        cursor: str | None,
        limit: int,
        *,
        values: bool,
        max_bytes: int,
    ) -> History:
        events: list[StoredEvent] = []
        size = steps = 0
        with self._tables.snapshot() as txn:
            floor = self._tables.counters(txn).floor
            log = txn.cursor(self._tables.log_rows)
            events_back = log.iterprev() if _seek_back(log, before, cursor, floor) else ()
            for raw_id, raw in events_back:
                at = EventId.decode(raw_id)
                if len(events) == limit or size >= max_bytes or steps == _SCAN_LIMIT:
                    return History(events, f"{at.revision}.{at.index}", False)
                row = self._decode_event(at, raw)
                if row.key.startswith(prefix):
                    events.append(self._event(txn, row, floor, values=values, previous=False))
                    size += _size(events[-1].record) + _size(events[-1].previous)
                steps += 1
        return History(events, None, floor > 0)

    def _newest(self, txn: lmdb.Transaction[Any], key: bytes) -> EventId:
        row = txn.get(key, db=self._tables.data)
        if row is not None:
            try:
                row_format.decode_body(key, row)
                return EventId.decode(row_format.record_event_id(row))
            except DamageError as damage:
                raise self._damaged(damaged_record(key, damage)) from damage
        tombstone = txn.get(key, db=self._tables.tombstones)
        if tombstone is None:
            raise no_such_key(key)
        return EventId.decode(tombstone)


def _size(stored: StoredRecord | None) -> int:
    return len(stored.value) if stored is not None and stored.value is not None else 0


def _seek_back(log: lmdb.Cursor[Any], before: int | None, cursor: str | None, floor: int) -> bool:
    """Move to the event at ``cursor``, else to the newest one below revision ``before``; whether there is
    one, which may have been trimmed since the cursor was given out.

    A cursor between two events is as good as one at an event: which events there are of other prefixes is not
    for all to know."""
    if cursor is not None:
        at = _parse_cursor(cursor)
        if not log.set_range(at.encode()):
            return at.revision > floor and log.last()
        return at.revision > floor and (log.key() == at.encode() or log.prev())
    if before is not None and log.set_range(EventId(before, 0).encode()):
        return log.prev()
    return log.last()


def _parse_cursor(cursor: str) -> EventId:
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise KvError("invalid_cursor", "pass a cursor back exactly as the reply gave it")
    return EventId(int(found[1]), int(found[2]))
