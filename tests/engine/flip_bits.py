"""Flip bits of a store's file one after another; each time read everything, in a child process.

Usage: flip_bits.py DATA COUNT. Exit status 1 names the bit with which wrong data was returned.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from kvstore_core.errors import KvError
from kvstore_daemon.storage.clock import machine_clock
from kvstore_daemon.storage.interface import EventFilter
from kvstore_daemon.storage.lmdb_store.snapshot_reads import SnapshotReads
from kvstore_daemon.storage.lmdb_store.tables import Tables
from support.engine_store import flipped

WRONG = 3


def read_all(folder: Path) -> None:
    tables = Tables(folder, map_size=1 << 30, sync=True, clock=machine_clock())
    tables.open()
    reads = SnapshotReads(tables)
    for n in range(40):
        (found,), _ = reads.read([b"k%02d" % n])
        if found is not None and not isinstance(found, KvError) and found.value != b"value %02d" % n * 20:
            os._exit(WRONG)
    for key, stored in reads.range(b"", None, 100, values=True, max_bytes=1 << 20).items:
        if stored.value != b"value %s" % key[1:] * 20:
            os._exit(WRONG)
    reads.log(0, EventFilter(), 1000, values=True, previous=True, max_bytes=1 << 20)


def outcome(folder: Path) -> int:
    child = os.fork()
    if child == 0:
        os.close(2)
        try:
            read_all(folder)
        except KvError:
            os._exit(1)
        except BaseException:  # what matters is that nothing wrong was returned
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(data: str, count: int) -> None:
    folder = Path(data) / "lmdb"
    file = folder / "data.mdb"
    whole = file.read_bytes()
    seed = random.SystemRandom().randrange(2**32)
    chooser = random.Random(seed)
    for _ in range(count):
        bit = chooser.randrange(len(whole) * 8)
        file.write_bytes(flipped(whole, bit))
        if outcome(folder) == WRONG:
            sys.exit(f"wrong data was returned after bit {bit} was flipped (seed {seed})")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
