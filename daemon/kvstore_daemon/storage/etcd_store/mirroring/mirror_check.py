"""Comparing a mirror with etcd, key by key."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster
from kvstore_daemon.storage.etcd_store.layout import Names
from kvstore_daemon.storage.etcd_store.mirroring import digest, store_reader
from kvstore_daemon.storage.etcd_store.mirroring.mirror import EtcdMirror
from kvstore_daemon.storage.etcd_store.mirroring.mirror_transaction import is_key
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.row_format import EventId

_CHUNK = 500
_PAUSE_SECONDS = 0.01

_T = TypeVar("_T")


def is_right(
    cluster: Cluster,
    mirror: EtcdMirror,
    names: Names,
    stopping: threading.Event,
    *,
    at: int | None = None,
    pause: float = _PAUSE_SECONDS,
) -> bool:
    """Whether the mirror has the very keys and revisions that etcd has at the revision where it is, or at
    another one, and its records are whole. True as well if ``stopping`` is set meanwhile. Raises EtcdError,
    and KvError where the mirror cannot be read.

    The keys are read a few at a time, with pauses: the loop has to answer meanwhile.
    """
    try:
        with mirror.tables.snapshot() as txn:
            state = mirror.state_in(txn)
            ours = sum(
                digest.term(bytes(key), row_format.decode_record(key, row, value=False).revision)
                for key, row in _slowly(txn.cursor(mirror.tables.data), stopping, pause)
            )
    except DamageError:
        return False
    revision = state.watched if at is None else at
    theirs, start = 0, len(names.keys)
    for kv in _slowly(store_reader.records(cluster, names.keys, revision, keys_only=True), stopping, pause):
        key = kv.key[start:]
        if is_key(key):
            theirs += digest.term(key, kv.mod_revision)
    sums = (ours % digest.MODULUS, theirs % digest.MODULUS)
    return stopping.is_set() or sums == (state.digest, state.digest)


def is_log_sound(mirror: EtcdMirror, stopping: threading.Event, *, pause: float = _PAUSE_SECONDS) -> bool:
    """Whether all events of the mirror's log are whole; true as well if ``stopping`` is set meanwhile. Raises
    KvError where the mirror cannot be read."""
    try:
        with mirror.tables.snapshot() as txn:
            for event_id, row in _slowly(txn.cursor(mirror.tables.log_rows), stopping, pause):
                row_format.decode_event(EventId.decode(event_id), row)
    except DamageError:
        return False
    return True


def _slowly(rows: Iterable[_T], stopping: threading.Event, pause: float) -> Iterator[_T]:
    for number, row in enumerate(rows, 1):
        yield row
        if number % _CHUNK == 0 and stopping.wait(pause):
            return
