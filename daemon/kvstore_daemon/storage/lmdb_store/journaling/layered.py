"""A transaction on LMDB's tables with an overlay on top: what it reads is both together, and what it puts
stays in memory.

It has those methods of py-lmdb's transactions and cursors that reads and changes need, so that they are
written once, for a store with a journal and for one without (the mirror of an etcd).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import dropwhile
from operator import gt, lt
from typing import Any

import lmdb

from kvstore_core.limits import MAX_KEY_BYTES
from kvstore_daemon.storage.lmdb_store.journaling.overlay import (
    ABSENT,
    NUMBERS,
    PAIR_KEY_BYTES,
    PAIRED,
    Generation,
    TableRows,
)

Table = Any
"""A table's handle, as LMDB gives it out."""

Item = tuple[Any, Any]
"""A key and its row; one of them may be a memoryview."""

_NOWHERE = Generation()
_DATA = NUMBERS["data"]


class LayeredTransaction:
    """What ``base``, an LMDB transaction that reads, and ``layers`` show together, the newest layer first.

    ``numbers`` has each table's number in the overlay, ``handles`` the tables by number. Changes go into
    ``staged``, which is the first of the layers; without it there may be none.
    """

    __slots__ = ("_base", "_found", "_handles", "_layers", "_numbers", "_staged")

    def __init__(
        self,
        base: lmdb.Transaction[Any],
        layers: Sequence[Generation],
        numbers: dict[Table, int],
        handles: Sequence[Table],
        staged: Generation | None = None,
    ) -> None:
        self._base = base
        self._layers = layers
        self._numbers = numbers
        self._handles = handles
        self._staged = staged or _NOWHERE
        self._found: tuple[bytes, bool] = (b"", False)

    def get(self, key: bytes, default: Any = None, *, db: Table) -> Any:
        """The row of ``key``, else ``default``. Not for tables with duplicates."""
        number = self._numbers[db]
        for layer in self._layers:
            row: Any = layer.tables[number].rows.get(key, ABSENT)
            if row is not ABSENT:
                break
        else:
            row = self._base.get(key, db=db)
        if number == _DATA:
            self._found = key, row is not None
        return default if row is None else row

    def put(self, key: bytes, value: bytes, *, db: Table, append: bool = False) -> bool:  # noqa: ARG002
        """Stage a row."""
        number = self._numbers[db]
        table = self._staged.tables[number]
        if number == _DATA:
            table.growth += not self._has(key, db)
            self._found = key, True
        elif number in PAIRED:
            key, value = key + value, b""
            table.growth += 1
        table.put(key, value)
        return True

    def delete(self, key: bytes, value: bytes = b"", *, db: Table) -> bool:
        """Stage that a row is deleted, one that is there; in a table with duplicates, the one with
        ``value``."""
        number = self._numbers[db]
        table = self._staged.tables[number]
        if number == _DATA:
            table.growth -= self._has(key, db)
            self._found = key, False
        elif number in PAIRED:
            key += value
            table.growth -= 1
        table.put(key, None)
        return True

    def _has(self, key: bytes, db: Table) -> bool:
        """Whether there is a record under ``key``; mostly that was just looked up."""
        found, there = self._found
        return there if found is key else self.get(key, db=db) is not None

    def cursor(self, db: Table) -> LayeredCursor:
        """A cursor over one table."""
        number = self._numbers[db]
        rows = [layer.tables[number] for layer in self._layers]
        return LayeredCursor(db, self._base, rows, is_paired=number in PAIRED)

    def stat(self, db: Table) -> dict[str, int]:
        """LMDB's figures of a table. ``entries`` is what both together have, of records and of tables with
        duplicates: those of others are never asked for."""
        stat: Any = self._base.stat(db)
        number = self._numbers[db]
        applied = int(bytes(self._base.get(b"applied", b"0", db=self._handles[NUMBERS["meta"]])))
        for layer in self._layers:
            # LMDB may have a frozen one already, and that is not known yet
            if layer.last is None or layer.last > applied:
                stat["entries"] += layer.tables[number].growth
        return dict(stat)


class LayeredCursor:
    """A cursor over one table of a :class:`LayeredTransaction`. An iterator over it does not see rows that
    are put after it was begun."""

    def __init__(
        self,
        db: Table,
        base: lmdb.Transaction[Any],
        layers: Sequence[TableRows],
        *,
        is_paired: bool,
    ) -> None:
        self._db = db
        self._base = base
        self._all_layers = layers
        self._is_paired = is_paired
        self._at: Item | None = None

    def __iter__(self) -> Iterator[Item]:
        return self._forward(b"")

    def key(self) -> Any:
        """The key of the row here, empty if the cursor is at none."""
        return b"" if self._at is None else self._at[0]

    def value(self) -> Any:
        """The row here."""
        return b"" if self._at is None else self._at[1]

    # ── moves ────────────────────────────────────────────────────────────────────────────────────

    def first(self) -> bool:
        """Move to the first row; whether there is one."""
        return self.set_range(b"")

    def set_range(self, key: bytes) -> bool:
        """Move to the first row at or after ``key``, which in a table with duplicates may be one with its
        value; whether there is one."""
        self._at = next(self._forward(bytes(key)), None)
        return self._at is not None

    def last(self) -> bool:
        """Move to the last row; whether there is one."""
        self._at = next(self._backward(None), None)
        return self._at is not None

    def prev(self) -> bool:
        """Move to the row before, from none to the last; whether there is one."""
        self._at = next(self._backward(self._place()), None)
        return self._at is not None

    def iternext(self, keys: bool = True, values: bool = True) -> Iterator[Any]:
        """All rows from here on, from none those from the first on; each a key and a row, or one of both."""
        items = self._forward(self._place() or b"")
        return items if keys and values else (item[0 if keys else 1] for item in items)

    def iterprev(self) -> Iterator[Item]:
        """All rows from here back to the first, from none those from the last on."""
        if self._at is not None:
            yield self._at
        yield from self._backward(self._place())

    def all_from(self, start: bytes) -> Iterator[Item]:
        """The rows from ``start`` on, and among them, as None, what is known to be deleted: a reader that
        bounds its work has to know of them."""
        return self._forward(start, deleted=True)

    def all_before(self, end: bytes | None) -> Iterator[Item]:
        """The same of the rows below ``end``, None for all, in the opposite order."""
        return self._backward(end, deleted=True)

    def _place(self) -> bytes | None:
        """The key by which the overlay would have the row here."""
        if self._at is None:
            return None
        key, value = self._at
        return bytes(key) + bytes(value) if self._is_paired else bytes(key)

    # ── both together ────────────────────────────────────────────────────────────────────────────

    def _forward(self, start: bytes, *, deleted: bool = False) -> Iterator[Item]:
        keys = self._layer_keys([rows.keys_from(start) for rows in self._layers()])
        return self._merged(keys, self._base_from(start), lt, deleted)

    def _backward(self, end: bytes | None, *, deleted: bool = False) -> Iterator[Item]:
        keys = self._layer_keys([rows.keys_before(end) for rows in self._layers()], reverse=True)
        return self._merged(keys, self._base_before(end), gt, deleted)

    def _merged(
        self,
        keys: Iterator[bytes],
        items: Iterator[Item],
        precedes: Callable[[Any, Any], bool],
        deleted: bool,
    ) -> Iterator[Item]:
        """The rows of the layers under ``keys``, and those of ``items`` that they do not replace; with
        ``deleted`` those, too, that are deleted in the layers."""
        key = next(keys, None)
        for item in items:
            if key is None:
                yield item
                continue
            below = self._place_of(item)
            while key is not None and precedes(key, below):
                yield from self._shown(key, deleted)
                key = next(keys, None)
            if key == below:
                yield from self._shown(key, deleted)
                key = next(keys, None)
            else:
                yield item
        while key is not None:
            yield from self._shown(key, deleted)
            key = next(keys, None)

    def _layers(self) -> list[TableRows]:
        return [rows for rows in self._all_layers if rows.rows]

    def _layer_keys(self, streams: list[Iterable[bytes]], *, reverse: bool = False) -> Iterator[bytes]:
        """The keys of all layers, each once."""
        if len(streams) < 2:
            yield from streams[0] if streams else ()
            return
        before = None
        for key in heapq.merge(*streams, reverse=reverse):
            if key != before:
                yield key
                before = key

    def _shown(self, key: bytes, deleted: bool) -> Iterator[Item]:
        """The row that the layers have under ``key``, if it is not deleted or those are wanted too."""
        for rows in self._all_layers:
            row: Any = rows.rows.get(key, ABSENT)
            if row is not ABSENT:
                break
        if row is not None or deleted:
            yield (key[:PAIR_KEY_BYTES], key[PAIR_KEY_BYTES:]) if self._is_paired else (key, row)

    def _place_of(self, item: Item) -> bytes:
        key, value = item
        return bytes(key) + bytes(value) if self._is_paired else bytes(key)

    def _base_from(self, start: bytes) -> Iterator[Item]:
        cursor = self._base.cursor(self._db)
        if not start:
            return cursor.iternext() if cursor.first() else iter(())
        if len(start) > MAX_KEY_BYTES and not self._is_paired:
            return iter(())
        if not cursor.set_range(start[:PAIR_KEY_BYTES] if self._is_paired else start):
            return iter(())
        items = cursor.iternext()
        if self._is_paired:
            return dropwhile(lambda item: self._place_of(item) < start, items)
        return items

    def _base_before(self, end: bytes | None) -> Iterator[Item]:
        """Not for tables with duplicates."""
        return backward(self._base.cursor(self._db), end)


def backward(cursor: lmdb.Cursor[Any], end: bytes | None) -> Iterator[Item]:
    """The rows of LMDB below ``end``, None for all, the last one first."""
    is_there = cursor.prev() if end is not None and cursor.set_range(end) else cursor.last()
    return cursor.iterprev() if is_there else iter(())
