"""Files that are written whole or not at all, and advice for the system's errors with files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_STEADY_BYTES = 8 << 20

NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""What the system says where a file cannot grow: a full disk, a quota, a limit on the size of files."""

_CURES = {
    **dict.fromkeys(NO_ROOM, "make room on the disk"),
    errno.EMFILE: "raise the limit of open files (ulimit -n, LimitNOFILE=)",
    errno.ENFILE: "the system has no file handles left (fs.file-max)",
    errno.ENOMEM: "the process is out of memory or address space (ulimit -v)",
    errno.EROFS: "the file system is mounted read-only; mount it writable",
    errno.ENOLCK: "the file system has no locks; use a local disk",
    errno.EIO: "the disk has failed: check it and the system's log",
    errno.EACCES: "do this as the owner of the file, or as root",
    errno.EPERM: "do this as the owner of the file, or as root",
}


def cure(number: int) -> str | None:
    """What to do about an error of the system (errno) with a file; None where its name says it all."""
    return _CURES.get(number)


def reason(error: OSError) -> str:
    """What the system said, and what to do about it: ``No space left on device; make room on the disk``."""
    said = error.strerror or str(error)
    advice = cure(error.errno or 0)
    return f"{said}; {advice}" if advice else said


def permission_advice(path: Path, mode: str, who: str = "this") -> str:
    """What to do where this process, called ``who``, may not use ``path``; its owner would need ``mode``."""
    user = os.geteuid()
    try:
        owner = path.stat().st_uid
    except OSError:
        return f"give it to user {user}"
    if owner == user:
        return f"its owner, user {user}, may not use it: chmod {mode}"
    return f"it belongs to user {owner}, and {who} runs as user {user}; give it to user {user}"


@contextmanager
def whole_file(path: Path, *, replace: bool) -> Iterator[BinaryIO]:
    """A file to write, readable by its owner only. It gets its name when the block has ended and all of it is
    on disk; until then, and if the block raises, ``path`` is what it was. Raises FileExistsError, unless
    ``replace``, if ``path`` exists, and OSError if it is a device, a folder, or the like.
    """
    _refuse_what_is_there(path, replace=replace)
    draft = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    # within the block from the start: an interrupt may come as soon as the file is there
    try:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w+b") as file:  # noqa: PTH123 - it is open already
            yield file
            file.flush()
            os.fsync(descriptor)
        _refuse_what_is_there(path, replace=replace)
        draft.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error says more
            draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _refuse_what_is_there(path: Path, *, replace: bool) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    if not replace:
        raise FileExistsError(errno.EEXIST, "File exists", os.fspath(path))


def steadily(file: BinaryIO) -> Callable[[bytes], None]:
    """A function that writes to the empty ``file`` and syncs it a few megabytes at a time: one sync of a
    large file would hold up those of the daemon beside it. It also keeps the system's cache for others."""
    written = synced = 0

    def write(data: bytes) -> None:
        nonlocal written, synced
        file.write(data)
        written += len(data)
        if written - synced >= _STEADY_BYTES:
            file.flush()
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, written, os.POSIX_FADV_DONTNEED)
            synced = written

    return write


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable. Does nothing on a file system that syncs no folders."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_folders_up(folder: Path) -> None:
    """Make the names in ``folder``, and in all folders above it on the same file system, durable: they may
    just have been made. A folder that may not be read is skipped: this process made nothing in it."""
    device = folder.stat().st_dev
    for each in (folder := folder.absolute(), *folder.parents):
        try:
            if each.stat().st_dev != device:
                return
            sync_folder(each)
        except PermissionError:
            continue
