"""The lock on a data folder: one daemon uses it, or one command that replaces its store."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from kvstore_core.errors import KvError
from kvstore_core.process.files import cure, permission_advice
from kvstore_core.process.startup import patiently


def unusable(folder: Path, error: OSError) -> str:
    """Why the data folder cannot be used, and what to do about it."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is not a folder; choose another --data"
    message = f"the data folder {folder.absolute()} cannot be used: {error.strerror}"
    if error.filename:
        message += f": {error.filename}"
    if not isinstance(error, PermissionError):
        return f"{message}; {cure(error.errno or 0) or 'choose another --data'}"
    refused = Path(error.filename) if error.filename and os.path.lexists(error.filename) else folder
    advice = permission_advice(refused, "u+rwx", "the daemon")
    if not os.path.lexists(refused):
        advice = f"make the folder and {advice}"
    return f"{message}; {advice}, or choose another --data"


class FolderLock:
    """A lock on a data folder that ends with the process, however it ends.

    The lock is flock's; the file's content only names the owner to the next one who tries.
    """

    def __init__(self, folder: Path, who: str = "the kvstore daemon") -> None:
        self._folder = folder
        self._who = who

    def claim(self) -> None:
        """Make the folder if there is none, and take the lock, which a daemon that is just ending may have
        for a moment yet. Raises ``bad_request`` or ``not_allowed`` saying why it cannot be used."""
        if "\0" in os.fspath(self._folder):
            raise KvError("bad_request", "--data contains a NUL, which no path can")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            patiently(self.acquire)
        except OSError as error:
            raise KvError("not_allowed", unusable(self._folder, error)) from error

    def acquire(self) -> None:
        """Take the lock; raises ``not_allowed`` naming the process that has it."""
        fd = os.open(self._folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(fd, 500).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise KvError(
                "not_allowed",
                f"the data folder {self._folder.absolute()} is in use by {owner}; "
                "stop it, or choose another --data",
            ) from error
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # the lock is what counts: on a full disk the owner just has no name
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.write(
                fd, f"{self._who} with pid {os.getpid()} on {socket.gethostname()}, since {since}\n".encode()
            )

    def release(self) -> None:
        """Give the lock back: once, and only after :meth:`acquire`."""
        os.close(self._fd)
