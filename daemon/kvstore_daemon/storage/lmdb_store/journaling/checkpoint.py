"""Putting the journal's rows into LMDB: when a store is opened, when a file of its journal is full, when a
backup is made, and at the end.

All frames of a checkpoint go into one transaction, which LMDB syncs as any other, together with the number of
the last: so LMDB always has the store as it was after one frame, and whatever happens to a checkpoint, the
journal has the rest. Of several rows under one key only the last is put, in the order of the keys, which
touches each page once.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lmdb

from kvstore_core.errors import KvError
from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.lmdb_store.journaling import journal
from kvstore_daemon.storage.lmdb_store.journaling.journal import Frame
from kvstore_daemon.storage.lmdb_store.journaling.overlay import NUMBERS, PAIR_KEY_BYTES, PAIRED, Row

Handles = Sequence[Any]
"""LMDB's handles of all tables, in the order of the schema."""

_META = NUMBERS["meta"]
_APPENDED = NUMBERS["log"]


def journal_id(txn: lmdb.Transaction[Any], tables: Handles) -> bytes | None:
    """The id of the journal that goes with the store; None if the last run ended as it should, or there never
    was one."""
    row = txn.get(b"journal", db=tables[_META])
    return None if row is None else bytes(row)


def applied(txn: lmdb.Transaction[Any], tables: Handles) -> int:
    """The number of the journal's last frame that is in LMDB."""
    return int(bytes(txn.get(b"applied", b"0", db=tables[_META])))


def begin(txn: lmdb.Transaction[Any], tables: Handles) -> bytes:
    """Begin a new journal, whose files must be there already; returns its id. Frames of the one before are
    never read again."""
    new = secrets.token_bytes(journal.ID_BYTES)
    txn.put(b"journal", new, db=tables[_META])
    txn.put(b"applied", b"0", db=tables[_META])
    return new


def end(txn: lmdb.Transaction[Any], tables: Handles) -> None:
    """Note that LMDB has all, and no journal goes with the store any more."""
    txn.delete(b"journal", db=tables[_META])
    txn.delete(b"applied", db=tables[_META])


def read(
    folder: Path, txn: lmdb.Transaction[Any], tables: Handles, files: Sequence[memoryview] | None = None
) -> list[Frame]:
    """The frames of the journal in ``folder`` that are not in LMDB as ``txn`` sees it.

    ``files`` are the contents of its files if they were read before; a backup beside a running daemon does
    that before it begins ``txn``, so that no frame falls between the two. Raises ``damaged``.
    """
    known = journal_id(txn, tables)
    if known is None:
        return []
    try:
        files = files or [journal.read_file(folder / name) for name in journal.NAMES]
    except FileNotFoundError as error:
        raise KvError(
            "damaged",
            f"the journal {error.filename} is missing, and the daemon did not end as it should, so the "
            "newest writes are in it and not in the store's file: bring it back, or restore a backup; an "
            "empty file in its place gives up those writes",
        ) from error
    try:
        return list(journal.read_frames(list(files), known, applied(txn, tables)))
    except DamageError as damage:
        raise KvError(
            "damaged",
            f"the journal in {folder} is damaged: {damage}; restore a backup, or empty the files "
            f"{' and '.join(journal.NAMES)} to give up those writes",
        ) from damage


def apply(txn: lmdb.Transaction[Any], tables: Handles, frames: Iterable[Frame]) -> int:
    """Put the rows of ``frames`` into LMDB's tables, and note the number of the last. Returns how many rows
    that were. Raises lmdb.Error."""
    rows: list[dict[bytes, Row]] = [{} for _ in tables]
    number = applied(txn, tables)
    for frame in frames:
        journal.decode_rows(frame.rows, rows)
        number = frame.number
    for table, changed in enumerate(rows):
        if table in PAIRED:
            _put_pairs(txn, tables[table], changed)
        elif changed:
            _put_rows(txn, tables[table], changed, is_appended=table == _APPENDED)
    # also if it is there: a commit that changes nothing would not be written
    txn.put(b"applied", b"%d" % number, db=tables[_META])
    return sum(map(len, rows))


def _put_rows(txn: lmdb.Transaction[Any], table: Any, rows: dict[bytes, Row], *, is_appended: bool) -> None:
    cursor = txn.cursor(table)
    new: list[tuple[bytes, bytes]] = []
    for key in sorted(rows):
        row = rows[key]
        if row is not None:
            new.append((key, row))
        elif cursor.set_key(key):
            cursor.delete()
    # what comes after the last row LMDB puts without splitting pages in halves
    after_last = is_appended and bool(new) and (not cursor.last() or bytes(cursor.key()) < new[0][0])
    cursor.putmulti(new, append=after_last)


def _put_pairs(txn: lmdb.Transaction[Any], table: Any, rows: dict[bytes, Row]) -> None:
    for pair in sorted(rows):
        key, value = pair[:PAIR_KEY_BYTES], pair[PAIR_KEY_BYTES:]
        if rows[pair] is None:
            txn.delete(key, value, db=table)
        else:
            txn.put(key, value, db=table)
