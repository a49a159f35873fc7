"""An open store: the LMDB environment, its tables, and what is kept beside the records and the log.

The LMDB engine writes the tables through its journal, a distributed engine fills them from its watch. Either
way reads are those of :mod:`kvstore_daemon.storage.lmdb_store.snapshot_reads`, and changes come in through
:class:`kvstore_daemon.storage.lmdb_store.write_transaction.WriteTransaction` alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import lmdb

from kvstore_core.digest import MODULUS, SetHash
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_KEY_BYTES
from kvstore_daemon.storage.clock import ClockStep, StoreClock
from kvstore_daemon.storage.damage import DamageError, damaged_record
from kvstore_daemon.storage.interface import StoredRecord
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.journaling import checkpoint
from kvstore_daemon.storage.lmdb_store.journaling.layered import LayeredCursor, LayeredTransaction, backward
from kvstore_daemon.storage.lmdb_store.journaling.overlay import NUMBERS, Generation, Overlay
from kvstore_daemon.storage.lmdb_store.row_format import EventId, LogCounters
from kvstore_daemon.storage.lmdb_store.schema import FORMAT, OLDEST_FORMAT, TABLES
from kvstore_daemon.storage.lmdb_store.store_file import ensure_store, new_epoch, refuse_truncated
from kvstore_daemon.storage.write_rules import sequence_key, sequence_number

log = logging.getLogger("kvstore.daemon")

_GIVE_UP_SECONDS = 10.0
_KNOWN_PREFIXES = 1_000
_LAST_NUMBER_LOOKS = 100


class Tables:
    """The tables of the store in ``folder``, and its clock. Nothing is touched before :meth:`open`.

    One thread reads. Who writes is another thread (a mirror), or another process (checkpoints); LMDB itself
    is what they share.
    """

    env: lmdb.Environment
    page_size: int
    step_at_start: ClockStep | None
    """The step of the wall clock that was noticed when the store was opened."""

    def __init__(self, folder: Path, *, map_size: int, sync: bool, clock: StoreClock) -> None:
        self.clock = clock
        self.writer_is_done = threading.Event()
        """Set by the thread that writes once a commit failed and it will not touch the environment again."""
        self.folder = folder
        self.file = folder / "data.mdb"
        self.overlay: Overlay | None = None
        """What :meth:`snapshot` shows on top of LMDB; None where there is no journal."""
        self.map_size = map_size
        self._sync = sync
        self._is_closed = False
        self._numbered: set[bytes] = set()
        """Some prefixes behind which no key has a number above those that are given out."""

    def open(self) -> None:
        """Open the store, made if there is none. Raises KvError, and may then be called again."""
        ensure_store(self.folder)
        try:
            self.env = open_environment(self.folder, self.map_size, sync=self._sync)
            try:
                self._begin()
            except BaseException:
                self.env.close()
                raise
        except (lmdb.Error, OSError) as error:
            raise file_error(self.file, error) from error

    def _begin(self) -> None:
        refuse_truncated(self.folder, self.env)
        with self.env.begin(write=True) as txn:
            found = self._check_format(txn)
        if found != FORMAT:
            log.warning(
                "took over a store of format %d, which is now of format %d: an older kvstore refuses it",
                found,
                FORMAT,
            )
        self._open_tables(create=True)
        self.page_size = self.env.stat()["psize"]
        with self.env.begin(write=True) as txn:
            frames = checkpoint.read(self.folder, txn, self.handles)
            if frames:
                rows = checkpoint.apply(txn, self.handles, frames)
                log.info("took %d commits, %d rows, from the journal", len(frames), rows)
            if txn.get(b"epoch", db=self.meta) is None:
                self.begin_epoch(txn)
            self.step_at_start = self._begin_time(txn)
            self._add_up(txn)

    def _check_format(self, txn: lmdb.Transaction[Any]) -> int:
        """Make the store one of the present format; returns which one it had."""
        meta = self.env.open_db(b"meta", txn)
        found = int(txn.get(b"format", b"%d" % FORMAT, db=meta))
        if found < OLDEST_FORMAT:
            raise KvError(
                "unsupported_version",
                f"the store in {self.folder} has format {found}, which no release wrote; this kvstore reads "
                f"formats {OLDEST_FORMAT} to {FORMAT}: copy the keys over with the version that wrote it, or "
                "start with an empty store",
            )
        if found > FORMAT:
            raise KvError(
                "unsupported_version",
                f"the store in {self.folder} has format {found}; this kvstore reads up to {FORMAT}: "
                "install the newer version that wrote it",
            )
        # An older format is taken over by this alone: its rows stay as they are. Written even if it is there:
        # this commit also puts on disk what the last run wrote and perhaps could not sync
        txn.put(b"format", b"%d" % FORMAT, db=meta)
        return found

    def _open_tables(self, *, create: bool) -> None:
        tables = {
            name: self.env.open_db(name.encode(), dupsort=dupsort, create=create)
            for name, dupsort in TABLES.items()
        }
        self.data, self.log_rows, self.expiry = tables["data"], tables["log"], tables["expiry"]
        self.tombstones, self.meta = tables["graves"], tables["meta"]
        self.clients, self.client_ages = tables["clients"], tables["client_ages"]
        self.handles = tuple(tables.values())
        self._numbers = {handle: NUMBERS[name] for name, handle in tables.items()}

    def _add_up(self, txn: lmdb.Transaction[Any]) -> None:
        """Find the digest of all records where it is not known: the store is of an older format, or a damaged
        record was replaced. While another is damaged, it stays unknown."""
        counters = self.counters(txn)
        if counters.digest is not None:
            return
        records = SetHash()
        log.info("adding up the digest of %d records", txn.stat(self.data)["entries"])
        for key, row in txn.cursor(self.data):
            try:
                row_format.decode_body(key, row)
            except DamageError as damage:
                reason = damaged_record(key, damage).message
                log.warning("the digest of all records stays unknown: %s", reason)
                return
            records.replace(b"", row_format.hash_of_record(key, row))
        txn.put(b"position", counters._replace(digest=records.total % MODULUS).encode(), db=self.meta)

    def _begin_time(self, txn: lmdb.Transaction[Any]) -> ClockStep | None:
        kept, newest = txn.get(b"clock", db=self.meta), None
        with txn.cursor(self.log_rows) as log:
            if log.last():
                newest = (row_format.event_time(log.value()), EventId.decode(log.key()).revision)
        step = self.clock.begin(kept, newest, self.counters(txn).head)
        self.keep_time(txn)
        return step

    def keep_time(self, txn: lmdb.Transaction[Any]) -> None:
        """Store what the clock has to know when the store is opened again."""
        if self.clock.knows_much:
            self.clock.forget(self._expiring(txn))
        row = self.clock.row()
        if txn.get(b"clock", db=self.meta) != row:
            txn.put(b"clock", row, db=self.meta)

    def _expiring(self, txn: lmdb.Transaction[Any]) -> Iterator[int]:
        """The revisions of all records with a time to live."""
        for _, key in txn.cursor(self.expiry):
            row = txn.get(key, db=self.data)
            if row is not None:
                yield EventId.decode(row_format.record_event_id(row)).revision

    def epoch_of(self, txn: lmdb.Transaction[Any]) -> str:
        """The name of the history that ``txn`` sees."""
        return bytes(txn.get(b"epoch", b"", db=self.meta)).decode()

    def begin_epoch(self, txn: lmdb.Transaction[Any]) -> None:
        """Begin a new history: cursors of the old one will be answered with a reset."""
        txn.put(b"epoch", new_epoch().encode(), db=self.meta)

    def close(self) -> None:
        """Let go of the files. Write transactions must have ended."""
        self.env.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Any]:
        """A read transaction, or what reads as one, that sees the last commit and nothing later. LMDB's
        errors are raised as KvErrors."""
        # py-lmdb keeps an ended read transaction and renews it, so this allocates no reader slot. It gives
        # out buffers, since each row would be copied twice more otherwise
        try:
            with self._begin_reading() as txn:
                yield txn if self.overlay is None else self.layered(txn, self.overlay.generations)
        except lmdb.Error as error:
            raise file_error(self.file, error) from error

    def layered(
        self, base: lmdb.Transaction[Any], layers: Sequence[Generation], staged: Generation | None = None
    ) -> LayeredTransaction:
        """``base`` with the rows of ``layers`` on top, the newest first. Changes go into ``staged``, which is
        one of them."""
        return LayeredTransaction(base, layers, self._numbers, self.handles, staged)

    def _begin_reading(self) -> lmdb.Transaction[memoryview]:
        try:
            return self.env.begin(buffers=True)
        except lmdb.Error as error:
            self.reopen(error)
            return self.env.begin(buffers=True)

    def reopen(self, error: lmdb.Error) -> None:
        """Open the environment again, read-only, if ``error`` says that it takes no more transactions.

        LMDB gives up an environment, for readers too, when it could not write a meta page. Nothing is lost
        by that: the other meta page, and all that it leads to, are as they were. Any other error is raised.
        """
        if not isinstance(error, lmdb.PanicError) and not self._is_closed:
            raise error
        # until that thread is out of the transaction that failed, the environment is in use
        if not self.writer_is_done.wait(_GIVE_UP_SECONDS):
            raise error
        # the same file cannot be open twice in one process: should opening fail, the next reader tries again
        self._is_closed = True
        self.env.close()
        self.env = open_environment(self.folder, self.map_size, readonly=True)
        self._open_tables(create=False)
        self._is_closed = False

    def counters(self, txn: lmdb.Transaction[Any]) -> LogCounters:
        """The log's counters as ``txn`` sees them."""
        try:
            return LogCounters.decode(txn.get(b"position", db=self.meta))
        except DamageError as damage:
            raise KvError("damaged", f"{damage}; restore a backup") from damage

    def shown(self, stored: StoredRecord, now: int) -> StoredRecord | None:
        """A record as it is given out; None if its time to live is over at steady time ``now``."""
        if stored.expires_at is None or self.clock.steady_of(stored.expires_at, stored.revision) > now:
            return self.restamped(stored)
        return None

    def is_live(self, row: Any, now: int) -> bool:
        """Whether the record in a data row is there at steady time ``now``. It is not verified: one that
        cannot be read is there, and says so where it is read."""
        expires_at, revision = row_format.record_expiry(row)
        return not expires_at or self.clock.steady_of(expires_at, revision) > now

    def restamped(self, stored: StoredRecord) -> StoredRecord:
        """The record with its ``expires_at`` as the wall clock shows that moment now."""
        if stored.expires_at is None:
            return stored
        present = self.clock.present_of(stored.expires_at, stored.revision)
        return stored if present == stored.expires_at else stored._replace(expires_at=present)

    def event_times(self, txn: lmdb.Transaction[Any]) -> tuple[int | None, int | None]:
        """When the oldest and the newest event of the log happened, as the wall clock shows it now."""
        log = txn.cursor(self.log_rows)
        begin = EventId(self.counters(txn).floor + 1, 0).encode()
        oldest = self.event_time(log) if log.set_range(begin) else None
        return oldest, self.event_time(log) if log.last() else None

    def event_time(self, log: lmdb.Cursor[Any]) -> int:
        """When the event in the row of the log where the cursor is happened, as the wall clock shows it
        now."""
        revision = EventId.decode(log.key()).revision
        return self.clock.present_of(row_format.event_time(log.value()), revision)

    def last_number(self, txn: Any, prefix: bytes, number: int) -> int:
        """The highest number of the keys that number themselves behind ``prefix``, if it may be ``number`` or
        more; else 0.

        It is looked up once for each prefix, and again where ``number`` is taken or the last one was above
        it: numbers that are given out here only grow.
        """
        known = self._numbered
        if prefix in known and txn.get(sequence_key(prefix, number), db=self.data) is None:
            return 0
        last = 0
        # a number of 63 bits begins with 0; what is not one of these keys may be among them
        below = all_before(txn.cursor(self.data), prefix + b"1")
        for key, _ in islice(below, _LAST_NUMBER_LOOKS):
            if not bytes(key).startswith(prefix + b"0"):
                break
            found = sequence_number(bytes(key), prefix)
            if found is not None:
                last = found
                break
        if last >= number:
            return last
        if len(known) >= _KNOWN_PREFIXES:
            known.clear()
        known.add(prefix)
        return 0

    def below(self, txn: Any, prefixes: Sequence[bytes]) -> Iterator[tuple[Any, Any]]:
        """The keys and data rows below ``prefixes``, none of which begins with another."""
        for prefix in prefixes:
            yield from takewhile(
                lambda item: bytes(item[0]).startswith(prefix),  # noqa: B023 - used up in this turn
                forward(txn.cursor(self.data), prefix),
            )

    def used_bytes(self, txn: Any) -> int:
        """The bytes of all pages of records, log and what belongs to them; free pages inside the file do
        not count. :meth:`file_bytes` is cheaper, and never less. What is not in LMDB yet is not part of
        either: see :attr:`overlay`."""
        tables = (self.data, self.log_rows, self.expiry, self.tombstones, self.meta)
        return sum(self.bytes_of(txn, table) for table in tables)

    def bytes_of(self, txn: Any, table: Any) -> int:
        """The bytes of all pages of one table."""
        stat = txn.stat(table)
        return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) * self.page_size

    def file_bytes(self) -> int:
        """The bytes of all pages up to the last one in use, as of LMDB's last commit."""
        return (int(self.env.info()["last_pgno"]) + 1) * self.page_size


def forward(cursor: lmdb.Cursor[Any], start: bytes) -> Iterator[tuple[Any, Any]]:
    """The rows from ``start`` on, in order."""
    return cursor.iternext() if _seek(cursor, start) else iter(())


def keys_from(cursor: lmdb.Cursor[Any], start: bytes) -> Iterator[Any]:
    """The keys from ``start`` on, in order."""
    return cursor.iternext(keys=True, values=False) if _seek(cursor, start) else iter(())


def all_from(cursor: Any, start: bytes) -> Iterator[tuple[Any, Any]]:
    """The rows from ``start`` on, in order; None for those that an overlay has as deleted: however many they
    are, a reader that bounds its work can stop among them."""
    return cursor.all_from(start) if isinstance(cursor, LayeredCursor) else forward(cursor, start)


def all_before(cursor: Any, end: bytes | None) -> Iterator[tuple[Any, Any]]:
    """The same of the rows below ``end``, None for all, the last one first."""
    return cursor.all_before(end) if isinstance(cursor, LayeredCursor) else backward(cursor, end)


def _seek(cursor: lmdb.Cursor[Any], start: bytes) -> bool:
    """Move to the first row at or after ``start``; whether there is one."""
    # LMDB takes no empty key, and none longer than any that can be stored
    if not start:
        return cursor.first()
    return len(start) <= MAX_KEY_BYTES and cursor.set_range(start)


def open_environment(
    folder: Path, map_size: int, *, sync: bool = True, readonly: bool = False
) -> lmdb.Environment:
    """Open LMDB in ``folder`` with a large sparse map. The map is address space, not disk or memory; where
    the machine has too little of it (39-bit ARM kernels, ``ulimit -v``), smaller ones are tried."""
    while True:
        try:
            return lmdb.open(
                os.fspath(folder),
                map_size=map_size,
                max_dbs=8,
                max_readers=64,
                sync=sync,
                readonly=readonly,
                mode=0o600,
            )
        except lmdb.MemoryError:
            if map_size < 1 << 30:
                raise
            map_size //= 2
