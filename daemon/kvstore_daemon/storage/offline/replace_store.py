"""Putting another file in the place of a store's: one without its free pages, or one from a backup.

The new one is written beside the old one, verified and synced, and then renamed over it; until then the old
one is as it was. If the process ends in between, one of the two is there, whole; a rest of the new one is
removed by the next process that locks the folder.

The new file has everything, and no journal goes with it. So the files of the old one's journal may stay: they
mean nothing once it is gone, and are used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.files import sync_folder
from kvstore_daemon.storage.folder_kinds import STORE, require_store
from kvstore_daemon.storage.folder_lock import FolderLock, unusable
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.store_file import DRAFT
from kvstore_daemon.storage.offline import Steps, reader_client
from kvstore_daemon.storage.offline.backup import SAME
from kvstore_daemon.storage.offline.journaled import settle


@contextmanager
def locked(folder: Path, who: str) -> Iterator[Path]:
    """Lock the data folder, made if it is missing, as ``who``; gives the path of the store's file, whether
    there is one or not; a folder that was made and not used is removed. Errors of the system and of LMDB in
    the block are raised as KvErrors."""
    store = folder / STORE
    is_new = not folder.exists()
    require_store(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        store.mkdir(mode=0o700, exist_ok=True)
        lock = FolderLock(folder, who)
        lock.acquire()
    except OSError as error:
        raise KvError("not_allowed", unusable(folder, error)) from error
    try:
        yield store / "data.mdb"
    except (OSError, lmdb.Error) as error:
        raise file_error(store / "data.mdb", error) from error
    finally:
        if is_new:
            _remove_unused(folder)
        lock.release()


def _remove_unused(folder: Path) -> None:
    """Remove a data folder, whose lock is held, if there is no store in it."""
    with contextlib.suppress(OSError):  # a folder that is not empty stays
        (folder / STORE).rmdir()
        (folder / "owner").unlink()
        folder.rmdir()


@contextmanager
def draft_beside(data: Path) -> Iterator[BinaryIO]:
    """A new file beside ``data``, removed afterwards unless it was renamed."""
    path = data.with_name(DRAFT)
    path.unlink(missing_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(path, "r+b", opener=lambda *_: descriptor) as draft:
            yield draft
    finally:
        with contextlib.suppress(OSError):  # the next to lock the folder removes it
            path.unlink(missing_ok=True)


def require_room(path: Path, size: int) -> None:
    """Raise ``store_full`` unless the disk under ``path`` has room for ``size`` bytes."""
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise KvError(
            "store_full",
            f"the disk under {path.parent.absolute()} has {free:,} bytes left, and {size:,} are needed "
            "beside what is there: make room on it",
        )


def verify_draft(draft: Path, expected: dict[str, Any], steps: Steps) -> None:
    """Check all of the new file, an image and the frames behind it; raises ``damaged`` unless it is whole and
    what was expected."""
    faults: list[str] = []
    journal_bytes = expected["journal_bytes"]
    section = draft.stat().st_size - journal_bytes, journal_bytes
    found = reader_client.check(draft, faults.append, steps("verifying the records"), section)
    faults += [f"{name} is {found.get(name)}" for name in SAME if found.get(name) != expected[name]]
    if faults:
        more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        raise KvError("damaged", f"the store is not complete: {faults[0]}{more}; nothing was changed")


def put_in_place(draft: Path, data: Path) -> None:
    """Rename the draft, which is on disk, over the store's file; durably."""
    with contextlib.ExitStack() as stack:
        if data.exists():
            # processes that read the old one may do so to the end
            fcntl.flock(stack.enter_context(data.open("rb")), fcntl.LOCK_EX)
        # it lists the readers and transactions of the old file. It goes before the new file is there: a
        # reader that opened that with the old list would not be seen by a daemon, which makes another
        data.with_name("lock.mdb").unlink(missing_ok=True)
        draft.replace(data)
        sync_folder(data.parent)


class Compacted(NamedTuple):
    """The size of the store's file, before and after."""

    before_bytes: int
    after_bytes: int


def compact(folder: Path, steps: Steps) -> Compacted:
    """Give the room of the free pages of the store in the data folder back to the disk.

    Raises KvError: ``not_allowed`` while a daemon uses the folder, ``damaged``, ``store_full`` if the disk
    has no room for the new file beside the old one.
    """
    require_store(folder)
    if not (folder / STORE / "data.mdb").exists():
        raise KvError("bad_request", f"there is no store in {folder.absolute()}")
    with locked(folder, "kvstore compact") as data, draft_beside(data) as draft:
        before = data.stat().st_size
        expected = reader_client.facts(folder)
        require_room(data, expected["bytes"] + expected["journal_bytes"])
        reader_client.copy(folder, draft.write, steps("copying"))
        draft.flush()
        verify_draft(Path(draft.name), expected, steps)
        if expected["journal_bytes"]:
            settle(draft, expected["journal_bytes"])
        os.fsync(draft.fileno())
        after = os.fstat(draft.fileno()).st_size
        put_in_place(Path(draft.name), data)
    return Compacted(before, after)
