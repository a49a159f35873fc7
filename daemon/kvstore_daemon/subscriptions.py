"""What subscribers of the changes address are subscribed to.

ZeroMQ matches topics by their first bytes, and a key is the topic of its changes. So a topic is a prefix of
keys, and no grant on one key covers it. For one key there is the exact topic (protocol section 5).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

import zmq

from kvstore_core.access.grants import KeyRange, Need, prefix_end
from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog
from kvstore_core.wire import EXACT_BEGIN, EXACT_END, HEARTBEAT_TOPIC
from kvstore_daemon.peer_limits.connections import Connections, inode_of

log = logging.getLogger("kvstore.daemon")

_SUBSCRIBED, _UNSUBSCRIBED = b"\1", b"\0"
_NO_KEY = HEARTBEAT_TOPIC[:1]
"""How topics begin that no key can match."""

_SOURCE = int(zmq.SRCFD)


class SubscribedTo(NamedTuple):
    """Whose connection it is, empty while access is off, and what it asked for and was granted."""

    name: str
    prefixes: list[str]
    keys: list[str]


class _Subscriber:
    """One connection. ``topics`` are those that it asked for, each with whether it was granted. ``inode``
    tells it from a later connection with the same descriptor."""

    __slots__ = ("descriptor", "inode", "topics", "user_id")

    def __init__(self, descriptor: int, inode: int, user_id: str) -> None:
        self.descriptor = descriptor
        self.inode = inode
        self.user_id = user_id
        self.topics: dict[bytes, bool] = {}


class Subscriptions:
    """The topics of all subscribers, who may subscribe to anything; used by the loop's thread only."""

    exact: Collection[bytes] = ()
    """The exact topics that somebody is subscribed to."""

    def __init__(self, socket: zmq.Socket[bytes], connections: Connections) -> None:
        """``socket`` is an XPUB that reports each subscription, and when nobody has a topic any more."""
        self._socket = socket
        self._connections = connections
        self._subscribers: dict[int, _Subscriber] = {}
        self._topics: set[bytes] = set()

    def __len__(self) -> int:
        """How many different topics of keys there are."""
        return len(self._topics)

    def take(self) -> bool:
        """Take note of subscriptions made and ended since the last call; returns whether any was made."""
        has_new = False
        while True:
            # This may take long when the socket is flooded, but lets other threads run; to ask the socket
            # whether there is something would not.
            try:
                frame: zmq.Frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return has_new
            message = frame.bytes
            kind, topic = message[:1], message[1:]
            subscriber = self._subscriber(frame)
            if kind == _SUBSCRIBED:
                has_new = True
                if topic[:1] != _NO_KEY:
                    self._topics.add(topic)
                if subscriber is not None:
                    subscriber.topics[topic] = True
            elif kind == _UNSUBSCRIBED:
                self._topics.discard(topic)
                if subscriber is not None:
                    subscriber.topics.pop(topic, None)

    def review(self) -> None:
        """Close the connections of those who may have other topics by now than when they asked."""

    def sweep(self) -> None:
        """Forget what connections had that have ended; to be called now and then."""
        for subscriber in list(self._subscribers.values()):
            if subscriber.descriptor not in self._connections.open:
                self._forget(subscriber)

    def of(self, descriptor: int, inode: int) -> SubscribedTo | None:
        """What is known of the subscriber on this connection; None for nothing. While access is off, a topic
        that it gave up while another had it is still among them."""
        subscriber = self._subscribers.get(descriptor)
        if subscriber is None or subscriber.inode != inode:
            return None
        prefixes: list[str] = []
        keys: list[str] = []
        for topic, is_granted in subscriber.topics.items():
            if not is_granted or topic[:1] == _NO_KEY:
                continue
            begin = topic.removeprefix(EXACT_BEGIN)
            if _is_exact(topic):
                keys.append(begin.removesuffix(EXACT_END).decode(errors="replace"))
            else:
                prefixes.append(begin.decode(errors="replace"))
        return SubscribedTo(self._name_of(subscriber), prefixes, keys)

    def _subscriber(self, frame: zmq.Frame) -> _Subscriber | None:
        """Whose message it is; None if that is not known, and then nothing is granted."""
        try:
            user_id, descriptor = self._user_of(frame), int(frame.get(_SOURCE))
        except zmq.ZMQError:
            return None
        inode = inode_of(descriptor)
        if inode is None:
            return None
        known = self._subscribers.get(descriptor)
        if known is not None:
            if (known.inode, known.user_id) == (inode, user_id):
                return known
            self._forget(known)
        new = self._subscribers[descriptor] = _Subscriber(descriptor, inode, user_id)
        return new

    def _user_of(self, frame: zmq.Frame) -> str:  # noqa: ARG002 - nobody has to say who they are
        """The CURVE public key of who sent ``frame``."""
        return ""

    def _name_of(self, subscriber: _Subscriber) -> str:  # noqa: ARG002
        return ""

    def _forget(self, subscriber: _Subscriber) -> None:
        del self._subscribers[subscriber.descriptor]


class GrantedSubscriptions(Subscriptions):
    """The topics of subscribers who may have only what they are granted.

    A topic is a subscriber's from when it asks to the end of its connection; ZeroMQ cannot take one away. So
    where its grants change, either way, the connection is closed: the subscriber comes back, asks again, and
    finds in the log what it has missed.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        connections: Connections,
        principal_of: Callable[[str], Principal],
    ) -> None:
        """``socket`` is an XPUB that leaves it to us what is subscribed to (``XPUB_MANUAL``)."""
        super().__init__(socket, connections)
        self._principal_of = principal_of
        self._counts: Counter[bytes] = Counter()
        self.exact: set[bytes] = set()
        self._warned = RateLimitedLog(log)

    def __len__(self) -> int:
        return len(self._counts)

    def take(self) -> bool:
        """As above. What is not granted is ignored, and logged now and then."""
        has_new = False
        is_in_step = True
        while True:
            try:
                frame: zmq.Frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return has_new
            message = frame.bytes
            kind, topic = message[:1], message[1:]
            subscriber = self._subscriber(frame)
            if kind not in (_SUBSCRIBED, _UNSUBSCRIBED):
                # After a message that is no subscription, libzmq takes us to answer a later one than we have
                # received, until it was found empty: whoever sent that would get what another was granted.
                is_in_step = False
                self._warn_of_message(subscriber)
            if subscriber is None:  # made up by libzmq, at the end of a connection
                continue
            if not is_in_step:
                self._end(subscriber)
            elif kind == _SUBSCRIBED:
                has_new = True
                self._subscribe(subscriber, topic)
            else:
                self._unsubscribe(subscriber, topic)

    def _subscribe(self, subscriber: _Subscriber, topic: bytes) -> None:
        if topic in subscriber.topics:
            return
        is_granted = subscriber.topics[topic] = self._may(subscriber, topic, logs=True)
        if not is_granted:
            return
        self._socket.setsockopt(zmq.SUBSCRIBE, topic)
        if topic[:1] != _NO_KEY:
            self._counts[topic] += 1
            if _is_exact(topic):
                self.exact.add(topic)

    def _unsubscribe(self, subscriber: _Subscriber, topic: bytes) -> None:
        if subscriber.topics.pop(topic, False):
            self._socket.setsockopt(zmq.UNSUBSCRIBE, topic)
            self._discount(topic)

    def _discount(self, topic: bytes) -> None:
        if topic[:1] == _NO_KEY:
            return
        self._counts[topic] -= 1
        if not self._counts[topic]:
            del self._counts[topic]
            self.exact.discard(topic)

    def _may(self, subscriber: _Subscriber, topic: bytes, *, logs: bool = False) -> bool:
        try:
            principal = self._principal_of(subscriber.user_id)
        except KvError:
            return False
        for need in needs_of_topic(topic):
            if not principal.may(need):
                if logs:
                    self._warned.warning("ignored a subscription of %r: it needs %s", principal.name, need)
                return False
        return True

    def review(self) -> None:
        for subscriber in list(self._subscribers.values()):
            if not self._is_as_granted(subscriber):
                self._end(subscriber)

    def _is_as_granted(self, subscriber: _Subscriber) -> bool:
        try:
            self._principal_of(subscriber.user_id)
        except KvError:
            return False
        return all(had == self._may(subscriber, topic) for topic, had in subscriber.topics.items())

    def _end(self, subscriber: _Subscriber) -> None:
        """Close the connection, unless it has ended and its descriptor is another one's."""
        if inode_of(subscriber.descriptor) == subscriber.inode:
            self._connections.shut(subscriber.descriptor)

    def _forget(self, subscriber: _Subscriber) -> None:
        super()._forget(subscriber)
        for topic, is_granted in subscriber.topics.items():
            if is_granted:
                self._discount(topic)

    def _warn_of_message(self, subscriber: _Subscriber | None) -> None:
        who = "somebody" if subscriber is None else repr(self._name_of(subscriber))
        self._warned.warning(
            "closed a connection to the changes address: %s sent what is no subscription", who
        )

    def _user_of(self, frame: zmq.Frame) -> str:
        return str(frame.get("User-Id"))

    def _name_of(self, subscriber: _Subscriber) -> str:
        try:
            return self._principal_of(subscriber.user_id).name
        except KvError:
            return f"the key {subscriber.user_id}"


def needs_of_topic(topic: bytes) -> list[Need]:
    """What a subscriber must be granted to have a topic: to be told of, and to read, each key that may match
    it, since changes bring their values."""
    if topic[:1] == _NO_KEY:
        return []
    wanted: KeyRange | str
    begin = topic.removeprefix(EXACT_BEGIN)
    wanted = KeyRange(begin, prefix_end(begin))
    if _is_exact(topic):
        key = begin.removesuffix(EXACT_END)
        wanted = KeyRange(key, key + b"\0")
    return [Need("watch", wanted), Need("read", wanted)]


def _is_exact(topic: bytes) -> bool:
    return topic.startswith(EXACT_BEGIN) and topic.endswith(EXACT_END)
