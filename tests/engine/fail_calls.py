"""Lets the calls of an engine to its disk fail, one after the other: ``ROOT SEED SHARE``.

For each kind of call and each error, call number n fails, for n from 1 to as many as there are; of all these
cases the share SHARE is tried, chosen by SEED. Each runs in a child process, whose disk is real and empty.
Prints how many there were; ends with an error that names the cases in which the engine did not keep its word.
"""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import os
import random
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import Retention
from support.engine_store import Store, opened

CALLS = ("open", "mkdir", "write", "pwrite", "writev", "fdatasync", "fsync", "ftruncate", "flock", "mmap")
CALLS += ("statvfs", "rename", "unlink", "fallocate")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EACCES, errno.EROFS, 0)
ALWAYS = 1_000_000

_disk = ctypes.CDLL(None)
_disk.disk_fail.argtypes = [ctypes.c_char_p]
_disk.disk_fail.restype = ctypes.c_long


def fail(call: str, error: int, first: int, count: int) -> None:
    """Let ``count`` calls from the number ``first`` on fail; error 0 cuts a write short."""
    _disk.disk_fail(f"{call}:{error}:{first}:{count}".encode())


def works() -> int:
    """Let no call fail any more; how many there were of those that might have."""
    return int(_disk.disk_fail(None))


def open_store(folder: Path) -> Store:
    return opened(folder, max_store_bytes=1 << 30, retention=Retention(3, 1 << 30, 10**9))


def began(folder: Path) -> dict[bytes, bytes]:
    """A first start, and nothing else."""
    open_store(folder).engine.close()
    return {}


def began_again(folder: Path) -> dict[bytes, bytes]:
    """A start with a store that is there."""
    store = open_store(folder)
    assert store.get(b"kept") is not None
    store.engine.close()
    return {}


def wrote(folder: Path) -> dict[bytes, bytes]:
    """Small and large writes, expiry and trimming, until one fails; what was acknowledged."""
    store, refusals = open_store(folder), list[KvError]()
    arm()
    written: dict[bytes, bytes] = {}
    for number in range(8):
        key, value = b"key%d" % (number % 6), b"%d" % number * (1 + 3000 * (number % 3))
        try:
            store.write("put", key, value=value)
            written[key] = value
        except KvError as refusal:
            written.pop(key, None)  # it may be there or not
            refusals.append(refusal)
        # whatever became of the write, what was there before is there
        found = store.get(b"kept")
        assert found is not None
        assert found.value == b"value"
        for each, expected in written.items():
            record = store.get(each)
            assert record is not None
            assert record.value == expected
        store.engine.trim()
        store.engine.statistics()
        store.engine.position()
    store.engine.close()
    # not even where a meta page could not be written is it damage
    assert {refusal.code for refusal in refusals} <= {"store_full", "internal"}
    return written


SCENARIOS = {"first start": began, "start": began_again, "writes": wrote}
_armed: tuple[str, int, int, int] | None = None


def arm() -> None:
    """Begin to fail, as this case wants it."""
    if _armed is not None:
        fail(*_armed)


def one(name: str, folder: Path, case: tuple[str, int, int, int]) -> str | None:
    """What went wrong in a case, None if nothing did."""
    global _armed
    _armed = case
    said, uncaught = io.StringIO(), list[str]()
    logging.basicConfig(stream=said, level=logging.INFO, force=True)
    threading.excepthook = lambda caught: uncaught.append(repr(caught.exc_value))
    if name != "first start":
        store = open_store(folder)
        store.write("put", b"kept", value=b"value")
        store.engine.close()
    written: dict[bytes, bytes] = {}
    try:
        if name != "writes":
            arm()
        written = SCENARIOS[name](folder)
    except KvError as refusal:
        if refusal.code == "damaged" or "None" in refusal.message or ";" not in refusal.message:
            return f"it says {refusal.code}: {refusal.message}"
    except BaseException:
        return traceback.format_exc()
    finally:
        works()
    if uncaught or "Traceback" in said.getvalue():
        return f"{uncaught} {said.getvalue()}"
    return after(name, folder, written)


def after(name: str, folder: Path, written: dict[bytes, bytes]) -> str | None:
    """What is wrong after the disk works again and the daemon was restarted."""
    store = open_store(folder)
    if name != "first start":
        written = {**written, b"kept": b"value"}
    for key, value in written.items():
        found = store.get(key)
        if found is None or found.value != value:
            return f"{key!r} is lost after a restart"
    store.write("put", b"more", value=b"again")
    return "; ".join(store.faults()) or None


def in_a_child(name: str, folder: Path, case: tuple[str, int, int, int]) -> tuple[str, int]:
    """What went wrong, and how many calls of the kind there were."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        count = 0
        try:
            original = works

            def counted() -> int:
                nonlocal count
                count = max(count, original())
                return count

            globals()["works"] = counted
            problem = one(name, folder, case) or ""
        except BaseException:
            problem = traceback.format_exc()
        os.write(writing, f"{count}\n{problem}".encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        output = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if status or not output:
        return f"the process ended with {status}", 0
    number, _, problem = output.partition("\n")
    return problem, int(number)


def cases(folder: Path) -> Iterator[tuple[str, tuple[str, int, int, int]]]:
    """All there are: each call once, and from each call on for good."""
    for name in SCENARIOS:
        for call in CALLS:
            _, calls = in_a_child(name, folder, (call, errno.EIO, ALWAYS, 1))
            for number in range(1, calls + 1):
                for error in ERRORS if call in ("write", "pwrite", "writev") else ERRORS[:-1]:
                    yield name, (call, error, number, 1)
                    yield name, (call, error, number, ALWAYS)


def main(root: str, seed: str, share: str) -> None:
    folder, chance, tried, wrong = Path(root) / "above" / "data", random.Random(int(seed)), 0, list[str]()
    for name, case in list(cases(folder)):
        if chance.random() >= float(share):
            continue
        tried += 1
        problem, _ = in_a_child(name, folder, case)
        if problem:
            call, error, number, count = case
            how = errno.errorcode.get(error, "cut short")
            wrong.append(f"{name}: {call} number {number}{'' if count == 1 else ' and on'}, {how}: {problem}")
    if wrong:
        sys.exit(f"{len(wrong)} of {tried} cases went wrong\n" + "\n".join(wrong[:40]))
    sys.stdout.write(f"{tried}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
