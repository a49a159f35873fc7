"""A real engine for each test, of each kind that the test is for."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine_store import LMDB, EngineKind, FakeClock, OpenStore, Store, opened
from support.recorded import Recorded


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine_kind(request: pytest.FixtureRequest) -> EngineKind:
    """The engine under test, which ``--engine`` chooses."""
    if request.param == "lmdb":
        return LMDB
    from support.etcd_engine import etcd_kind  # needs what only that engine needs

    return etcd_kind(request.getfixturevalue("etcd"))


@pytest.fixture
def open_store(engine_kind: EngineKind, tmp_path: Path, clock: FakeClock) -> Iterator[OpenStore]:
    """Open (again) the engine on the test's data folder; each is verified when the test ends."""
    stores: list[Store] = []

    def open_one(*, data: Path = tmp_path / "data", **settings: Any) -> Store:
        stores.append(opened(data, clock, kind=engine_kind, **settings))
        return stores[-1]

    yield open_one
    for store in stores:
        if getattr(store.engine, "_open", False):
            faults = store.faults()
            store.engine.close()
            assert not faults


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder whose files are on a disk that can fail or lose power: see ``support/disk.py``."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder.resolve()


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """Where nothing is really synced: what was left is looked at some hundred times."""
    shared = Path("/dev/shm")  # noqa: S108 - in a new folder
    if not os.access(shared, os.W_OK):
        yield tmp_path / "left"
        return
    folder = shared / f"kvstore-{os.getpid()}-{random.randrange(2**32):x}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def recorded(root: Path, tmp_path: Path, fast_folder: Path) -> Recorded:
    return Recorded(root, tmp_path, fast_folder)
