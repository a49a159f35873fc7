"""Bounds the requests that are pending: those that were received and not answered yet."""

from __future__ import annotations

PENDING_BYTES = 64 * 1024 * 1024
"""Of all pending requests; with more, the next ones wait with their senders."""


class PendingLimit:
    """How many requests are pending, and their bytes. Only the loop's thread changes it."""

    def __init__(self, max_requests: int) -> None:
        self.max_requests = max_requests
        self.requests = 0
        self.bytes = 0

    def has_room(self) -> bool:
        """Whether another request may be received."""
        return self.requests < self.max_requests and self.bytes < PENDING_BYTES

    def add(self, size: int) -> None:
        """Count a request of ``size`` bytes."""
        self.requests += 1
        self.bytes += size

    def remove(self, size: int) -> None:
        """Count it no longer: it was answered, or dropped because its peer has gone."""
        self.requests -= 1
        self.bytes -= size
