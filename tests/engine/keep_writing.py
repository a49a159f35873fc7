"""Writes to a store and notes in the disk's record what was acknowledged: ``ROOT RECORD SEED ROUNDS [END]``.

The files of its journal are full after 1,000 to 100,000 bytes, as SEED has it, so that they are put into LMDB
and used again every now and then. At the end the store is ``closed``, or left as if ``killed``: END says
which, or else SEED.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from zlib import crc32

from kvstore_daemon.storage.interface import Retention, StoredEvent, Write, WriteRequest
from support.disk import note
from support.engine_store import lmdb_engine, opened

KEYS = [b"k%02d" % number for number in range(40)]
RETENTION = Retention(80, 1 << 20, 86_400_000)


def fingerprint(change: StoredEvent) -> int | None:
    """What tells one value of a key from another."""
    return None if change.record is None else crc32(change.record.value or b"")


def write(chance: random.Random) -> Write:
    return plain_write(chance)._replace(
        author=chance.choice(("", "ann")), message=chance.choice(("", "", "für später"))
    )


def plain_write(chance: random.Random) -> Write:
    key = chance.choice(KEYS)
    kind = chance.random()
    if kind < 0.6:
        value = chance.randbytes(chance.choice((0, 10, 300, 3_000, 20_000)))
        return Write("put", key, value, "text/plain", ttl_ms=chance.choice((None, None, 1)))
    if kind < 0.8:
        return Write("delete", key)
    return Write("incr", b"count") if kind < 0.95 else Write("delete_prefix", key[:2])


def request(chance: random.Random, who: str, seq: int) -> WriteRequest:
    if chance.random() < 0.3:
        keys = chance.sample(KEYS, chance.randint(1, 10))
        return WriteRequest([Write("put", key, b"together", "text/plain") for key in keys], atomic=True)
    writes = [write(chance) for _ in range(chance.choice((1, 1, 1, 20)))]
    return WriteRequest(writes, client=f"{who}-{seq % 3}" if chance.random() < 0.5 else None, seq=seq)


def main(root: str, record: str, seed: str, rounds: str, end: str = "") -> None:
    chance = random.Random(int(seed))
    kind = lmdb_engine(journal_bytes=chance.choice((1_000, 10_000, 100_000)))
    store = opened(Path(root) / "above" / "data", kind=kind, max_store_bytes=1 << 30, retention=RETENTION)
    engine = store.engine
    note(Path(record), json.dumps({"epoch": engine.position().epoch}).encode())
    for number in range(int(rounds)):
        store.feed.clear()
        store.submit(*(request(chance, seed, 10 * number + each) for each in range(chance.randint(1, 4))))
        if chance.random() < 0.2:
            store.expire_due()
            engine.trim()
        changes = [[change.key.decode(), change.revision, fingerprint(change)] for change in store.feed]
        note(Path(record), json.dumps({"changes": changes}).encode())
    if (end or chance.choice(("closed", "killed"))) == "killed":
        os._exit(0)
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
