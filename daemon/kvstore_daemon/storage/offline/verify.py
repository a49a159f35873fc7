"""Reads all of a store and reports everything that is wrong with it.

Every row of every table is read in one snapshot, so it may run beside a daemon that writes. Rows are checked
against each other both ways: a record has its event, and a key's newest event has its record or its
tombstone; an expiry has its record, and a record that expires has its expiry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lmdb
import orjson

from kvstore_core.digest import SetHash, digest_text, record_hash
from kvstore_core.limits import MAX_KEY_BYTES
from kvstore_daemon.storage.clock import is_whole, steady_stamps
from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.journaling.journal import Frame
from kvstore_daemon.storage.lmdb_store.row_format import (
    NO_EVENT,
    NO_EVENT_ROW,
    EventId,
    LogCounters,
    LogRow,
)
from kvstore_daemon.storage.lmdb_store.schema import META_FIELDS, TABLES, open_tables
from kvstore_daemon.storage.offline import Progress, no_progress
from kvstore_daemon.storage.offline.journaled import JournaledView

_PROGRESS_ROWS = 5_000
_Row = tuple[bytes, bytes]


def verify(
    env: lmdb.Environment,
    txn: lmdb.Transaction[bytes],
    frames: Iterable[Frame] = (),
    progress: Progress = no_progress,
) -> Iterator[str]:
    """One sentence for each fault found: damaged rows, chains that break off, tables and counters that
    disagree. Nothing for a sound store, which is what ``txn`` sees with the journal's ``frames`` over it.
    ``progress`` counts rows."""
    try:
        tables = open_tables(env, txn)
    except DamageError as damage:
        yield str(damage)
        return
    yield from _Walk(tables, JournaledView(txn, tables, frames), progress).faults()


class _Walk:
    """One walk through all tables, as ``view`` shows them."""

    def __init__(self, tables: dict[str, Any], view: JournaledView, progress: Progress) -> None:
        self._tables = tables
        self._view = view
        self._progress = progress
        self._done = 0
        self._entries = {name: view.stat(table)["entries"] for name, table in tables.items()}
        self._total = sum(self._entries.values())
        self._steady = steady_stamps(None)
        self._records: SetHash | None = SetHash()

    def faults(self) -> Iterator[str]:
        try:
            self._counters = LogCounters.decode(self._get("meta", b"position"))
        except DamageError as damage:
            yield str(damage)
            return
        yield from self._meta()
        yield from self._each("data", self._record)
        yield from self._check_digest()
        yield from self._events()
        yield from self._each("expiry", self._expiry)
        yield from self._each("graves", self._tombstone)
        yield from self._each("clients", self._reply)
        yield from self._each("client_ages", self._age)
        self._progress(self._total, self._total)

    def _each(self, name: str, look: Callable[[bytes, bytes], Iterator[str]]) -> Iterator[str]:
        """The faults that ``look`` finds in each row of the table, and those of the table."""
        for row in self._rows(name):
            if isinstance(row, str):
                yield row
            else:
                yield from look(*row)

    def _get(self, table: str, key: bytes) -> bytes | None:
        # a key from a damaged row may be none that LMDB takes
        return self._view.get(key, db=self._tables[table]) if 0 < len(key) <= MAX_KEY_BYTES else None

    def _has_pair(self, table: str, key: bytes, value: bytes) -> bool:
        return self._view.has_pair(key, value, db=self._tables[table])

    def _rows(self, name: str) -> Iterator[_Row | str]:
        """The table's rows, up to one that is out of order, which is a fault: a page that points back to an
        earlier one would give rows without end."""
        before: _Row | None = None
        count, dupsort = 0, TABLES[name]
        for row in self._view.cursor(self._tables[name]):
            if before is not None and (row <= before if dupsort else row[0] <= before[0]):
                yield f"{name}: {_shown(row[0])} comes after {_shown(before[0])}, out of order"
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
            yield "meta: the checksum of the clock's state does not match"
        epoch = self._get("meta", b"epoch") or b""
        if len(epoch) != 16 or epoch.strip(b"0123456789abcdef"):
            yield f"meta: {_shown(epoch)} is not an epoch"

    def _field(self, name: bytes, _value: bytes) -> Iterator[str]:
        if name not in META_FIELDS:
            yield f"meta: there is no field {_shown(name)}"

    def _record(self, key: bytes, row: bytes) -> Iterator[str]:
        name = f"record {_shown(key)}"
        try:
            stored = row_format.decode_record(key, row)
        except DamageError as damage:
            yield f"{name}: {damage}"
            self._records = None
            return
        digest = record_hash(key, stored.revision, stored.value or b"")
        if self._records is not None:
            self._records.replace(b"", digest)
        if row_format.hash_of_record(key, row) != digest:
            yield f"{name}: the hash it keeps is not its own"
        if not stored.create_revision <= stored.revision <= self._counters.head:
            yield f"{name}: revision {stored.revision} is not between its creation and the head"
        if stored.revision > self._counters.floor:
            event_id = row_format.record_event_id(row)
            event = self._get("log", event_id)
            if event is None:
                yield f"{name}: its event {_named(EventId.decode(event_id))} is not in the log"
            elif row_format.event_key(event) != key or not row_format.is_put(event):
                # its checksum is verified with the log
                named = _named(EventId.decode(event_id))
                yield f"{name}: the event {named} that should have made it is another's"
        if stored.expires_at is not None and not self._has_pair(
            "expiry", self._steady(stored.expires_at, stored.revision).to_bytes(8), key
        ):
            yield f"{name}: its expiry is not in the expiry table"

    def _check_digest(self) -> Iterator[str]:
        """What is said of all records, unless one is damaged, is what they add up to."""
        said, found = self._counters.digest, self._records
        if said is not None and found is not None and digest_text(said) != found.hexdigest():
            yield f"the digest of all records is said to be {digest_text(said)}; it is {found.hexdigest()}"

    def _event(self, event_id: bytes) -> LogRow | str | None:
        """The event with the encoded id; its fault if it is damaged, None if there is none."""
        row = self._get("log", event_id)
        return None if row is None else _decoded(EventId.decode(event_id), row)

    def _events(self) -> Iterator[str]:
        events = size = 0
        revision, expected = self._counters.floor, 0
        for row in self._rows("log"):
            if isinstance(row, str):
                yield row
                continue
            events, size = events + 1, size + len(row[0]) + len(row[1])
            if len(row[0]) != len(NO_EVENT_ROW):
                yield f"event {_shown(row[0])}: this is not a position in the log"
                continue
            event_id = EventId.decode(row[0])
            if event_id != (revision, event_id.index) or event_id.index == 0:
                if expected:
                    yield f"revision {revision}: its last {expected} events are missing"
                if event_id.index:
                    yield f"revision {event_id.revision}: its first {event_id.index} events are missing"
            event = _decoded(event_id, row[1])
            revision, expected = event_id.revision, 0
            if isinstance(event, LogRow):
                expected = event.count - event_id.index - 1
            yield from self._one_event(event_id, event)
        if expected:
            yield f"revision {revision}: its last {expected} events are missing"
        yield from self._check_counters(events, size, revision)

    def _check_counters(self, events: int, size: int, last: int) -> Iterator[str]:
        said = self._counters
        if (events, size) != (said.events, said.size):
            yield (
                f"the log has {events} events of {size} bytes; the counters say {said.events} and {said.size}"
            )
        head = max(last, int(self._get("meta", b"restored") or 0))
        if head != said.head:
            yield f"the log ends at revision {head}, and the head is said to be {said.head}"

    def _one_event(self, event_id: EventId, event: LogRow | str) -> Iterator[str]:
        if isinstance(event, LogRow):
            yield from self._chain(event)
            yield from self._newest(event)
        else:
            yield f"event {_named(event_id)}: {event}"

    def _chain(self, event: LogRow) -> Iterator[str]:
        if event.before == NO_EVENT or event.before.revision <= self._counters.floor:
            return
        before = self._event(event.before.encode())
        if before is None:
            fault = "is missing"
        elif not isinstance(before, str) and before.key != event.key:
            fault = "is of another key"
        else:
            return
        yield f"event {_named(event.event_id)}: the event before it, {_named(event.before)}, {fault}"

    def _newest(self, event: LogRow) -> Iterator[str]:
        """What the key's newest event left must not be older than ``event``."""
        name = f"event {_named(event.event_id)}"
        record = self._get("data", event.key)
        if record is not None:
            newest, op = row_format.record_event_id(record), "put"
        else:
            tombstone = self._get("graves", event.key)
            if tombstone is None:
                yield f"{name}: of its key {_shown(event.key)} there is neither record nor tombstone"
                return
            newest, op = tombstone, "delete"
        event_id = event.event_id.encode()
        if newest < event_id or (newest == event_id and (event.op == "put") != (op == "put")):
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

    def _tombstone(self, key: bytes, event_id: bytes) -> Iterator[str]:
        name = f"tombstone of {_shown(key)}"
        if self._get("data", key) is not None:
            yield f"{name}: the key is there"
        event = self._event(event_id)
        if event is None:
            yield f"{name}: its event is not in the log"
        elif not isinstance(event, str) and (event.key != key or event.op == "put"):
            yield f"{name}: its event is another's"

    def _reply(self, client: bytes, kept: bytes) -> Iterator[str]:
        minute, reply = kept[12:20], kept[20:]
        if not self._has_pair("client_ages", minute, client):
            yield f"reply to {_shown(client)}: its age is not in the table of ages"
        try:
            orjson.loads(reply)
        except orjson.JSONDecodeError:
            yield f"reply to {_shown(client)}: it is not JSON"

    def _age(self, minute: bytes, client: bytes) -> Iterator[str]:
        kept = self._get("clients", client)
        if kept is None or kept[12:20] != minute:
            yield f"age of the reply to {_shown(client)}: no such reply"


def _decoded(event_id: EventId, row: bytes) -> LogRow | str:
    """The event in a log row; what is wrong with it if it is damaged."""
    try:
        return row_format.decode_event(event_id, row)
    except DamageError as damage:
        return str(damage)


def _named(event_id: EventId) -> str:
    return f"{event_id.revision}.{event_id.index}"


def _shown(data: bytes) -> str:
    """A key for a person, cut where it is long."""
    text = data.decode(errors="backslashreplace")
    return repr(text if len(text) <= 80 else text[:79] + "…")
