"""Small files that keep a position between runs.

They are written in place, since a rename fails where the file is a mount point or a link, or its folder is
not writable. No rename is needed for one line that is written at once and keeps its length: a killed process
leaves the old line or the new one, and so does a power cut, since disks write whole sectors. (The reader has
to check a line that is longer than a sector.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

import click

from kvstore_cli.terminal.output import readable, talk
from kvstore_core.process.files import reason, sync_folder

_SECTOR_BYTES = 512
_SHORTEST_BYTES = 64
_LOCK_SECONDS = 10.0
_LOOK_SECONDS = 0.1


class PositionFile:
    """A file of one line, locked for this process and the children that inherit it.

    Messages say ``what`` is kept in it, and end with ``advice`` if it cannot be written. ``name`` is the
    path as they show it.
    """

    def __init__(self, path: str, what: str = "the position", advice: str = "") -> None:
        """Create the file if it does not exist. Raises a usage error if it cannot be written, is not a
        regular file, or is locked by another process for 10 s."""
        self.name = readable(path)
        self._path, self._what, self._advice = path, what, advice
        self._deadline = monotonic() + _LOCK_SECONDS
        self._has_said = False
        with self._writing(click.UsageError):
            while not self._open_and_lock():
                if monotonic() >= self._deadline:
                    raise OSError(errno.EBUSY, "it keeps being replaced", path)

    @contextmanager
    def _writing(self, kind: type[click.ClickException]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"cannot write {self._what} to {self.name}: {reason(error)}{self._advice}"
            raise kind(message) from error

    def _open_and_lock(self) -> bool:
        """Open and lock the file; whether the name still leads to it then."""
        self._descriptor, self._was_made = self._opened()
        try:
            about = os.fstat(self._descriptor)
            if not stat.S_ISREG(about.st_mode) or _is_output(about):
                raise OSError(errno.EINVAL, "it is not a regular file", self._path)
            self._lock()
            is_there = self._is_there()
            if is_there:
                self._test_write()
        except BaseException:
            os.close(self._descriptor)
            raise
        if not is_there:
            os.close(self._descriptor)
        return is_there

    def _is_there(self) -> bool:
        """Whether the path leads to the open file: the process that had the lock may have removed it, and
        another may have created a new one."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))  # noqa: PTH116
        except FileNotFoundError:
            return False

    def _opened(self) -> tuple[int, bool]:
        flags = (
            os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
        )  # O_NONBLOCK: do not wait for the other end of a pipe
        try:
            return os.open(self._path, flags), False
        except FileNotFoundError:
            folder = os.path.dirname(os.path.realpath(self._path))  # noqa: PTH120
            if not os.path.isdir(folder):  # noqa: PTH112
                raise OSError(errno.ENOENT, f"there is no folder {readable(folder)}", self._path) from None
        return os.open(self._path, flags | os.O_CREAT, 0o666), True

    def _lock(self) -> None:
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if monotonic() >= self._deadline:
                    raise OSError(errno.EBUSY, "another kvstore is using it", self._path) from None
                if not self._has_said:
                    talk(f"another kvstore is using {self.name}; waiting for it to finish")
                self._has_said = True
                sleep(_LOOK_SECONDS)
            except OSError:  # a file system without locks
                return
            else:
                return

    def _test_write(self) -> None:
        """Write back what is there, or a blank line, which reserves the space for later ones."""
        data = os.pread(self._descriptor, _SECTOR_BYTES, 0)
        if data:
            os.pwrite(self._descriptor, data, 0)
        else:
            self._write("")

    def read(self) -> str:
        """The line, empty if none was written yet; bytes that are not text are escaped. Raises a usage
        error if it cannot be read."""
        try:
            data = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        except OSError as error:
            raise click.UsageError(f"cannot read {self._what} in {self.name}: {reason(error)}") from error
        return data.decode(errors="backslashreplace").partition("\n")[0].strip()

    def write(self, line: str) -> None:
        """Write ``line``. After a crash of the machine an older one may be there. Raises ClickException."""
        with self._writing(click.ClickException):
            self._write(line)

    def _write(self, line: str) -> None:
        data = line.encode()
        unit = _SHORTEST_BYTES if len(data) < _SHORTEST_BYTES else _SECTOR_BYTES
        size = (len(data) // unit + 1) * unit
        os.pwrite(self._descriptor, data.ljust(size - 1) + b"\n", 0)
        if os.fstat(self._descriptor).st_size != size:
            os.ftruncate(self._descriptor, size)
            self._sync()

    def _sync(self) -> None:
        # only a file whose size has changed can be truncated after a power cut
        os.fsync(self._descriptor)
        if self._was_made:
            with suppress(OSError):  # a folder that may not be read
                sync_folder(Path(self._path).resolve().parent)

    def discard(self) -> None:
        """Remove the file, or empty it if it cannot be removed."""
        try:
            self._unlink()
        except OSError:
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _unlink(self) -> None:
        # only the file that is locked: another process may have created a new one of this name
        if self._is_there():
            os.unlink(os.path.realpath(self._path))  # noqa: PTH108

    def close(self) -> None:
        """Close the file; remove it if this created it and nothing was written."""
        if self._was_made:
            with suppress(OSError, click.UsageError):
                if not self.read():
                    self._unlink()
        os.close(self._descriptor)


def _is_output(about: os.stat_result) -> bool:
    """Whether this is standard output or standard error, as /dev/stdout is."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), about):
                return True
    return False
