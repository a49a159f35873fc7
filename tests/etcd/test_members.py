"""What is seen of the members of a cluster, with real ones that are killed, paused, filled and mixed up."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store.clock_offsets import ClockOffsets
from kvstore_daemon.storage.etcd_store.connection.address import parse_address
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster
from kvstore_daemon.storage.etcd_store.members import Members, MemberState, warnings_of
from support.etcd import EtcdCluster, EtcdMember, etcd_version, fresh_prefix
from support.servers import wait_until

StartEtcd = Callable[..., EtcdCluster]
Look = Callable[..., Members]

GIB = 1024**3


@pytest.fixture
def look() -> Iterator[Look]:
    """``look(address)``: the members at that address, looked at again and again."""
    with ExitStack() as stack:

        def start(address: str, head: str = "/kvstore/head") -> Members:
            found = parse_address(address)
            cluster = stack.enter_context(Cluster(found))
            members = Members(cluster, head.encode(), ClockOffsets("here"), found.quota, seconds=0.1)
            stack.callback(members.stop)
            members.start()
            return members

        yield start


def warnings(members: Members, about: str) -> list[str]:
    return [each["message"] for each in members.report()["warnings"] if each["about"] == about]


def states(members: Members) -> dict[str, dict[str, Any]]:
    return {member["endpoint"]: member for member in members.report()["members"]}


def test_three_members_that_are_well(start_etcd: StartEtcd, look: Look) -> None:
    cluster = start_etcd(3)
    cluster.etcdctl("put", "/kvstore/head", "x")
    members = look(cluster.address())
    report = members.report()
    assert [member["endpoint"] for member in report["members"]] == cluster.endpoints
    assert all(member["healthy"] and member["problem"] is None for member in report["members"])
    assert [member["name"] for member in report["members"]] == [each.name for each in cluster.members]
    assert report["leader"] == cluster.leader().name
    assert [member["name"] for member in report["members"] if member["leader"]] == [report["leader"]]
    assert {member["version"] for member in report["members"]} == {".".join(map(str, etcd_version()))}
    assert all(member["db_bytes"] >= member["db_used_bytes"] > 0 for member in report["members"])
    assert report["head"] == cluster.revision()
    assert report["endpoint"] in cluster.endpoints
    assert (report["alarms"], report["clocks"], report["rotations"]) == ([], {}, 0)
    assert {each["about"] for each in report["warnings"]} <= {"version"}
    assert len(report["warnings"]) <= 1, "one line for all members of a version"
    assert members.refusal() is None


def test_a_member_that_is_away_is_warned_of_until_it_is_back(
    start_etcd: StartEtcd, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = start_etcd(3)
    members = look(cluster.address())
    lost = cluster.leader()
    with caplog.at_level(logging.INFO, "kvstore.daemon"):
        lost.kill()
        wait_until(lambda: not states(members)[lost.endpoint]["healthy"], what="its loss is seen")
        wait_until(lambda: members.report()["leader"] not in (None, lost.name), what="another one leads")
        assert members.refusal() is None
        (words,) = warnings(members, "member")
        assert f"{lost.name} ({lost.endpoint})" in words
        away = states(members)[lost.endpoint]
        assert (away["name"], away["version"]) == (lost.name, ".".join(map(str, etcd_version())))
        assert not away["leader"]
        lost.start()
        wait_until(lambda: not warnings(members, "member"), what="it is back")
    lines = [line for line in caplog.messages if lost.endpoint in line and "cannot be used" in line]
    assert sum(not line.startswith("no longer: ") for line in lines) == 1, "said once"
    assert sum(line.startswith("no longer: ") for line in lines) == 1


def test_a_member_without_the_others_says_that_it_is_fine_and_is_not(
    start_etcd: StartEtcd, look: Look
) -> None:
    cluster = start_etcd(3)
    members = look(cluster.address())
    left, *others = cluster.members
    for member in others:
        member.kill()
    wait_until(lambda: members.refusal() is not None, what="the loss of the majority is seen")
    refusal = members.refusal()
    assert refusal is not None
    assert refusal.code == "unavailable"
    assert "majority" in refusal.message
    wait_until(lambda: states(members)[left.endpoint]["version"], what="it answers Status")
    alone = states(members)[left.endpoint]
    assert not alone["healthy"]
    assert "it runs, but reads fail" in alone["problem"]
    for member in others:
        member.begin()
    wait_until(lambda: members.refusal() is None, what="they are back")


def test_a_paused_member_is_found_and_nobody_waits_for_it(start_etcd: StartEtcd, look: Look) -> None:
    cluster = start_etcd(3)
    members = look(cluster.address())
    paused = cluster.followers()[0]
    with paused.paused():
        wait_until(lambda: not states(members)[paused.endpoint]["healthy"], what="its silence is seen")
        assert members.refusal() is None
    wait_until(lambda: states(members)[paused.endpoint]["healthy"], what="it answers again")


def test_etcd_that_is_full_says_how_it_is_cured(start_etcd: StartEtcd, look: Look) -> None:
    """And the steps that it names do cure it."""
    cluster = start_etcd(flags=["--quota-backend-bytes", str(16 * 1024**2)])
    members = look(cluster.address())

    def fill() -> None:
        for _ in range(40):
            cluster.etcdctl("put", "k", stdin=os.urandom(500_000).hex().encode())

    with pytest.raises(AssertionError, match="space exceeded"):
        fill()
    wait_until(lambda: members.refusal() is not None, what="the alarm is seen")
    refusal = members.refusal()
    assert refusal is not None
    assert refusal.code == "store_full"
    for word in ("NOSPACE", "etcdctl compact", "etcdctl defrag", "--quota-backend-bytes", "alarm disarm"):
        assert word in refusal.message
    wait_until(lambda: warnings(members, "alarm"), what="it is warned of the alarm")
    assert members.report()["alarms"] == [{"member": cluster.members[0].name, "alarm": "NOSPACE"}]
    cluster.compact(cluster.revision())
    cluster.etcdctl("defrag")
    cluster.etcdctl("alarm", "disarm")
    wait_until(lambda: members.refusal() is None, what="the cure is seen")
    cluster.etcdctl("put", "k", "x")


def test_members_of_two_clusters_are_refused(start_etcd: StartEtcd, look: Look) -> None:
    one, other = start_etcd(), start_etcd()
    with pytest.raises(KvError, match="different clusters") as refused:
        look(f"etcd://{one.endpoints[0]},{other.endpoints[0]}")
    assert refused.value.code == "bad_request"


def test_members_that_the_address_leaves_out_are_named(start_etcd: StartEtcd, look: Look) -> None:
    cluster = start_etcd(3)
    named, *left_out = cluster.members
    (words,) = warnings(look(f"etcd://{named.endpoint}"), "endpoints")
    assert "1 of 3" in words
    assert all(member.name in words for member in left_out)


def test_a_learner_is_no_member_to_turn_to(start_etcd: StartEtcd, look: Look, tmp_path: Path) -> None:
    cluster = start_etcd()
    learner = EtcdMember(cluster, "learner", tmp_path / "learner")
    cluster.etcdctl("member", "add", learner.name, "--learner", f"--peer-urls={learner.peer_url}")
    cluster.members.append(learner)
    cluster.add_flags("--initial-cluster-state", "existing")
    learner.begin()
    members = look(cluster.address())
    wait_until(lambda: states(members)[learner.endpoint]["learner"], what="it says what it is")
    assert not states(members)[learner.endpoint]["healthy"]
    (words,) = warnings(members, "member")
    assert "learner" in words
    assert members.refusal() is None
    assert not warnings(members, "size"), "it does not vote"


@pytest.mark.slow
def test_an_address_where_nothing_is_can_be_looked_at(look: Look) -> None:
    members = look("etcd://127.0.0.1:1")
    refusal = members.refusal()
    assert refusal is not None
    assert refusal.code == "unavailable"
    assert "127.0.0.1:1" in refusal.message
    assert members.report()["leader"] is None


def test_a_clock_that_differs_is_warned_of(etcd: EtcdCluster, look: Look) -> None:
    prefix = fresh_prefix()
    members = look(etcd.address(prefix), f"{prefix}/head")
    members.saw(1 << 40, "there", written_at=10_400, arrived_at=10_000)
    assert members.report()["clocks"] == {}, "nobody knows how late it is"
    etcd.etcdctl("put", f"{prefix}/head", "x")
    wait_until(lambda: members.report()["head"], what="the newest change is seen")
    head = members.report()["head"]
    members.saw(head, "there", written_at=10_400, arrived_at=10_000)
    assert members.report()["clocks"] == {}, "it may have come long after it was made"
    members.saw(head + 1, "there", written_at=10_400, arrived_at=10_000)
    assert members.report()["clocks"] == {"there": 400}
    assert not warnings(members, "clock")
    members.saw(head + 2, "there", written_at=10_700, arrived_at=10_000)
    wait_until(lambda: warnings(members, "clock"), what="the warning")
    (words,) = warnings(members, "clock")
    assert "700 ms ahead" in words


@pytest.mark.parametrize(
    ("said", "has"),
    [
        ({"db_bytes": 7 * GIB, "quota_bytes": 8 * GIB}, True),
        ({"db_bytes": 5 * GIB, "quota_bytes": 8 * GIB}, False),
        # a member before 3.6 does not say its quota: it has the default, or one that was raised
        ({"db_bytes": 9 * GIB // 5}, True),
        ({"db_bytes": 5 * GIB}, False),
        ({"db_bytes": GIB}, False),
    ],
)
def test_a_database_that_nears_its_quota_is_warned_of(said: dict[str, int], has: bool) -> None:
    found = [words for (about, _), words in warnings_of(MemberState("n1:2379", **said)) if about == "quota"]  # type: ignore[arg-type]
    assert bool(found) == has
    assert all("defragment" in words for words in found)


def test_the_quota_is_that_which_a_member_says_or_the_address(etcd: EtcdCluster, look: Look) -> None:
    """And none is supposed where neither does: the log would be cut for it."""
    says_it = etcd_version() >= (3, 6)
    (unknown,) = states(look(etcd.address())).values()
    assert bool(unknown["quota_bytes"]) == says_it
    members = look(etcd.address(quota="100GiB"))
    (known,) = states(members).values()
    assert known["quota_bytes"] == (unknown["quota_bytes"] if says_it else 100 * GIB)
    share, found_at = members.crowding()
    assert share == known["db_used_bytes"] / known["quota_bytes"]
    assert found_at


def test_of_a_quota_that_nobody_told_no_share_is_taken(etcd: EtcdCluster, look: Look) -> None:
    members = look(etcd.address())
    used = MemberState("n1:2379", db_bytes=13 * GIB // 10, db_used_bytes=13 * GIB // 10)
    for quota, share in [(0, 0.0), (2 * GIB, 0.65)]:
        members._look = replace(members._look, members=[replace(used, quota_bytes=quota)])
        members._stopping.set()
        assert members.crowding()[0] == pytest.approx(share, abs=0.01)
