"""Errors of files and of LMDB, told so that whoever reads them does the right thing.

Only what LMDB found wrong with the bytes themselves is called damage: whoever is told to restore a backup
throws away what is there. A disk that fails, a file that may not be opened, descriptors that ran out take
nothing from the store, and are told with the advice that cures them. Of an error that may have either cause,
``kvstore check`` finds out which it is.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lmdb

from kvstore_core.errors import KvError
from kvstore_core.process.files import NO_ROOM, cure

_DAMAGE = (
    lmdb.CorruptedError,  # a page is of another kind than its place in the tree needs
    lmdb.PageNotFoundError,  # a page number beyond the last page
    lmdb.InvalidError,  # a meta page is none
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,  # a table's flags are not those that it was made with
)
"""What LMDB says of bytes that it never wrote.

Not among them: MDB_CURSOR_FULL, MDB_PAGE_FULL, MDB_PROBLEM and MDB_BAD_TXN, which follow a damaged page too,
but also a fault of the program; and all limits. Whatever LMDB or py-lmdb may add is not damage either.
"""

_UNCLEAR = (
    "internal",
    "restart the daemon; if it comes again, 'kvstore check' finds out whether the store is damaged",
)
_NO_SPACE = ("store_full", "raise --max-store-bytes")
_CODES = {
    **dict.fromkeys(NO_ROOM, "store_full"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOMEM), "too_busy"),
    **dict.fromkeys((errno.EROFS, errno.ENOLCK, errno.EAGAIN), "not_allowed"),
}


def errno_of(error: Exception) -> int:
    """The system's number for what went wrong; 0 where it was not the system that said no."""
    number = error.errno if isinstance(error, OSError) else getattr(error, "code", 0)
    return number if isinstance(number, int) and number > 0 else 0


def is_damage(error: Exception) -> bool:
    """Whether LMDB says that the file's content is not what it should be."""
    # a version that no LMDB in py-lmdb knows is refused by py-lmdb itself, with an error of no class
    return isinstance(error, _DAMAGE) or (type(error) is lmdb.Error and "LMDB data format" in str(error))


def file_error(path: Path, error: OSError | lmdb.Error) -> KvError:
    """What is wrong with the store's file, or folder, ``path``, and what to do about it."""
    number = errno_of(error)
    reason = os.strerror(number) if number else str(error)
    if is_damage(error):
        return KvError("damaged", f"{path} is damaged: {reason}; restore a backup")
    if number in (errno.EACCES, errno.EPERM):
        return KvError("not_allowed", f"{path} cannot be opened: {reason}; {_for_its_user(path)}")
    code, advice = _CODES.get(number, "internal"), cure(number) or cure(errno.EIO)
    if number in (0, errno.EINVAL, errno.ENOENT):
        code, advice = _UNCLEAR
    if number == errno.EAGAIN:
        advice = "another process holds it"
    if isinstance(error, lmdb.MapFullError):
        code, advice = _NO_SPACE
    return KvError(code, f"{path} cannot be used: {reason}; {advice}")


def _for_its_user(path: Path) -> str:
    user = os.geteuid()
    try:
        owner = path.stat().st_uid
    except OSError:
        return f"give it to user {user}"
    if owner == user:
        return "its owner may not use it: chmod u+rw"
    return f"it belongs to user {owner}, and this runs as user {user}"
