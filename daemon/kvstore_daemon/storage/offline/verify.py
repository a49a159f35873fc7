"""Walk a store and say everything that is wrong with it.

Reads every row of every table in one snapshot, so it may run beside a daemon that writes. Rows are held
against each other both ways: a record has its event, and an event that is a key's newest has its record or
its grave; an expiry has its record, and a record that expires has its expiry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lmdb
import orjson

from kvstore_daemon.storage.clock import is_whole, steady_stamps
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.file_errors import is_damage
from kvstore_daemon.storage.lmdb_store.row_format import NO_EVENT, DamageError, EventId, LogCounters, LogRow

Progress = Callable[[int, int], None]
"""Called now and then with the rows that were looked at and how many there are."""

TABLES = {
    "data": False,
    "log": False,
    "expiry": True,
    "graves": False,
    "meta": False,
    "clients": False,
    "client_ages": True,
}
"""The tables of a store, and whether a key of it may have several values."""

_PROGRESS_ROWS = 5_000
_Row = tuple[bytes, bytes]


def verify(
    env: lmdb.Environment, txn: lmdb.Transaction[bytes], progress: Progress | None = None
) -> Iterator[str]:
    """One sentence for each fault found: damaged rows, chains that lead nowhere, tables and
    counters that disagree. Nothing for a sound store."""
    try:
        tables = open_tables(env, txn)
    except DamageError as damage:
        yield str(damage)
        return
    yield from _Walk(tables, txn, progress or (lambda _done, _total: None)).faults()


def open_tables(env: lmdb.Environment, txn: lmdb.Transaction[bytes]) -> dict[str, Any]:
    """All tables of a store by name; raises DamageError for one that is not there, or is none, and lmdb.Error
    for what is not the file's fault."""
    tables = {}
    for name, dupsort in TABLES.items():
        try:
            tables[name] = env.open_db(name.encode(), txn=txn, dupsort=dupsort, create=False)
        except lmdb.Error as error:
            if not (is_damage(error) or isinstance(error, lmdb.NotFoundError)):
                raise
            raise DamageError(f"the table {name} cannot be opened: {error}") from error
    return tables


class _Walk:
    """One walk through all tables, as ``txn`` sees them."""

    def __init__(self, tables: dict[str, Any], txn: lmdb.Transaction[bytes], progress: Progress) -> None:
        self._tables = tables
        self._txn = txn
        self._progress = progress
        self._done = 0
        self._entries = {name: int(txn.stat(table)["entries"]) for name, table in tables.items()}
        self._total = sum(self._entries.values())
        self._steady = steady_stamps(None)

    def faults(self) -> Iterator[str]:
        position = self._get("meta", b"position")
        if position is not None and len(position) != len(LogCounters(0, 0, 0, 0).encode()):
            yield f"the log's counters have {len(position)} bytes"
            return
        self._at = LogCounters(0, 0, 0, 0) if position is None else LogCounters.decode(position)
        yield from self._meta()
        yield from self._each("data", self._record)
        yield from self._events()
        yield from self._each("expiry", self._expiry)
        yield from self._each("graves", self._grave)
        yield from self._each("clients", self._reply)
        yield from self._each("client_ages", self._age)
        self._progress(self._total, self._total)

    def _each(self, name: str, look: Callable[[bytes, bytes], Iterator[str]]) -> Iterator[str]:
        """The faults that ``look`` finds in the table's rows one by one, and those of the table."""
        for row in self._rows(name):
            if isinstance(row, str):
                yield row
            else:
                yield from look(*row)

    def _get(self, table: str, key: bytes) -> bytes | None:
        # a key that a damaged row names may be none
        return self._txn.get(key, db=self._tables[table]) if 0 < len(key) <= 511 else None

    def _rows(self, name: str) -> Iterator[_Row | str]:
        """The table's rows; a fault, and no more rows, where they are out of order: a page that leads back
        to an earlier one would never end."""
        before: _Row | None = None
        count, dupsort = 0, TABLES[name]
        for row in self._txn.cursor(self._tables[name]):
            if before is not None and (row <= before if dupsort else row[0] <= before[0]):
                yield f"{name}: {_shown(row[0])} stands behind {_shown(before[0])}, out of order"
                return
            before = row
            count += 1
            self._done += 1
            if self._done % _PROGRESS_ROWS == 0:
                self._progress(self._done, self._total)
            yield row
        if count != self._entries[name]:
            yield f"{name}: {count} rows are there, {self._entries[name]} were counted when they were written"

    def _meta(self) -> Iterator[str]:
        yield from self._each("meta", self._field)
        clock = self._get("meta", b"clock")
        self._steady = steady_stamps(clock)
        if clock is not None and not is_whole(clock):
            yield "meta: the checksum of what is known of the clock does not match"
        epoch = self._get("meta", b"epoch") or b""
        if len(epoch) != 16 or epoch.strip(b"0123456789abcdef"):
            yield f"meta: {_shown(epoch)} is no epoch"

    def _field(self, name: bytes, _value: bytes) -> Iterator[str]:
        if name not in (b"format", b"epoch", b"position", b"unsynced", b"restored", b"clock"):
            yield f"meta: there is no field {_shown(name)}"

    def _record(self, key: bytes, row: bytes) -> Iterator[str]:
        name = f"record {_shown(key)}"
        try:
            stored = row_format.decode_record(key, row)
        except DamageError as damage:
            yield f"{name}: {damage}"
            return
        if not stored.create_revision <= stored.revision <= self._at.head:
            yield f"{name}: revision {stored.revision} is not between its creation and the head"
        if stored.revision > self._at.floor:
            place = row_format.record_place(row)
            event = self._get("log", place)
            if event is None:
                yield f"{name}: its event {_at(EventId.decode(place))} is not in the log"
            elif row_format.event_key(event) != key or not row_format.is_put(event):
                # its checksum is looked at where the log is walked
                yield f"{name}: the event {_at(EventId.decode(place))} that should have made it is another's"
        if stored.expires_at is not None and not self._txn.cursor(self._tables["expiry"]).set_key_dup(
            self._steady(stored.expires_at, stored.revision).to_bytes(8), key
        ):
            yield f"{name}: its expiry is not in the expiry table"

    def _event(self, place: bytes) -> LogRow | str | None:
        """The event at ``place``, None if there is none."""
        row = self._get("log", place)
        return None if row is None else _decoded(EventId.decode(place), row)

    def _events(self) -> Iterator[str]:
        at = self._at
        events = size = 0
        revision, expected = at.floor, 0
        for row in self._rows("log"):
            if isinstance(row, str):
                yield row
                continue
            events, size = events + 1, size + len(row[0]) + len(row[1])
            if len(row[0]) != len(NO_EVENT.encode()):
                yield f"event {_shown(row[0])}: this is no place in the log"
                continue
            place = EventId.decode(row[0])
            if place != (revision, place.index) or place.index == 0:
                if expected:
                    yield f"revision {revision}: its last {expected} events are missing"
                if place.index:
                    yield f"revision {place.revision}: its first {place.index} events are missing"
            event = _decoded(place, row[1])
            revision, expected = place.revision, 0
            if isinstance(event, LogRow):
                expected = event.count - place.index - 1
            yield from self._one_event(place, event)
        if expected:
            yield f"revision {revision}: its last {expected} events are missing"
        yield from self._counters(events, size, revision)

    def _counters(self, events: int, size: int, last: int) -> Iterator[str]:
        at = self._at
        if (events, size) != (at.events, at.size):
            yield f"the log has {events} events of {size} bytes; the counters say {at.events} and {at.size}"
        head = max(last, int(self._get("meta", b"restored") or 0))
        if head != at.head:
            yield f"the log ends at revision {head}, and the head is said to be {at.head}"

    def _one_event(self, place: EventId, event: LogRow | str) -> Iterator[str]:
        if isinstance(event, LogRow):
            yield from self._chain(event)
            yield from self._newest(event)
        else:
            yield f"event {_at(place)}: {event}"

    def _chain(self, event: LogRow) -> Iterator[str]:
        if event.before == NO_EVENT or event.before.revision <= self._at.floor:
            return
        before = self._event(event.before.encode())
        if before is None:
            yield f"event {_at(event.place)}: the event before it, {_at(event.before)}, is missing"
        elif not isinstance(before, str) and before.key != event.key:
            yield f"event {_at(event.place)}: the event before it, {_at(event.before)}, is of another key"

    def _newest(self, event: LogRow) -> Iterator[str]:
        """What the key's newest event left must not be older than ``event``."""
        name = f"event {_at(event.place)}"
        record = self._get("data", event.key)
        if record is not None:
            newest, op = row_format.record_place(record), "put"
        else:
            grave = self._get("graves", event.key)
            if grave is None:
                yield f"{name}: of its key {_shown(event.key)} there is neither record nor grave"
                return
            newest, op = grave, "delete"
        place = event.place.encode()
        if newest < place or (newest == place and (event.op == "put") != (op == "put")):
            yield f"{name}: what its key {_shown(event.key)} has is not what the newest event left"

    def _expiry(self, time: bytes, key: bytes) -> Iterator[str]:
        record = self._get("data", key)
        try:
            stored = None if record is None else row_format.decode_record(key, record)
        except DamageError:
            return  # reported with the records
        expires_at = stored and stored.expires_at
        if not stored or not expires_at or self._steady(expires_at, stored.revision) != int.from_bytes(time):
            yield f"expiry {int.from_bytes(time)} of {_shown(key)}: no such record"

    def _grave(self, key: bytes, place: bytes) -> Iterator[str]:
        if self._get("data", key) is not None:
            yield f"grave of {_shown(key)}: the key lives"
        event = self._event(place)
        if event is None:
            yield f"grave of {_shown(key)}: its event is not in the log"
        elif not isinstance(event, str) and (event.key != key or event.op == "put"):
            yield f"grave of {_shown(key)}: its event is another's"

    def _reply(self, client: bytes, kept: bytes) -> Iterator[str]:
        minute, reply = kept[12:20], kept[20:]
        if not self._txn.cursor(self._tables["client_ages"]).set_key_dup(minute, client):
            yield f"reply to {_shown(client)}: its age is not in the table of ages"
        try:
            orjson.loads(reply)
        except orjson.JSONDecodeError:
            yield f"reply to {_shown(client)}: it is not JSON"

    def _age(self, minute: bytes, client: bytes) -> Iterator[str]:
        kept = self._get("clients", client)
        if kept is None or kept[12:20] != minute:
            yield f"age of the reply to {_shown(client)}: no such reply"


def _decoded(place: EventId, row: bytes) -> LogRow | str:
    """The event in a log row; what is wrong with it if it is damaged."""
    try:
        return row_format.decode_event(place, row)
    except DamageError as damage:
        return str(damage)


def _at(place: EventId) -> str:
    return f"{place.revision}.{place.index}"


def _shown(data: bytes) -> str:
    """A key for a person, cut where it is long."""
    text = data.decode(errors="backslashreplace")
    return repr(text if len(text) <= 80 else text[:79] + "…")
