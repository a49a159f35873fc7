"""What is known to be wrong with versions of etcd, as far as it concerns this engine."""

from __future__ import annotations

import re
from typing import NamedTuple

from kvstore_core.errors import KvError

Version = tuple[int, int, int]

FLOOR: Version = (3, 4, 0)
"""Older versions neither report what :mod:`kvstore_daemon.storage.etcd_store.members` looks at nor cut large
watch responses in pieces."""


class Defect(NamedTuple):
    """A defect of etcd: what happens, and from which version on it does not, one for each line that got a
    fix, oldest first. Lines before the first of them have it for good; lines after the last never had it.
    ``since`` is the first version that has it."""

    words: str
    fixed: tuple[Version, ...]
    since: Version = (0, 0, 0)
    is_refused: bool = False

    def is_in(self, version: Version) -> bool:
        """Whether ``version`` has the defect."""
        if version < self.since:
            return False
        line = version[:2]
        for fix in self.fixed:
            if line <= fix[:2]:
                return version < fix
        return False

    def cure(self, version: Version) -> str:
        """The first version without it, on the same line where there is one."""
        return dotted(next((fix for fix in self.fixed if fix > version), self.fixed[-1]))


DEFECTS = (
    Defect(
        "members may come to hold different data after a crash under load",
        ((3, 5, 3),),
        since=(3, 5, 0),
        is_refused=True,
    ),
    Defect(
        "a cluster of one member may lose acknowledged writes in a crash",
        ((3, 4, 21), (3, 5, 5)),
    ),
    Defect(
        "a watch may get events twice",
        ((3, 4, 24), (3, 5, 8)),
    ),
    Defect(
        "a watch may see older events again after its member fetched a snapshot from the leader",
        ((3, 4, 25), (3, 5, 8)),
    ),
    Defect(
        "the answer to a progress request may overtake events that belong before it",
        ((3, 4, 25), (3, 5, 8)),
    ),
    Defect(
        "a watch may lose events after a compaction",
        ((3, 4, 31), (3, 5, 13)),
    ),
    Defect(
        "a leader that was replaced may still end leases, so that a repeated write is applied again",
        ((3, 4, 31), (3, 5, 13)),
    ),
    Defect(
        "revisions may go back after a crash during a compaction",
        ((3, 4, 32), (3, 5, 14)),
    ),
    Defect(
        "a part of a transaction may be applied without the rest",
        ((3, 5, 17),),
        since=(3, 5, 0),
    ),
    Defect(
        "a watch may miss a delete at the revision of a compaction",
        ((3, 4, 36), (3, 5, 18)),
    ),
    Defect(
        "a watch on a member that lags may get events from before where it began",
        ((3, 4, 38), (3, 5, 22), (3, 6, 2)),
    ),
    Defect(
        "a defragmentation while a member fetches a snapshot may damage its data",
        ((3, 4, 38), (3, 5, 23), (3, 6, 5)),
    ),
    Defect(
        "reads may be stale after a member's process was paused, or while the leader changes",
        ((3, 4, 42), (3, 5, 28), (3, 6, 9)),
    ),
    Defect(
        "etcd's own users and roles can be got round: keep others out by TLS and the network",
        ((3, 5, 33), (3, 6, 14), (3, 7, 1)),
    ),
)
"""From etcd's change logs. What this engine never asks for is not here: nested transactions, ranges at a
revision within a transaction, leases that are kept alive."""


def parse(text: str) -> Version | None:
    """The version that a member reports, None if it is not three numbers. What follows them, such as
    ``-rc.1``, is left out."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


def dotted(version: Version) -> str:
    """``version`` as etcd writes it."""
    return ".".join(map(str, version))


def defects_of(version: Version) -> list[Defect]:
    """What is wrong with ``version``."""
    return [defect for defect in DEFECTS if defect.is_in(version)]


def version_refusal(text: str) -> KvError | None:
    """Why a cluster with a member of the version ``text`` is not used; None if it is."""
    version = parse(text)
    if version is None:
        return None
    if version < FLOOR:
        return KvError(
            "unsupported_version",
            f"etcd {text} is too old for this engine: it takes {dotted(FLOOR)} or newer",
        )
    for defect in defects_of(version):
        if defect.is_refused:
            return KvError(
                "unsupported_version",
                f"etcd {text} is not used: {defect.words}; upgrade it to {defect.cure(version)} or newer",
            )
    return None


def version_warning(text: str) -> str | None:
    """A sentence with each defect of the version ``text`` and the version that cures it; None if none is
    known."""
    version = parse(text)
    found = [] if version is None else defects_of(version)
    if version is None or not found:
        return None
    parts = "; ".join(f"{defect.words} ({defect.cure(version)})" for defect in found)
    return f"etcd {text} has defects that later versions (in brackets) do not: {parts}"
