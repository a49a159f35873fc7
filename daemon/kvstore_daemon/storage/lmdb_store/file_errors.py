"""Errors of files and of LMDB, as KvErrors that say what to do.

Only what LMDB finds wrong with the bytes themselves is called damage, since people who are told to restore a
backup throw away what is there. A failing disk, a file that may not be opened, a lack of descriptors take
nothing from the store: each gets the advice that cures it. For an error that may have either cause,
``kvstore check`` finds out which it is.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.files import NO_ROOM, cure, permission_advice

_DAMAGE = (
    lmdb.CorruptedError,  # a page is of another kind than its place in the tree needs
    lmdb.PageNotFoundError,  # a page number beyond the last page
    lmdb.InvalidError,  # a meta page is none
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,  # a table's flags are not those that it was made with
)
"""What LMDB raises for bytes that it never wrote.

MDB_CURSOR_FULL, MDB_PAGE_FULL, MDB_PROBLEM and MDB_BAD_TXN are not among them: they follow a damaged page,
but also a fault of the program. Limits are not damage, nor is anything that LMDB or py-lmdb may add.
"""

_UNCLEAR = ("internal", "restart the daemon; if it happens again, check the store with 'kvstore check'")
_NO_SPACE = ("store_full", "raise --max-store-bytes")
_CODES = {
    **dict.fromkeys(NO_ROOM, "store_full"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOMEM), "too_busy"),
    **dict.fromkeys((errno.EROFS, errno.ENOLCK, errno.EAGAIN), "not_allowed"),
}


def errno_of(error: Exception) -> int:
    """The error's errno; 0 if it is not an error of the system."""
    number = error.errno if isinstance(error, OSError) else getattr(error, "code", 0)
    return number if isinstance(number, int) and number > 0 else 0


def is_damage(error: Exception) -> bool:
    """Whether LMDB says that the file's content is not what it should be."""
    # a version that py-lmdb's LMDB does not know is refused by py-lmdb itself, with a plain lmdb.Error
    return isinstance(error, _DAMAGE) or (type(error) is lmdb.Error and "LMDB data format" in str(error))


def file_error(path: Path, error: OSError | lmdb.Error) -> KvError:
    """What is wrong with the store's file, or folder, ``path``, and what to do about it."""
    number = errno_of(error)
    reason = os.strerror(number) if number else str(error)
    if is_damage(error):
        return KvError("damaged", f"{path} is damaged: {reason}; restore a backup")
    if number in (errno.EACCES, errno.EPERM):
        return KvError("not_allowed", f"{path} cannot be opened: {reason}; {permission_advice(path, 'u+rw')}")
    code, advice = _CODES.get(number, "internal"), cure(number) or cure(errno.EIO)
    if number in (0, errno.EINVAL, errno.ENOENT):
        code, advice = _UNCLEAR
    if number == errno.EAGAIN:
        advice = "another process holds it"
    if isinstance(error, lmdb.MapFullError):
        code, advice = _NO_SPACE
    return KvError(code, f"{path} cannot be used: {reason}; {advice}")
