"""The rows of a range of keys, forwards or backwards, with a way past all that begins alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lmdb

from kvstore_core.access.grants import prefix_end
from kvstore_daemon.storage.interface import MAX_COUNTED
from kvstore_daemon.storage.lmdb_store.tables import Tables, all_before, all_from


class RangeRows:
    """Iterates over the keys of one snapshot with start <= key < end (None: no end) and their rows, in key
    order or, with ``reverse``, in the opposite one; None for a row that is known to be deleted.

    ``seeks`` and ``looked_at`` count what was done for it: how often a place in the table was looked up, and
    how many rows were read there, also by :meth:`count_below`.
    """

    def __init__(
        self, tables: Tables, txn: lmdb.Transaction[Any], start: bytes, end: bytes | None, *, reverse: bool
    ) -> None:
        self._tables = tables
        self._txn = txn
        self._start = start
        self._end = end
        self._reverse = reverse
        self._has_moved = False
        self.seeks = 0
        self.looked_at = 0

    def __iter__(self) -> Iterator[tuple[bytes, Any]]:
        while True:
            self._has_moved = False
            for key, row in self._found():
                yield key, row
                if self._has_moved:
                    break
            else:
                return

    def _seek(self) -> Any:
        self.seeks += 1
        return self._txn.cursor(self._tables.data)

    def _found(self) -> Iterator[tuple[bytes, Any]]:
        """The rows from one place on."""
        start, end = self._start, self._end
        cursor = self._seek()
        for raw_key, row in all_before(cursor, end) if self._reverse else all_from(cursor, start):
            key = bytes(raw_key)
            if key < start if self._reverse else end is not None and key >= end:
                return
            self.looked_at += 1
            yield key, row

    def pass_over(self, prefix: bytes) -> None:
        """Go on behind all keys that begin with ``prefix``."""
        self._has_moved = True
        if self._reverse:
            self._end = prefix
        else:
            self._start = prefix_end(prefix) or prefix  # there is one: no text ends with the byte 0xff

    def count_below(self, prefix: bytes, now: int, most: int) -> int | None:
        """How many keys of the range begin with ``prefix`` and are there at steady time ``now``; None where
        that takes a look at more than ``most`` rows, or there are more than ``MAX_COUNTED``."""
        end = prefix_end(prefix)
        if end is None or (self._end is not None and self._end < end):
            end = self._end
        last = self.looked_at + most
        total = 0
        for raw_key, row in all_from(self._seek(), max(prefix, self._start)):
            if end is not None and bytes(raw_key) >= end:
                break
            if self.looked_at == last:
                return None
            self.looked_at += 1
            total += row is not None and self._tables.is_live(row, now)
            if total > MAX_COUNTED:
                return None
        return total
