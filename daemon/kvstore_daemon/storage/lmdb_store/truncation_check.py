"""Whether the store's file is complete, checked before LMDB reads beyond its end.

LMDB maps the file, so a page that an interrupted copy left out is not an error to it: the system kills the
process (SIGBUS). And an empty file it takes for a new store.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lmdb

from kvstore_core.errors import KvError

_WALK = """
import lmdb, os, sys
environment = lmdb.open(sys.argv[1], readonly=True, lock=False, max_dbs=8)
environment.copyfd(os.open(os.devnull, os.O_WRONLY), compact=True)
"""


def refuse_no_store(folder: Path) -> None:
    """Raise ``damaged`` if ``folder`` is a file, or its store was emptied. To be called before LMDB opens
    it."""
    if folder.exists() and not folder.is_dir():
        raise KvError("damaged", f"{folder} is a file; it must be the folder that holds the store")
    file = folder / "data.mdb"
    if file.exists() and file.stat().st_size == 0:
        raise KvError(
            "damaged",
            f"the store's file {file} is empty; restore a backup, or remove the file to start with an empty "
            "store",
        )


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
