"""How the members of the cluster are.

A thread of its own asks each of them every few seconds, so that there is an answer at once, also while none
of them answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store.clock_offsets import WARN_MS, ClockOffsets
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError
from kvstore_daemon.storage.etcd_store.versions import version_refusal, version_warning

log = logging.getLogger("kvstore.daemon")

CHECK_SECONDS = 5.0
"""The time between two looks at the members; a second where the last one found none that works."""

ANSWER_SECONDS = 2.0
"""How long a member may take to answer: several times what it takes to elect a leader."""

LIST_EVERY = 12
"""The members are listed with every so many looks: once a minute."""

FULL_SHARE = 0.8
"""An operator is warned from here on that the database nears its quota."""

DEFAULT_QUOTA_BYTES = 2 * 1024**3
"""What etcd takes without --quota-backend-bytes. Before 3.6 a member does not say which quota it has, and
where the address does not either, an operator is warned by this one."""

CURE_OF_NOSPACE = (
    "compact it (etcdctl compact), defragment each member (etcdctl defrag), or restart the members with a "
    "larger --quota-backend-bytes; then disarm the alarm (etcdctl alarm disarm)"
)


@dataclass(frozen=True, slots=True)
class MemberState:
    """A member as it was found at the last look. ``problem`` says why it is not ``healthy``, which means that
    it answered a linearizable read. Sizes are 0 where they are not known."""

    endpoint: str
    healthy: bool = False
    problem: str | None = None
    id: str = ""
    name: str = ""
    version: str = ""
    is_leader: bool = False
    is_learner: bool = False
    db_bytes: int = 0
    db_used_bytes: int = 0
    quota_bytes: int = 0
    leader_id: str = ""
    cluster_id: str = ""

    @property
    def shown_name(self) -> str:
        """What to call it: its name, if it is known, and where it is."""
        return f"{self.name} ({self.endpoint})" if self.name else self.endpoint

    def named_as(self, before: MemberState | None) -> MemberState:
        """With the name, id and version that it had before, where it does not say them now."""
        if self.id or before is None:
            return self
        return replace(self, id=before.id, name=before.name, version=before.version)

    def as_json(self) -> dict[str, Any]:
        """What ``status`` shows of it."""
        return {
            "endpoint": self.endpoint,
            "id": self.id,
            "name": self.name,
            "version": self.version,
            "leader": self.is_leader,
            "learner": self.is_learner,
            "healthy": self.healthy,
            "problem": self.problem,
            "db_bytes": self.db_bytes or None,
            "db_used_bytes": self.db_used_bytes or None,
            "quota_bytes": self.quota_bytes or None,
        }


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look found. ``listed`` has the names of the voting members by their ids."""

    members: Sequence[MemberState] = ()
    alarms: Sequence[tuple[str, str]] = ()
    listed: Mapping[str, str] = field(default_factory=dict)
    head: int = 0
    at: float = 0.0

    @property
    def is_working(self) -> bool:
        """Whether some member answers a linearizable read, so that there is a majority."""
        return not self.members or any(member.healthy for member in self.members)


class Members:
    """Looks at the members, and logs what an operator should know: once when it is found, and once when it is
    over. :meth:`report` and :meth:`refusal` may be called from any thread and never wait.

    A member that answers ``Status`` may still be cut off from the others, or block on its own log; so it only
    counts as healthy if it answers a linearizable read of ``head``, the key that is put with every change.
    """

    def __init__(
        self,
        cluster: Cluster,
        head: bytes,
        clocks: ClockOffsets,
        quota: int | None = None,
        seconds: float = CHECK_SECONDS,
    ) -> None:
        """``quota`` is that of members which do not say it: in bytes, None if nobody knows."""
        self._cluster = cluster
        self._head = api.RangeRequest(key=head, keys_only=True)
        self._clocks = clocks
        self._quota = quota or 0
        self._seconds = seconds
        self._look = _Look()
        self._looks = 0
        self._known: dict[tuple[str, str], str] = {}
        self._leader = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvstore-members", daemon=True)

    def start(self) -> None:
        """Look once, then go on in a thread. Takes up to some seconds where members do not answer.

        Raises ``unsupported_version`` where a member is too old, and ``bad_request`` where the endpoints are
        of different clusters. That none of them answers is no error here.
        """
        self._take(self._ask())
        for member in self._look.members:
            refusal = version_refusal(member.version)
            if refusal is not None:
                raise KvError(refusal.code, f"{member.shown_name}: {refusal.message}")
        _refuse_strangers(self._look.members)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a look under way is waited for. May be called twice, and without a start."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def report(self) -> dict[str, Any]:
        """The members as they were last found, as a part of ``status``; times are in milliseconds.

        ``head`` is the revision of the newest change that was seen there, ``checked`` how long ago, and
        ``clocks`` by how much the clock of each other daemon is ahead of this one's. A warning's ``about`` is
        ``majority``, ``member``, ``version``, ``quota``, ``alarm``, ``endpoints``, ``size`` or ``clock``.
        """
        look = self._look
        return {
            "endpoint": self._cluster.endpoint,
            "rotations": self._cluster.rotations,
            "cluster_id": next((each.cluster_id for each in look.members if each.cluster_id), None),
            "leader": self._leader or None,
            "members": [member.as_json() for member in look.members],
            "alarms": [{"member": member, "alarm": alarm} for member, alarm in look.alarms],
            "clocks": self._clocks.ahead(),
            "head": look.head,
            "checked": round((time.monotonic() - look.at) * 1000) if look.at else None,
            "warnings": [{"about": about, "message": words} for (about, _), words in self._known.items()],
        }

    def saw(self, revision: int, node: str, written_at: int, arrived_at: int) -> None:
        """Compare clocks by a change that has just come: see :meth:`ClockOffsets.note`. One that was there
        already at the last look comes late, as in a catch-up, and says nothing."""
        if 0 < self._look.head < revision:
            self._clocks.note(node, written_at, arrived_at)

    def refusal(self) -> KvError | None:
        """The error that a write would get now by what the last look found; None if it would be taken."""
        look = self._look
        for member, alarm in look.alarms:
            if alarm == "NOSPACE":
                return KvError("store_full", f"etcd is full (alarm NOSPACE of {member}): {CURE_OF_NOSPACE}")
            if alarm == "CORRUPT":
                return KvError(
                    "unavailable",
                    f"etcd refuses requests (alarm CORRUPT of {member}): its members hold different data; "
                    "remove the damaged member and add it again, or restore a snapshot",
                )
        return None if look.is_working else KvError("unavailable", _no_majority(look.members))

    def crowding(self) -> tuple[float, float]:
        """The share of its quota that the fullest member's data take, and when that was found, in the time of
        ``time.monotonic()``. A member whose quota nobody has told does not count."""
        look = self._look
        shares = [each.db_used_bytes / each.quota_bytes for each in look.members if each.quota_bytes]
        return max(shares, default=0.0), look.at

    # ── the thread ───────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds if self._look.is_working else min(1.0, self._seconds)):
            try:
                self._take(self._ask())
            except Exception:
                log.exception("a look at the members of the cluster failed")

    def _ask(self) -> _Look:
        each = partial(self._cluster.each, timeout=ANSWER_SECONDS)
        said, read = each(api.STATUS, api.StatusRequest()), each(api.RANGE, self._head)
        listed: Mapping[str, str] = self._look.listed
        if self._looks % LIST_EVERY == 0 or not listed:
            listed = self._voters() or listed
        self._looks += 1
        members = [_state(endpoint, said[endpoint], read[endpoint], listed, self._quota) for endpoint in said]
        before = {member.endpoint: member for member in self._look.members}
        members = [each.named_as(before.get(each.endpoint)) for each in members]
        answers = [answer for answer in read.values() if not isinstance(answer, EtcdError)]
        rows = [kv.mod_revision for answer in answers for kv in answer.kvs]
        alarms = self._alarms(members) if answers else ()
        return _Look(members, alarms, listed, max(rows, default=0), time.monotonic())

    def _voters(self) -> dict[str, str]:
        """The names of the members that vote, by their ids; nothing where that cannot be had."""
        try:
            listed = self._cluster.ask(api.MEMBER_LIST, api.MemberListRequest(), ANSWER_SECONDS)
        except EtcdError:
            return {}
        return {f"{each.ID:x}": each.name for each in listed.members if not each.isLearner}

    def _alarms(self, members: Sequence[MemberState]) -> list[tuple[str, str]]:
        try:
            raised = self._cluster.ask(api.ALARM, api.AlarmRequest(), ANSWER_SECONDS).alarms
        except EtcdError:
            return []
        names = {member.id: member.name or member.endpoint for member in members if member.id}
        kinds = {1: "NOSPACE", 2: "CORRUPT"}
        return sorted(
            (names.get(f"{each.memberID:x}", f"{each.memberID:x}"), kinds.get(each.alarm, str(each.alarm)))
            for each in raised
            if each.alarm
        )

    def _take(self, look: _Look) -> None:
        leader = _leader(look)
        if leader and leader != self._leader:
            log.info("the cluster's leader is %s", leader)
        self._look, self._leader = look, leader
        known = dict(self._warnings(look))
        for kind in known.keys() - self._known.keys():
            log.warning("%s", known[kind])
        for kind in self._known.keys() - known.keys():
            log.info("no longer: %s", self._known[kind])
        self._known = known

    def _warnings(self, look: _Look) -> Iterator[tuple[tuple[str, str], str]]:
        """What an operator should know, and what it is about, which stays the same while figures change."""
        if not look.is_working:
            yield ("majority", ""), _no_majority(look.members)
        for member in look.members:
            yield from warnings_of(member)
        for version in sorted({member.version for member in look.members}):
            refusal = version_refusal(version)
            words = version_warning(version) if refusal is None else refusal.message
            if words is not None:
                names = ", ".join(each.shown_name for each in look.members if each.version == version)
                yield ("version", version), f"{names}: {words}"
        for member_name, alarm in look.alarms:
            cure = f": {CURE_OF_NOSPACE}" if alarm == "NOSPACE" else ""
            yield ("alarm", f"{alarm} {member_name}"), f"etcd has the alarm {alarm} of {member_name}{cure}"
        voters, named = look.listed, {each.id for each in look.members}
        left_out = [voters[each] or each for each in voters if each not in named]
        if len(voters) > len(look.members):
            words = (
                f"--engine names {len(look.members)} of {len(voters)} members; add the others, which this "
                f"daemon does not turn to when it loses these: {', '.join(left_out)}"
            )
            yield ("endpoints", ""), words
        if len(voters) == 2:
            yield ("size", ""), "a cluster of two members stops when either of them is away: use three"
        for node, ahead in self._clocks.ahead().items():
            if abs(ahead) > WARN_MS:
                where = "ahead of" if ahead > 0 else "behind"
                words = (
                    f"the clock of daemon {node} is {abs(ahead)} ms {where} this one's, so keys with a TTL "
                    "expire early or late by as much: keep the clocks with NTP"
                )
                yield ("clock", node), words


def _failed(answer: Any) -> bool:
    return isinstance(answer, EtcdError)


def _state(endpoint: str, said: Any, read: Any, names: Mapping[str, str], quota: int) -> MemberState:
    """The member at ``endpoint``, from what it answered to ``Status`` and to a linearizable read. Its quota
    is ``quota`` if it does not say it."""
    problem = str(read) if _failed(read) else None
    if _failed(said):
        if problem is None and said.kind != "auth":
            problem = f"it does not say how it is: {said}"
        return MemberState(endpoint, healthy=not _failed(read), problem=problem)
    member_id = f"{said.header.member_id:x}"
    if said.isLearner:
        problem = "it is a learner, which serves no reads and no writes yet"
    elif problem is not None:
        problem = f"it runs, but reads fail: {problem}"
    return MemberState(
        endpoint,
        healthy=problem is None,
        problem=problem,
        id=member_id,
        name=names.get(member_id, ""),
        version=said.version,
        is_leader=said.leader == said.header.member_id,
        is_learner=said.isLearner,
        db_bytes=said.dbSize,
        db_used_bytes=said.dbSizeInUse,
        quota_bytes=max(0, said.dbSizeQuota) or quota,
        leader_id=f"{said.leader:x}" if said.leader else "",
        cluster_id=f"{said.header.cluster_id:x}",
    )


def warnings_of(member: MemberState) -> Iterator[tuple[tuple[str, str], str]]:
    """What an operator should know of one member, each with what it is about and the endpoint."""
    where = member.endpoint
    if member.problem is not None:
        yield ("member", where), f"the member {member.shown_name} cannot be used: {member.problem}"
    quota = member.quota_bytes or DEFAULT_QUOTA_BYTES
    # far above the default, it was raised on a member that does not say so
    is_known = member.quota_bytes or member.db_bytes <= 1.1 * quota
    if is_known and member.db_bytes >= FULL_SHARE * quota:
        said = (
            "" if member.quota_bytes else ", unless --quota-backend-bytes was raised: say so with quota=BYTES"
        )
        words = (
            f"the database of {member.shown_name} has {member.db_bytes >> 20} of {quota >> 20} MiB{said}, "
            f"and {member.db_used_bytes >> 20} MiB of it are in use; at its quota etcd refuses writes: "
            "shorten the log, delete keys and defragment each member, or raise the quota"
        )
        yield ("quota", where), words


def _leader(look: _Look) -> str:
    """The leader, as the members that work see it: a member that is cut off may think of one that was."""
    for member in (*(each for each in look.members if each.healthy), *look.members):
        if member.leader_id:
            names = {each.id: each.name or each.endpoint for each in look.members}
            return names.get(member.leader_id) or look.listed.get(member.leader_id) or member.leader_id
    return ""


def _no_majority(members: Sequence[MemberState]) -> str:
    states = "; ".join(f"{member.endpoint}: {member.problem}" for member in members)
    return f"no member of the cluster serves requests, so it has no majority or cannot be reached: {states}"


def _refuse_strangers(members: Sequence[MemberState]) -> None:
    """Raise ``bad_request`` if the members are not all of one cluster."""
    clusters: dict[str, list[str]] = {}
    for member in members:
        if member.cluster_id:
            clusters.setdefault(member.cluster_id, []).append(member.endpoint)
    if len(clusters) > 1:
        sides = " and ".join(", ".join(endpoints) for endpoints in clusters.values())
        raise KvError("bad_request", f"--engine names members of different clusters: {sides}")
