"""An overlay on top of LMDB reads as an LMDB that has all of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvstore_daemon.storage.applier import returned
from kvstore_daemon.storage.clock import machine_clock
from kvstore_daemon.storage.interface import StoredEvent, StoredRecord
from kvstore_daemon.storage.lmdb_store.journaling import checkpoint, journal
from kvstore_daemon.storage.lmdb_store.journaling.journal import Frame
from kvstore_daemon.storage.lmdb_store.journaling.overlay import NUMBERS, PAIRED, Generation, Overlay, Row
from kvstore_daemon.storage.lmdb_store.row_format import LogCounters
from kvstore_daemon.storage.lmdb_store.tables import Tables, all_before, all_from, forward
from kvstore_daemon.storage.lmdb_store.write_transaction import WriteTransaction

KEYS = st.sampled_from([b"a", b"a/b", b"b", b"\xff\xff", b"z" * 511])
TIMES = st.sampled_from([b"\0" * 7 + b"\1", b"\0" * 7 + b"\2", b"\xff" * 8])
ROWS = st.binary(max_size=3)
CHANGES = st.one_of(
    st.tuples(st.just("data"), KEYS, ROWS | st.none()),
    st.tuples(st.just("log"), KEYS, ROWS | st.none()),
    st.tuples(st.just("expiry"), st.tuples(TIMES, KEYS), st.sampled_from([b"", None])),
)
TRANSACTIONS = st.lists(st.lists(CHANGES, max_size=6), max_size=6)


@contextmanager
def new_tables() -> Iterator[Tables]:
    with tempfile.TemporaryDirectory() as folder:
        tables = Tables(Path(folder), map_size=1 << 24, sync=False, clock=machine_clock())
        tables.open()
        yield tables
        tables.close()


def handle(tables: Tables, name: str) -> Any:
    return tables.handles[NUMBERS[name]]


def play(txn: Any, tables: Tables, changes: list[tuple]) -> None:
    """Do what a transaction does: it deletes only what is there, and adds a pair only once."""
    for name, key, row in changes:
        table = handle(tables, name)
        if name == "expiry":
            there = key in [(bytes(time), bytes(of)) for time, of in txn.cursor(table)]
            if there == (row is None):
                (txn.delete if there else txn.put)(*key, db=table)
        elif row is not None:
            txn.put(key, row, db=table)
        elif txn.get(key, db=table) is not None:
            txn.delete(key, db=table)


def seen(txn: Any, tables: Tables, name: str, start: bytes) -> list[Any]:
    """All that can be found in a table by every way of looking for it."""
    table = handle(tables, name)
    found: list[Any] = [[(bytes(key), bytes(row)) for key, row in txn.cursor(table)]]
    if name != "log":
        found.append(txn.stat(table)["entries"])
    if NUMBERS[name] in PAIRED:
        return found
    found.append([(bytes(key), bytes(row)) for key, row in forward(txn.cursor(table), start)])
    there = [(key, row) for key, row in all_from(txn.cursor(table), start) if row is not None]
    found.append([(bytes(key), bytes(row)) for key, row in there])
    for end in (start, None):
        there = [(key, row) for key, row in all_before(txn.cursor(table), end) if row is not None]
        found.append([(bytes(key), bytes(row)) for key, row in there])
    found.append(txn.get(start, db=table))
    cursor = txn.cursor(table)
    if cursor.set_range(start):
        found.append((bytes(cursor.key()), bytes(cursor.value())))
        found.append(list(cursor.iternext(keys=True, values=False)))
        cursor.set_range(start)
        found.append((cursor.prev(), bytes(cursor.key())))
    if cursor.last():
        found.append((bytes(cursor.key()), [bytes(key) for key, _ in cursor.iterprev()]))
        cursor.last()
        found.append((cursor.prev(), bytes(cursor.key())))
    return found


@given(TRANSACTIONS, st.lists(TRANSACTIONS, max_size=3), st.lists(CHANGES, max_size=4), KEYS)
def test_layers_read_as_one_store(
    base: list[list[tuple]], generations: list[list[list[tuple]]], staged: list[tuple], start: bytes
) -> None:
    with new_tables() as plain, new_tables() as layered:
        overlay = Overlay(LogCounters())
        for tables in (plain, layered):
            with tables.env.begin(write=True) as txn:
                for changes in base:
                    play(txn, tables, changes)
        frames = []
        for transactions in generations:
            overlay.freeze(len(frames))
            for changes in transactions:
                with plain.env.begin(write=True) as txn:
                    play(txn, plain, changes)
                group = Generation()
                with layered.env.begin() as below:
                    play(layered.layered(below, (group, *overlay.generations), group), layered, changes)
                overlay.active.take(group)
                rows = returned(journal.encode_rows(group))
                frames.append(Frame(len(frames) + 1, 0, memoryview(rows), 0))
        with plain.env.begin(write=True) as txn, layered.env.begin() as below:
            play(txn, plain, staged)
            group = Generation()
            both = layered.layered(below, (group, *overlay.generations), group)
            play(both, layered, staged)
            for name in ("data", "log", "expiry"):
                assert seen(both, layered, name, start) == seen(txn, plain, name, start)
            txn.abort()
        with layered.env.begin(write=True) as txn:
            checkpoint.apply(txn, layered.handles, frames)
        # LMDB has the frames now, and what is on top of it makes no difference
        with plain.env.begin() as txn, layered.env.begin() as below:
            for name in ("data", "log", "expiry"):
                wanted = seen(txn, plain, name, start)
                assert seen(below, layered, name, start) == wanted
                again = seen(layered.layered(below, overlay.generations), layered, name, start)
                if name == "log":
                    assert again == wanted
                else:
                    assert [again[0], *again[2:]] == [wanted[0], *wanted[2:]]


@given(st.lists(st.tuples(KEYS, st.sampled_from([b"", b"v" * 255, b"v" * 5000]), st.booleans()), max_size=6))
def test_rows_of_a_frame_are_what_was_staged(writes: list[tuple[bytes, bytes, bool]]) -> None:
    """Also where a large record is written once, with its event."""
    with new_tables() as tables, tables.env.begin() as base:
        group = Generation()
        txn: Any = tables.layered(base, (group,), group)
        transaction = WriteTransaction(tables, txn, LogCounters(), 1)
        for key, value, is_put in writes:
            current, before = transaction.current(key, value=True)
            revision = transaction.head + 1
            record = StoredRecord(value, "t/t", revision, revision, 1, 1, None) if is_put else None
            if is_put or current is not None:
                op = "put" if is_put else "delete"
                event = StoredEvent(op, key, revision, 0, 1, 1, record, None, 0)
                transaction.apply(event, current, before)
        rows = returned(journal.encode_rows(group))
        found: list[dict[bytes, Row]] = [{} for _ in NUMBERS]
        journal.decode_rows(memoryview(rows), found)
        assert found == [table.rows for table in group.tables]
        large, log = b"v" * 5000, group.tables[NUMBERS["log"]].rows.values()
        assert rows.count(large) == sum(large in row for row in log if row is not None)
