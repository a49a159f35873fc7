"""The streams of one worker, for operators: what is known of each, and how to end one."""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import termios
from heapq import nlargest
from time import monotonic
from typing import Any

from kvstore_core.addresses import shown_address
from kvstore_core.filters import shown_filters
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.streaming.broadcaster import Broadcaster
from kvstore_http.streaming.stream_sockets import Stream, backlog_of

log = logging.getLogger("kvstore.http")

_STREAM = "h"
"""How ids of streams begin; the rest is the number that the system gives the socket, which no other socket of
this machine has."""

_INT = struct.Struct("=i")


class StreamList:
    """The streams of ``broadcaster``, which is worker ``number``'s. All methods run in the hub's thread and
    none waits."""

    def __init__(self, broadcaster: Broadcaster, daemon: DaemonClient, number: int) -> None:
        self._broadcaster = broadcaster
        self._daemon = daemon
        self._number = number

    def shown(self, limit: int) -> dict[str, Any]:
        """The ``limit`` streams for which most waits, and the count of all."""
        queued = {stream: _queued(stream) for stream in self._broadcaster.streams()}
        most = nlargest(limit, queued, key=lambda stream: backlog_of(stream) + queued[stream])
        return {"subscribers": [self._row(each, queued[each]) for each in most], "count": len(queued)}

    def _row(self, stream: Stream, queued: int) -> dict[str, Any]:
        spec = stream.group.spec
        everything = [""] if spec.wanted.takes_every_key else spec.wanted.prefixes
        revision = self._broadcaster.sent_through(stream)
        blocked = monotonic() - stream.blocked_at if stream.is_blocked else None
        return {
            "id": _id_of(stream),
            "address": _address_of(stream),
            "name": stream.who.name or None,
            **shown_filters(everything, sorted(spec.wanted.keys)),
            "since": stream.since,
            "sent_bytes": stream.sent,
            "queued_bytes": queued,
            "unsent_bytes": backlog_of(stream),
            "events": self._broadcaster.events_of(stream),
            "revision": revision,
            "lag": None if revision is None else max(0, self._daemon.head - revision),
            "blocked_seconds": None if blocked is None else round(blocked, 3),
            "worker": self._number,
        }

    def kick(self, subscriber_id: str, by: str) -> bool:
        """End a stream, whose client may come back; ``by`` is who asks for it. False if it is not here."""
        for stream in self._broadcaster.streams():
            if _id_of(stream) == subscriber_id:
                address = _address_of(stream)
                log.info("ended the stream %s to %s, kicked by %s", subscriber_id, address, by)
                self._broadcaster.kick(stream)
                return True
        return False


def _id_of(stream: Stream) -> str:
    return f"{_STREAM}{os.fstat(stream.fd).st_ino}"


def _address_of(stream: Stream) -> str | None:
    try:
        return shown_address(stream.sock.getpeername())
    except OSError:
        return None


def _queued(stream: Stream) -> int:
    """What the system has taken to send and the client has not acknowledged."""
    try:
        return int(_INT.unpack(fcntl.ioctl(stream.fd, termios.TIOCOUTQ, bytes(_INT.size)))[0])
    except OSError:
        return 0
