"""A store is read whole from etcd, however many keys and however large its values."""

from __future__ import annotations

import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.connection.address import parse_address
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError
from kvstore_daemon.storage.etcd_store.layout import Names
from kvstore_daemon.storage.etcd_store.mirroring import store_reader
from support.etcd import EtcdCluster, fresh_prefix

pytestmark = pytest.mark.slow


def test_a_store_does_not_begin_inside_another(etcd: EtcdCluster) -> None:
    outer = fresh_prefix().encode()
    with Cluster(parse_address(etcd.address(outer.decode()))) as cluster:
        for prefix in (outer, outer + b"/a/b"):
            store_reader.refuse_inner(cluster, prefix)
        names = Names(outer)
        store_reader.begin_epoch(cluster, names, store_reader.look(cluster, names))
        store_reader.refuse_inner(cluster, outer)
        store_reader.refuse_inner(cluster, outer + b"beside/a")
        for prefix in (outer + b"/a", outer + b"/a/b/c"):
            with pytest.raises(KvError, match=f"{outer.decode()} is the prefix of another store") as refused:
                store_reader.refuse_inner(cluster, prefix)
            assert refused.value.code == "bad_request"


@pytest.mark.parametrize("stretch", [1, 20])
def test_all_keys_are_read_once_and_in_order(
    stretch: int, etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_reader, "_STRETCH", stretch)
    prefix = fresh_prefix()
    name = f"{prefix}/%05d".encode()
    small = [
        {name % at: b"v" * (at % 7) for at in range(begin, begin + 100)} for begin in range(0, 1500, 100)
    ]
    large = [{(name + b"+") % at: b"x" * 300_000} for at in range(0, 1500, 100)]
    put: dict[bytes, bytes] = {}
    with Cluster(parse_address(etcd.address(prefix))) as cluster:
        for part in small + large:
            put |= part
            request = api.TxnRequest()
            for key, value in part.items():
                api.add_put(request.success, key, value)
            revision = cluster.call(api.TXN, request, 30).header.revision
        later = api.TxnRequest()
        api.add_delete(later.success, next(iter(put)))
        api.add_put(later.success, b"%s/later" % prefix.encode(), b"")
        cluster.call(api.TXN, later, 30)
        whole = list(store_reader.records(cluster, prefix.encode(), revision))
        assert [kv.key for kv in whole] == sorted(put)
        assert {kv.key: kv.value for kv in whole} == put
        alone = list(store_reader.records(cluster, prefix.encode(), revision, keys_only=True))
        assert alone == [kv._replace(value=b"") for kv in whole]
        assert not list(store_reader.records(cluster, b"/nobody's/", revision))
        etcd.compact(revision + 1)
        with pytest.raises(EtcdError, check=lambda error: error.kind == "compacted"):
            list(store_reader.records(cluster, prefix.encode(), revision))
