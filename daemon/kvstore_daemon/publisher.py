"""Publishes what was committed, on the changes address.

The socket is an XPUB, which is a PUB that also reports subscriptions. So no change is encoded and sent while
there are only subscriptions to heartbeats.
"""

from __future__ import annotations

import time

import zmq

from kvstore_core.wire import HEARTBEAT_TOPIC, Heartbeat, encode_change, encode_heartbeat
from kvstore_daemon.bind import Context, bind, remove_socket_file
from kvstore_daemon.peer_limits.connections import ConnectionLimit
from kvstore_daemon.peer_limits.subscribers import SlowSubscribers, SubscriptionLimit
from kvstore_daemon.record_fields import event_fields, record_fields
from kvstore_daemon.storage.interface import LogPosition, StoredEvent

TOPIC_FRAME_BYTES = 1024
"""A frame with a longer topic ends its sender's connection; no key has more than 511 bytes."""

RECEIVE_BUFFER = 64 * 1024
"""What the system reads ahead from a subscriber; it cannot be refused any more."""

_SUBSCRIBED, _UNSUBSCRIBED = b"\1", b"\0"
_NO_KEY = HEARTBEAT_TOPIC[:1]
"""How topics begin that no key can match."""


class Publisher:
    """Publishes changes in the order of their revisions; used by the loop's thread only.

    PUB silently drops what a slow subscriber has no room for. Every event therefore has ``prev``, the
    revision published before its own, so that the subscriber sees the gap and reads it from the log.
    """

    def __init__(
        self, context: Context, endpoint: str, queue: int, max_value_bytes: int, limit: ConnectionLimit
    ) -> None:
        """Bind; ``queue`` is how many events may wait for one subscriber.

        Raises ``unavailable`` if the endpoint cannot be used.
        """
        self._socket = context.socket(zmq.XPUB)
        # report every subscription, not only the first to a topic: see take_subscriptions
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.sndhwm = queue
        self._socket.maxmsgsize = TOPIC_FRAME_BYTES
        self._socket.rcvbuf = RECEIVE_BUFFER
        self.endpoint, self._connections = bind(context, self._socket, "changes", endpoint, limit)
        self._subscription_limit = SubscriptionLimit(self._connections)
        self._slow_subscribers = SlowSubscribers(self._connections, max_value_bytes)
        self._epoch = ""
        self._head = 0
        self._prev = 0
        self._topics: set[bytes] = set()

    def fileno(self) -> int:
        """The descriptor to watch; edge-triggered, and consumed by any call."""
        return self._socket.fileno()

    @property
    def topics(self) -> int:
        """How many different topics are subscribed to, without those of heartbeats, as of the last
        :meth:`take_subscriptions`."""
        return len(self._topics)

    def take_subscriptions(self) -> bool:
        """Take note of subscriptions made and ended since the last call; returns whether any was made.

        To be called before changes are published, which are sent only if there are subscriptions.
        """
        has_new = False
        while True:
            # This may take long when the socket is flooded, but lets other threads run; to ask the socket
            # whether there is something would not.
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return has_new
            kind, topic = message[:1], message[1:]
            if kind == _SUBSCRIBED:
                has_new = True
                if topic[:1] != _NO_KEY:
                    self._topics.add(topic)
            elif kind == _UNSUBSCRIBED:
                self._topics.discard(topic)

    def begin(self, position: LogPosition) -> None:
        """Continue after the last revision that an earlier run committed."""
        self._epoch = position.epoch
        self._head = self._prev = position.head

    def publish(self, event: StoredEvent) -> None:
        """Send one event, if there are subscribers. Those of one revision must come one after another, in
        their order."""
        if event.revision != self._head:
            self._prev, self._head = self._head, event.revision
        if not self._topics:
            return
        fields = {"epoch": self._epoch, "prev": self._prev, **event_fields(event)}
        record, previous = event.record, event.previous
        value = b""
        if record is not None:
            value = record.value or b""
        elif event.op == "expire" and previous is not None:
            value = previous.value or b""
            fields["previous"] = record_fields(previous._replace(value=None))
        self._send(encode_change(event.key, fields, value))
        self._slow_subscribers.published(len(value))

    def heartbeat(self, floor: int) -> None:
        """Send a heartbeat with the revision published last: it is never ahead of the events."""
        now = time.time_ns() // 1_000_000
        self._send(encode_heartbeat(Heartbeat(self._epoch, self._head, floor, now)))

    def _send(self, frames: list[bytes]) -> None:
        *firsts, last = frames
        for frame in firsts:
            self._socket.send(frame, zmq.SNDMORE)
        self._socket.send(last)

    def close(self) -> None:
        """Close the socket once the network has taken what was sent, or after ``FLUSH_MS``."""
        self._subscription_limit.close()
        self._socket.close()
        self._connections.close()
        remove_socket_file(self.endpoint)
