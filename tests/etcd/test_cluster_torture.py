"""Two daemons over a cluster of three members, of which now one and now all are killed and stopped.

``make test`` does each of the worst once; ``make torture-cluster`` all of them at length, and says for how
many seconds each was felt.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore_client import Client
from kvstore_daemon.storage.etcd_store import layout
from support.cluster_story import ClusterStory
from support.etcd import EtcdCluster, EtcdMember
from support.lengths import SHARE, Survived, times
from support.servers import Daemon, Facade, Service, wait_until
from support.story import Story

LEADERS_KILLED = times(1, full=20)
LEADERS_STOPPED = times(1, full=5)
OWN_KILLED = times(0, full=5)
ALL_KILLED = times(1, full=3)
DAEMONS_KILLED = times(0, full=5)
DAEMONS_STOPPED = times(0, full=3)
AWAY = times(1, full=5)
RETAINED_EVENTS = 200
FAULTS = LEADERS_KILLED + LEADERS_STOPPED + OWN_KILLED + ALL_KILLED + DAEMONS_KILLED + DAEMONS_STOPPED

STOPPED_SECONDS = 5 if SHARE else 2.5
"""A new leader is elected after one to two."""

OPERATIONS_BETWEEN = 150 if SHARE else 60

PREFIX = "/torture"

pytestmark = [pytest.mark.torture, pytest.mark.timeout(120 + 30 * FAULTS)]


class Faults:
    """Does one fault at a time, and waits until everything is whole again."""

    def __init__(
        self, etcd: EtcdCluster, story: ClusterStory, chance: random.Random, survived: Survived
    ) -> None:
        self._etcd = etcd
        self._story = story
        self._chance = chance
        self._survived = survived

    def all_of_them(self) -> list[Callable[[], None]]:
        """Each as often as it is to be done, in a random order."""
        faults = [
            *([self.kill_leader] * LEADERS_KILLED),
            *([self.stop_leader] * LEADERS_STOPPED),
            *([self.kill_own_member] * OWN_KILLED),
            *([self.kill_all] * ALL_KILLED),
            *([self.kill_daemon] * DAEMONS_KILLED),
            *([self.stop_daemon] * DAEMONS_STOPPED),
        ]
        self._chance.shuffle(faults)
        return faults

    def kill_leader(self) -> None:
        """SIGKILL; it comes back once there is another."""
        self._kill(self._etcd.leader(), "leader killed")

    def kill_own_member(self) -> None:
        """SIGKILL of the member that one of the daemons writes to."""
        endpoint = own_endpoint(self._chance.choice(self._story.nodes))
        member = next(member for member in self._etcd.members if member.endpoint == endpoint)
        self._kill(member, "own member killed")

    def _kill(self, member: EtcdMember, kind: str) -> None:
        with self._story.gaps.of(kind):
            member.kill()
        member.start()
        self._survived(members_killed=1)

    def stop_leader(self) -> None:
        """SIGSTOP for longer than it takes to elect another, and SIGCONT."""
        leader, until = self._etcd.leader(), time.monotonic() + STOPPED_SECONDS
        with leader.paused():
            with self._story.gaps.of("leader stopped"):
                pass
            time.sleep(max(0, until - time.monotonic()))  # this is the fault
        leader.wait_until_ready()
        self._survived(members_stopped=1)

    def kill_all(self) -> None:
        """SIGKILL of all members at once, and a start on what they had on disk."""
        with self._story.gaps.of("all members killed, and started"):
            self._etcd.kill()
            self._etcd.start()
        self._survived(members_killed=len(self._etcd.members))

    def kill_daemon(self) -> None:
        """SIGKILL of one of the daemons, and a start on its mirror."""
        daemon = self._chance.choice(self._story.nodes).daemon
        with self._story.gaps.of("daemon killed, and started"):
            daemon.kill()
            daemon.start()
        self._survived(daemons_killed=1)

    def stop_daemon(self) -> None:
        """SIGSTOP of one of the daemons with all that it has under way, and SIGCONT."""
        with (
            self._story.gaps.of(f"daemon stopped for {STOPPED_SECONDS:g} s"),
            self._chance.choice(self._story.nodes).daemon.paused(),
        ):
            time.sleep(STOPPED_SECONDS)  # this is the fault
        self._survived(daemons_stopped=1)


def own_endpoint(node: Service) -> str:
    """The member that the daemon writes to."""
    with Client(node.requests) as client:
        endpoint: str = client.status()["cluster"]["endpoint"]
        return endpoint


def test_nothing_is_lost_repeated_or_out_of_order_while_members_and_daemons_fail(
    start_etcd: Callable[..., EtcdCluster],
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
    tmp_path: Path,
    survived: Survived,
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    etcd = start_etcd(3)
    daemons = [start_daemon(engine=etcd.address(PREFIX)) for _ in range(2)]
    nodes = [Service(daemon, start_facade(daemon)) for daemon in daemons]
    story = ClusterStory(nodes, seed, tmp_path, is_shared=True)
    faults = Faults(etcd, story, random.Random(seed), survived)
    try:
        story.begin()
        for number, fault in enumerate(faults.all_of_them()):
            fault()
            story.go_on(OPERATIONS_BETWEEN)
            print(f"{number + 1} of {FAULTS}, {fault.__name__}: {story.gaps.latest}", flush=True)
        story.end()
        print(f"{story.gaps.table()}\n\n{story.check()}")
        check_is_in_etcd(story, etcd)
    except AssertionError as failure:
        story.save()
        failure.add_note(f"seed {seed}; the history and the logs are in {tmp_path}")
        raise


def test_a_daemon_that_was_away_for_longer_than_the_log_reaches_begins_anew(
    start_etcd: Callable[..., EtcdCluster],
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
    tmp_path: Path,
    survived: Survived,
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    etcd = start_etcd()
    address = etcd.address(PREFIX)
    daemons = [start_daemon(engine=address, retain_events=RETAINED_EVENTS) for _ in range(2)]
    nodes = [Service(daemon, start_facade(daemon)) for daemon in daemons]
    story = Story(nodes, seed, folder=tmp_path, is_shared=True)

    def harm() -> None:
        for _ in range(AWAY):
            with Client(nodes[1].requests) as client:
                head = client.status()["revision"]
            daemons[1].kill()
            story.recorder.outlast(head)
            wait_until(lambda head=head: is_compacted(etcd, head + 1), timeout=120, every=0.1)
            daemons[1].start()
            survived(daemons_away=1)
            story.go_on()

    story.tell(harm, survived)
    try:
        story.check()
    except AssertionError as failure:
        story.save(tmp_path)
        failure.add_note(f"seed {seed}; the history and the log are in {tmp_path}")
        raise


def is_compacted(etcd: EtcdCluster, revision: int) -> bool:
    """Whether etcd no longer has its revision ``revision``."""
    try:
        etcd.etcdctl("get", "any key", "--rev", str(revision))
    except AssertionError as failure:
        return "compacted" in str(failure)
    return False


def check_is_in_etcd(story: ClusterStory, etcd: EtcdCluster) -> None:
    """The daemons' mirrors are what etcd has, and say so themselves."""
    names = layout.Names(PREFIX.encode())
    stored: dict[str, tuple[int, str]] = {}
    for name, (data, revision) in etcd.keys(f"{PREFIX}/key/").items():
        key = names.user_key(name)
        assert key is not None
        record = layout.decode_record(data, revision, revision, 0)
        stored[key.decode()] = revision, (record.value or b"").decode()
    assert stored == story.present
