"""The copy of the store on this machine: etcd's changes in LMDB tables, from which all reads are served.

The watcher's thread writes it, one LMDB transaction for the revisions that came together; any thread reads.
It is not synced, since etcd has it all: what a power cut leaves is thrown away.

The log begins at the same revision on every daemon, so a cursor of one is good at each. That revision, the
base of a mirror that is made new, is the agreed ``floor``, or that of ``epoch`` where nothing was trimmed
yet; the events after it come from the watch, those before it are nowhere. Where somebody else has had etcd
forget more, by hand or for another store in the same etcd, a mirror that is made after that has the shorter
log, and knows fewer cursors than the others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.files import sync_folder, whole_file
from kvstore_core.wall_clock import now_ms
from kvstore_daemon.storage.clock import Clock, SharedClock, boot_id
from kvstore_daemon.storage.etcd_store.layout import Names
from kvstore_daemon.storage.etcd_store.mirroring import kept_replies
from kvstore_daemon.storage.etcd_store.mirroring.kept_replies import KeptReply
from kvstore_daemon.storage.etcd_store.mirroring.mirror_transaction import (
    Digests,
    MirrorState,
    MirrorTransaction,
    is_client,
    sum_of,
)
from kvstore_daemon.storage.etcd_store.mirroring.revisions import KeyValue, Revision
from kvstore_daemon.storage.interface import LogPosition, StoredEvent
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.tables import Tables

log = logging.getLogger("kvstore.daemon")

_MAP_BYTES = 1 << 36

_T = TypeVar("_T")


class EtcdMirror:
    """The mirror in ``folder``. Nothing is touched before :meth:`open`; what is there then is continued if it
    is of the store that ``names`` has the names of.

    One thread writes (:meth:`apply`, :meth:`replace`), any may call the rest. Reads are those of
    :class:`kvstore_daemon.storage.lmdb_store.snapshot_reads.SnapshotReads` on ``tables``.
    """

    def __init__(
        self, folder: Path, names: Names, *, map_size: int = _MAP_BYTES, wall: Clock = now_ms
    ) -> None:
        self.tables = Tables(folder, map_size=map_size, sync=False, clock=SharedClock(wall))
        self.digests = Digests()
        self._folder = folder
        self._mark = folder / "boot"
        self._names = names
        self._state = MirrorState()
        self._moved = threading.Condition()
        self._wanted = 0

    # ── the files ────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Open the mirror; an empty one is made if there is none, and in place of one that the machine did
        not finish writing, that is damaged, or that is of another store. Raises KvError for what making it
        again does not cure."""
        try:
            if self._was_cut_off():
                log.warning("the machine stopped while %s was open: the mirror is made again", self._folder)
                self._discard()
            try:
                self._open()
            except KvError as error:
                if error.code not in ("damaged", "unsupported_version"):
                    raise
                log.warning("the mirror is made again: %s", error.message)
                self._discard()
                self._open()
        except OSError as error:
            raise file_error(self._folder, error) from error

    def _open(self) -> None:
        self.tables.open()
        try:
            self._begin()
        except lmdb.Error as error:
            self.tables.close()
            raise file_error(self.tables.file, error) from error
        except BaseException:
            self.tables.close()
            raise

    def _begin(self) -> None:
        self._replies = self.tables.env.open_db(b"replies")
        with self.tables.env.begin() as txn:
            self._state, self._counters = self.state_in(txn), self.tables.counters(txn)
        with whole_file(self._mark, replace=True) as file:
            file.write(boot_id().encode())

    def _was_cut_off(self) -> bool:
        """Whether the machine stopped while the mirror was open. LMDB must not even look at it then: without
        syncs the file may be anything."""
        try:
            return self._mark.read_bytes() != boot_id().encode()
        except FileNotFoundError:
            return False

    def _discard(self) -> None:
        for name in ("data.mdb", "lock.mdb", self._mark.name):
            (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave a mirror that is all on disk, and let go of it. No other thread may use it any more."""
        try:
            self.tables.env.sync(True)
        except lmdb.Error as error:
            log.warning("the mirror could not be synced, and may have to be made again: %s", error)
        else:
            self._mark.unlink(missing_ok=True)
            sync_folder(self._folder)
        self.tables.close()

    # ── how far it is ────────────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> MirrorState:
        """How far it is, all fields as of one moment."""
        return self._state

    def state_in(self, txn: lmdb.Transaction[Any]) -> MirrorState:
        """How far it is as ``txn`` sees it."""
        row = txn.get(b"mirror", db=self.tables.meta)
        if row is None:
            return MirrorState()
        state = MirrorState.decode(bytes(row), self._names.all)
        if state is None:
            raise KvError("unsupported_version", f"{self._folder} has another store, or another form")
        return state

    @property
    def epoch(self) -> str:
        """The name of the history that it is of."""
        with self.tables.snapshot() as txn:
            return self.tables.epoch_of(txn)

    @property
    def watched(self) -> int:
        """The last revision of etcd that is in it; 0 in an empty mirror."""
        return self._state.watched

    @property
    def wanted(self) -> int:
        """The highest revision that anybody has waited for since the mirror was last made."""
        return self._wanted

    def wait_for(self, revision: int, timeout: float) -> bool:
        """Wait until :attr:`watched` is at ``revision`` or above, at most ``timeout`` seconds; whether it
        is."""
        with self._moved:
            self._wanted = max(self._wanted, revision)
            return self._moved.wait_for(lambda: self._state.watched >= revision, timeout)

    def has_seen(self, head: KeyValue | None) -> bool:
        """Whether ``head``, which was etcd's at :attr:`watched`, is what this mirror saw: then they are of
        one history."""
        state = self._state
        if head is None:
            return state.head_revision == 0
        return (state.head_revision, state.head_sum) == (head.mod_revision, sum_of(head.value))

    def kept_reply(self, txn: lmdb.Transaction[Any], client: str) -> KeptReply | None:
        """The last reply of a client that numbers its writes, as ``txn`` sees it; None if there is none."""
        row = txn.get(client.encode(), db=self._replies)
        return None if row is None else kept_replies.reply_in(bytes(row))

    # ── changes, in the watcher's thread ─────────────────────────────────────────────────────────

    def apply(
        self, revisions: Sequence[Revision], tell: Callable[[list[StoredEvent]], object] | None = None
    ) -> list[StoredEvent]:
        """Take in revisions, all or none; those that are in it already are passed over. Returns the events,
        with which ``tell`` is called before :meth:`wait_for` returns to anybody: no write is to be answered
        before its events are handed on.

        Raises UnfitError if they do not fit to what is here, and KvError if the file cannot be written.
        """
        return self._change(lambda transaction: transaction.add_all(revisions), tell)

    def skip_to(self, revision: int, clients: Iterable[str]) -> None:
        """Go on from ``revision``: no daemon has changed anything up to there, and the keys are the same.
        Replies may have been forgotten; those of ``clients`` are still in etcd. Raises KvError."""
        names = [client.encode() for client in clients]
        self._change(lambda transaction: transaction.skip_to(revision, filter(is_client, names)))

    def replace(
        self,
        cluster: int,
        base: int,
        records: Iterable[KeyValue],
        later: Iterable[Sequence[Revision]],
        tell: Callable[[LogPosition], object] | None = None,
    ) -> LogPosition:
        """Put a copy of the store in place of what is here: readers see the one or the other.

        ``records`` are all keys below the prefix as of revision ``base``, in their order, and ``later`` the
        revisions after it, all that readers are not to miss. Returns the position of the new log, with which
        ``tell`` is called before :meth:`wait_for` returns to anybody. Raises as :meth:`apply`, and whatever
        the iterables raise; what was here is still here then.
        """
        self._wanted = 0

        def tell_position(_: None) -> None:
            if tell is not None:
                tell(self._position())

        self._change(lambda transaction: transaction.replace(cluster, base, records, later), tell_position)
        return self._position()

    def _position(self) -> LogPosition:
        counters = self._counters
        return LogPosition(self.epoch, counters.floor, counters.head, counters.digest)

    def _change(
        self, change: Callable[[MirrorTransaction], _T], tell: Callable[[_T], object] | None = None
    ) -> _T:
        tables = self.tables
        try:
            with tables.env.begin(write=True) as txn:
                transaction = MirrorTransaction(
                    self._names, tables, self._replies, txn, self._counters, self._state, self.digests
                )
                result = change(transaction)
                state, counters = transaction.finish()
        except lmdb.Error as error:
            raise file_error(tables.file, error) from error
        self._counters = counters
        if tell is not None:
            tell(result)
        with self._moved:
            self._state = state
            self._moved.notify_all()
        return result
