"""A way into each worker for the others; without gevent, since it is made before the fork."""

from __future__ import annotations

import socket


class Inboxes:
    """The inboxes of ``count`` workers. Make them before the first fork; they outlive each worker."""

    def __init__(self, count: int) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
        self.received = [ours for ours, _ in pairs]
        """What each worker reads."""
        self.sent = [theirs for _, theirs in pairs]
        """What the others write to."""
