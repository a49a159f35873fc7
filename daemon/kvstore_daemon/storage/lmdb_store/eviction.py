"""Eviction: which records below the prefixes of a cache go first, and how many bytes all of them take.

Both are found from the records when the store is opened, and kept in memory: the store has nothing of it. So
they are right after a crash, an import, a restore, and with other prefixes, and other puts write no row more.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_PRESENT_BYTES
from kvstore_daemon.storage.interface import EvictionLimit, EvictionState, StoredRecord
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.pages import record_bytes
from kvstore_daemon.storage.lmdb_store.row_format import EVENT_ID_BYTES

MOST_EVICTED = 10_000
"""How many records one request may evict, of MAX_PRESENT_BYTES together. What is still too much goes in
steps, with the next requests and in between."""

STEP_RECORDS = 200
"""How many records a step evicts that no request has asked for: a write that comes waits for some
milliseconds."""

FULL_SECONDS = 1.0
"""How long the records wait in a full store until more of them go: what is evicted makes room once a
checkpoint is done, and the log is short."""

_FULL_SHARE = 64
_SPARE_ENTRIES = 1_000
_REVISION = struct.Struct(">Q")

RowOf = Callable[[bytes], Any]
"""The data row of a key, None if there is none."""


class EvictionFigures(NamedTuple):
    """What is true after so many groups. ``dropped`` is how many entries were taken out of the order so
    far."""

    records: int
    size: int
    evicted_records: int
    evicted_bytes: int
    dropped: int


class EvictionOrder:
    """The records below the prefixes of ``limit``, by when they were last written or touched.

    It is that of what is planned. :meth:`published` says up to where that is on the disk, and
    :meth:`begin_again` goes back to there. Used by the loop's thread only.

    An entry is the id of an event and its key. One is added with each put, and none is searched for: whether
    it is still that of the record shows when it gets to the front. So that those that are not do not gather,
    the order is swept: once there are half as many again as records, a put looks at two old entries. There
    are about twice as many at most.
    """

    def __init__(self, limit: EvictionLimit) -> None:
        self.prefixes = limit.prefixes
        self.max_bytes = limit.max_bytes
        self.size = 0
        """What the records take, in bytes, as :func:`record_bytes` has it."""
        self._records = self._evicted_records = self._evicted_bytes = self._dropped = 0
        self._swept: deque[bytes] = deque()
        self._unswept: deque[bytes] = deque()
        self._to_sweep = 0
        self._gives_way_at = 0.0
        self._undo: deque[bytes] = deque()
        """The entries that were dropped by what is not on the disk yet."""
        self._published = EvictionFigures(0, 0, 0, 0, 0)

    def load(self, rows: Iterable[tuple[Any, Any]]) -> None:
        """Take in the keys and data rows of all records below the prefixes."""
        entries: list[bytes] = []
        for key, row in rows:
            entries.append(row_format.record_event_id(row) + bytes(key))
            self.size += record_bytes(len(key), len(row))
        entries.sort()
        self._unswept = deque(entries)
        self._records = len(entries)
        self._published = self.planned()

    def state(self) -> EvictionState:
        """The figures of what is on the disk."""
        records, size, evicted_records, evicted_bytes, _ = self._published
        return EvictionState(self.prefixes, self.max_bytes, size, records, evicted_records, evicted_bytes)

    # ── what a transaction changes ───────────────────────────────────────────────────────────────

    def remove(self, key: bytes, row: Any) -> None:
        """Note that the record of ``key`` goes, or is replaced; ``row`` is its data row, None if there is no
        record."""
        if row is not None:
            self._records -= 1
            self.size -= record_bytes(len(key), len(row))

    def add(self, key: bytes, event_id: bytes, row_length: int) -> None:
        """Note a new record of ``key``, which was removed before if there was one."""
        self._unswept.append(event_id + key)
        self._records += 1
        self.size += record_bytes(len(key), row_length)
        self._to_sweep += 2

    def count_evicted(self, records: int, size: int) -> None:
        """Count what was evicted."""
        self._evicted_records += records
        self._evicted_bytes += size

    def sweep(self, row_of: RowOf) -> None:
        """Drop entries that are no longer those of a record, as many as are due."""
        budget, self._to_sweep = self._to_sweep, 0
        if self._entries() <= self._records + self._records // 2 + _SPARE_ENTRIES:
            return
        for _ in range(min(budget, len(self._unswept))):
            entry = self._unswept.popleft()
            if _is_of(entry, row_of(entry[EVENT_ID_BYTES:])):
                self._swept.append(entry)
            else:
                self._drop(entry)
        if not self._unswept:
            self._swept, self._unswept = self._unswept, self._swept

    def _entries(self) -> int:
        return len(self._swept) + len(self._unswept)

    def _drop(self, entry: bytes) -> None:
        self._dropped += 1
        self._undo.append(entry)

    # ── what has to go ───────────────────────────────────────────────────────────────────────────

    def refuse_too_large(self, records: Iterable[tuple[bytes, StoredRecord]]) -> None:
        """See :class:`kvstore_daemon.storage.applier.CacheBound`."""
        sizes = [
            record_bytes(len(key), row_format.row_length(record))
            for key, record in records
            if key.startswith(self.prefixes)
        ]
        total = sum(sizes)
        if total <= self.max_bytes:
            return
        bound = f"that the cache below {self._names()} may take (--evict-bytes)"
        if len(sizes) == 1:
            message = f"the record takes {total} bytes, more than the {self.max_bytes} {bound}"
            raise KvError("value_too_large", message, limit=self.max_bytes)
        message = f"its records take {total} bytes together, more than the {self.max_bytes} {bound}"
        raise KvError("request_too_large", message, limit=self.max_bytes)

    def _names(self) -> str:
        return ", ".join(repr(prefix.decode()) for prefix in self.prefixes)

    def is_over(self) -> bool:
        """Whether the records take more than they may."""
        return self.size > self.max_bytes

    def pushed_out(self, size: int, row_of: RowOf, before: int | None = None) -> list[bytes]:
        """The keys that a request has to evict which found the records to take ``size`` bytes: so many of the
        oldest as they are over the limit, MOST_EVICTED at most. With ``before``, only such as were written
        before that revision.

        Were they over it before, as after a start with a lower limit, it evicts twice what it has added: they
        get fewer, and it does not wait for all of them.
        """
        added = self.size - size
        left = max(self.max_bytes, size - added)
        return self._oldest(self.size - left if added > 0 else 0, MOST_EVICTED, row_of, before)

    def due(self, row_of: RowOf, *, is_full: bool) -> list[bytes]:
        """The keys to evict in a step that no request has asked for: while there is too much, STEP_RECORDS at
        most. Where the store ``is_full``, each FULL_SECONDS a 64th of the limit, and MOST_EVICTED at most."""
        surplus, most = self.size - self.max_bytes, STEP_RECORDS
        now = time.monotonic()
        if is_full and now >= self._gives_way_at:
            self._gives_way_at = now + FULL_SECONDS
            surplus, most = max(surplus, self.max_bytes // _FULL_SHARE), MOST_EVICTED
        return self._oldest(surplus, most, row_of)

    def _oldest(self, surplus: int, most: int, row_of: RowOf, before: int | None = None) -> list[bytes]:
        """The keys of the oldest records, which are taken out of the order: so many that they have
        ``surplus`` bytes, at most ``most``."""
        keys: list[bytes] = []
        end = None if before is None else _REVISION.pack(before)
        room = MAX_PRESENT_BYTES
        while surplus > 0 and len(keys) < most:
            entries = self._swept or self._unswept
            if not entries or (end is not None and entries[0] >= end):
                break
            entry = entries[0]
            key = entry[EVENT_ID_BYTES:]
            row = row_of(key)
            if _is_of(entry, row):
                room -= len(row)
                if room < 0 and keys:
                    break
                keys.append(key)
                surplus -= record_bytes(len(key), len(row))
            entries.popleft()
            self._drop(entry)
        return keys

    # ── what becomes of it ───────────────────────────────────────────────────────────────────────

    def planned(self) -> EvictionFigures:
        """The figures of all that is planned, for :meth:`published`."""
        return EvictionFigures(
            self._records, self.size, self._evicted_records, self._evicted_bytes, self._dropped
        )

    def published(self, figures: EvictionFigures) -> None:
        """All that was planned when ``figures`` were true is on the disk."""
        for _ in range(figures.dropped - self._published.dropped):
            self._undo.popleft()
        self._published = figures

    def begin_again(self, head: int) -> None:
        """Forget what was planned after the last group that is on the disk; ``head`` is its revision."""
        self._records, self.size, self._evicted_records, self._evicted_bytes, self._dropped = self._published
        self._to_sweep = 0
        entries = sorted((*self._undo, *self._swept, *self._unswept))
        end = _REVISION.pack(head + 1)
        while entries and entries[-1] >= end:
            entries.pop()
        self._undo.clear()
        self._swept.clear()
        self._unswept = deque(entries)


def _is_of(entry: bytes, row: Any) -> bool:
    """Whether an entry is that of the record in a data row."""
    return row is not None and row_format.record_event_id(row) == entry[:EVENT_ID_BYTES]
