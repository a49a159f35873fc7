"""Rows that are in the journal and not yet in LMDB.

They are kept by generation, one for each file of the journal. Changes go into the active generation. Once its
file is full it is frozen, and dropped when a checkpoint has put it into LMDB; a lookup asks the active one,
then the frozen one, then LMDB. Dropping a whole generation is one step, and no row has to say how new it is.

A row of a table with duplicates is kept under its key and its value together. All their keys are of the same
length, so that is also their order in LMDB.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import islice
from typing import Final

from kvstore_daemon.storage.lmdb_store.row_format import LogCounters
from kvstore_daemon.storage.lmdb_store.schema import TABLES

Row = bytes | None
"""A row of the overlay; None where the row in LMDB is deleted."""

ABSENT: Final = object()
"""What a lookup finds where the overlay does not know the row."""

NUMBERS = {name: number for number, name in enumerate(TABLES)}
"""Each table's number, in the journal too."""

PAIRED = frozenset(NUMBERS[name] for name, has_duplicates in TABLES.items() if has_duplicates)
"""The numbers of the tables with duplicates."""

PAIR_KEY_BYTES = 8
"""The length of a key in a table with duplicates."""

_EXPIRY = NUMBERS["expiry"]

_FEW = 8
_ROW_BYTES = 200
"""What a row takes in memory beside its own bytes: dictionary, objects, the place in the sorted list."""


class TableRows:
    """The rows of one table in one generation."""

    __slots__ = ("_sorted", "growth", "rows", "size")

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.growth = 0
        """By how many rows the table is longer for them."""
        self.size = 0
        """What they take in memory, in bytes, at most."""
        self._sorted: list[bytes] = []

    def put(self, key: bytes, row: Row) -> None:
        """Put a row; None for one that is deleted."""
        self.rows[key] = row
        self.size += _ROW_BYTES + len(key) + (0 if row is None else len(row))

    def keys(self) -> list[bytes]:
        """All keys in their order. What the list has at a position it keeps there."""
        known = self._sorted
        missing = len(self.rows) - len(known)
        if missing:
            # a dictionary keeps the order in which rows came
            new = sorted(islice(reversed(self.rows), missing))
            if not known or known[-1] < new[0]:
                known += new
            elif missing <= _FEW:
                self._sorted = known = known.copy()
                for key in new:
                    insort(known, key)
            else:
                self._sorted = known = sorted(known + new)  # cheap: it finds the two sorted runs
        return known

    def keys_from(self, start: bytes) -> Iterable[bytes]:
        """The keys from ``start`` on, in their order."""
        keys = self.keys()
        return map(keys.__getitem__, range(bisect_left(keys, start) if start else 0, len(keys)))

    def keys_before(self, end: bytes | None) -> Iterable[bytes]:
        """The keys below ``end``, None for all, in the opposite order."""
        keys = self.keys()
        at = len(keys) if end is None else bisect_left(keys, end)
        return map(keys.__getitem__, range(at - 1, -1, -1))

    def take(self, other: TableRows) -> None:
        """Put newer rows over these."""
        self.rows.update(other.rows)
        self.growth += other.growth
        self.size += other.size


class Generation:
    """The rows of all tables that one file of the journal has, or one transaction."""

    __slots__ = ("last", "tables")

    def __init__(self) -> None:
        self.tables: tuple[TableRows, ...] = tuple(TableRows() for _ in TABLES)
        self.last: int | None = None
        """The number of its last frame, once it is frozen."""

    def take(self, other: Generation) -> None:
        """Put newer rows over these."""
        for mine, newer in zip(self.tables, other.tables, strict=True):
            if newer.rows:
                mine.take(newer)


class Overlay:
    """The generations that are not in LMDB yet, the newest first. Used by one thread only."""

    def __init__(self, counters: LogCounters) -> None:
        self.generations: tuple[Generation, ...] = (Generation(),)
        self.counters = counters
        """The log's counters, with all that is here."""
        self.first_expiry = b""
        """No row of the expiry table that is still there comes before this one."""

    @property
    def active(self) -> Generation:
        """The generation that takes what is new."""
        return self.generations[0]

    def take(self, staged: Generation, counters: LogCounters) -> None:
        """Put what a transaction has staged on top, with the log's counters after it."""
        self.active.take(staged)
        self.counters = counters
        for pair, row in staged.tables[_EXPIRY].rows.items():
            if row is not None:
                self.first_expiry = min(self.first_expiry, pair[:PAIR_KEY_BYTES])

    @property
    def size(self) -> int:
        """What all of it takes in memory, in bytes, at most."""
        return sum(table.size for generation in self.generations for table in generation.tables)

    def size_of(self, table: int) -> int:
        """What the rows of one table take in memory, in bytes, at most."""
        return sum(generation.tables[table].size for generation in self.generations)

    def freeze(self, last: int) -> None:
        """Begin a new active generation; ``last`` is the number of the last frame in the one that was."""
        self.active.last = last
        self.generations = (Generation(), *self.generations)

    def drop(self) -> None:
        """Let go of the oldest generation: LMDB has it now."""
        self.generations = self.generations[:-1]

    def rows_of(self, table: int) -> list[dict[bytes, Row]]:
        """The rows of one table, the newest first."""
        return [rows for each in self.generations if (rows := each.tables[table].rows)]

    def copy(self) -> Overlay:
        """An overlay with the same rows."""
        other = Overlay(self.counters)
        active = Generation()
        active.take(self.active)
        other.generations = (active, *self.generations[1:])
        return other
