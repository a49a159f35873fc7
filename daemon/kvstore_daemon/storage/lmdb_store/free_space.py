"""Room on the disk and in the store: when to refuse writes so that deletes still find some."""

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
_JOURNAL_SHARE = 64
_LEAST_JOURNAL_BYTES = 256 * 1024


class Disk(NamedTuple):
    """A file system's size, and what can still be written to it, in bytes."""

    size: int
    free: int


class FreeSpace:
    """Decides whether the store may grow. Used by the loop's thread only.

    A delete needs room too, because pages are copied before they are changed. On a full disk it would find
    none, so there is a ballast file beside the store, which is removed when a delete needs its room.

    Where the system cannot say how much room there is, writes are let through: LMDB will find out.
    """

    def __init__(self, folder: Path, max_store_bytes: int) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        self._max_store_bytes = max_store_bytes
        self._disk: Disk | None = None
        self._is_silent = False

    def prepare(self) -> None:
        """Make the ballast file if it is missing and the disk has room to spare."""
        disk = self._measure()
        if disk is None or disk.free < 4 * _reserve(disk) or self._ballast.exists():
            return
        try:
            descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, _reserve(disk))
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("cannot write the ballast to %s: %s", self._folder, error)
            self.release()

    def release(self) -> bool:
        """Give the ballast's room to the store; whether there was a ballast."""
        try:
            self._ballast.unlink()
        except OSError:
            return False
        log.warning("no space left under %s: the ballast was released for deletes", self._folder)
        return True

    def refusal(self, file_bytes: int, used_bytes: Callable[[], int], held_bytes: int = 0) -> KvError | None:
        """The ``store_full`` for writes that grow the store, None if they may.

        ``file_bytes`` is the size of the store's file, and ``used_bytes`` gives how much of it is in use; it
        is called only where that matters. ``held_bytes`` is the most that the file will need besides for what
        was committed already. Makes the ballast again once there is room.
        """
        refusal = self.shortage(file_bytes, used_bytes, held_bytes)
        if refusal is None and not self._ballast.exists():
            self.prepare()
        return refusal

    def shortage(self, file_bytes: int, used_bytes: Callable[[], int], held_bytes: int = 0) -> KvError | None:
        """What :meth:`refusal` returns; never makes the ballast."""
        limit = self._max_store_bytes
        if file_bytes + held_bytes >= limit and (used := used_bytes() + held_bytes) >= limit:
            return KvError(
                "store_full",
                f"the store holds {used} bytes, its limit is {self._max_store_bytes}: delete keys, "
                "shorten the log (--retain-bytes), or restart with a larger --max-store-bytes",
                limit=self._max_store_bytes,
            )
        disk = self._measure()
        if disk is None or disk.free - held_bytes >= _reserve(disk):
            return None
        # deletes leave free pages inside the file, which are room as well
        room = disk.free + file_bytes - used_bytes() - held_bytes
        return self.disk_full() if room < _reserve(disk) else None

    def is_used_up(self) -> bool:
        """Whether the disk has practically nothing left."""
        disk = self._measure()
        return disk is not None and disk.free < USED_UP_BYTES

    def disk_full(self) -> KvError:
        """The ``store_full`` of a full disk."""
        return KvError(
            "store_full", f"the disk under {self._folder} is full: make room on it, or delete keys"
        )

    def log_bytes(self, retained: int) -> int:
        """How large the log may be if ``--retain-bytes`` allows ``retained``: at most a quarter of what the
        disk, or the store, can hold. On a small disk it would take all the room otherwise, and deleting keys
        would give none back, since the log keeps their values."""
        disk = self._measure()
        bounds = [self._max_store_bytes] if disk is None else [self._max_store_bytes, disk.size]
        return min(retained, min(bounds) // _LOG_SHARE)

    def journal_bytes(self) -> int:
        """How large a file of the journal may be, of which there are two: little on a small disk, and for a
        small store."""
        disk = self._measure()
        bounds = [self._max_store_bytes] if disk is None else [self._max_store_bytes, disk.size]
        return max(min(bounds) // _JOURNAL_SHARE, _LEAST_JOURNAL_BYTES)

    def disk(self) -> Disk:
        """The store's file system as last seen; zeros if it never was."""
        return self._measure() or self._disk or Disk(0, 0)

    def _measure(self) -> Disk | None:
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            if not self._is_silent:
                self._is_silent = True
                log.warning("cannot read the free space under %s: %s", self._folder, error)
            return None
        self._is_silent = False
        self._disk = Disk(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize)
        return self._disk


def map_bytes(max_store_bytes: int) -> int:
    """How large LMDB's file may become: more than the store may, so that there is always room for deletes."""
    return max_store_bytes + max(max_store_bytes // 4, 64 * 1024 * 1024)


def _reserve(disk: Disk) -> int:
    """The bytes kept free for deletes: less on a disk so small that they would be most of it."""
    return min(BALLAST_BYTES, disk.size // _RESERVED_SHARE)
