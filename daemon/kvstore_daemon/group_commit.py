"""Group commit: the requests that wait are handed to the engine as one group, so that one sync serves all."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from math import inf
from typing import Any

from kvstore_core.process.logging import RateLimitedLog, request_extra
from kvstore_daemon.status import Counters
from kvstore_daemon.storage.interface import Engine, WriteRequest

log = logging.getLogger("kvstore.daemon")

GROUP_OPS = 10_000
GROUP_BYTES = 16 * 1024 * 1024
SHOWN_IDS = 10


class GroupCommitter:
    """Collects write requests while a group is under way and hands them over when it is done.

    One group at a time: a second one would need another sync, and the requests that come meanwhile would be
    spread over more and smaller groups.
    """

    def __init__(self, engine: Engine, counters: Counters, slow_seconds: float = inf) -> None:
        """A group that takes ``slow_seconds`` or longer is logged."""
        self._engine = engine
        self._counters = counters
        self._waiting: dict[Any, deque[tuple[WriteRequest, int]]] = {}
        self._senders: deque[Any] = deque()
        self._under_way = 0
        self._slow_seconds = slow_seconds
        self._slow_log = RateLimitedLog(log)
        self._group: list[WriteRequest] = []
        self._began = 0.0

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

    def answered(self) -> None:
        """Note that the engine has answered one request."""
        self._under_way -= 1
        if not self._under_way:
            seconds = time.monotonic() - self._began
            if seconds >= self._slow_seconds:
                self._log_slow(seconds)
            self._group = []

    def _log_slow(self, seconds: float) -> None:
        count = len(self._group)
        self._slow_log.warning(
            "a commit took %.2f s, for %d requests; is the disk slow, or busy with something else?",
            seconds,
            count,
            extra={"seconds": round(seconds, 3), "count": count, **(request_extra(self._ids()) or {})},
        )

    def _ids(self) -> Sequence[str | None]:
        """The request ids of the group, at most ``SHOWN_IDS``."""
        ids: list[str | None] = []
        for request in self._group:
            request_id = getattr(request.ticket, "request_id", None)
            ids += [request_id] if isinstance(request_id, str) else request_id or []
        return [each for each in ids if each is not None][:SHOWN_IDS]

    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._under_way and not self._waiting

    def group_under_way(self) -> int | None:
        """The number of the group that the engine has not answered yet, None if there is none."""
        return self._counters.groups_committed if self._under_way else None

    def flush(self) -> None:
        """Hand over the next group, if one waits and none is under way."""
        if self._under_way or not self._waiting:
            return
        group = self._next_group()
        self._under_way = len(group)
        self._group, self._began = group, time.monotonic()
        self._counters.groups_committed += 1
        self._counters.requests_committed += len(group)
        self._engine.commit(group)

    def _next_group(self) -> list[WriteRequest]:
        """A request of each peer in turn, up to the bounds, but at least one."""
        group: list[WriteRequest] = []
        ops = total = 0
        senders = self._senders
        while senders:
            sender = senders[0]
            queue = self._waiting[sender]
            request, size = queue[0]
            ops += len(request.writes)
            total += size
            if group and (ops > GROUP_OPS or total > GROUP_BYTES):
                break
            queue.popleft()
            group.append(request)
            if queue:
                senders.rotate(-1)
            else:
                senders.popleft()
                del self._waiting[sender]
        return group
