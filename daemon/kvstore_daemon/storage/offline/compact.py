"""A store without its free pages, for ``kvstore compact``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from kvstore_core.errors import KvError
from kvstore_daemon.storage.offline import reader_client
from kvstore_daemon.storage.offline.progress import Steps
from kvstore_daemon.storage.offline.replace_store import (
    draft_beside,
    locked,
    put_in_place,
    require_room,
    verify_draft,
)


class Compacted(NamedTuple):
    """The size of the store's file, before and after."""

    before_bytes: int
    after_bytes: int


def compact(folder: Path, steps: Steps) -> Compacted:
    """Give the room of the free pages of the store in the data folder back to the disk.

    Raises KvError: ``not_allowed`` while a daemon uses the folder, ``damaged``, ``store_full`` if the disk
    has no room for the new file beside the old one.
    """
    if not (folder / "lmdb" / "data.mdb").exists():
        raise KvError("bad_request", f"there is no store in {folder.absolute()}")
    with locked(folder, "kvstore compact") as data, draft_beside(data) as draft:
        before = data.stat().st_size
        expected = reader_client.facts(folder)
        require_room(data, expected["bytes"])
        reader_client.copy(folder, draft.write, steps("copying"))
        draft.flush()
        verify_draft(Path(draft.name), expected, steps)
        os.fsync(draft.fileno())
        after = os.fstat(draft.fileno()).st_size
        put_in_place(Path(draft.name), data)
    return Compacted(before, after)
