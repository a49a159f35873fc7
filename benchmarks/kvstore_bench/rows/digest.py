"""What the digest of all records costs: a put takes the old record out and puts the new one in."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from kvstore_bench.results import Sample
from kvstore_bench.stage import Stage
from kvstore_bench.workload import LARGE, SMALL, key, label, value

KVSTORE = "kvstore"
WITHOUT = "kvstore, without the digest"
AIM = "the aim"
AIM_US = 2.0

_KEYS = 2_000
_PUTS = 500
"""In a group; each is a request of its own, as those of many clients."""


def digest_cost(stage: Stage) -> Iterator[Sample]:
    """The CPU that the loop's thread takes for a put over another, in the engine alone, by turns with the
    digest and without; and what lies between the two, in the case of small values."""
    for size in (SMALL,) if stage.quick else (SMALL, LARGE):
        case = f"a put of {label(size)}"
        with stage.scratch() as folder:
            found = {KVSTORE: [0.0], WITHOUT: [0.0]}
            with _engine(folder / "with") as one, _engine(folder / "without") as other:
                begun = time.monotonic()
                while len(found[KVSTORE]) < 5 or time.monotonic() < begun + 2 * stage.seconds:
                    found[KVSTORE].append(_microseconds(one, size))
                    with _no_digest():
                        found[WITHOUT].append(_microseconds(other, size))
        # the first groups make the keys
        took = {contender: median(figures[5:]) for contender, figures in found.items()}
        for contender, figure in took.items():
            yield Sample(case, contender, figure, "µs", less_is_better=True)
        if size == SMALL:
            part = f"the digest's part of {case}"
            yield Sample(part, KVSTORE, took[KVSTORE] - took[WITHOUT], "µs", less_is_better=True)
            yield Sample(part, AIM, AIM_US, "µs", less_is_better=True)


@contextmanager
def _engine(folder: Path) -> Iterator[Any]:
    from kvstore_daemon.storage.interface import EngineSettings, Retention
    from kvstore_daemon.storage.lmdb_store.engine import LmdbEngine

    retention = Retention(10_000_000, 1 << 40, 10**12)
    settings = EngineSettings("lmdb:", str(folder), "none", 1000, 1 << 36, retention, 1 << 20, 100, 1 << 20)
    engine = LmdbEngine(settings)
    engine.open()
    for first in range(0, _KEYS, _PUTS):
        _commit(engine, SMALL, first)
    yield engine
    engine.close()


@contextmanager
def _no_digest() -> Iterator[None]:
    from kvstore_core.digest import SetHash
    from kvstore_daemon.storage.lmdb_store import row_format, write_transaction

    with (
        patch.object(write_transaction, "record_hash", lambda *_: b""),
        patch.object(row_format, "id_and_hash", lambda _, row: row_format.record_event_id(row)),
        patch.object(SetHash, "replace", lambda *_: None),
    ):
        yield


def _microseconds(engine: Any, size: int) -> float:
    first = time.monotonic_ns() % _KEYS
    begun = time.thread_time_ns()
    _commit(engine, size, first)
    return (time.thread_time_ns() - begun) / 1000 / _PUTS


def _commit(engine: Any, size: int, first: int) -> None:
    from kvstore_daemon.storage.interface import Write, WriteRequest

    names = [key((first + number) % _KEYS).encode() for number in range(_PUTS)]
    requests = [WriteRequest([Write("put", name, value(size), "text/plain")]) for name in names]
    engine.commit(requests)
    answered = 0
    while answered < _PUTS:
        select.select([engine.fileno()], [], [], 10)
        answered += len(engine.poll().answers)
