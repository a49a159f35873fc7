"""A disk whose power can be cut and that can fail: what a process asked of it, and what could be left.

``disk.c`` is preloaded into the process and writes down each write, sync and change of names below a folder,
in order. From that record a :class:`Disk` says what is certain to be on the disk at any moment, and draws
what may be there after the power was cut at that moment: of what was not synced any part, in any order, torn
at sectors. It takes POSIX at its word, as few file systems do: a name is durable once its folder was synced,
content once its file was, and a write to a descriptor with O_DSYNC when it returns.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from support.programs import require_program

SOURCE = Path(__file__).with_name("disk.c")
SECTOR_BYTES = 512

_HEAD = struct.Struct("=IIQQQ")


def run_script(name: str, *arguments: object, environment: Mapping[str, str] = os.environ) -> str:
    """What the program ``name`` of the engine's tests writes; fails with all it said if it fails."""
    script = Path(__file__).parents[1] / "engine" / name
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env={**environment, "PYTHONPATH": str(script.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name} {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}"
    return done.stdout


@functools.cache
def library() -> Path:
    """The compiled ``disk.c``."""
    compiler = require_program("cc")
    folder = Path(tempfile.mkdtemp(prefix="kvstore-disk-"))
    built = folder / "disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE), "-ldl"], check=True)
    return built


def preloaded(folder: Path, record: Path | None = None, fail: str | None = None) -> dict[str, str]:
    """The variables that put a process's files below ``folder``, which exists, on such a disk."""
    variables = {"LD_PRELOAD": str(library()), "DISK_FOLDER": str(folder)}
    if record is not None:
        variables["DISK_RECORD"] = str(record)
    if fail is not None:
        variables["DISK_FAIL"] = fail
    return variables


class Step(NamedTuple):
    """One entry of a record. ``kind``: W a write, D one that is durable when it returns, S a file and F a
    folder synced, T truncated, C a file and M a folder made, R renamed, L linked, U unlinked, N sent to a
    peer, A noted by the process."""

    kind: str
    path: str
    inode: int
    offset: int
    data: bytes


def steps(record: Path) -> list[Step]:
    """What stands in the file ``record``."""
    found, data, at = [], record.read_bytes(), 0
    while at < len(data):
        kind, path_bytes, inode, offset, data_bytes = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        path = data[at : at + path_bytes].decode()
        at += path_bytes
        found.append(Step(chr(kind), path, inode, offset, data[at : at + data_bytes]))
        at += data_bytes
    return found


def note(record: Path, said: bytes) -> None:
    """Add a note to a record that others write to as well: what came before this call stands before it."""
    with record.open("ab", buffering=0) as file:
        file.write(_HEAD.pack(ord("A"), 0, 0, 0, len(said)) + said)


@dataclass
class _File:
    """A file's content on the disk, and the writes that nothing has made durable yet."""

    content: bytearray = field(default_factory=bytearray)
    pending: list[_Write] = field(default_factory=list)

    def apply(self, offset: int, data: bytes) -> None:
        """A write that is durable at once: nothing that was written to its place before comes back."""
        _write(self.content, offset, data)
        end = offset + len(data)
        self.pending = [part for write in self.pending for part in _outside(write, offset, end)]

    def sync(self) -> None:
        for write in self.pending:
            _write(self.content, *write)
        self.pending.clear()


_Write = tuple[int, bytes | None]
"""Bytes at an offset; or None, the end of the file."""


def _outside(write: _Write, start: int, end: int) -> Iterator[_Write]:
    """What of ``write`` lies outside of a range."""
    at, data = write
    if data is None or at + len(data) <= start or at >= end:
        yield write
        return
    if at < start:
        yield at, data[: start - at]
    if at + len(data) > end:
        yield end, data[end - at :]


def _write(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        data = b""
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


Names = dict[str, int]


class Disk:
    """A disk on which the steps of a record happen, one after the other."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._names: Names = {}  # that are durable
        self._pending: list[Step] = []  # changes of names that are not
        self._folders: set[str] = set()

    def happen(self, step: Step) -> None:
        """Take one step."""
        if step.kind == "C":
            self._files.pop(step.inode, None)  # the number of a file that is gone
        file = self._files.setdefault(step.inode, _File())
        if step.kind == "W":
            file.pending.append((step.offset, step.data))
        elif step.kind == "D":
            file.apply(step.offset, step.data)
        elif step.kind == "S":
            file.sync()
        elif step.kind == "T":
            file.pending.append((step.offset, None))
        elif step.kind in "CMRLU":
            self._pending.append(step)
            if step.kind == "M":
                self._folders.add(step.path)
        elif step.kind == "F":
            self._sync_folder(step.path)

    def _sync_folder(self, folder: str) -> None:
        in_folder = [step for step in self._pending if _folder(step.path) == folder]
        for step in in_folder:
            _change(self._names, step)
        self._pending = [step for step in self._pending if step not in in_folder]

    def unsynced(self, path: str) -> list[_Write]:
        """The writes to the file ``path`` that a power cut may take back."""
        names = self._names_if(lambda _: True)
        return list(self._files[names[path]].pending) if path in names else []

    def is_durable(self, path: str) -> bool:
        """Whether the name ``path``, and those of the folders that lead to it, survive a power cut."""
        return path in self._names

    def _names_if(self, kept: Any) -> Names:
        names = dict(self._names)
        for step in self._pending:
            if kept(step):
                _change(names, step)
        return names

    def least(self) -> dict[str, bytes]:
        """What is left when the power is cut and nothing that was not synced has reached the disk."""
        return self._left(self._names, lambda _, __: [])

    def most(self) -> dict[str, bytes]:
        """What is left when all of it has, as after the kill of a process."""
        return self._left(self._names_if(lambda _: True), lambda _, pending: pending)

    def torn(self, chance: random.Random, coming: Step | None = None) -> dict[str, bytes]:
        """What may be left when some of it has; and some of a write that was just ``coming``."""
        share = chance.choice((0.1, 0.5, 0.9))
        if coming is not None and coming.kind == "D":
            under_way = {coming.inode: [(coming.offset, coming.data)]}
        else:
            under_way = {}
        return self._left(
            self._names_if(lambda _: chance.random() < 0.5),
            lambda inode, pending: _some_sectors([*pending, *under_way.get(inode, ())], chance, share),
        )

    def _left(self, names: Names, written: Any) -> dict[str, bytes]:
        left: dict[str, bytes] = {}
        missing = {step.path for step in self._pending if step.kind == "M"} - names.keys()
        for path, inode in names.items():
            if path in self._folders:
                continue
            # a name in a folder that is not there is nowhere
            if missing and any(str(parent) in missing for parent in Path(path).parents):
                continue
            file = self._files.get(inode, _File())
            content = bytearray(file.content)
            for offset, data in written(inode, file.pending):
                _write(content, offset, data)
            left[path] = bytes(content)
        return left


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _change(names: Names, step: Step) -> None:
    if step.kind == "U":
        names.pop(step.path, None)
        return
    if step.kind == "R":
        names.pop(step.path, None)
    names[step.data.decode() if step.kind in "RL" else step.path] = step.inode


def _some_sectors(pending: list[_Write], chance: random.Random, share: float) -> Iterator[_Write]:
    """Some of the sectors of some of the writes, in any order."""
    whole = chance.random() < 0.3
    parts = [part for write in pending for part in ([write] if whole else _sectors(*write))]
    parts = [part for part in parts if chance.random() < share]
    chance.shuffle(parts)
    yield from parts


def _sectors(offset: int, data: bytes | None) -> Iterator[_Write]:
    if data is None:
        yield offset, data
        return
    at = 0
    while at < len(data):
        end = min(len(data), at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES)
        yield offset + at, data[at:end]
        at = end


def lay_out(left: dict[str, bytes], root: Path, folder: Path) -> None:
    """Make the files that were below ``root`` again below ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, content in left.items():
        target = folder / Path(path).relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


HOLD = """
import lmdb, sys
with lmdb.open(sys.argv[1], max_dbs=16).begin(write=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def write_lock_held(store: Path) -> Iterator[None]:
    """Another process is in the middle of a write transaction, so the engine's cannot begin."""
    command = [sys.executable, "-c", HOLD, str(store / "lmdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            holder.communicate()
