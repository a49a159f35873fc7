"""A store made from a backup, for ``kvstore restore``."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.files import reason, sync_folders_up
from kvstore_daemon.storage.lmdb_store.journaling import journal
from kvstore_daemon.storage.lmdb_store.row_format import LogCounters
from kvstore_daemon.storage.lmdb_store.store_file import new_epoch
from kvstore_daemon.storage.offline import Steps, reader_client
from kvstore_daemon.storage.offline.backup import Backup, read_image, read_trailer
from kvstore_daemon.storage.offline.journaled import settle
from kvstore_daemon.storage.offline.replace_store import (
    draft_beside,
    locked,
    put_in_place,
    require_room,
    verify_draft,
)

_CHUNK_BYTES = 1 << 20

# more than any store commits
_REVISIONS_PER_MS = 1_000
_REVISION_STEP = 10**9


class Restored(NamedTuple):
    """``head`` is the revision at which the restored store begins; ``kept`` is where the file of the store
    that was there before is now, None if there was none."""

    backup: Backup
    head: int
    kept: Path | None


def restore(source: BinaryIO, folder: Path, now: int, *, replace: bool, steps: Steps) -> Restored:
    """Put the backup that is read from ``source`` into the data folder, which is made if it is missing.

    All of it is verified first. The restored store has a new epoch, so that every earlier cursor is answered
    with a reset; and its revisions begin above any that were given out since the backup, so that none is used
    twice. With ``replace`` the file of a store that is there is kept beside the new one. Raises KvError:
    ``damaged``, ``not_allowed`` (there is a store, or a daemon), ``store_full``.
    """
    if source.seekable():
        with _reading():
            read_trailer(source)
    with locked(folder, "kvstore restore") as data:
        if data.exists() and not replace:
            raise KvError(
                "not_allowed",
                f"{folder.absolute()} already has a store; "
                "--force replaces it with the backup and keeps the old file beside it",
            )
        with draft_beside(data) as draft:
            backup = _receive(source, draft, steps)
            verify_draft(Path(draft.name), backup._asdict(), steps)
            head = _begin_epoch(draft, backup, now)
            kept = _keep(data) if data.exists() else None
            if kept is None:
                sync_folders_up(data.parent)
            put_in_place(Path(draft.name), data)
    return Restored(backup, head, kept)


@contextmanager
def _reading() -> Iterator[None]:
    """Raise the system's errors in the block as those of the backup that is read."""
    try:
        yield
    except OSError as error:
        raise KvError("internal", f"the backup cannot be read: {reason(error)}") from error


def _receive(source: BinaryIO, draft: BinaryIO, steps: Steps) -> Backup:
    """Write all of ``source`` to ``draft``, check it, and cut its trailer off."""
    size = os.fstat(source.fileno()).st_size if source.seekable() else 0
    require_room(Path(draft.name), size)
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


def _begin_epoch(draft: BinaryIO, backup: Backup, now: int) -> int:
    """Begin a new epoch at a revision above all of the old one, which is returned."""
    # a fixed margin, for clocks that disagree; and the time passed, so that a second restore of the same
    # backup, a minute later, begins above what was given out in that minute
    elapsed = max(0, now - backup.created_at)
    head = backup.revision + _REVISION_STEP + elapsed * _REVISIONS_PER_MS

    def begin(txn: lmdb.Transaction[Any], meta: Any) -> None:
        counters = LogCounters.decode(txn.get(b"position", db=meta))
        txn.put(b"epoch", new_epoch().encode(), db=meta)
        txn.put(b"restored", b"%d" % head, db=meta)
        txn.put(b"position", counters._replace(head=head).encode(), db=meta)
        txn.delete(b"unsynced", db=meta)

    settle(draft, backup.journal_bytes, begin)
    os.fsync(draft.fileno())
    return head


def _keep(data: Path) -> Path:
    """Give the store's file a second name, which it keeps when the first one is taken."""
    for number in itertools.count(1):
        kept = data.with_name(f"replaced-{number}.mdb")
        with contextlib.suppress(FileExistsError):
            os.link(data, kept)
            break
        if kept.samefile(data):
            break  # a restore was interrupted right after it did this
    if _needs_journal(data):
        _keep_journal(data, kept)
    return kept


def _needs_journal(data: Path) -> bool:
    """Whether the store's file lacks what its journal has, or may do so, being damaged."""
    try:
        return bool(reader_client.facts(data.parent.parent)["journal_bytes"])
    except KvError:
        return True


def _keep_journal(data: Path, kept: Path) -> None:
    """Copy the journal's files under the name of the kept one: the next daemon uses them again."""
    for name in journal.NAMES:
        # one may be missing, of a store that is damaged
        with contextlib.suppress(FileNotFoundError):
            content = journal.read_file(data.with_name(name))
            with kept.with_name(f"{kept.stem}.{name}").open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
