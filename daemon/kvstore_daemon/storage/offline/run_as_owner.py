"""Dropping root's rights to those of the store's owner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvstore_core.errors import KvError


def become_owner(path: Path) -> Path:
    """If this process is root's, act as the owner of the data folder ``path``; returns the path to use from
    then on.

    Files that the process makes are then the owner's, as the daemon needs them, and nothing that the owner
    may have put into the folder can lead root astray. The process goes into the folder first, since only root
    may be allowed on the way to it (``/var/lib/private``). Does nothing for a file, or for any other user.
    Raises ``not_allowed`` where root may not do it.
    """
    if os.geteuid() != 0 or not path.is_dir():
        return path
    owner = path.stat()
    if owner.st_uid == 0:
        return path
    try:
        os.chdir(path)
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    except PermissionError as error:
        raise KvError(
            "not_allowed", f"{path} belongs to the user {owner.st_uid}: do this as that user ({error})"
        ) from error
    return Path()


@contextmanager
def rights_kept() -> Iterator[None]:
    """Take back after the block what :func:`become_owner` gives up in it: the user, the groups, and the
    folder that the process was in."""
    if os.geteuid() != 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
        os.fchdir(folder)
        os.close(folder)


@contextmanager
def as_root() -> Iterator[None]:
    """Act as root again within the block, if :func:`become_owner` gave that up: to start a program that the
    store's owner need not be able to run."""
    user, group = os.geteuid(), os.getegid()
    if user == 0 or os.getuid() != 0:
        yield
        return
    os.seteuid(0)
    os.setegid(0)
    try:
        yield
    finally:
        os.setegid(group)
        os.seteuid(user)
