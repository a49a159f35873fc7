"""Walk a store and say everything that is wrong with it. Meant for an idle or closed store: it reads
every row in one snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lmdb

from kvstore_daemon.engine import rows
from kvstore_daemon.engine.mirror import Mirror
from kvstore_daemon.engine.rows import NOWHERE, DamageError, LogRow, Place


def verify(mirror: Mirror) -> list[str]:
    """One sentence for each fault found: damaged rows, chains that lead nowhere, tables and
    counters that disagree. Empty for a sound store."""
    with mirror.env.begin() as txn:
        return [*_records(mirror, txn), *_events(mirror, txn), *_expiry(mirror, txn), *_graves(mirror, txn)]


def _records(mirror: Mirror, txn: lmdb.Transaction[Any]) -> Iterator[str]:
    at = mirror.log_position(txn)
    for key, row in txn.cursor(mirror.data):
        try:
            stored = rows.decode_record(key, row)
        except DamageError as damage:
            yield f"record {key!r}: {damage}"
            continue
        place = rows.record_place(row)
        if not stored.create_revision <= stored.revision <= at.head:
            yield f"record {key!r}: revision {stored.revision} is not between its creation and the head"
        if stored.revision > at.floor and txn.get(place, db=mirror.log_rows) is None:
            yield f"record {key!r}: its event {Place.decode(place)} is not in the log"
        if stored.expires_at is not None and not txn.cursor(mirror.expiry).set_key_dup(
            stored.expires_at.to_bytes(8), key
        ):
            yield f"record {key!r}: its expiry is not in the expiry table"


def _events(mirror: Mirror, txn: lmdb.Transaction[Any]) -> Iterator[str]:
    at = mirror.log_position(txn)
    events = size = 0
    revision, expected = at.floor, 0
    for raw_place, row in txn.cursor(mirror.log_rows):
        events, size = events + 1, size + len(row) + len(raw_place)
        place = Place.decode(raw_place)
        if place.revision != revision:
            if expected:
                yield f"revision {revision}: its last {expected} events are missing"
            revision, expected = place.revision, 0
        try:
            event = rows.decode_event(place, row)
        except DamageError as damage:
            yield f"event {place}: {damage}"
            continue
        expected = event.siblings - place.nth - 1
        yield from _chain(mirror, txn, event, at.floor)
    if (events, size) != (at.events, at.size):
        yield f"the log has {events} events of {size} bytes; the counters say {at.events} and {at.size}"
    if not at.floor <= revision <= at.head:
        yield f"the log ends at revision {revision}, outside of floor {at.floor} and head {at.head}"


def _chain(mirror: Mirror, txn: lmdb.Transaction[Any], event: LogRow, floor: int) -> Iterator[str]:
    if event.before == NOWHERE or event.before.revision <= floor:
        return
    row = txn.get(event.before.encode(), db=mirror.log_rows)
    if row is None:
        yield f"event {event.place}: the event before it, {event.before}, is missing"
    elif rows.decode_event(event.before, row).key != event.key:
        yield f"event {event.place}: the event before it, {event.before}, is of another key"


def _expiry(mirror: Mirror, txn: lmdb.Transaction[Any]) -> Iterator[str]:
    for time, key in txn.cursor(mirror.expiry):
        row = txn.get(key, db=mirror.data)
        if row is None or rows.decode_record(key, row).expires_at != int.from_bytes(time):
            yield f"expiry {int.from_bytes(time)} of {key!r}: no such record"


def _graves(mirror: Mirror, txn: lmdb.Transaction[Any]) -> Iterator[str]:
    for key, place in txn.cursor(mirror.graves):
        if txn.get(key, db=mirror.data) is not None:
            yield f"grave of {key!r}: the key lives"
        if txn.get(place, db=mirror.log_rows) is None:
            yield f"grave of {key!r}: its event is not in the log"
