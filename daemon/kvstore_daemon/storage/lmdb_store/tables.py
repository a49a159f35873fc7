"""The read side and the event log on this machine's disk, in LMDB.

The LMDB engine writes it itself; a distributed engine fills it from its one watch. Either way
everything that is read comes from here, and a change enters through :meth:`WriteTransaction.apply` alone.

The tables:

- ``data``: key -> record row
- ``log``: revision, index -> event row
- ``expiry``: expires_at, in steady time -> keys (duplicates, because a key of 511 bytes has no room for a
  time before it)
- ``graves``: key -> place of the delete or expire event, for keys that are gone but still have events
- ``meta``: format, epoch, position, clock

A key's events form a chain: a record row knows the place of the event that made it, an event row the
place of the one before. History walks this chain, so no index by key has to be written with every
put; it would double the pages that a put to a random key dirties.

``Tables`` is used by the loop's thread only, ``WriteTransaction`` by the thread that owns the write
transaction only; LMDB itself is what they share.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_KEY_BYTES
from kvstore_daemon.storage.clock import GRACE_MS, ClockStep, StoreClock
from kvstore_daemon.storage.interface import (
    EventFilter,
    EventPage,
    KeyCount,
    KeyHistory,
    LogPosition,
    RangePage,
    Retention,
    StoredEvent,
    StoredRecord,
    no_such_key,
)
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.create import FORMAT, ensure_store, new_epoch
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.row_format import (
    NO_EVENT,
    Buffer,
    DamageError,
    EventId,
    LogCounters,
    LogRow,
)
from kvstore_daemon.storage.lmdb_store.truncation_check import refuse_no_store, refuse_part

# how many rows one call looks at before it hands back a cursor; some 10 ms at the worst
_SCAN_LIMIT = 10_000
_COUNT_LIMIT = 20_000
_READ_BYTES = 4 * 1024 * 1024

_GIVE_UP_SECONDS = 10.0

_PAGE_BYTES = 4096
_PAGE_HEAD = 16

_TIME = struct.Struct(">Q")
_NO_EVENT = NO_EVENT.encode()
_EMPTY = LogCounters(0, 0, 0, 0)


def damaged(key: bytes, damage: DamageError) -> KvError:
    """The error that tells of a damaged record, which is never given out as data."""
    name = key.decode(errors="replace")
    return KvError(
        "damaged",
        f"the record of {name!r} is damaged ({damage}); put or delete it, or restore a backup",
        key=name,
    )


class Counts(NamedTuple):
    """The part of :class:`kvstore_daemon.storage.interface.Statistics` that the tables know."""

    keys: int
    expiring_keys: int
    log_events: int
    log_bytes: int
    oldest_event_at: int | None
    newest_event_at: int | None
    data_bytes: int
    store_bytes: int
    file_bytes: int


class Tables:
    """The store's tables, opened; and everything that is read from them.

    Values given out are copies and outlive the transaction. An expired record is treated as missing from
    the instant it expires, or from the end of the commit that is under way then. ``expires_at`` is given out
    as the wall clock shows it now, wherever that stood when the record was stamped: see
    :mod:`kvstore_daemon.storage.clock`.
    """

    def __init__(self, folder: Path, *, map_size: int, sync: bool, clock: StoreClock) -> None:
        refuse_no_store(folder)
        ensure_store(folder)
        self.clock = clock
        self.given_up = threading.Event()
        """Set by the writer once a commit failed and it will not touch the environment again."""
        self._file = folder / "data.mdb"
        self._map_size = map_size
        self._is_closed = False
        try:
            self.env = _open_environment(folder, map_size, sync=sync)
            refuse_part(folder, self.env)
            with self.env.begin(write=True) as txn:
                self._check_format(folder, txn)
            self._open_tables(create=True)
            self.page_size: int = self.env.stat()["psize"]
            with self.env.begin(write=True) as txn:
                self.epoch = self._ensure_epoch(txn)
                self.step_at_start = self._begin_time(txn)
        except (lmdb.Error, OSError) as error:
            self._let_go()
            raise file_error(self._file, error) from error
        except KvError:
            self._let_go()
            raise

    def _let_go(self) -> None:
        """Close what was opened: the environment of a failed start must not be in the next one's way."""
        if hasattr(self, "env"):
            self.env.close()

    def _check_format(self, folder: Path, txn: lmdb.Transaction[Any]) -> None:
        meta = self.env.open_db(b"meta", txn)
        found = int(txn.get(b"format", b"%d" % FORMAT, db=meta))
        if found < FORMAT:
            raise KvError(
                "unsupported_version",
                f"the store in {folder} has format {found}, which no release wrote; this kvstore reads "
                f"format {FORMAT}: copy the keys over with the version that wrote it, or begin anew",
            )
        if found > FORMAT:
            raise KvError(
                "unsupported_version",
                f"the store in {folder} has format {found}; this kvstore reads up to {FORMAT}: "
                "install the newer version that wrote it",
            )
        # also where it stands already: what a run before this one wrote last, and perhaps could not sync, is
        # on disk once this commit is
        txn.put(b"format", b"%d" % FORMAT, db=meta)

    def _open_tables(self, *, create: bool) -> None:
        self.data = self.env.open_db(b"data", create=create)
        self.log_rows = self.env.open_db(b"log", create=create)
        self.expiry = self.env.open_db(b"expiry", dupsort=True, create=create)
        self.graves = self.env.open_db(b"graves", create=create)
        self.meta = self.env.open_db(b"meta", create=create)

    def _ensure_epoch(self, txn: lmdb.Transaction[Any]) -> str:
        epoch = txn.get(b"epoch", db=self.meta)
        return bytes(epoch).decode() if epoch is not None else self.new_epoch(txn)

    def _begin_time(self, txn: lmdb.Transaction[Any]) -> ClockStep | None:
        kept, newest = txn.get(b"clock", db=self.meta), None
        with txn.cursor(self.log_rows) as log:
            if log.last():
                newest = (row_format.event_time(log.value()), EventId.decode(log.key()).revision)
        step = self.clock.begin(kept, newest, self.log_position(txn).head)
        self.keep_time(txn)
        return step

    def keep_time(self, txn: lmdb.Transaction[Any]) -> None:
        """Keep what the clock has to know when the store is opened again."""
        if self.clock.knows_much:
            self.clock.forget(self._expiring(txn))
        row = self.clock.row()
        if txn.get(b"clock", db=self.meta) != row:
            txn.put(b"clock", row, db=self.meta)

    def _expiring(self, txn: lmdb.Transaction[Any]) -> Iterator[int]:
        """The revisions of all records with a time to live."""
        for _, key in txn.cursor(self.expiry):
            row = txn.get(key, db=self.data)
            if row is not None:
                yield EventId.decode(row_format.record_place(row)).revision

    def new_epoch(self, txn: lmdb.Transaction[Any]) -> str:
        """Begin a new history: cursors given out so far will be answered with a reset."""
        self.epoch = new_epoch()
        txn.put(b"epoch", self.epoch.encode(), db=self.meta)
        return self.epoch

    def close(self) -> None:
        """Let go of the files. Write transactions must have ended."""
        self.env.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[lmdb.Transaction[memoryview]]:
        """A read transaction that sees the last commit, and nothing that comes after."""
        # py-lmdb keeps an ended read transaction and renews it, so this allocates no reader slot.
        # Without buffers each row is copied twice more: reading 1 MiB takes 1 ms then, instead of 0.3
        try:
            with self._begin_reading() as txn:
                yield txn
        except lmdb.Error as error:
            raise file_error(self._file, error) from error

    def _begin_reading(self) -> lmdb.Transaction[memoryview]:
        try:
            return self.env.begin(buffers=True)
        except lmdb.Error as error:
            self._go_on_reading(error)
            return self.env.begin(buffers=True)

    def _go_on_reading(self, error: lmdb.Error) -> None:
        """Open the environment anew, to read only, after the error of one that takes no transactions more.

        LMDB gives an environment up, for readers too, when it could not write a meta page. Nothing is lost by
        that: the other meta page, and all that it leads to, are as they were. Raises ``error`` where it tells
        of something else.
        """
        if not isinstance(error, lmdb.PanicError) and not self._is_closed:
            raise error
        # the writer is on its way out of the transaction that failed; the environment is its own until then
        if not self.given_up.wait(_GIVE_UP_SECONDS):
            raise error
        # the same file cannot be open twice in one process: should opening fail, the next reader tries again
        self._is_closed = True
        self.env.close()
        self.env = _open_environment(self._file.parent, self._map_size, readonly=True)
        self._open_tables(create=False)
        self._is_closed = False

    def log_position(self, txn: lmdb.Transaction[Any]) -> LogCounters:
        """The log's counters as ``txn`` sees them."""
        row = txn.get(b"position", db=self.meta)
        return _EMPTY if row is None else LogCounters.decode(row)

    def position(self) -> LogPosition:
        """See :meth:`kvstore_daemon.storage.interface.Engine.position`."""
        with self.snapshot() as txn:
            return self._position(txn)

    def _position(self, txn: lmdb.Transaction[Any]) -> LogPosition:
        at = self.log_position(txn)
        return LogPosition(self.epoch, at.floor, at.head)

    def counts(self) -> Counts:
        """What the tables hold, as of the last commit."""
        with self.snapshot() as txn:
            at = self.log_position(txn)
            data = txn.stat(self.data)
            log = txn.cursor(self.log_rows)
            return Counts(
                keys=data["entries"],
                expiring_keys=txn.stat(self.expiry)["entries"],
                log_events=at.events,
                log_bytes=at.size,
                oldest_event_at=self._event_time(log) if log.first() else None,
                newest_event_at=self._event_time(log) if log.last() else None,
                data_bytes=_pages(data) * self.page_size,
                store_bytes=self.used_bytes(txn),
                file_bytes=self.file_bytes(),
            )

    def _event_time(self, log: lmdb.Cursor[Any]) -> int:
        return self.clock.present_of(row_format.event_time(log.value()), EventId.decode(log.key()).revision)

    def used_bytes(self, txn: lmdb.Transaction[Any]) -> int:
        """The bytes of all pages that hold something; free pages inside the file do not count.
        Asks for each table: :meth:`file_bytes` is cheaper, and never less."""
        tables = (self.data, self.log_rows, self.expiry, self.graves, self.meta)
        return sum(_pages(txn.stat(table)) for table in tables) * self.page_size

    def file_bytes(self) -> int:
        """The bytes of all pages up to the last one in use, as of the last commit."""
        return (int(self.env.info()["last_pgno"]) + 1) * self.page_size

    # ── records ──────────────────────────────────────────────────────────────────────────────────

    def read(
        self, keys: Sequence[bytes], max_bytes: int = _READ_BYTES
    ) -> tuple[list[StoredRecord | KvError | None], int]:
        """See :meth:`kvstore_daemon.storage.interface.Engine.read`."""
        now, shown = self.clock.visible(), self._shown
        found: list[StoredRecord | KvError | None] = []
        try:
            # not by way of snapshot(), which would be a quarter of what a single read takes
            with self.env.begin(self.data, buffers=True) as txn:
                get, decode = txn.get, row_format.decode_record
                for key in keys:
                    row = get(key)
                    if row is None:
                        found.append(None)
                        continue
                    try:
                        stored = decode(key, row)
                    except DamageError as damage:
                        found.append(damaged(key, damage))
                        continue
                    found.append(stored if stored.expires_at is None else shown(stored, now))
                    max_bytes -= len(row)
                    if max_bytes <= 0:
                        break
                return found, self.log_position(txn).head
        except lmdb.Error as error:
            try:
                self._go_on_reading(error)
            except lmdb.Error as still:
                raise file_error(self._file, still) from still
            return self.read(keys, max_bytes)

    def range(
        self, start: bytes, end: bytes | None, limit: int, *, values: bool, max_bytes: int
    ) -> RangePage:
        """See :meth:`kvstore_daemon.storage.interface.Engine.range`; raises ``damaged`` naming the key."""
        now, items, size, scanned = self.clock.visible(), list[tuple[bytes, StoredRecord]](), 0, 0
        with self.snapshot() as txn:
            head = self.log_position(txn).head
            for raw_key, row in _forward(txn.cursor(self.data), start):
                key = bytes(raw_key)
                if end is not None and key >= end:
                    break
                if len(items) == limit or (items and size >= max_bytes) or scanned == _SCAN_LIMIT:
                    return RangePage(items, key, head)
                scanned += 1
                try:
                    stored = row_format.decode_record(key, row, value=values)
                except DamageError as damage:
                    raise damaged(key, damage) from damage
                live = stored if stored.expires_at is None else self._shown(stored, now)
                if live is not None:
                    items.append((key, live))
                    size += len(live.value or b"")
        return RangePage(items, None, head)

    def count(self, start: bytes, end: bytes | None) -> KeyCount:
        """See :meth:`kvstore_daemon.storage.interface.Engine.count`."""
        with self.snapshot() as txn:
            head = self.log_position(txn).head
            if not start and end is None:
                total, stop = int(txn.stat(self.data)["entries"]), None
            else:
                total, stop = self._count_keys(txn, start, end)
            gone = sum(1 for key in self._expired(txn) if key >= start and not _beyond(key, end, stop))
            return KeyCount(total - gone, stop, head)

    def _count_keys(
        self, txn: lmdb.Transaction[Any], start: bytes, end: bytes | None
    ) -> tuple[int, bytes | None]:
        total = 0
        cursor = txn.cursor(self.data)
        if not _seek(cursor, start):
            return 0, None
        for raw_key in cursor.iternext(keys=True, values=False):
            key = bytes(raw_key)
            if end is not None and key >= end:
                break
            if total == _COUNT_LIMIT:
                return total, key
            total += 1
        return total, None

    def _shown(self, stored: StoredRecord, now: int) -> StoredRecord | None:
        """A record with a time to live as it is given out; None if that is over at steady time ``now``."""
        if stored.expires_at is None or self.clock.steady_of(stored.expires_at, stored.revision) > now:
            return self.restamped(stored)
        return None

    def restamped(self, stored: StoredRecord) -> StoredRecord:
        """The record with its ``expires_at`` as the wall clock shows that moment now."""
        if stored.expires_at is None:
            return stored
        present = self.clock.present_of(stored.expires_at, stored.revision)
        return stored if present == stored.expires_at else stored._replace(expires_at=present)

    # ── expiry ───────────────────────────────────────────────────────────────────────────────────

    def _expired(self, txn: lmdb.Transaction[Any]) -> Iterator[bytes]:
        """The keys that the expiry table says are due, earliest first."""
        now = self.clock.visible()
        for time, key in txn.cursor(self.expiry):
            if _TIME.unpack(time)[0] > now:
                return
            yield bytes(key)

    def due(self, limit: int) -> tuple[list[tuple[bytes, int]], int | None]:
        """See the interface. A key whose record is damaged is passed over."""
        found: list[tuple[bytes, int]] = []
        now = self.clock.steady()
        with self.snapshot() as txn:
            for raw_time, raw_key in txn.cursor(self.expiry):
                time, key = _TIME.unpack(raw_time)[0], bytes(raw_key)
                if time > now or len(found) == limit:
                    return found, time + self.clock.shift
                row = txn.get(key, db=self.data)
                with contextlib.suppress(DamageError):
                    if row is not None:
                        stored = row_format.decode_record(key, row, value=False)
                        expires_at = stored.expires_at or 0
                        if self.clock.steady_of(expires_at, stored.revision) == time:
                            found.append((key, stored.revision))
        return found, None

    # ── the log ──────────────────────────────────────────────────────────────────────────────────

    def log(
        self, since: int, wanted: EventFilter, limit: int, *, values: bool, previous: bool, max_bytes: int
    ) -> EventPage | LogPosition:
        """See :meth:`kvstore_daemon.storage.interface.Engine.log`; raises ``damaged`` naming the revision."""
        changes: list[StoredEvent] = []
        size = scanned = 0
        with self.snapshot() as txn:
            position = self._position(txn)
            if not position.floor <= since <= position.head or not self._was_given_out(txn, position, since):
                return position
            seen = since
            for raw_place, row in _forward(txn.cursor(self.log_rows), EventId(since + 1, 0).encode()):
                place = EventId.decode(raw_place)
                full = len(changes) >= limit or size >= max_bytes or scanned >= _SCAN_LIMIT
                if full and place.revision != seen:
                    return EventPage(changes, seen, position)
                event = _decode_event(place, row)
                if wanted.matches(event.op, event.key):
                    change = self._change(txn, event, position.floor, values=values, previous=previous)
                    changes.append(change)
                    size += _size(change.record) + _size(change.previous)
                seen = place.revision
                scanned += 1
        return EventPage(changes, position.head, position)

    def _was_given_out(self, txn: lmdb.Transaction[Any], position: LogPosition, revision: int) -> bool:
        """Whether the head ever was at ``revision`` in this history, which lies between floor and head.

        Each commit is one above the last, but a restore jumps: what lies in the gap was given out, if at all,
        by the history that it put aside. The log tells without any note of where that was.
        """
        if revision in (position.floor, position.head):
            return True
        return any(
            txn.get(EventId(at, 0).encode(), db=self.log_rows) is not None for at in (revision, revision + 1)
        )

    def _change(
        self, txn: lmdb.Transaction[Any], event: LogRow, floor: int, *, values: bool, previous: bool
    ) -> StoredEvent:
        record = event.stored(value=values)
        created = record is not None and record.create_revision == event.place.revision
        before = NO_EVENT if created else event.before
        wants_previous = before != NO_EVENT and (previous or event.op == "expire")
        return StoredEvent(
            event.op,
            event.key,
            event.place.revision,
            event.place.index,
            event.count,
            event.time,
            record if record is None else self.restamped(record),
            self._previous(txn, event, floor, values=values) if wants_previous else None,
            before.revision,
        )

    def _previous(
        self, txn: lmdb.Transaction[Any], event: LogRow, floor: int, *, values: bool
    ) -> StoredRecord | None:
        if event.inline:
            previous = event.inline_previous(value=values)
        elif event.before.revision <= floor:
            return None
        else:
            row = txn.get(event.before.encode(), db=self.log_rows)
            previous = None if row is None else _decode_event(event.before, row).stored(value=values)
        return previous and self.restamped(previous)

    def history(
        self,
        key: bytes,
        before: int | None,
        cursor: str | None,
        limit: int,
        *,
        values: bool,
        max_bytes: int,
    ) -> KeyHistory:
        """See :meth:`kvstore_daemon.storage.interface.Engine.history`."""
        changes: list[StoredEvent] = []
        size = steps = 0
        with self.snapshot() as txn:
            floor = self.log_position(txn).floor
            place = _parse_place(cursor) if cursor is not None else self._newest(txn, key)
            while place.revision > floor:
                if len(changes) == limit or size >= max_bytes or steps == _SCAN_LIMIT:
                    return KeyHistory(changes, f"{place.revision}.{place.index}", False)
                row = txn.get(place.encode(), db=self.log_rows)
                if row is None:
                    raise KvError("invalid_cursor", "there is no event at this cursor")
                event = _decode_event(place, row)
                if event.key != key:
                    raise KvError("invalid_cursor", "this cursor belongs to another key")
                if before is None or place.revision < before:
                    changes.append(self._change(txn, event, floor, values=values, previous=False))
                    size += _size(changes[-1].record)
                place, steps = event.before, steps + 1
        return KeyHistory(changes, None, place != NO_EVENT)

    def _newest(self, txn: lmdb.Transaction[Any], key: bytes) -> EventId:
        row = txn.get(key, db=self.data)
        if row is not None:
            try:
                row_format.decode_body(key, row)
                return EventId.decode(row_format.record_place(row))
            except DamageError as damage:
                raise damaged(key, damage) from damage
        grave = txn.get(key, db=self.graves)
        if grave is None:
            raise no_such_key(key)
        return EventId.decode(grave)


class WriteTransaction:
    """One write transaction on the tables: the only way in for a change.

    Nothing is visible to readers, and ``position`` is not kept, until :meth:`finish` was called and
    the transaction committed; aborting it undoes everything.
    """

    def __init__(self, tables: Tables, txn: lmdb.Transaction[Any], position: LogCounters, now: int) -> None:
        self.now = now
        self.head = position.head
        self.changes: list[StoredEvent] = []
        self._shift = tables.clock.shift
        self._tables = tables
        self._txn = txn
        self._begun_at = position
        self._floor = position.floor
        self._events = position.events
        self._bytes = position.size
        # a cursor that has just found a key puts its new row without searching for it again
        self._data = txn.cursor(tables.data)
        self._log = txn.cursor(tables.log_rows)
        self._graves = txn.cursor(tables.graves)
        self._has_graves = self._graves.first()
        self._large: dict[bytes, int] = {}

    def current(self, key: bytes, *, value: bool) -> tuple[StoredRecord | None, bytes]:
        """The key's record, expired or not, and the encoded place of its newest event; raises DamageError."""
        row = self._data.get(key)
        if row is not None:
            if len(row) > _PAGE_BYTES - _PAGE_HEAD:
                self._large[key] = len(row)
            return self._tables.restamped(
                row_format.decode_record(key, row, value=value)
            ), row_format.record_place(row)
        grave = self._graves.get(key) if self._has_graves else None
        return None, _NO_EVENT if grave is None else grave

    def keys(self, prefix: bytes, limit: int) -> list[bytes]:
        """Up to ``limit`` keys that begin with ``prefix``, in order."""
        found: list[bytes] = []
        for key, _ in _forward(self._txn.cursor(self._tables.data), prefix):
            if len(found) == limit or not key.startswith(prefix):
                break
            found.append(key)
        return found

    def apply(self, change: StoredEvent, current: StoredRecord | None, before: bytes) -> None:
        """Store a change: its record, its event, and what the tables beside them need.

        ``current`` and ``before`` are what :meth:`current` said of the key. The change's revision
        is the head's, or the next above it.
        """
        key, record, revision = change.key, change.record, change.revision
        place = row_format.encode_place(revision, change.index)
        inline: Buffer = b"" if current is None else self._inline(change, current)
        self._move_expiry(key, current, record)
        if record is not None:
            body = row_format.record_body(record, change.index)
            checksum = row_format.checksum(key, body)
            self._put_record(key, row_format.encode_record(body, checksum))
            if current is None and before != _NO_EVENT:
                self._txn.delete(key, db=self._tables.graves)
        else:
            body, checksum = b"", row_format.checksum(key, b"")
            self._txn.delete(key, db=self._tables.data)
            self._graves.put(key, place)
            self._has_graves = True
        row = row_format.encode_event(change, place, before, body, checksum, inline)
        # a put at the end of a sorted table: pages are filled to the brim and not split
        self._log.put(place, row, append=True)
        self.head = revision
        self._events += 1
        self._bytes += len(row) + 12
        self.changes.append(change)

    def _put_record(self, key: bytes, row: bytes) -> None:
        """Put the data row of ``key``.

        A row that takes fewer pages than the one it replaces is put after that was deleted. LMDB would write
        it into the same pages, if they were written in this transaction too, and leave those that are too
        many where they are; the walk of a check over the file's pages takes that for damage.
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
            self._txn.delete(_TIME.pack(max(0, old - self._shift)), key, db=self._tables.expiry)
        if new is not None:
            self._txn.put(_TIME.pack(max(0, new - self._shift)), key, db=self._tables.expiry)

    def forget_expiry(self, key: bytes) -> None:
        """Take out of the expiry table a key whose record, which is damaged, cannot say when it expires.

        The whole table is walked for it, since keys stand there by their times.
        """
        with self._txn.cursor(self._tables.expiry) as cursor:
            for _, expiring in cursor:
                if expiring == key:
                    cursor.delete()
                    return

    def _inline(self, change: StoredEvent, current: StoredRecord) -> Buffer:
        """The replaced record, if it goes into the event's row; empty if not.

        It stands in the log already; but where that is the log's oldest eighth it will
        soon be trimmed, and the event could no longer tell its previous value. Keeping it always
        would write every value three times. An expire keeps it always: its old value is promised.
        """
        margin = (self.head - self._floor) // 8
        if change.op != "expire" and current.revision > self._floor + margin:
            return b""
        row = self._data.get(change.key)
        return b"" if row is None else row_format.decode_body(change.key, row)

    def trim(self, retention: Retention, budget: int, due_at: int) -> int:
        """Drop the log's oldest revisions while it exceeds ``retention``, about ``budget`` events.

        Returns when, in steady time, the oldest event left may be too old, which is what the next call wants
        as ``due_at``: until then the log need not be looked at.
        """
        clock = self._tables.clock
        now = clock.steady()
        if now <= due_at and not self._is_too_large(retention):
            return due_at
        cursor = self._log
        more = cursor.first()
        while more:
            place, raw = EventId.decode(cursor.key()), cursor.value()
            left_ms = retention.age_ms - clock.age_of(row_format.event_time(raw), place.revision)
            due_at = now + min(left_ms, GRACE_MS)
            exceeds = left_ms < 0 or self._is_too_large(retention)
            if place.revision > self._floor and (budget <= 0 or not exceeds):
                return due_at
            self._drop(place, raw)
            budget -= 1
            # deleting the last row is a success too, and leaves the cursor on an empty key
            more = cursor.delete() and bool(cursor.key())
        return now + min(retention.age_ms, GRACE_MS)

    def _is_too_large(self, retention: Retention) -> bool:
        return self._events > retention.events or self._bytes > retention.bytes

    def _drop(self, place: EventId, raw: Buffer) -> None:
        self._floor = place.revision
        self._events -= 1
        self._bytes -= len(raw) + 12
        if row_format.is_put(raw):
            return
        try:
            event = row_format.decode_event(place, raw)
        except DamageError:
            return  # what it said is lost; that must not keep the log from being trimmed
        grave = self._txn.get(event.key, db=self._tables.graves)
        if grave is not None and EventId.decode(grave) == place:
            self._txn.delete(event.key, db=self._tables.graves)

    def finish(self) -> LogCounters:
        """Write the log's counters if anything changed; call it last, right before the commit."""
        position = LogCounters(self.head, self._floor, self._events, self._bytes)
        if position != self._begun_at:
            self._txn.put(b"position", position.encode(), db=self._tables.meta)
        return position


def _pages(stat: Mapping[str, Any]) -> int:
    return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])


def _open_environment(
    folder: Path, map_size: int, *, sync: bool = True, readonly: bool = False
) -> lmdb.Environment:
    """Open LMDB with a large sparse map. The map is address space, not disk or memory; where the
    machine has not enough of it (39-bit ARM kernels, ``ulimit -v``), smaller ones are tried."""
    while True:
        try:
            return lmdb.open(
                os.fspath(folder),
                map_size=map_size,
                max_dbs=8,
                max_readers=64,
                sync=sync,
                readonly=readonly,
                mode=0o600,
            )
        except lmdb.MemoryError:
            if map_size < 1 << 30:
                raise
            map_size //= 2


def _pages_of(size: int) -> int:
    """The pages that a row of ``size`` bytes takes, where it takes pages of its own and they are small."""
    return (_PAGE_HEAD - 1 + size) // _PAGE_BYTES + 1


def _seek(cursor: lmdb.Cursor[Any], start: bytes) -> bool:
    # LMDB takes no empty key, and none longer than any that can be stored
    if not start:
        return cursor.first()
    return len(start) <= MAX_KEY_BYTES and cursor.set_range(start)


def _forward(cursor: lmdb.Cursor[Any], start: bytes) -> Iterator[tuple[Any, Any]]:
    return cursor.iternext() if _seek(cursor, start) else iter(())


def _size(stored: StoredRecord | None) -> int:
    return len(stored.value) if stored is not None and stored.value is not None else 0


def _beyond(key: bytes, end: bytes | None, stop: bytes | None) -> bool:
    return (end is not None and key >= end) or (stop is not None and key >= stop)


def _decode_event(place: EventId, row: Any) -> LogRow:
    try:
        return row_format.decode_event(place, row)
    except DamageError as damage:
        raise KvError(
            "damaged",
            f"the event at revision {place.revision} is damaged ({damage}); restore a backup",
            revision=place.revision,
        ) from damage


def _parse_place(cursor: str) -> EventId:
    revision, _, index = cursor.partition(".")
    if not (revision.isascii() and revision.isdigit() and index.isascii() and index.isdigit()):
        raise KvError("invalid_cursor", "pass a cursor back exactly as the reply gave it")
    if len(revision) > 19 or len(index) > 9:
        raise KvError("invalid_cursor", "pass a cursor back exactly as the reply gave it")
    return EventId(int(revision), int(index))
