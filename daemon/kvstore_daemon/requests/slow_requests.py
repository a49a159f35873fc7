"""The last requests that took long, for operators."""

from __future__ import annotations

from collections import deque
from math import inf
from time import monotonic

from kvstore_core.access.tokens import without_secrets
from kvstore_core.limits import MAX_SHOWN, SLOW_KEPT
from kvstore_core.wall_clock import now_ms
from kvstore_daemon.peer_limits.connections import address_of
from kvstore_daemon.record_fields import Fields
from kvstore_daemon.requests.pending_request import PendingRequest


class SlowRequests:
    """The last ``SLOW_KEPT`` requests that took ``least_ms`` or longer (0: none is kept); used by the loop's
    thread only. One has at most some 2 KiB."""

    def __init__(self, least_ms: int) -> None:
        self._seconds = least_ms / 1000 or inf
        self._kept: deque[Fields] = deque(maxlen=SLOW_KEPT)

    def look_at(self, request: PendingRequest) -> None:
        """Keep a request, which is being answered, if it took long."""
        seconds = monotonic() - request.received_at
        if seconds >= self._seconds:
            self._kept.append(_described(request, seconds))

    def shown(self, limit: int) -> Fields:
        """The last ``limit`` of them, the newest first."""
        newest = list(self._kept)[-limit:]
        return {"requests": newest[::-1]}


def _described(request: PendingRequest, seconds: float) -> Fields:
    ids = request.request_id
    return {
        "time": now_ms(),
        "seconds": round(seconds, 6),
        "queued_seconds": round(request.begun_at - request.received_at, 6),
        "what": without_secrets(request.summary())[:MAX_SHOWN],
        "bytes": request.size,
        "address": address_of(request.peer.descriptor),
        "name": request.who.name or None,
        "request_id": ids if isinstance(ids, str) else None,
    }
