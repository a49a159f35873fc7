"""Publishes what was committed, on the changes address.

The socket is an XPUB, which is a PUB that also reports subscriptions. So no change is encoded and sent while
there are only subscriptions to heartbeats; and while access is on, subscribers have only the topics that they
are granted (:mod:`kvstore_daemon.subscriptions`).
"""

from __future__ import annotations

import time

import zmq

from kvstore_core.digest import digest_text
from kvstore_core.wire import Heartbeat, encode_change, encode_heartbeat, exact_topic
from kvstore_daemon.access.authority import Authority
from kvstore_daemon.bind import Context, bind, remove_socket_file
from kvstore_daemon.peer_limits.connections import ConnectionLimit
from kvstore_daemon.peer_limits.subscribers import SlowSubscribers, SubscriptionLimit
from kvstore_daemon.record_fields import event_fields, record_fields
from kvstore_daemon.storage.interface import LogPosition, StoredEvent
from kvstore_daemon.subscriber_list import SubscriberList
from kvstore_daemon.subscriptions import GrantedSubscriptions, Subscriptions

TOPIC_FRAME_BYTES = 1024
"""A frame with a longer topic ends its sender's connection; no key has more than 511 bytes."""

RECEIVE_BUFFER = 64 * 1024
"""What the system reads ahead from a subscriber; it cannot be refused any more."""

_SNDMORE = int(zmq.SNDMORE)


class Publisher:
    """Publishes changes in the order of their revisions; used by the loop's thread only.

    PUB silently drops what a slow subscriber has no room for. Every event therefore has ``prev``, the
    revision published before its own, so that the subscriber sees the gap and reads it from the log.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        queue: int,
        max_value_bytes: int,
        limit: ConnectionLimit,
        authority: Authority,
    ) -> None:
        """Bind; ``queue`` is how many events may wait for one subscriber.

        Raises ``unavailable`` if the endpoint cannot be used.
        """
        self._socket = context.socket(zmq.XPUB)
        # report every subscription, not only the first to a topic: see take_subscriptions
        self._socket.setsockopt(zmq.XPUB_MANUAL if authority.is_on else zmq.XPUB_VERBOSE, 1)
        self._socket.sndhwm = queue
        self._socket.maxmsgsize = TOPIC_FRAME_BYTES
        self._socket.rcvbuf = RECEIVE_BUFFER
        self.endpoint, self._connections = bind(context, self._socket, "changes", endpoint, limit, authority)
        self._authority = authority
        self._subscriptions = (
            GrantedSubscriptions(self._socket, self._connections, authority.principal_of)
            if authority.is_on
            else Subscriptions(self._socket, self._connections)
        )
        self.subscribers = SubscriberList(self._connections, self._subscriptions)
        self._subscription_limit = SubscriptionLimit(self._connections, is_curve=authority.is_on)
        self._slow_subscribers = SlowSubscribers(self._connections, max_value_bytes)
        self._epoch = ""
        self._head = 0
        self._prev = 0
        self._digest: int | None = None

    def fileno(self) -> int:
        """The descriptor to watch; edge-triggered, and consumed by any call."""
        return self._socket.fileno()

    @property
    def topics(self) -> int:
        """How many different topics are subscribed to, without those of heartbeats, as of the last
        :meth:`take_subscriptions`."""
        return len(self._subscriptions)

    def take_subscriptions(self) -> bool:
        """Take note of subscriptions made and ended since the last call; returns whether any was made.

        To be called whenever the descriptor is readable, and after anything was sent, which may consume that.
        Changes are sent only if there are subscriptions that were taken note of.
        """
        return self._subscriptions.take()

    def access_changed(self) -> None:
        """Other identities or grants hold from now on: end the connections of those who had more, or less."""
        self.take_subscriptions()
        self._subscriptions.review()

    def sweep(self) -> None:
        """Forget what ended connections were subscribed to; to be called every second."""
        self._subscriptions.sweep()

    def begin(self, position: LogPosition) -> None:
        """Publish what comes after ``position``: that at which an earlier run ended, or a log that replaced
        the one whose events were published. A subscriber sees either in the next heartbeat or event, whose
        epoch, or revision before it, is not the one that it has."""
        self._epoch = position.epoch
        self._head = self._prev = position.head
        self._digest = position.digest

    def publish(self, event: StoredEvent) -> None:
        """Send one event, if there are subscribers. Those of one revision must come one after another, in
        their order."""
        if event.revision != self._head:
            self._prev, self._head = self._head, event.revision
        self._digest = event.digest if event.index == event.count - 1 else None
        subscriptions = self._subscriptions
        if not subscriptions:
            return
        fields = {"epoch": self._epoch, "prev": self._prev, **event_fields(event)}
        record, previous = event.record, event.previous
        value = b""
        if record is not None:
            value = record.value or b""
        elif event.op == "expire" and previous is not None:
            value = previous.value or b""
            fields["previous"] = record_fields(previous._replace(value=None))
        frames = encode_change(event.key, fields, value)
        self._send(frames)
        if subscriptions.exact and (topic := exact_topic(frames[0])) in subscriptions.exact:
            self._send([topic, *frames[1:]])
        self._slow_subscribers.published(len(value))

    def heartbeat(self, floor: int) -> None:
        """Send a heartbeat with the revision published last: it is never ahead of the events.

        All get the same, so the digest is not told while access is on. Who knows it before and after a change
        can try out which value was written.
        """
        now = time.time_ns() // 1_000_000
        access = digest = ""
        if self._authority.is_on:
            access = self._authority.table.tag
        elif self._digest is not None:
            digest = digest_text(self._digest)
        self._send(encode_heartbeat(Heartbeat(self._epoch, self._head, floor, now, access, digest)))

    def _send(self, frames: list[bytes]) -> None:
        send = self._socket.send
        for frame in frames[:-1]:
            send(frame, _SNDMORE)
        send(frames[-1])

    def close(self) -> None:
        """Close the socket once the network has taken what was sent, or after ``FLUSH_MS``."""
        self._subscription_limit.close()
        self._socket.close()
        self._connections.close()
        remove_socket_file(self.endpoint)
