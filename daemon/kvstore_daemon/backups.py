"""Backups for those on other machines: one at a time, made beside the daemon's work and read in pieces.

A backup is in a file without a name on the store's disk. The system takes its room back when the daemon ends,
however it ends, so no part of one is ever taken for a whole one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_BACKUP_PIECE_BYTES
from kvstore_core.process.files import NO_ROOM, reason, steadily
from kvstore_core.wall_clock import now_ms
from kvstore_daemon.record_fields import Fields
from kvstore_daemon.storage.interface import Engine

log = logging.getLogger("kvstore.daemon")

UNUSED_SECONDS = 3600.0
MAX_KEPT_SECONDS = 24 * 3600.0
"""A backup is removed so long after it was made or last read, and so long after it was made at the latest."""

FREE_SHARE = 20
LEAST_FREE_BYTES = 64 * 1024 * 1024
_SMALL_SHARE = 4
"""One 20th of the disk stays free, at least 64 MiB, but no more than a quarter of a small disk."""

OnBegun = Callable[[Callable[[], None]], None]
"""Called with a function that ends the process which makes a backup, from whatever thread."""

BackUp = Callable[[Callable[[bytes], Any], int, OnBegun], dict[str, Any]]
"""Passes a backup of the store to a function, piece by piece, and returns what it holds; the number is the
time at which it is made, in milliseconds since the epoch. It raises KvError if its process is ended."""

_READ_AHEAD = 8
_STOP_SECONDS = 3.0


class Backups:
    """The backup that the daemon keeps of the store of ``engine``, in the data ``folder``, made by
    ``back_up``; used by the loop's thread only.

    Everything raises KvErrors: ``not_found`` for a backup that is not there, ``too_busy`` for one that is not
    made yet, ``backup_exists`` for a second one, ``too_busy`` for one while the making of a deleted one has
    not ended, ``store_full`` where the disk has no room for it, ``bad_request`` where a cluster keeps the
    store.
    """

    def __init__(
        self, engine: Engine, folder: str, back_up: BackUp, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._back_up = back_up
        self._clock = clock
        self._kept: KeptBackup | None = None
        self._dropped: KeptBackup | None = None

    @property
    def taken(self) -> int:
        """The bytes that it takes of the disk."""
        return 0 if self._kept is None else self._kept.bytes

    def described(self) -> list[Fields]:
        """The backup that is kept, made or not; none or one."""
        return [] if self._kept is None else [self._kept.fields()]

    def make(self, backup_id: str, who: str) -> Fields:
        """Begin to make a backup for ``who``, unless this one was begun already; returns what is known of
        it. A thread makes it, and a process of its own reads the store."""
        kept = self._kept
        if kept is not None and kept.error is None:
            if kept.id == backup_id:
                return kept.fields()
            raise KvError(
                "backup_exists",
                f"there is a backup already, {kept.id} ({kept.state}), and only one is kept: delete that, or "
                "wait until it is removed, an hour after it was last read",
                id=kept.id,
            )
        if self._dropped is not None and self._dropped.thread.is_alive():
            raise KvError(
                "too_busy", "a backup was deleted while it was made, and is still being ended: try again"
            )
        self._dropped = None
        if self._engine.cluster() is not None:
            raise KvError(
                "bad_request",
                "a cluster keeps the store: it has a backup of its own (docs/cluster.md), and kvstore export "
                "writes all records",
            )
        statistics = self._engine.statistics()
        require_room(self._folder, statistics.store_bytes + statistics.journal_bytes)
        log.info("backup_make of %s, asked for by %r", backup_id, who)
        self._kept = KeptBackup(backup_id, self._folder, self._back_up, self._clock)
        return self._kept.fields()

    def read(self, backup_id: str, offset: int, size: int, who: str) -> bytes:
        """Up to ``size`` bytes of the backup from ``offset`` on; fewer, or none, at its end."""
        kept = self._found(backup_id)
        if kept.reader != who:
            kept.reader = who
            log.info("backup_read of %s, asked for by %r", backup_id, who)
        return kept.read(offset, size)

    def delete(self, backup_id: str, who: str) -> None:
        """Remove the backup, or end the making of it."""
        self._drop(self._found(backup_id))
        log.info("backup_delete of %s, asked for by %r", backup_id, who)

    def tick(self) -> None:
        """Remove the backup if its time is over; to be called every second."""
        if self._kept is not None and self._kept.is_over():
            log.info("the backup %s was removed: nobody has read it for too long", self._kept.id)
            self._drop(self._kept)

    def close(self) -> None:
        """Remove the backup, and end the making of it."""
        if self._kept is not None:
            self._drop(self._kept)
        if self._dropped is not None:
            self._dropped.thread.join(_STOP_SECONDS)

    def _drop(self, kept: KeptBackup) -> None:
        kept.drop()
        self._kept, self._dropped = None, kept

    def _found(self, backup_id: str) -> KeptBackup:
        if self._kept is None or self._kept.id != backup_id:
            raise KvError(
                "not_found",
                f"there is no backup {backup_id}: it was removed, its time was over, or the daemon has "
                "restarted; make another",
            )
        return self._kept


class KeptBackup:
    """A backup that a thread is making, or has made. ``error`` says why it failed; ``bytes`` are those that
    it has by now, and ``found`` says what it holds once it is whole. ``reader`` is who read it last."""

    def __init__(self, backup_id: str, folder: str, back_up: BackUp, clock: Callable[[], float]) -> None:
        """Raises ``store_full`` or ``internal`` where no file can be made in ``folder``."""
        self.id = backup_id
        self.error: KvError | None = None
        self.bytes = 0
        self.found: dict[str, Any] | None = None
        self.reader: str | None = None
        self._sha256 = ""
        self._folder = folder
        self._back_up = back_up
        self._clock = clock
        self._created_at = now_ms()
        self._ends_at = clock() + MAX_KEPT_SECONDS
        self._last_end = self._ends_at
        self._is_dropped = False
        self._end: Callable[[], None] | None = None
        self._lock = threading.Lock()
        """Held to close the file, to say that it is whole, and to end its process."""
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed when it is dropped
        except OSError as error:
            raise _unwritable(folder, error) from error
        self.thread = threading.Thread(target=self._make, name="backup", daemon=True)
        self.thread.start()

    # ── in the loop's thread ────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> str:
        """``making``, ``ready`` or ``failed``."""
        if self.error is not None:
            return "failed"
        return "making" if self.found is None else "ready"

    def fields(self) -> Fields:
        """What is known of it. Times are in milliseconds since the epoch."""
        end = now_ms() + round(1000 * (self._ends_at - self._clock()))
        times = {"created_at": self._created_at, "expires_at": end}
        fields: Fields = {"id": self.id, "state": self.state, **times}
        error, found = self.error, self.found
        if error is not None:
            return {**fields, "error": error.as_json()}
        if found is None:
            return {**fields, "bytes": self.bytes}
        return {
            **fields,
            "epoch": found["epoch"],
            "revision": found["revision"],
            "keys": found["keys"],
            "log_events": found["events"],
            "bytes": self.bytes,
            "sha256": self._sha256,
        }

    def read(self, offset: int, size: int) -> bytes:
        """A piece of it. The system is asked to have what follows in memory by the time that is asked for."""
        if self.error is not None:
            raise self.error.with_traceback(None)  # else each reader's frames would stay with it
        if self.found is None:
            raise KvError("too_busy", f"the backup {self.id} is not made yet: try again", id=self.id)
        self._use()
        try:
            piece = os.pread(self._file.fileno(), size, offset)
            self._read_ahead(offset + len(piece), size)
        except OSError as error:
            raise KvError("internal", f"the backup cannot be read: {reason(error)}") from error
        return piece

    def _read_ahead(self, offset: int, size: int) -> None:
        os.posix_fadvise(self._file.fileno(), offset, _READ_AHEAD * size, os.POSIX_FADV_WILLNEED)

    def is_over(self) -> bool:
        """Whether its time is over."""
        return self._clock() >= self._ends_at

    def drop(self) -> None:
        """Give its room back: now, or as soon as the process that is killed here has ended."""
        with self._lock:
            self._is_dropped = True
            if self.found is not None:
                self._close()
            elif self._end is not None:
                self._end()  # it may hang, so that the thread waits for it

    def _use(self) -> None:
        self._ends_at = min(self._clock() + UNUSED_SECONDS, self._last_end)

    # ── in its own thread ───────────────────────────────────────────────────────────────────────

    def _make(self) -> None:
        began = time.monotonic()
        try:
            found = self._write()
        except _DroppedError:
            self._close()
        except KvError as error:
            self._fail(error)
        except OSError as error:
            self._fail(_unwritable(self._folder, error))
        except Exception:
            log.exception("a backup failed")
            self._fail(KvError("internal", "the backup failed; see the daemon's log"))
        else:
            seconds = time.monotonic() - began
            told = self.id, found["revision"], self.bytes, seconds
            log.info("the backup %s of revision %d was made: %d bytes in %.1f s", *told)

    def _write(self) -> dict[str, Any]:
        digest, write = hashlib.sha256(), steadily(self._file)

        def take(piece: bytes) -> None:
            if self._is_dropped:
                raise _DroppedError
            require_room(self._folder, len(piece))
            digest.update(piece)
            write(piece)
            self.bytes += len(piece)

        found = self._back_up(take, self._created_at, self._let_end)
        self._file.flush()
        self._sha256 = digest.hexdigest()
        with self._lock:
            if self._is_dropped:
                raise _DroppedError
            self._last_end = self._clock() + MAX_KEPT_SECONDS
            self._use()
            self._read_ahead(0, MAX_BACKUP_PIECE_BYTES)
            self.found = found
        return found

    def _let_end(self, end: Callable[[], None]) -> None:
        with self._lock:
            self._end = end
            if self._is_dropped:
                end()

    def _fail(self, error: KvError) -> None:
        if not self._is_dropped:  # else its process was killed for that
            log.warning("the backup %s failed: %s", self.id, error.message)
        with self._lock:
            self._use()
            self._close()  # who sees the error may rely on the room
            self.bytes = 0
            self.error = error

    def _close(self) -> None:
        with suppress(OSError):  # of what is written by closing it, which nobody wants
            self._file.close()


class _DroppedError(Exception):
    """Nobody wants the backup any more."""


def require_room(folder: str, size: int) -> None:
    """Raise ``store_full`` unless ``size`` bytes more leave enough of the disk free."""
    disk = os.statvfs(folder)
    whole, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    kept = min(max(whole // FREE_SHARE, LEAST_FREE_BYTES), whole // _SMALL_SHARE)
    if free - size < kept:
        raise KvError(
            "store_full",
            f"the disk under {folder} has no room for a backup: of {free} free bytes {kept} are kept for the "
            f"store, and it needs {size} more; make room there, or run kvstore backup on that machine, to "
            "another disk",
        )


def _unwritable(folder: str, error: OSError) -> KvError:
    code = "store_full" if error.errno in NO_ROOM else "internal"
    return KvError(code, f"a backup cannot be written to {folder}: {reason(error)}")
