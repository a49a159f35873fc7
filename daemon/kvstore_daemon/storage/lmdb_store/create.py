"""Making an empty store: all of it is there and on disk, or nothing is.

It is made under another name, with all its tables in one transaction, and then renamed. If the process ends
in between, the next start finds no store and makes one; neither a daemon nor ``kvstore check`` ever meets
half a store.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.files import sync_folder, sync_folders_up
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.schema import FORMAT, TABLES

DRAFT = "new.mdb"
"""The name of a file that is to become the store's; a leftover one may be removed."""

_MAP_BYTES = 1 << 20


def new_epoch() -> str:
    """A name that no other history has."""
    return secrets.token_hex(8)


def ensure_store(folder: Path) -> None:
    """Make the store's folder and an empty store in it, unless there is one; durably, names included.

    The caller holds the folder's lock. Raises KvError, and then leaves no store behind.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = folder / DRAFT
        draft.unlink(missing_ok=True)
        if not (folder / "data.mdb").exists():
            # before there is a store in it, so that a start that finds one need not look at folders above
            sync_folders_up(folder)
            _create(draft, folder / "data.mdb")
        # also for a store that was there: its maker may have been killed before this
        sync_folder(folder)
    except (OSError, lmdb.Error) as error:
        raise _refused(folder, error) from error


def _refused(folder: Path, error: OSError | lmdb.Error) -> KvError:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return KvError("damaged", f"{folder} is a file; it must be the folder that holds the store")
    return file_error(folder / "data.mdb", error)


def _create(draft: Path, file: Path) -> None:
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with lmdb.open(
            os.fspath(draft), subdir=False, lock=False, max_dbs=len(TABLES), map_size=_MAP_BYTES
        ) as env:
            with env.begin(write=True) as txn:
                for name, dupsort in TABLES.items():
                    env.open_db(name.encode(), txn, dupsort=dupsort)
                meta = env.open_db(b"meta", txn)
                txn.put(b"format", b"%d" % FORMAT, db=meta)
                txn.put(b"epoch", new_epoch().encode(), db=meta)
            env.sync(True)
        # a lock file left from another store lists readers of that one
        file.with_name("lock.mdb").unlink(missing_ok=True)
        draft.replace(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
