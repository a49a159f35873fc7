"""Lets the calls of an engine to its disk fail, one after the other: ``ROOT SEED SHARE``.

For each kind of call and each error, call number n fails, for n from 1 to as many as there are; of all these
cases the share SHARE is tried, chosen by SEED. Each runs in a child process, whose disk is real and empty.
Prints how many there were; ends with an error that names the cases in which the engine did not keep its word.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import logging
import os
import random
import shutil
import sys
import threading
import traceback
from collections import Counter
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
_disk.disk_calls.argtypes = [ctypes.c_char_p]
_disk.disk_calls.restype = ctypes.c_long


def fail(call: str, error: int, first: int, count: int) -> None:
    """Let ``count`` calls from the number ``first`` on fail; error 0 cuts a write short."""
    _disk.disk_fail(f"{call}:{error}:{first}:{count}".encode())


def works() -> None:
    """Let no call fail any more."""
    _disk.disk_fail(None)


def calls() -> Counter[str]:
    """How many calls of each kind there were so far."""
    return Counter({call: int(_disk.disk_calls(call.encode())) for call in CALLS})


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
Case = tuple[str, int, int, int]
NOTHING: Case = ("none", 0, ALWAYS, 0)
"""The case in which no call fails."""
_armed: Case = NOTHING
_before: Counter[str] = Counter()


def arm() -> None:
    """Begin to fail, as this case wants it."""
    global _before
    _before = calls()
    fail(*_armed)


def one(name: str, folder: Path, case: Case) -> tuple[str | None, Counter[str]]:
    """What went wrong in a case, None if nothing did, and how many calls of each kind there were that might
    have failed."""
    global _armed
    _armed = case
    problem, written = during(name, folder)
    made = calls() - _before
    works()
    return problem or after(name, folder, written), made


def during(name: str, folder: Path) -> tuple[str | None, dict[bytes, bytes]]:
    """What went wrong while calls failed, and what was acknowledged."""
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
            return f"it says {refusal.code}: {refusal.message}", written
    except BaseException:
        return traceback.format_exc(), written
    if uncaught or "Traceback" in said.getvalue():
        return f"{uncaught} {said.getvalue()}", written
    return None, written


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


def in_a_child(name: str, folder: Path, case: Case) -> tuple[str, Counter[str]]:
    """What went wrong, and how many calls of each kind there were."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        made = Counter[str]()
        try:
            problem, made = one(name, folder, case)
        except BaseException:
            problem = traceback.format_exc()
        os.write(writing, json.dumps([(problem or "")[:50_000], made]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        output = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not output:
        return f"the process ended with {status}", Counter()
    problem, made = json.loads(output)
    return problem, Counter(made)


def cases(folder: Path) -> Iterator[tuple[str, Case]]:
    """All there are: each call once, and from each call on for good."""
    for name in SCENARIOS:
        problem, made = in_a_child(name, folder, NOTHING)
        if problem:
            sys.exit(f"{name} went wrong though no call failed: {problem}")
        for call in CALLS:
            for number in range(1, made[call] + 1):
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
