"""Lets the disk calls of the commands that keep files fail, one by one: ``ROOT URL SEED COMMANDS COUNT``.

For each kind of call and each error, call number n of a command's own process fails, for n from 1 to as many
as there are; and likewise of the process that reads the store for it. Of these cases COUNT are tried of each
of so many COMMANDS, chosen by SEED. The command runs in a child process, with a new folder below
ROOT/disk, which is the disk that fails. URL is a service that holds at least ten events.

Prints how many cases there were; ends with an error that names those that went wrong.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import lmdb

from kvstore_cli.main import main as kvstore
from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import Retention
from kvstore_daemon.storage.offline.backup import read_image, read_trailer
from kvstore_daemon.storage.offline.verify import verify
from support.engine_store import opened

CALLS = ("open", "mkdir", "read", "pread", "write", "pwrite", "writev", "fdatasync", "fsync", "ftruncate")
CALLS += ("flock", "mmap", "statvfs", "rename", "link", "unlink")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EACCES, errno.EROFS)
READER_CALLS = 8
READER_KINDS = ("open", "pread", "flock", "mmap", "statvfs")

_disk = ctypes.CDLL(None)
_disk.disk_fail.argtypes = [ctypes.c_char_p]
_disk.disk_fail.restype = ctypes.c_long
_disk.disk_calls.argtypes = [ctypes.c_char_p]
_disk.disk_calls.restype = ctypes.c_long


class Tried(NamedTuple):
    """A command: its arguments, in a folder that holds ``data`` (a store), ``old.kvb``, ``old.ndjson`` and
    ``position``; the file that it replaces and what tells whether that is whole; and whether it starts a
    process that reads the store."""

    words: Sequence[str]
    replaces: str | None
    is_whole: Callable[[Path], bool]
    has_reader: bool = False
    makes: tuple[str, ...] = ()


def whole_store(file: Path) -> bool:
    with (
        lmdb.open(os.fspath(file), subdir=False, lock=False, readonly=True, max_dbs=8) as env,
        env.begin() as txn,
    ):
        return not list(verify(env, txn))


def whole_backup(file: Path) -> bool:
    with file.open("rb") as opened:
        try:
            read_image(opened, read_trailer(opened))
        except KvError:
            return False
    return True


def whole_export(file: Path) -> bool:
    return b'"kvstore_export_end"' in file.read_bytes().splitlines()[-1]


def whole_position(file: Path) -> bool:
    return file.read_text().partition("-")[0].strip().isdigit()


def anything(_: Path) -> bool:
    return True


STORE = "data/lmdb/data.mdb"
COMMANDS = {
    "backup": Tried(["backup", "--data", "data", "--force", "old.kvb"], "old.kvb", whole_backup, True),
    "restore": Tried(["restore", "--data", "data", "--force", "old.kvb"], STORE, whole_store, True,
                     makes=("data/lmdb/replaced-1.mdb",)),
    "restore to nothing": Tried(["restore", "--data", "new/data", "old.kvb"], None, anything, True),
    "compact": Tried(["compact", "--data", "data"], STORE, whole_store, True),
    "check": Tried(["check", "--data", "data"], STORE, whole_store, True),
    "check of a backup": Tried(["check", "old.kvb"], "old.kvb", whole_backup, True),
    "export": Tried(["export", "--force", "old.ndjson"], "old.ndjson", whole_export),
    "import": Tried(["import", "old.ndjson", "--retry-for", "0"], "old.ndjson", whole_export),
    "subscribe": Tried(["subscribe", "--since", "0", "--count", "3", "--cursor", "position"], "position",
                       whole_position),
}  # fmt: skip


class Case(NamedTuple):
    name: str
    of_reader: bool
    call: str
    error: int
    number: int

    def __str__(self) -> str:
        whose = "of its reader" if self.of_reader else "of its own"
        return f"{self.name}: {self.call} number {self.number} {whose}, {errno.errorcode[self.error]}"


def run(words: Sequence[str], folder: Path, case: Case | None) -> tuple[int, str, dict[str, int]]:
    """Run ``kvstore WORDS`` in ``folder``: its exit status, what it said, and how many calls of each kind
    there were."""
    said = folder.parent.parent / "said"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 70
        try:
            os.chdir(folder)
            with said.open("wb") as file:
                os.dup2(file.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv[:] = ["kvstore", *words]
            if case is not None:
                what = f"{case.call}:{case.error}:{case.number}:1"
                if case.of_reader:
                    os.environ["DISK_FAIL"] = what
                else:
                    _disk.disk_fail(what.encode())
            status = kvstore()
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        _disk.disk_fail(None)
        calls = {call: int(_disk.disk_calls(call.encode())) for call in CALLS}
        os.write(writing, json.dumps([status, calls]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        output = pipe.read()
    os.waitpid(child, 0)
    status, calls = json.loads(output) if output else (-1, {})
    return status, said.read_text(errors="replace"), calls


def files_in(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}


def ready(template: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)


def problem(template: Path, folder: Path, case: Case) -> str | None:
    """What went wrong in a case, None if nothing did."""
    tried = COMMANDS[case.name]
    ready(template, folder)
    before = files_in(folder)
    old = (folder / tried.replaces).read_bytes() if tried.replaces else b""
    status, said, _ = run(tried.words, folder, case)
    if "Traceback" in said or "None" in said or status not in range(8):
        return f"status {status}: {said}"
    if status != 0 and ";" not in said:
        return f"it does not say what to do: {said}"
    if case.call not in ("read", "pread") and "damaged" in said:
        return f"nothing is damaged: {said}"
    file = folder / tried.replaces if tried.replaces else None
    if file is not None and status != 0 and file.read_bytes() != old and not tried.is_whole(file):
        return f"{tried.replaces} is neither the old one nor whole; it said: {said}"
    more = files_in(folder) - before - {"data/owner", "data/lmdb/lock.mdb", *tried.makes}
    left = {name for name in more if not name.startswith("new/") or name.endswith(("new.mdb", ".part"))}
    if case.call != "unlink" and left and not (left == {"old.ndjson.import-state"} and status):
        return f"{sorted(left)} was left; it said: {said}"
    status, said, _ = run(tried.words, folder, None)
    if status != 0 and not (case.name == "restore to nothing" and "already" in said):
        return f"the second try failed: {said}"
    if file is not None and not tried.is_whole(file):
        return f"{tried.replaces} is not whole after the second try"
    return None


def cases(name: str, template: Path, folder: Path) -> Iterator[Case]:
    """All there are of a command."""
    tried = COMMANDS[name]
    ready(template, folder)
    _, _, calls = run(tried.words, folder, None)
    for error in ERRORS:
        for call in CALLS:
            for number in range(1, calls[call] + 1):
                yield Case(name, False, call, error, number)
        for call in READER_KINDS if tried.has_reader else ():
            for number in range(1, READER_CALLS + 1):
                yield Case(name, True, call, error, number)


def prepare(template: Path) -> None:
    """The folder in which each case begins."""
    template.mkdir()
    retention = Retention(50, 1 << 30, 10**9)
    store = opened(template / "data", sync="none", max_store_bytes=1 << 30, retention=retention)
    for number in range(40):
        store.write("put", b"key%d" % (number % 20), value=b"%d" % number * (1 + 200 * (number % 3)))
    store.engine.close()
    for words in (["backup", "--data", "data", "old.kvb"], ["export", "old.ndjson"]):
        status, said, _ = run(words, template, None)
        assert status == 0, said
    (template / "position").write_text("1".ljust(63) + "\n")


def main(root: str, url: str, seed: str, commands: str, count: str) -> None:
    os.environ["KVSTORE_URL"] = url
    for name in ("offline", "export", "import", "subscribe"):
        import_module(f"kvstore_cli.commands.{name}")
    template, folder = Path(root) / "disk" / "template", Path(root) / "disk" / "case"
    chance = random.Random(int(seed))
    prepare(template)
    tried, wrong = 0, list[str]()
    for name in chance.sample(sorted(COMMANDS), int(commands)):
        every = list(cases(name, template, folder))
        for case in chance.sample(every, min(int(count), len(every))):
            tried += 1
            found = problem(template, folder, case)
            if found:
                wrong.append(f"{case}: {found}")
    if wrong:
        sys.exit(f"{len(wrong)} of {tried} cases went wrong\n" + "\n".join(wrong[:40]))
    sys.stdout.write(f"{tried}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
