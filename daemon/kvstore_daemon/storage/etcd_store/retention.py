"""How far back the log is to reach: the same rules as on one machine, but agreed on.

One daemon puts the new ``floor`` into etcd, every mirror trims to it, and etcd may then forget what is below.
"""

from __future__ import annotations

from typing import Any

import lmdb

from kvstore_daemon.storage.interface import Retention
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.row_format import EventId
from kvstore_daemon.storage.lmdb_store.tables import Tables

_MOST_EVENTS = 50_000
"""The most events that one step lets go: every mirror has to delete them at once."""


CROWDED = 0.6
"""The share of etcd's quota above which the log is shortened, whatever was asked for."""

LEAST_EVENTS = 1000
"""What the log keeps however full etcd is: enough for subscribers to go on after a break of theirs."""


def shortened(retention: Retention, events: int) -> Retention:
    """What a log of ``events`` may have in a step of shortening it: three quarters, and ``LEAST_EVENTS``."""
    return retention._replace(events=min(retention.events, max(LEAST_EVENTS, events * 3 // 4)))


def due_floor(tables: Tables, txn: lmdb.Transaction[Any], retention: Retention, ahead: int = 0) -> int | None:
    """The revision up to which ``retention`` asks to trim the log, in a bounded step; None if it does not.

    This machine's clock may be wrong. It is known to be ``ahead`` of another daemon's, in milliseconds; and
    an event is no older than the newest one says, so a log to which nothing is added keeps what it has.
    """
    counters = tables.counters(txn)
    lead = max(ahead, _lead(tables, txn))
    events, size = counters.events - retention.events, counters.size - retention.bytes
    floor: int | None = None
    for seen, (raw_id, row) in enumerate(txn.cursor(tables.log_rows)):
        revision = EventId.decode(raw_id).revision
        if revision != floor:
            exceeds = events > 0 or size > 0
            if seen >= _MOST_EVENTS or not exceeds:
                age = _age(tables, raw_id, row) - lead
                if seen >= _MOST_EVENTS or age <= retention.age_ms:
                    break
            floor = revision
        events -= 1
        size -= len(raw_id) + len(row)
    return floor


def _lead(tables: Tables, txn: lmdb.Transaction[Any]) -> int:
    """How long ago the newest event was; 0 where it seems to be yet to come."""
    with txn.cursor(tables.log_rows) as newest:
        return max(0, _age(tables, newest.key(), newest.value())) if newest.last() else 0


def _age(tables: Tables, raw_id: bytes, row: bytes) -> int:
    return tables.clock.age_of(row_format.event_time(row), EventId.decode(raw_id).revision)
