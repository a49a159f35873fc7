"""The store's file before LMDB opens it: made if there is none, and refused where a part of it is missing.

An empty store is made under another name, with all its tables in one transaction, and then renamed. If the
process ends in between, the next start finds no store and makes one; neither a daemon nor ``kvstore check``
ever meets half a store.

LMDB maps the file, so a page that an interrupted copy left out is not an error to it: the system kills the
process (SIGBUS). And an empty file it takes for a new store.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.files import sync_folder, sync_folders_up
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.schema import FORMAT, TABLES

DRAFT = "new.mdb"
"""The name of a file that is to become the store's; a leftover one may be removed."""

_MAP_BYTES = 1 << 20

_WALK = """
import lmdb, os, sys
environment = lmdb.open(sys.argv[1], readonly=True, lock=False, max_dbs=8)
environment.copyfd(os.open(os.devnull, os.O_WRONLY), compact=True)
"""


def new_epoch() -> str:
    """A name that no other history has."""
    return secrets.token_hex(8)


def ensure_store(folder: Path) -> None:
    """Make the store's folder and an empty store in it, unless there is one; durably, names included.

    The caller holds the folder's lock. Raises KvError, and then leaves no new store behind: ``damaged`` if
    the folder is a file, or the store in it was emptied.
    """
    file, draft = folder / "data.mdb", folder / DRAFT
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        if not file.exists():
            # before there is a store in it, so that a start that finds one need not look at folders above
            sync_folders_up(folder)
            _create(draft, file)
        elif file.stat().st_size == 0:
            raise KvError(
                "damaged",
                f"the store's file {file} is empty; restore a backup, or remove the file to start with an "
                "empty store",
            )
        # also for a store that was there: its maker may have been killed before this
        sync_folder(folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise KvError("damaged", f"{folder} is a file; it must be the folder that holds the store") from error
    except (OSError, lmdb.Error) as error:
        raise file_error(file, error) from error


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


def refuse_truncated(folder: Path, environment: lmdb.Environment) -> None:
    """Raise ``damaged`` if the end of the file is missing. To be called before anything is read.

    A sound file may be shorter than its pages, since those that a transaction took and gave back are never
    written. So all pages of a short one are read, in a process that may be killed for it.
    """
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = (folder / "data.mdb").stat().st_size
    if size >= expected:
        return
    command = [sys.executable, "-c", _WALK, os.fspath(folder)]
    walk = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - our own command
    if walk.returncode != 0:
        raise KvError(
            "damaged",
            f"the store's file {folder / 'data.mdb'} has {size} of its {expected} bytes, as after an "
            "interrupted copy; copy it again, or restore a backup",
        )
