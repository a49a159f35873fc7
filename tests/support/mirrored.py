"""Revisions of etcd, and a mirror of them that is opened and closed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.layout import Gone, Head, Names
from kvstore_daemon.storage.etcd_store.mirroring.mirror import EtcdMirror
from kvstore_daemon.storage.etcd_store.mirroring.revisions import Change, KeyValue, Revision
from kvstore_daemon.storage.interface import StoredRecord
from kvstore_daemon.storage.lmdb_store.snapshot_reads import SnapshotReads
from kvstore_daemon.storage.offline.verify import verify

NAMES = Names(b"/kvstore")
EPOCH = b"0123456789abcdef"
T0 = 1_700_000_000_000


class Etcd:
    """What etcd holds below a prefix, and every revision that it made."""

    def __init__(self, epoch: bytes | None = EPOCH) -> None:
        self.revision = 0
        self.now: dict[bytes, KeyValue] = {}
        self.states: list[dict[bytes, KeyValue]] = [{}]
        self.revisions: list[Revision] = []
        if epoch is not None:
            self.txn({NAMES.epoch: epoch})

    def txn(self, puts: dict[bytes, bytes], deletes: tuple[bytes, ...] = (), skip: int = 0) -> int:
        """Commit one transaction, ``skip`` revisions of others after the last one."""
        for _ in range(skip):
            self.states.append(self.states[-1])
        self.revision += skip + 1
        found = [name for name in deletes if self.now.pop(name, None) is not None]
        changes = [Change(False, KeyValue(name, b"", 0, self.revision)) for name in found]
        for name, value in puts.items():
            created = self.now[name].create_revision if name in self.now else self.revision
            self.now[name] = KeyValue(name, value, created, self.revision)
            changes.append(Change(True, self.now[name]))
        self.states.append(dict(self.now))
        self.revisions.append(Revision(self.revision, changes))
        return self.revision

    def put(self, key: bytes, value: bytes = b"v", **head: Any) -> int:
        """Put a user's key, as a daemon does."""
        return self.txn({NAMES.of_key(key): record(value), NAMES.head: self.head(**head)})

    def delete(self, key: bytes, op: str = "delete", **head: Any) -> int:
        """Delete a user's key, as a daemon does."""
        return self.txn({NAMES.head: self.head(gone=(Gone(op, "ann", "why"),), **head)}, (NAMES.of_key(key),))

    def head(self, **fields: Any) -> bytes:
        """A value of ``head``, like no other."""
        return layout.encode_head(Head(T0 + self.revision, "n1", self.revision, **fields))

    def at(self, revision: int) -> list[KeyValue]:
        """All keys as of a revision, in their order."""
        return sorted(self.states[revision].values())

    def after(self, revision: int) -> list[Revision]:
        """The revisions after one."""
        return [each for each in self.revisions if each.revision > revision]


def record(value: bytes = b"v", **fields: Any) -> bytes:
    """The value of a user's key in etcd."""
    whole = StoredRecord(value, "text/plain", 0, 0, 1, T0, None, "bob")
    return layout.encode_record(whole._replace(**fields))


@contextlib.contextmanager
def mirror_in(folder: Path, **settings: Any) -> Iterator[EtcdMirror]:
    """An open mirror, which is verified at the end."""
    mirror = EtcdMirror(folder, NAMES, map_size=1 << 26, **settings)
    mirror.open()
    try:
        yield mirror
        with mirror.tables.env.begin() as txn:
            assert not list(verify(mirror.tables.env, txn))
    finally:
        mirror.close()


def reads_of(mirror: EtcdMirror) -> SnapshotReads:
    """The reads of an engine over a mirror."""
    return SnapshotReads(mirror.tables)
