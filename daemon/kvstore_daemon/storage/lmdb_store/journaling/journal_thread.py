"""The thread that writes the journal: what waits goes to the disk in one write and one sync."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from kvstore_core.process.files import NO_ROOM, sync_folder
from kvstore_daemon.storage.lmdb_store.journaling import journal

_AHEAD_BYTES = 1 << 20


class Append(NamedTuple):
    """Rows to be written as frame ``number``, into the file at the index ``file``; with ``begins`` at its
    beginning. Without rows nothing is written, and the answer says that all before is on the disk."""

    number: int
    rows: bytes
    file: int
    begins: bool


class Appended(NamedTuple):
    """What became of frames that were handed over, as many as ``frames``; 0: of a sync that came later.

    They are on the disk, or with the system if they need not be synced at once; it took ``seconds``. Or there
    was an ``error`` and they are not; with ``is_lost`` nobody knows whether they are, or others before them.
    """

    frames: int
    seconds: float
    error: Exception | None = None
    is_lost: bool = False


class RefusedError(Exception):
    """A frame before this one could not be written."""


class JournalThread(threading.Thread):
    """Writes a new journal in ``folder``; :meth:`begin` says under which id. What an earlier one left in its
    files must be in LMDB.

    ``deliver`` is called in this thread with what became of frames, in the order in which they were handed
    over. Once one cannot be written, all that follow are refused, until :meth:`resume`. After a failed sync
    nothing is written any more: the kernel may have dropped what it could not write, and would report the
    next sync as a success.

    ``sync_interval_ms`` is how soon after a write the sync comes: 0 with each write, None never.
    """

    def __init__(
        self, folder: Path, sync_interval_ms: int | None, deliver: Callable[[Appended], None]
    ) -> None:
        super().__init__(name="kvstore-journal", daemon=True)
        self._interval = sync_interval_ms
        self._deliver = deliver
        self._inbox: queue.SimpleQueue[Append | None] = queue.SimpleQueue()
        self._refused: Exception | None = None
        self._lost: Exception | None = None
        self._written = self._synced = 0
        self._unsynced: set[int] = set()
        self._sync_due_at: float | None = None
        self._ends = [0, 0]
        self._allocated = [0, 0]
        self._files: list[int] = []
        try:
            for name in journal.NAMES:
                self._files.append(journal.open_file(folder / name))
                os.fsync(self._files[-1])
            sync_folder(folder)
        except BaseException:
            self.close()
            raise

    def begin(self, journal_id: bytes) -> None:
        """Start to write the journal with that id."""
        self._id = journal_id
        self.start()

    def append(self, what: Append) -> None:
        """Hand over a frame, from any thread."""
        self._inbox.put(what)

    def resume(self) -> None:
        """Let frames be written again, after all that were handed over were refused; not after a failed
        sync."""
        self._refused = None

    def stop(self) -> None:
        """Write what was handed over, sync it, and end."""
        self._inbox.put(None)
        self.join()
        self.close()

    def close(self) -> None:
        """Close the files of one that does not run."""
        while self._files:
            os.close(self._files.pop())

    def run(self) -> None:
        """Write what is handed over, until :meth:`stop`."""
        waiting: list[Append] = []
        is_over = False
        while not is_over or waiting:
            if not waiting:
                is_over = self._receive(waiting)
            if waiting:
                self._serve(self._together(waiting))
            if self._sync_due_at is not None and time.monotonic() >= self._sync_due_at:
                self._sync_late()
        if self._unsynced and self._lost is None:
            self._sync_late()

    def _receive(self, waiting: list[Append]) -> bool:
        """Wait for frames, or until a sync is due; whether this is the end."""
        due_at = self._sync_due_at
        timeout = None if due_at is None else max(0.0, due_at - time.monotonic())
        with contextlib.suppress(queue.Empty):
            each = self._inbox.get(timeout=timeout)
            while each is not None:
                waiting.append(each)
                each = self._inbox.get_nowait()
            return True
        return False

    def _together(self, waiting: list[Append]) -> list[Append]:
        """Take from ``waiting`` what can be written at once."""
        count, first = 1, waiting[0]
        for each in waiting[1:]:
            if each.begins or each.file != first.file:
                break
            count += 1
        batch = waiting[:count]
        del waiting[:count]
        return batch

    def _serve(self, batch: list[Append]) -> None:
        refused = self._lost or self._refused
        if refused is not None:
            self._deliver(Appended(len(batch), 0, refused, self._lost is not None))
            return
        began = time.perf_counter()
        try:
            self._write(batch)
        except Exception as error:
            if not isinstance(error, OSError):
                self._lost = error
            self._refused = RefusedError()
            self._deliver(Appended(len(batch), 0, error, self._lost is not None))
        else:
            self._deliver(Appended(len(batch), time.perf_counter() - began))

    def _write(self, batch: list[Append]) -> None:
        index = batch[0].file
        start = 0 if batch[0].begins else self._ends[index]
        parts: list[bytes] = []
        last = 0
        for number, rows, _, _ in batch:
            if rows:
                parts += (journal.encode_head(self._id, number, self._synced, rows, crc32(rows)), rows)
                last = number
        if not parts:
            return
        data = b"".join(parts)
        end = start + len(data)
        self._allocate(index, end)
        try:
            self._write_all(self._files[index], data, start)
        except OSError as error:
            self._withdraw(self._files[index], start, batch, error)
            raise
        self._written = last
        self._unsynced.add(index)
        if self._interval == 0:
            self._sync()
        elif self._interval is not None and self._sync_due_at is None:
            self._sync_due_at = time.monotonic() + self._interval / 1000
        self._ends[index] = end

    def _write_all(self, file: int, data: bytes, start: int) -> None:
        done = os.pwrite(file, data, start)
        while done < len(data):  # cut short, as where a disk is nearly full
            done += os.pwrite(file, memoryview(data)[done:], start + done)

    def _allocate(self, index: int, end: int) -> None:
        """Take room on the disk ahead: a write into it is synced sooner than one that makes a file longer."""
        if end > self._allocated[index]:
            start, stop = self._allocated[index], end + _AHEAD_BYTES
            # if there is no room, the write itself says so; and not every file system can do this
            with contextlib.suppress(OSError):
                os.posix_fallocate(self._files[index], start, stop - start)
            self._allocated[index] = stop

    def _withdraw(self, file: int, start: int, batch: list[Append], error: OSError) -> None:
        """Make sure that the next start finds no frame of a write that failed: its requests are refused. None
        of them, since a frame to come may be as long as the first, and the second would follow it."""
        size = os.fstat(file).st_size
        try:
            for _, rows, _, _ in batch:
                if rows and start < size:
                    os.pwrite(file, bytes(min(journal.HEAD_BYTES, size - start)), start)
                    start += journal.HEAD_BYTES + len(rows)
        except OSError as failure:
            # no room even for this: then nothing was written there either
            if failure.errno not in NO_ROOM or error.errno not in NO_ROOM:
                self._lost = failure
            return
        try:
            os.fdatasync(file)
        except OSError as failure:
            self._lost = failure

    def _sync(self) -> None:
        try:
            for index in sorted(self._unsynced):
                os.fdatasync(self._files[index])
        except OSError as error:
            self._lost = error
            raise
        self._unsynced.clear()
        self._synced = self._written

    def _sync_late(self) -> None:
        began, self._sync_due_at = time.perf_counter(), None
        try:
            self._sync()
        except OSError as error:
            self._deliver(Appended(0, 0, error, is_lost=True))
        else:
            self._deliver(Appended(0, time.perf_counter() - began))
