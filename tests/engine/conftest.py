"""A real engine for each test. Adding an engine to ``ENGINES`` runs the whole suite against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore_daemon.storage.interface import EngineSettings, Retention
from kvstore_daemon.storage.lmdb_store.engine import LmdbEngine
from support.engine_store import FakeClock, Store

WIDE = Retention(1_000_000, 1 << 30, 7 * 86_400_000)
ENGINES: dict[str, Callable[..., Any]] = {"lmdb": LmdbEngine}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=sorted(ENGINES))
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock
) -> Iterator[Callable[..., Store]]:
    """Open (again) the engine on the test's data folder; each is verified when the test ends."""
    opened: list[Store] = []

    def open_one(
        *,
        data: Path = tmp_path / "data",
        sync: str = "always",
        max_store_bytes: int = 1 << 34,
        retention: Retention = WIDE,
    ) -> Store:
        settings = EngineSettings(str(data), sync, 1000, max_store_bytes, retention)
        engine = ENGINES[request.param](settings, clock.seen())
        engine.open()
        opened.append(Store(engine, clock))
        return opened[-1]

    yield open_one
    for store in opened:
        if getattr(store.engine, "_open", False):
            faults = store.faults()
            store.engine.close()
            assert not faults


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()
