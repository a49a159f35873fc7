"""Small files that say how far something has come.

They are written in place: a rename fails where the file is mounted, its folder is not ours, or it is a
link. One line in one piece, always as long as it was, needs none: a process that is killed leaves the old
line or the new one, and so does a power cut, since no disk writes half a sector. (Of a line that needs
more than one, the reader has to notice that it is none.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from time import monotonic, sleep

from kvstore_cli.terminal.output import readable, talk

_SECTOR_BYTES = 512
_SHORTEST_BYTES = 64
_LOCK_SECONDS = 10.0
_LOOK_SECONDS = 0.1


class KeptFile:
    """A line that outlives the process. Nobody else can use the file as one until this one ends, and with it
    what it started and minds."""

    def __init__(self, path: str) -> None:
        """Make the file if it is not there. Raises OSError if it cannot be written, is no ordinary file, or
        another process uses it and does not end within 10 s."""
        self._path = path
        self._deadline = monotonic() + _LOCK_SECONDS
        self._is_told = False
        while not self._took():
            if monotonic() >= self._deadline:
                raise OSError(errno.EBUSY, "it is replaced again and again", path)

    def _took(self) -> bool:
        """Open and lock the file; whether it is still the one of this name then."""
        self._descriptor, self._was_made = self._opened()
        try:
            about = os.fstat(self._descriptor)
            if not stat.S_ISREG(about.st_mode) or _is_output(about):
                raise OSError(errno.EINVAL, "it is no ordinary file", self._path)
            self._lock()
            is_there = self._is_there()
            if is_there:
                self._try()
        except BaseException:
            os.close(self._descriptor)
            raise
        if not is_there:
            os.close(self._descriptor)
        return is_there

    def _is_there(self) -> bool:
        """Whether the path leads to what is open: who had the lock may have removed that, and somebody made
        another."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))  # noqa: PTH116
        except FileNotFoundError:
            return False

    def _opened(self) -> tuple[int, bool]:
        how = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK  # not to wait for the other end of a pipe
        try:
            return os.open(self._path, how), False
        except FileNotFoundError:
            folder = os.path.dirname(os.path.realpath(self._path))  # noqa: PTH120
            if not os.path.isdir(folder):  # noqa: PTH112
                raise OSError(errno.ENOENT, f"there is no folder {readable(folder)}", self._path) from None
        return os.open(self._path, how | os.O_CREAT, 0o666), True

    def _lock(self) -> None:
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if monotonic() >= self._deadline:
                    raise OSError(errno.EBUSY, "another kvstore uses it", self._path) from None
                if not self._is_told:
                    talk(f"another kvstore uses {readable(self._path)}; waiting for its end")
                self._is_told = True
                sleep(_LOOK_SECONDS)
            except OSError:  # a file system without locks
                return
            else:
                return

    def _try(self) -> None:
        """Write what is there; a blank line, which takes the room that it will need, where nothing is."""
        data = os.pread(self._descriptor, _SECTOR_BYTES, 0)
        if data:
            os.pwrite(self._descriptor, data, 0)
        else:
            self.write("")

    def read(self) -> str:
        """The line, empty if none was written yet. Raises OSError, and UnicodeDecodeError for what is no
        text."""
        size = os.fstat(self._descriptor).st_size
        return os.pread(self._descriptor, size, 0).decode().partition("\n")[0].strip()

    def write(self, line: str) -> None:
        """Keep ``line``. A machine that crashes may keep an older one. Raises OSError."""
        data = line.encode()
        unit = _SHORTEST_BYTES if len(data) < _SHORTEST_BYTES else _SECTOR_BYTES
        size = (len(data) // unit + 1) * unit
        os.pwrite(self._descriptor, data.ljust(size - 1) + b"\n", 0)
        if os.fstat(self._descriptor).st_size != size:
            os.ftruncate(self._descriptor, size)
            self._settle()

    def _settle(self) -> None:
        # only a file of another size can be found cut off after a power cut
        os.fsync(self._descriptor)
        if self._was_made:
            with suppress(OSError):  # a folder that we may not read
                folder = os.open(os.path.dirname(os.path.realpath(self._path)), os.O_RDONLY)  # noqa: PTH120
                os.fsync(folder)
                os.close(folder)

    def discard(self) -> None:
        """Remove the file, or, where that cannot be done, what stands in it."""
        try:
            self._unlink()
        except OSError:
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _unlink(self) -> None:
        # under the lock, and only what the lock is on: another file of this name may be somebody's
        if self._is_there():
            os.unlink(os.path.realpath(self._path))  # noqa: PTH108

    def close(self) -> None:
        """Let go of the file; one that was made and never written is removed."""
        if self._was_made:
            with suppress(OSError, UnicodeDecodeError):
                if not self.read():
                    self._unlink()
        os.close(self._descriptor)


def _is_output(about: os.stat_result) -> bool:
    """Whether that is where our output goes, as /dev/stdout is."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), about):
                return True
    return False
