"""Group commit: the requests that wait are handed to the engine in groups, so that one sync serves many.

An engine that plans a group at once, in the loop's thread, gets small ones, and further ones while it syncs:
it joins those that wait for the disk. So reads are held up no longer than a small group takes, and the disk
does not wait for the loop.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from kvstore_core.process.logging import RateLimitedLog, request_extra
from kvstore_daemon.status import Counters
from kvstore_daemon.storage.interface import Engine, WriteRequest

log = logging.getLogger("kvstore.daemon")

GROUP_OPS = 10_000
GROUP_BYTES = 16 * 1024 * 1024
"""What a group has at most, and all together that are under way, unless one request alone has more."""

SLICE_OPS = 32
SLICE_BYTES = 512 * 1024
"""What a group has at most that is planned at once: about a millisecond of work. Only a full one is handed
over while another is under way: to plan one takes as long as three writes, whatever it has."""

SHOWN_IDS = 10


@dataclass(slots=True)
class _Group:
    """What was handed over at the time ``began`` and is not all answered: ``left`` requests."""

    requests: list[WriteRequest]
    left: int
    ops: int
    size: int
    began: float


class GroupCommitter:
    """Collects write requests and hands them over in groups.

    To an engine that does not plan at once, one group at a time: a second one would need another sync, and
    the requests that come meanwhile would be spread over more and smaller groups.
    """

    def __init__(self, engine: Engine, counters: Counters, slow_seconds: float = inf) -> None:
        """A group that takes ``slow_seconds`` or longer is logged."""
        self._engine = engine
        self._counters = counters
        self._waiting: dict[Any, deque[tuple[WriteRequest, int]]] = {}
        self._senders: deque[Any] = deque()
        self._groups: deque[_Group] = deque()
        self._ops_waiting = self._ops_under_way = self._bytes_under_way = 0
        self._max_ops, self._max_bytes = (
            (SLICE_OPS, SLICE_BYTES) if engine.plans_at_once else (GROUP_OPS, GROUP_BYTES)
        )
        self._slow_seconds = slow_seconds
        self._slow_log = RateLimitedLog(log)

    def add(self, request: WriteRequest, size: int) -> None:
        """Queue a request for the next group; ``size`` is how many bytes its keys and values have.

        Those of one peer stay in their order, and peers take turns.
        """
        sender = getattr(request.ticket, "peer", None)
        queue = self._waiting.get(sender)
        if queue is None:
            queue = self._waiting[sender] = deque()
            self._senders.append(sender)
        queue.append((request, size))
        self._ops_waiting += len(request.writes)

    def answered(self) -> None:
        """Note that the engine has answered one request. Groups are answered in their order, but for
        refusals, which may come sooner."""
        group = self._groups[0]
        group.left -= 1
        if group.left:
            return
        self._groups.popleft()
        self._ops_under_way -= group.ops
        self._bytes_under_way -= group.size
        seconds = time.monotonic() - group.began
        if seconds >= self._slow_seconds:
            self._log_slow(group, seconds)

    def _log_slow(self, group: _Group, seconds: float) -> None:
        count = len(group.requests)
        self._slow_log.warning(
            "a commit took %.2f s, for %d requests; is the disk slow, or busy with something else?",
            seconds,
            count,
            extra={
                "seconds": round(seconds, 3),
                "count": count,
                **(request_extra(_ids(group.requests)) or {}),
            },
        )

    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._groups and not self._waiting

    def group_under_way(self) -> int | None:
        """The number of the first group that the engine has not answered yet, None if there is none."""
        return self._counters.groups_committed - len(self._groups) + 1 if self._groups else None

    def can_flush(self) -> bool:
        """Whether :meth:`flush` would hand something over."""
        if not self._waiting or not self._groups:
            return bool(self._waiting)
        return (
            self._engine.plans_at_once
            and self._ops_waiting >= SLICE_OPS
            and self._ops_under_way < GROUP_OPS
            and self._bytes_under_way < GROUP_BYTES
        )

    def flush(self) -> bool:
        """Hand over the next group, if one waits and the engine is to have it now; returns whether it was."""
        if not self.can_flush():
            return False
        group = self._next_group()
        self._groups.append(group)
        self._ops_waiting -= group.ops
        self._ops_under_way += group.ops
        self._bytes_under_way += group.size
        self._counters.groups_committed += 1
        self._counters.requests_committed += group.left
        self._engine.commit(group.requests)
        return True

    def _next_group(self) -> _Group:
        """A request of each peer in turn, up to the bounds, but at least one."""
        group: list[WriteRequest] = []
        ops = total = 0
        senders = self._senders
        while senders:
            sender = senders[0]
            queue = self._waiting[sender]
            request, size = queue[0]
            count = len(request.writes)
            if group and (ops + count > self._max_ops or total + size > self._max_bytes):
                break
            ops += count
            total += size
            queue.popleft()
            group.append(request)
            if queue:
                senders.rotate(-1)
            else:
                senders.popleft()
                del self._waiting[sender]
        return _Group(group, len(group), ops, total, time.monotonic())


def _ids(requests: Sequence[WriteRequest]) -> Sequence[str | None]:
    """The request ids of ``requests``, at most ``SHOWN_IDS``."""
    ids: list[str | None] = []
    for request in requests:
        request_id = getattr(request.ticket, "request_id", None)
        ids += [request_id] if isinstance(request_id, str) else request_id or []
    return [each for each in ids if each is not None][:SHOWN_IDS]
