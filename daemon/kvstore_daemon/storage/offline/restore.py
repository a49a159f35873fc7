"""Another file in the place of a store's: restored from a backup, or without its free pages.

The new one is written beside the old one, verified and synced, and then takes its name in one step; until
then the old one is as it was. Whatever ends the process in between, one of the two is there, whole; what it
leaves of the new one is removed by whoever owns the folder next.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.files import reason, sync_folder, sync_folders_up
from kvstore_daemon.storage.folder_lock import FolderLock, unusable
from kvstore_daemon.storage.lmdb_store.create import DRAFT, new_epoch
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.row_format import LogCounters
from kvstore_daemon.storage.offline import reader_client
from kvstore_daemon.storage.offline.backup import SAME, Backup, Steps, read_image, read_trailer

_CHUNK_BYTES = 1 << 20

# more than any store commits
_REVISIONS_PER_MS = 1_000
_REVISION_STEP = 10**9


class Restored(NamedTuple):
    """``head`` is the revision that the restored store begins at; ``kept`` where the file of the store that
    was there before is now, if there was one."""

    backup: Backup
    head: int
    kept: Path | None


class Compacted(NamedTuple):
    """The size of the store's file, before and after."""

    before_bytes: int
    after_bytes: int


def restore(source: BinaryIO, folder: Path, now: int, *, replace: bool, steps: Steps) -> Restored:
    """Put the backup that is read from ``source`` into the data folder, which is made if it is missing.

    It is verified first, all of it. The restored store has a new epoch, so that every cursor from before is
    answered with a reset; and its revisions go on above any that was given out since the backup, so that
    none is used twice. With ``replace`` the file of a store that is there is kept beside the new one.
    Raises KvError: ``damaged``, ``not_allowed`` (there is a store, or a daemon), ``store_full``.
    """
    if source.seekable():
        with _reading():
            read_trailer(source)
    with _owned(folder, "kvstore restore") as data:
        if data.exists() and not replace:
            raise KvError(
                "not_allowed",
                f"there is a store in {folder.absolute()} already; "
                "--force puts the backup in its place and keeps the old file beside it",
            )
        with _draft(data) as draft:
            backup = _received(source, draft, steps)
            _verify(Path(draft.name), backup._asdict(), steps)
            head = _begin_anew(Path(draft.name), backup, now)
            kept = _keep(data) if data.exists() else None
            if kept is None:
                sync_folders_up(data.parent)
            _put_in_place(Path(draft.name), data)
    return Restored(backup, head, kept)


def compact(folder: Path, steps: Steps) -> Compacted:
    """Give the room of the free pages of the store in the data folder back to the disk.

    Raises KvError: ``not_allowed`` while a daemon owns the folder, ``damaged``, ``store_full`` where the disk
    has no room for the new file beside the old one.
    """
    if not (folder / "lmdb" / "data.mdb").exists():
        raise KvError("bad_request", f"there is no store in {folder.absolute()}")
    with _owned(folder, "kvstore compact") as data, _draft(data) as draft:
        before = data.stat().st_size
        expected = reader_client.facts(folder)
        _require_room(data, expected["bytes"])
        reader_client.copy(folder, draft.write, steps("copying"))
        draft.flush()
        _verify(Path(draft.name), expected, steps)
        os.fsync(draft.fileno())
        after = os.fstat(draft.fileno()).st_size
        _put_in_place(Path(draft.name), data)
    return Compacted(before, after)


@contextmanager
def _owned(folder: Path, who: str) -> Iterator[Path]:
    """Own the data folder; gives the path of the store's file, whether it is there or not."""
    store = folder / "lmdb"
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
        lock.release()


@contextmanager
def _reading() -> Iterator[None]:
    """Tell of the system's errors in the block as of those of the backup that is read."""
    try:
        yield
    except OSError as error:
        raise KvError("internal", f"the backup cannot be read: {reason(error)}") from error


@contextmanager
def _draft(data: Path) -> Iterator[BinaryIO]:
    """A new file beside ``data``, which is gone afterwards unless it was given another name."""
    path = data.with_name(DRAFT)
    path.unlink(missing_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(path, "r+b", opener=lambda *_: descriptor) as draft:
            yield draft
    finally:
        with contextlib.suppress(OSError):  # it is worth nothing, and the next owner removes it
            path.unlink(missing_ok=True)


def _received(source: BinaryIO, draft: BinaryIO, steps: Steps) -> Backup:
    """Write all of ``source`` to ``draft``, check it, and leave the image of it."""
    size = os.fstat(source.fileno()).st_size if source.seekable() else 0
    _require_room(Path(draft.name), size)
    progress, write, done = steps("reading"), draft.write, 0
    if source.seekable():
        source.seek(0)
    while chunk := _chunk(source):
        write(chunk)
        done += len(chunk)
        progress(done, size or done)
    draft.flush()
    backup = read_trailer(draft)
    read_image(draft, backup, steps("verifying the checksum"))
    draft.truncate(backup.bytes)
    return backup


def _chunk(source: BinaryIO) -> bytes:
    with _reading():
        return source.read(_CHUNK_BYTES)


def _require_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise KvError(
            "store_full",
            f"the disk under {path.parent.absolute()} has {free:,} bytes left, and {size:,} are needed "
            "beside what is there: make room on it",
        )


def _verify(draft: Path, expected: dict[str, Any], steps: Steps) -> None:
    """Walk all of the new file; raises ``damaged`` unless it is whole and what was expected."""
    faults: list[str] = []
    found = reader_client.check(draft, faults.append, steps("verifying the records"))
    faults += [f"{name} is {found.get(name)}" for name in SAME if found.get(name) != expected[name]]
    if faults:
        more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        raise KvError("damaged", f"this is no whole store: {faults[0]}{more}; nothing was changed")


def _begin_anew(file: Path, backup: Backup, now: int) -> int:
    """Begin a new epoch, above every revision of the old one; on disk when this returns."""
    # both: the margin for clocks that disagree, and the time so that restoring the same backup once more,
    # a minute later, goes on above what was given out in that minute
    elapsed = max(0, now - backup.created_at)
    head = backup.revision + _REVISION_STEP + elapsed * _REVISIONS_PER_MS
    _write_beginning(file, head)
    return head


def _write_beginning(file: Path, head: int) -> None:
    map_size = 2 * file.stat().st_size + (64 << 20)
    with lmdb.open(os.fspath(file), subdir=False, lock=False, max_dbs=8, map_size=map_size) as env:
        meta = env.open_db(b"meta", create=False)
        with env.begin(db=meta, write=True) as txn:
            position = LogCounters.decode(txn.get(b"position", bytes(32)))
            txn.put(b"epoch", new_epoch().encode())
            txn.put(b"restored", b"%d" % head)
            txn.put(b"position", position._replace(head=head).encode())
            txn.delete(b"unsynced")
        env.sync(True)


def _keep(data: Path) -> Path:
    """Give the store's file a second name, which it keeps when the first one is taken."""
    for number in itertools.count(1):
        kept = data.with_name(f"replaced-{number}.mdb")
        with contextlib.suppress(FileExistsError):
            os.link(data, kept)
            return kept
        if kept.samefile(data):
            # by a restore that was ended in between
            return kept
    raise AssertionError("numbers do not end")


def _put_in_place(draft: Path, data: Path) -> None:
    """Let the draft, which is on disk, take the name of the store's file."""
    with contextlib.ExitStack() as stack:
        if data.exists():
            # whoever reads the old one may do so to the end
            fcntl.flock(stack.enter_context(data.open("rb")), fcntl.LOCK_EX)
        # it speaks of the readers and the transactions of the old file. Before the new one is there: a reader
        # that opened that with this table of readers would not be seen by a daemon that makes another
        data.with_name("lock.mdb").unlink(missing_ok=True)
        draft.replace(data)
        sync_folder(data.parent)
