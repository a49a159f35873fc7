"""Damage that a read finds in the mirror is no loss, since etcd has it all: the mirror is made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import EventFilter
from support.engine_store import Store, opened
from support.etcd import EtcdCluster
from support.etcd_engine import etcd_kind
from support.servers import wait_until

pytestmark = pytest.mark.slow

ALL = 1 << 24


@pytest.fixture
def store(etcd: EtcdCluster, tmp_path: Path) -> Iterator[Store]:
    found = opened(tmp_path / "data", kind=etcd_kind(etcd))
    yield found
    faults = found.faults()
    found.engine.close()
    assert not faults


def _record(store: Store) -> Any:
    (found,), _ = store.engine.read([b"k"])
    if isinstance(found, KvError):
        raise found
    return found


READS: dict[str, tuple[str, Callable[[Store], Any]]] = {
    "get": ("data", _record),
    "list": ("data", lambda store: store.engine.range(b"", None, 9, values=True, max_bytes=ALL).items),
    "history of a damaged record": ("data", lambda store: store.history()),
    "history": ("log_rows", lambda store: store.history()),
    "recent": ("log_rows", lambda store: store.recent()),
    "log": (
        "log_rows",
        lambda store: store.engine.log(0, EventFilter(), 9, values=True, previous=True, max_bytes=ALL),
    ),
}


@pytest.mark.parametrize("name", READS)
def test_a_read_that_finds_damage_has_the_mirror_made_again(name: str, store: Store) -> None:
    table, read = READS[name]
    store.write("put", b"k", value=b"v")
    wanted = read(store)
    engine: Any = store.engine
    tables = engine._mirror.tables
    with tables.env.begin(write=True) as txn:
        rows = txn.cursor(getattr(tables, table))
        assert rows.last()
        row = rows.value()
        assert rows.put(rows.key(), row[:-1] + bytes((row[-1] ^ 1,)))
    with pytest.raises(KvError, match="is made again: try again") as refused:
        read(store)
    assert refused.value.code == "unavailable"
    wait_until(lambda: engine._watcher.rebuilds == 1, what="the mirror is made again")
    assert read(store) == wanted
