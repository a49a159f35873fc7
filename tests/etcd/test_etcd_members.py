"""The members of etcd that other tests start: killed, stopped, restored, behind TLS and with users."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.etcd import EtcdCluster, fresh_prefix, make_certificates
from support.servers import is_stopped

StartEtcd = Callable[..., EtcdCluster]


def test_shared_member_gives_each_store_a_prefix_of_its_own(etcd: EtcdCluster) -> None:
    first, second = fresh_prefix(), fresh_prefix()
    etcd.etcdctl("put", f"{first}/k", "one")
    revision = etcd.revision()
    assert etcd.keys(first) == {f"{first}/k".encode(): (b"one", revision)}
    assert etcd.keys(second) == {}
    assert etcd.address(first) == f"etcd://{etcd.endpoints[0]}{first}"


def test_cluster_goes_on_without_its_leader_and_keeps_all_when_all_are_killed(start_etcd: StartEtcd) -> None:
    cluster = start_etcd(3)
    cluster.etcdctl("put", "k", "one")
    leader = cluster.leader()
    leader.kill()
    assert not leader.is_running
    followers = cluster.followers()
    assert leader not in [cluster.leader(), *followers]
    assert len(followers) == 1
    cluster.etcdctl("put", "k", "two", at=followers[0])
    cluster.kill()
    cluster.start()
    with cluster.leader().paused():
        stopped = [member for member in cluster.members if is_stopped(member.pid)]
        assert cluster.leader() not in stopped
        cluster.etcdctl("put", "other", "three", at=cluster.leader())
    assert [value for value, _ in cluster.keys("k").values()] == [b"two"]
    assert [value for value, _ in cluster.keys("other").values()] == [b"three"]


def test_restored_snapshot_is_another_cluster_with_the_data_of_then(
    start_etcd: StartEtcd, tmp_path: Path
) -> None:
    cluster = start_etcd(flags=["--quota-backend-bytes", "64000000"])
    cluster.etcdctl("put", "k", "one")
    before = cluster.members[0].status()["header"]
    snapshot = cluster.snapshot(tmp_path / "snapshot")
    cluster.etcdctl("put", "k", "two")
    cluster.restore(snapshot)
    after = cluster.members[0].status()["header"]
    assert [value for value, _ in cluster.keys("k").values()] == [b"one"]
    assert after["cluster_id"] != before["cluster_id"]
    assert after["revision"] == before["revision"]


@pytest.mark.parametrize("is_mutual", [False, True])
def test_tls_and_users_are_asked_for(start_etcd: StartEtcd, tmp_path: Path, is_mutual: bool) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    cluster = start_etcd(certificates=certificates, is_mutual=is_mutual, users=["kvstore"])
    address = cluster.address("/p", user="kvstore", password_file=tmp_path / "password")
    assert address.startswith(f"etcd://{cluster.endpoints[0]}/p?")
    assert ("cert=" in address) == is_mutual
    cluster.etcdctl("put", "k", "one")
    if is_mutual:  # the certificate says who it is
        cluster.etcdctl("get", "k", user=None)
    else:
        with pytest.raises(AssertionError, match="user name is empty"):
            cluster.etcdctl("get", "k", user=None)
    cluster.etcdctl("get", "k", user="kvstore")
