"""What a mirror holds, and what it would have to hold at a revision; no sockets, no threads of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from kvstore_client.subscription_state import Item, Reset, Sync
from kvstore_core.digest import record_hash
from kvstore_core.filters import Filter, disjoint
from kvstore_core.model import Cursor, Event, Record

RECENT_CHANGES = 10_000
"""How many changes it can look back, to say what it held at the revision of the store's digest."""

_RANGE_KEYS = 1_000
_RANGE_BYTES = 4 * 1024 * 1024
"""Of a range whose digest is asked for at once: about what the daemon looks at for one page."""

Changed = Mapping[str, Record | None]
"""The keys that changed, with their new records; None for those that are gone."""


class KeySpan(NamedTuple):
    """The keys that begin with ``prefix`` from ``start`` on, up to ``end``; empty for no bound."""

    prefix: str
    start: str
    end: str

    def __str__(self) -> str:
        bounds = (f"{word} {key!r}" for word, key in (("from", self.start), ("before", self.end)) if key)
        return " ".join([f"what begins with {self.prefix!r}" if self.prefix else "what it has", *bounds])

    def holds(self, key: str) -> bool:
        """Whether ``key`` is one of them."""
        # text is compared by code point, which is the byte order of UTF-8
        return key.startswith(self.prefix) and key >= self.start and (not self.end or key < self.end)


class MirrorCopy(NamedTuple):
    """All records of one moment, its cursor, the sum that was kept for them, and the number of the load."""

    records: dict[str, Record]
    cursor: Cursor | None
    sum: int
    load: int


class _Difference(NamedTuple):
    revision: int
    key: str
    by: int


class MirroredRecords:
    """The records, and the sum of their hashes, kept with each change.

    The owner passes what a subscription returns to :meth:`take`, in one thread. Others may read ``records``
    at any time; what has to go together is read under ``lock``. What a snapshot brings is put aside until all
    of it has come, so that nobody sees a part of it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.records: dict[str, Record] = {}
        self.cursor: Cursor | None = None
        self._loading: dict[str, Record] | None = {}
        self._sum = 0
        self._recent: deque[_Difference] = deque()
        self._reaches_back_to = 0
        self.loads = 0
        """How often all of it was replaced; nothing before can be compared with what is after."""

    @property
    def is_loading(self) -> bool:
        """Whether a snapshot is being read, so that there is no cursor to go on from."""
        return self._loading is not None

    def resume(self, records: dict[str, Record], cursor: Cursor) -> None:
        """Begin with what was kept in a file."""
        self._replace(records, cursor)

    def load_again(self) -> None:
        """Read all of it from the store; until that is done it is what it was."""
        self._loading = {}

    def take(self, item: Item, cursor: Cursor | None) -> Changed:
        """Take in an item; ``cursor`` is the subscription's after it. Returns what has changed for those who
        read."""
        if isinstance(item, Reset):
            self.load_again()
        elif self._loading is not None:
            if isinstance(item, Sync):
                return self._replace(self._loading, item.cursor)
            if isinstance(item, list):
                for event in item:
                    _apply(self._loading, event)
        elif isinstance(item, list):
            return self._change(item, cursor)
        else:
            self._move_to(cursor)
        return {}

    def _move_to(self, cursor: Cursor | None) -> None:
        if cursor is not None and self._loading is None:
            self.cursor = cursor

    def _change(self, events: list[Event], cursor: Cursor | None) -> Changed:
        changed: dict[str, Record | None] = {}
        with self.lock:
            for event in events:
                difference = number_of(event.record) - number_of(self.records.get(event.key))
                self._sum += difference
                self._recent.append(_Difference(event.revision, event.key, difference))
                _apply(self.records, event)
                changed[event.key] = event.record
            while len(self._recent) > RECENT_CHANGES:
                self._reaches_back_to = self._recent.popleft().revision
            self._move_to(cursor)
        return changed

    def _replace(self, records: dict[str, Record], cursor: Cursor) -> Changed:
        old = self.records
        changed: dict[str, Record | None] = {key: None for key in old if key not in records}
        changed.update((key, record) for key, record in records.items() if old.get(key) != record)
        total = sum(map(number_of, records.values()))
        with self.lock:
            self.records, self.cursor, self._loading = records, cursor, None
            self._sum, self.loads = total, self.loads + 1
            self._recent.clear()
            self._reaches_back_to = cursor.revision
        return changed

    # ── the digest ───────────────────────────────────────────────────────────────────────────────

    def copy(self) -> MirrorCopy:
        """All of it at one moment."""
        with self.lock:
            return MirrorCopy(dict(self.records), self.cursor, self._sum, self.loads)

    def difference(self, since: int, to: int, span: KeySpan | None = None) -> int | None:
        """By how much the sum, or that of a part, changed from one revision to another, which may be the
        older one. None where it is not there yet, or cannot look back that far."""
        first, last = min(since, to), max(since, to)
        with self.lock:
            if self.cursor is None or not self._reaches_back_to <= first <= last <= self.cursor.revision:
                return None
            changes = [change for change in self._recent if first < change.revision <= last]
        total = sum(change.by for change in changes if span is None or span.holds(change.key))
        return total if since <= to else -total

    def sum_at(self, revision: int) -> int | None:
        """The sum of what it held at ``revision``; None as :meth:`difference`."""
        with self.lock:
            total, position = self._sum, 0 if self.cursor is None else self.cursor.revision
        difference = self.difference(position, revision)
        return None if difference is None else total + difference


def parts_of(records: Mapping[str, Record], wanted: Filter) -> list[tuple[KeySpan, int]]:
    """The keys that are wanted, in parts whose digests are each told in one page if the store has the same
    keys; with the sum of each. All keys are one part."""
    if wanted.takes_every_key:
        return [(KeySpan("", "", ""), sum(map(number_of, records.values())))]
    parts = []
    for prefix in disjoint(wanted.prefixes):
        start, count, size, total = "", 0, 0, 0
        for key in sorted(key for key in records if key.startswith(prefix)):
            if count == _RANGE_KEYS or size > _RANGE_BYTES:
                parts.append((KeySpan(prefix, start, key), total))
                start, count, size, total = key, 0, 0, 0
            count, size = count + 1, size + len(records[key].value or b"")
            total += number_of(records[key])
        parts.append((KeySpan(prefix, start, ""), total))
    return parts


def _apply(records: dict[str, Record], event: Event) -> None:
    if event.record is None:
        records.pop(event.key, None)
    else:
        records[event.key] = event.record


def number_of(record: Record | None) -> int:
    """What a record adds to the sum, modulo 2 to the 256 a digest; 0 for none."""
    if record is None:
        return 0
    return int.from_bytes(record_hash(record.key.encode(), record.revision, record.value or b""))
