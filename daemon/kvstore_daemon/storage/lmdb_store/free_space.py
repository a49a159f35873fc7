"""Room on the disk and in the store: when to refuse writes, so that deletes still find some."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kvstore_core.errors import KvError

log = logging.getLogger("kvstore.daemon")

BALLAST_BYTES = 8 * 1024 * 1024
USED_UP_BYTES = 1024 * 1024

_RESERVED_SHARE = 5
_LOG_SHARE = 4


class Disk(NamedTuple):
    """A file system: its size, and what of it can still be written, in bytes."""

    size: int
    free: int


class FreeSpace:
    """Says whether the store may grow. Used by the writer's thread only, but for :meth:`disk`,
    :meth:`log_bytes` and :meth:`shortage`.

    A delete needs room too, because pages are copied before they are changed. On a disk that is
    full it would find none; so a file of ballast lies beside the store, and is given up for it.

    Where the system cannot say how much room there is, writes are let through: LMDB will find out.
    """

    def __init__(self, folder: Path, max_store_bytes: int) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        self._max_store_bytes = max_store_bytes
        self._disk: Disk | None = None
        self._is_silent = False

    def prepare(self) -> None:
        """Lay the ballast down if it is not there and the disk has room to spare."""
        disk = self._looked_at()
        if disk is None or disk.free < 4 * _reserve(disk) or self._ballast.exists():
            return
        try:
            descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, _reserve(disk))
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("no ballast could be laid down in %s: %s", self._folder, error)
            self.release()

    def release(self) -> bool:
        """Give the ballast's room to the store; whether there was any."""
        try:
            self._ballast.unlink()
        except OSError:
            return False
        log.warning("no room was left under %s: the ballast was given up for deletes", self._folder)
        return True

    def refusal(self, file_bytes: int, used_bytes: Callable[[], int]) -> KvError | None:
        """The ``store_full`` with which a write that grows the store is refused, None if it may.

        ``file_bytes`` is the size of the store's file, and ``used_bytes`` says how much of it holds
        something, which is asked for only where it matters. Lays the ballast down again once there is room.
        """
        refusal = self.shortage(file_bytes, used_bytes)
        if refusal is None and not self._ballast.exists():
            self.prepare()
        return refusal

    def shortage(self, file_bytes: int, used_bytes: Callable[[], int]) -> KvError | None:
        """The same, and nothing else happens."""
        if file_bytes >= self._max_store_bytes and (used := used_bytes()) >= self._max_store_bytes:
            return KvError(
                "store_full",
                f"the store holds {used} bytes, its limit is {self._max_store_bytes}: delete keys, "
                "shorten the log (--retain-bytes), or restart with a larger --max-store-bytes",
                limit=self._max_store_bytes,
            )
        disk = self._looked_at()
        if disk is None or disk.free >= _reserve(disk):
            return None
        # what was deleted leaves free pages inside the file, which are room as well
        return self.disk_full() if disk.free + file_bytes - used_bytes() < _reserve(disk) else None

    def is_used_up(self) -> bool:
        """Whether the disk has practically nothing left."""
        disk = self._looked_at()
        return disk is not None and disk.free < USED_UP_BYTES

    def disk_full(self) -> KvError:
        """The ``store_full`` of a full disk."""
        return KvError(
            "store_full", f"the disk under {self._folder} is full: make room on it, or delete keys"
        )

    def log_bytes(self, retained: int) -> int:
        """How large the log may be where ``--retain-bytes`` allows ``retained``: a quarter of what the disk,
        or the store, can hold at most. On a small disk it would take all the room there is otherwise, and
        deleting keys would give none back: the log keeps what they held."""
        disk = self._looked_at()
        bounds = [self._max_store_bytes] if disk is None else [self._max_store_bytes, disk.size]
        return min(retained, min(bounds) // _LOG_SHARE)

    def disk(self) -> Disk:
        """The file system that the store is on, as it was last seen; zeros where it never was."""
        return self._looked_at() or self._disk or Disk(0, 0)

    def _looked_at(self) -> Disk | None:
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            if not self._is_silent:
                self._is_silent = True
                log.warning("how much room is left under %s is not known: %s", self._folder, error)
            return None
        self._is_silent = False
        self._disk = Disk(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize)
        return self._disk


def _reserve(disk: Disk) -> int:
    """What is kept free for deletes: less on a disk so small that this would be most of it."""
    return min(BALLAST_BYTES, disk.size // _RESERVED_SHARE)
