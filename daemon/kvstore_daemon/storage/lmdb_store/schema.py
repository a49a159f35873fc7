"""The tables of a store, and the version of their layout.

- ``data``: key -> record row
- ``log``: event id -> event row
- ``expiry``: expires_at, in steady time -> keys. They are duplicates of one time, because a key of 511 bytes
  leaves no room for a time before it.
- ``graves``: the tombstones, key -> id of the delete or expire event, for keys that are gone while the log
  still has events of them
- ``clients``, ``client_ages``: see :mod:`kvstore_daemon.storage.lmdb_store.idempotency`
- ``meta``: format, epoch, position (the log's counters), clock, marks of a restore and of weak sync, how far
  a mirror is and the last number that was given to a key there (see
  :mod:`kvstore_daemon.storage.etcd_store.mirroring.mirror_transaction`), and while a daemon has the store
  the id of its journal and the number of the last frame that is here
  (see :mod:`kvstore_daemon.storage.lmdb_store.journaling.checkpoint`)

A key's events form a chain: a record row has the id of the event that made it, an event row the id of the
key's event before. History follows this chain, so no index by key has to be written with every put; that
would double the pages which a put to a random key dirties.
"""

from __future__ import annotations

from typing import Any

import lmdb

from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.lmdb_store.file_errors import is_damage

FORMAT = 5
"""2 had no bylines (author and message), 3 no journal, 4 no hashes of records and no digest of all. Rows that
an older one wrote stay as they are."""

OLDEST_FORMAT = 2
"""The oldest that can be read as it is, and that a daemon takes over."""

TABLES = {
    "data": False,
    "log": False,
    "expiry": True,
    "graves": False,
    "meta": False,
    "clients": False,
    "client_ages": True,
}
"""Each table's name, and whether a key of it may have several values."""

META_FIELDS = frozenset(
    b"format epoch position unsynced restored clock mirror number journal applied".split()
)


def open_tables(env: lmdb.Environment, txn: lmdb.Transaction[Any]) -> dict[str, Any]:
    """All tables of a store by name; raises DamageError for one that is missing or is no table, and
    lmdb.Error for what is not the file's fault."""
    tables = {}
    for name, dupsort in TABLES.items():
        try:
            tables[name] = env.open_db(name.encode(), txn=txn, dupsort=dupsort, create=False)
        except lmdb.Error as error:
            if not (is_damage(error) or isinstance(error, lmdb.NotFoundError)):
                raise
            raise DamageError(f"the table {name} cannot be opened: {error}") from error
    return tables
