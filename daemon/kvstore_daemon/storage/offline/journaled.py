"""A store with what its journal has beyond LMDB: a view of both together, and the frames in a file.

Nothing here writes to the store. A reader beside a daemon takes the journal's files first and LMDB's snapshot
afterwards: whatever of a file is used again in between is in the snapshot by then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import lmdb

from kvstore_daemon.storage.lmdb_store.journaling import checkpoint, journal
from kvstore_daemon.storage.lmdb_store.journaling.journal import Frame
from kvstore_daemon.storage.lmdb_store.journaling.layered import LayeredTransaction
from kvstore_daemon.storage.lmdb_store.journaling.overlay import (
    ABSENT,
    NUMBERS,
    PAIR_KEY_BYTES,
    PAIRED,
    Generation,
    Row,
)
from kvstore_daemon.storage.lmdb_store.schema import TABLES, open_tables

Files = list[memoryview]
"""The contents of the journal's files."""

_MAP_RESERVE = 1 << 28


class JournaledView:
    """What ``frames`` and ``txn``, which has what came before them, show together.

    ``tables`` are those of :func:`kvstore_daemon.storage.lmdb_store.schema.open_tables`.
    """

    def __init__(
        self, txn: lmdb.Transaction[Any], tables: dict[str, Any], frames: Iterable[Frame] = ()
    ) -> None:
        self._txn = txn
        self._tables = tuple(tables.values())
        self._numbers = {table: NUMBERS[name] for name, table in tables.items()}
        self._changes = Generation()
        for frame in frames:
            rows: list[dict[bytes, Row]] = [{} for _ in NUMBERS]
            journal.decode_rows(frame.rows, rows)
            for number, changed in enumerate(self._changes.tables):
                for key, row in rows[number].items():
                    # a frame may delete what was put within it, so nothing is counted that was not there
                    changed.growth += (row is not None) - self._has(number, key)
                    changed.put(key, row)
        both = LayeredTransaction(txn, [self._changes], self._numbers, self._tables)
        self.get, self.cursor, self.stat = both.get, both.cursor, both.stat

    def has_pair(self, key: bytes, value: bytes, *, db: Any) -> bool:
        """Whether a table with duplicates has ``value`` under ``key``."""
        return self._has(self._numbers[db], key + value)

    def _has(self, number: int, key: bytes) -> bool:
        """Whether there is a row under ``key``; in a table with duplicates that is key and value together."""
        row = self._changes.tables[number].rows.get(key, ABSENT)
        if row is not ABSENT:
            return row is not None
        if number in PAIRED:
            pair = key[:PAIR_KEY_BYTES], key[PAIR_KEY_BYTES:]
            return self._txn.cursor(self._tables[number]).set_key_dup(*pair)
        return self._txn.get(key, db=self._tables[number]) is not None


def files_in(folder: Path) -> Files | None:
    """The journal's files beside the store in ``folder``; None if one is missing."""
    paths = [folder / name for name in journal.NAMES]
    return [journal.read_file(path) for path in paths] if all(path.exists() for path in paths) else None


def section_of(file: Path, start: int, length: int) -> Files:
    """The frames that are kept in ``file`` behind an image of the store."""
    with file.open("rb") as opened:
        opened.seek(start)
        return [memoryview(opened.read(length))]


def frames_beyond(
    folder: Path, txn: lmdb.Transaction[Any], tables: dict[str, Any], files: Files | None
) -> list[Frame]:
    """The frames that ``txn`` has not yet. Raises ``damaged``, also if there should be a journal and
    ``files`` is None."""
    return checkpoint.read(folder, txn, list(tables.values()), files)


def size_of(frames: Iterable[Frame]) -> int:
    """The bytes of :func:`encoded`."""
    return sum(journal.HEAD_BYTES + len(frame.rows) for frame in frames)


def encoded(txn: lmdb.Transaction[Any], tables: dict[str, Any], frames: Sequence[Frame]) -> Iterable[bytes]:
    """The frames of the journal that goes with ``txn``, as its files have them."""
    journal_id = checkpoint.journal_id(txn, list(tables.values())) or b""
    for number, synced, view, _ in frames:
        rows = bytes(view)
        yield journal.encode_head(journal_id, number, synced, rows, crc32(rows))
        yield rows


def _no_more(_txn: lmdb.Transaction[Any], _meta: Any) -> None:
    pass


def settle(
    image: BinaryIO, journal_bytes: int, change: Callable[[lmdb.Transaction[Any], Any], None] = _no_more
) -> None:
    """Put the journal that is kept behind the store's image in the file into it, and cut it off: the store is
    then one that was closed. ``change`` may alter what is in the table ``meta``, in the same transaction.

    Not synced. To be called only once the file was verified, since LMDB maps it.
    """
    size = os.fstat(image.fileno()).st_size - journal_bytes
    image.seek(size)
    files = [memoryview(image.read(journal_bytes))]
    image.truncate(size)
    path, map_size = os.fspath(image.name), 2 * size + 4 * journal_bytes + _MAP_RESERVE
    with (
        lmdb.open(path, subdir=False, lock=False, max_dbs=len(TABLES) + 1, map_size=map_size) as env,
        env.begin(write=True) as txn,
    ):
        tables = open_tables(env, txn)
        handles = list(tables.values())
        checkpoint.apply(txn, handles, frames_beyond(Path(path), txn, tables, files))
        checkpoint.end(txn, handles)
        change(txn, tables["meta"])
