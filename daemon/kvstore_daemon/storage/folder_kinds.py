"""Which engine a data folder was used with: another one would serve an empty store in its place."""

from __future__ import annotations

from pathlib import Path

from kvstore_core.errors import KvError

STORE, MIRROR = "lmdb", "mirror"
"""The folders in a data folder: of a store that is there, and of the copy of one that a cluster keeps."""


def refuse_mirror(folder: Path) -> None:
    """Raise ``not_allowed`` where a daemon would begin a store in a folder that belongs to a cluster."""
    if _is_in(folder, MIRROR):
        raise KvError(
            "not_allowed",
            f"{folder.absolute()} has the mirror of a cluster, so its daemon belongs to one: name that with "
            f"--engine. If the store is to be on this machine, choose another --data, or remove "
            f"{folder.absolute() / MIRROR}, in which nothing is that the cluster has not",
        )


def refuse_store(folder: Path) -> None:
    """Raise ``not_allowed`` where a daemon would join a cluster and leave a store in the folder behind."""
    if _is_in(folder, STORE):
        raise KvError(
            "not_allowed",
            f"{folder.absolute()} has a store of its own, which a cluster would not show: choose another "
            "--data; or move its keys with kvstore export and import, and then "
            f"{folder.absolute() / STORE} out of the folder",
        )


def require_store(folder: Path) -> None:
    """Raise ``bad_request`` for work on a store's file in a folder that has only the mirror of a cluster."""
    if _is_in(folder, MIRROR) and not _is_in(folder, STORE):
        raise KvError(
            "bad_request",
            f"{folder.absolute()} has no store but the mirror of one that a cluster keeps: back that up with "
            "etcdctl snapshot save, or move its keys with kvstore export and import",
        )


def _is_in(folder: Path, kind: str) -> bool:
    return (folder / kind / "data.mdb").exists()
