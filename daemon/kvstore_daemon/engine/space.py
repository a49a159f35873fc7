"""Room on the disk and in the store: when to refuse writes, so that deletes still find some."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import NamedTuple

from kvstore_client.errors import KvError

log = logging.getLogger(__name__)

BALLAST_BYTES = 8 * 1024 * 1024
USED_UP_BYTES = 1024 * 1024


class Disk(NamedTuple):
    """A file system: its size, and what of it can still be written, in bytes."""

    size: int
    free: int


class Space:
    """Says whether the store may grow. Used by the writer's thread only, but for :meth:`disk` and
    :meth:`shortage`.

    A delete needs room too, because pages are copied before they are changed. On a disk that is
    full it would find none; so a file of ballast lies beside the store, and is given up for it.
    """

    def __init__(self, folder: Path, max_store_bytes: int) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        self._max_store_bytes = max_store_bytes

    def prepare(self) -> None:
        """Lay the ballast down if it is not there and the disk has room to spare."""
        if self.disk().free < 4 * BALLAST_BYTES or self._ballast.exists():
            return
        try:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError as error:
            log.warning("no ballast could be laid down in %s: %s", self._folder, error)
            self.release()

    def release(self) -> None:
        """Give the ballast's room to the store."""
        with contextlib.suppress(FileNotFoundError):
            self._ballast.unlink()
            log.warning("no room was left under %s: the ballast was given up for deletes", self._folder)

    def refusal(self, used_bytes: int) -> KvError | None:
        """The ``store_full`` with which a write that grows the store is refused, None if it may. Lays
        the ballast down again once there is room."""
        refusal = self.shortage(used_bytes)
        if refusal is None and not self._ballast.exists():
            self.prepare()
        return refusal

    def shortage(self, used_bytes: int) -> KvError | None:
        """The same, and nothing else happens."""
        if used_bytes >= self._max_store_bytes:
            return KvError(
                "store_full",
                f"the store holds {used_bytes} bytes, its limit is {self._max_store_bytes}: delete keys, "
                "shorten the log (--retain-bytes), or restart with a larger --max-store-bytes",
                limit=self._max_store_bytes,
            )
        return self.disk_full() if self.disk().free < BALLAST_BYTES else None

    def is_used_up(self) -> bool:
        """Whether the disk has practically nothing left."""
        return self.disk().free < USED_UP_BYTES

    def disk_full(self) -> KvError:
        """The ``store_full`` of a full disk."""
        return KvError("store_full", f"the disk under {self._folder} is full: make room on it")

    def disk(self) -> Disk:
        """The file system that the store is on."""
        disk = os.statvfs(self._folder)
        return Disk(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize)
