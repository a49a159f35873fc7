"""Cuts the power at every step of a record and looks at what is left: ``ROOT RECORD WORK SEED SAMPLES``.

A process by itself, since LMDB may kill the one that looks at a page it cannot trust. Prints how many stores
it opened; ends with an error that names the step at the first that lacks something.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

from keep_writing import KEYS, RETENTION

from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import Engine, StoredRecord
from kvstore_daemon.storage.offline.reader_process import open_store
from kvstore_daemon.storage.offline.verify import verify
from support.disk import Disk, lay_out, steps
from support.engine_store import opened


class Promised:
    """What was acknowledged so far."""

    def __init__(self) -> None:
        self.epoch: str | None = None
        self.head = 0
        self._newest: dict[str, tuple[int, int | None]] = {}

    def take(self, said: dict[str, Any]) -> None:
        """One note of the process that wrote."""
        self.epoch = said.get("epoch", self.epoch)
        for key, revision, fingerprint in said.get("changes", ()):
            self.head = max(self.head, revision)
            self._newest[key] = (revision, fingerprint)

    def missing(self, engine: Engine) -> Iterator[str]:
        """What of it the store lacks. A write that was under way may be there as well, whole."""
        position = engine.position()
        if self.epoch is not None and position.epoch != self.epoch:
            yield f"the epoch is {position.epoch} and was {self.epoch}"
        if position.head < self.head:
            yield f"the head is {position.head} and was {self.head}"
        for key, (revision, fingerprint) in self._newest.items():
            (found,), _ = engine.read([key.encode()])
            if isinstance(found, KvError):
                yield found.message
            elif found is None:
                is_kept = fingerprint is not None and position.head == self.head
                if is_kept and not self._has_expired(engine, key):
                    yield f"{key}, put at {revision}, is gone"
            elif found.revision == revision:
                if crc32(found.value or b"") != fingerprint:
                    yield f"{key} has another value than it was given at {revision}"
            elif found.revision <= self.head:
                yield f"{key} is of revision {found.revision}; {revision} was acknowledged"

    def settle(self, engine: Engine) -> None:
        """Take what the store has for acknowledged from now on: a write may be in it whose note was never
        written."""
        self.head = engine.position().head
        for key in (*KEYS, b"count"):
            (found,), _ = engine.read([key])
            if isinstance(found, StoredRecord):
                self._newest[key.decode()] = (found.revision, crc32(found.value or b""))
            else:
                self._newest[key.decode()] = (self.head, None)

    def _has_expired(self, engine: Engine, key: str) -> bool:
        due, _ = engine.due(1000)
        return key.encode() in [each for each, _ in due]


def faults(data: Path, promised: Promised, *, settles: bool = False) -> Iterator[str]:
    """What is wrong with the store in ``data``, to `kvstore check` and then to a daemon that starts. With
    ``settles`` others go on with it."""
    try:
        with open_store(data) as store:
            yield from verify(store.env, store.txn, store.frames)
    except KvError as error:
        if error.code != "bad_request" or promised.epoch is not None:
            yield error.message
    try:
        engine = opened(data, max_store_bytes=1 << 30, retention=RETENTION).engine
    except KvError as error:
        yield f"it cannot be opened: {error.message}"
        return
    yield from promised.missing(engine)
    if settles:
        promised.settle(engine)
    engine.close()


def main(root: str, record: str, work: str, seed: str, samples: str) -> None:
    disk, promised, chance = Disk(), Promised(), random.Random(int(seed))
    taken, cuts, data = steps(Path(record)), 0, Path(work) / "above" / "data"
    for number, step in enumerate(taken):
        if step.kind == "A":
            promised.take(json.loads(step.data))
        elif step.kind in "SF":
            # nothing is different before and after it but what is certain
            drawn = [disk.torn(chance) for _ in range(int(samples))]
            for left in [disk.least(), disk.most(), *drawn]:
                cuts += look(left, root, work, data, promised, number)
        elif step.kind == "D":
            cuts += look(disk.torn(chance, step), root, work, data, promised, number)
        disk.happen(step)
        if step.kind == "A":
            cuts += look(disk.least(), root, work, data, promised, number)
    sys.stdout.write(f"{cuts}\n")


def look(left: dict[str, bytes], root: str, work: str, data: Path, promised: Promised, number: int) -> int:
    lay_out(left, Path(root), Path(work))
    found = list(faults(data, promised))
    if found:
        sys.exit(f"power cut at step {number}: {found[:5]}")
    return 1


if __name__ == "__main__":
    main(*sys.argv[1:])
