"""The engine over etcd, as the tests of all engines use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.engine import EtcdEngine
from kvstore_daemon.storage.interface import EngineSettings, StoredRecord
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.offline.verify import verify
from support.engine_store import EngineKind, FakeClock
from support.etcd import EtcdCluster

_CALL_SECONDS = 20.0


def etcd_kind(cluster: EtcdCluster) -> EngineKind:
    """The engine with each store under a prefix of its own in ``cluster``."""
    return EngineKind(_make, cluster.store_address, lambda engine: list(_faults(engine)))


def _make(settings: EngineSettings, clock: FakeClock | None) -> EtcdEngine:
    settings = settings._replace(sync="always")  # the only way there
    return EtcdEngine(settings) if clock is None else EtcdEngine(settings, wall=lambda: clock.now)


def _faults(engine: Any) -> Iterator[str]:
    """What is wrong with the mirror itself, and where it is not what etcd has."""
    prefix = engine._names.keys
    request = api.RangeRequest(key=prefix, range_end=layout.range_end(prefix))
    answer = engine._cluster.ask(api.RANGE, request, _CALL_SECONDS)
    heads = engine._cluster.ask(api.RANGE, api.RangeRequest(key=engine._names.head), _CALL_SECONDS).kvs
    if heads and not engine._mirror.wait_for(heads[0].mod_revision, _CALL_SECONDS):
        yield f"the mirror does not follow: etcd is at {heads[0].mod_revision}"
    env = engine._mirror.tables.env
    with env.begin() as txn:
        yield from verify(env, txn)
        mirrored = dict(_records(engine, txn))
    stored = {
        kv.key.removeprefix(prefix): layout.decode_record(kv.value, kv.mod_revision, kv.create_revision, 0)
        for kv in answer.kvs
    }
    for key in sorted(mirrored.keys() | stored.keys()):
        if mirrored.get(key) != stored.get(key):
            yield f"{key!r}: {mirrored.get(key)} in the mirror, {stored.get(key)} in etcd"


def _records(engine: Any, txn: Any) -> Iterator[tuple[bytes, StoredRecord | str]]:
    tables = engine._mirror.tables
    for key, row in txn.cursor(tables.data):
        try:
            yield key, tables.restamped(row_format.decode_record(key, row, value=True))
        except DamageError as damage:
            yield key, str(damage)
