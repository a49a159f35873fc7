"""The socket of the requests address; used by the loop's thread only.

It is one ROUTER that does what a REP socket does, for any number of requests at once: it keeps each one's
envelope and answers along it. A pool of REP sockets behind ``zmq_proxy`` was here before, and cost more: the
proxy deals requests out in turn, also to a REP that waits for a sync, so it took hundreds of them, and every
message crossed one thread more.
"""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Callable
from operator import attrgetter
from time import monotonic
from typing import Any, NamedTuple

import zmq

from kvstore_core.errors import KvError
from kvstore_daemon.access.authority import Authority
from kvstore_daemon.bind import Context, bind, remove_socket_file
from kvstore_daemon.peer_limits.connections import ConnectionLimit
from kvstore_daemon.peer_limits.incoming import IncomingLimit, part_header
from kvstore_daemon.peer_limits.peer import UNKNOWN, Peer

Frames = list[bytes]

REQUEST_FRAMES = 2

MAX_ENVELOPE_FRAMES = 10
"""The sender's identity, eight frames that it chose, and the empty one (protocol section 2)."""

MAX_ENVELOPE_BYTES = 4096
"""Of the frames that the sender chose together. They are kept as long as the request waits for its reply."""

REQUEST_QUEUE = 128
"""Whole messages of each peer that libzmq keeps for us."""

ZERO_COPY_BYTES = 64 * 1024
"""Frames of replies from this size on are not copied."""

# plain integers: pyzmq's enums take longer to combine than the socket takes to receive
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_NOBLOCK, _MORE_FOLLOWS = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_SOURCE = int(zmq.SRCFD)
_USER_ID = "User-Id"


def make_identities_unpredictable() -> None:
    """To be called before the first context. libzmq numbers the peers of a ROUTER from a random number of
    the C library on, and never seeds that: every daemon began with 1804289383. A peer that claimed one of the
    next numbers as its identity ended the daemon, by an assertion, when an ordinary client connected."""
    ctypes.CDLL(None).srand(secrets.randbits(32))


class RequestMessage(NamedTuple):
    """One message as it was received. ``envelope`` are the frames up to the empty one, along which the reply
    goes back; ``frames`` are those of the request behind it, of too many the first few that show it, of a
    message that is no request none. ``size`` is the bytes of both, ``received_at`` when it was received, by
    the monotonic clock."""

    peer: Peer
    envelope: Frames
    frames: Frames
    size: int
    received_at: float


class RouterSocket:
    """The requests address: a ROUTER that keeps to the rules of REP (ZeroMQ RFC 28).

    Its descriptor is edge-triggered inside ØMQ: it becomes readable once when the socket's state
    changes, and any call may consume that. So :meth:`has_message` is to be asked whenever the loop is
    about to sleep.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        max_frame_bytes: int,
        limit: ConnectionLimit,
        authority: Authority,
    ) -> None:
        """Bind; raises ``unavailable`` as :func:`bind` does."""
        socket = context.socket(zmq.ROUTER)
        # a larger frame ends its sender's connection
        socket.maxmsgsize = max_frame_bytes
        # What is not received yet waits with its sender, where TCP bounds it.
        socket.rcvhwm = REQUEST_QUEUE
        # Replies are counted in bytes, by peer: see Peer.
        socket.sndhwm = 0
        socket.copy_threshold = 0
        # A reply to a peer that has gone fails, which shows that the peer has gone.
        socket.router_mandatory = True
        # ROUTER_HANDOVER stays off: with it, a peer that claims another's identity gets its replies.
        self._peers: dict[bytes, Peer] = {}
        self._by_descriptor: dict[int, Peer] = {}
        self._owed: set[Peer] = set()
        """The peers that have not taken all replies."""
        self.untaken = 0
        """The bytes of replies that peers have not taken yet."""
        self.endpoint, self._connections = bind(context, socket, "requests", endpoint, limit, authority)
        self._socket = socket
        # the form of the base class: pyzmq's own adds only what ROUTERs have no use for
        self._send: Callable[..., Any] = super(zmq.Socket, socket).send
        self._authority = authority
        self._has_keys = authority.is_on
        self._part_header = part_header(is_curve=authority.is_on)
        self.incoming = IncomingLimit(
            self._connections, self._by_descriptor.get, max_frame_bytes, is_curve=authority.is_on
        )

    def monitor_fileno(self) -> int:
        """The descriptor to watch for :meth:`note_connections`."""
        return self._connections.fileno()

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    def has_message(self) -> bool:
        """Whether something can be received now."""
        events: int = self._socket.getsockopt(_EVENTS)  # type: ignore[assignment]
        return events & _POLLIN != 0

    def receive(self) -> RequestMessage | None:
        """The next message, or None if there is none now.

        The envelope of a message that is no request is the sender's identity and the empty frame: a reply
        along it is the most likely to be seen.
        """
        receive = self._socket.recv
        try:
            identity: bytes = receive(_NOBLOCK)
        except zmq.Again:
            return None
        # Behind an identity there is always more. Frames that are not copied know whether more follow; to ask
        # the socket takes a third longer.
        frame: zmq.Frame = receive(_NOBLOCK, copy=False)
        envelope: Frames = [identity]
        peer = self._peers.get(identity) or self._new_peer(identity, frame)
        # A connection that ended may still be known here, and its identity be that of another user by now.
        if self._has_keys and peer.user_id != frame.get(_USER_ID):
            peer = self._new_peer(identity, frame)
        frames: Frames = []
        left = MAX_ENVELOPE_BYTES
        is_enclosed = True
        handed_over, part_header = 0, self._part_header
        while True:
            size = len(frame)
            handed_over += part_header + size
            if not is_enclosed:
                if len(frames) <= REQUEST_FRAMES:
                    frames.append(frame.bytes)
            else:
                left -= size
                if len(envelope) < MAX_ENVELOPE_FRAMES and left >= 0:
                    envelope.append(frame.bytes)
                    is_enclosed = size > 0
            if not frame.more:
                break
            frame = receive(_NOBLOCK, copy=False)
        peer.handed_over += handed_over
        if not frames:
            del envelope[1:]
            envelope.append(b"")
        size = sum(map(len, frames)) + sum(map(len, envelope))
        return RequestMessage(peer, envelope, frames, size, monotonic())

    def _new_peer(self, identity: bytes, frame: zmq.Frame) -> Peer:
        """The peer whose first message begins with ``frame``."""
        self.note_connections()
        try:
            descriptor = int(frame.get(_SOURCE))
        except zmq.ZMQError:
            descriptor = UNKNOWN
        peer = Peer(identity, descriptor, str(frame.get(_USER_ID)) if self._has_keys else "")
        if descriptor not in self._connections.open:
            peer.is_gone = True
            return peer
        # a connection had this descriptor before, and a message of it was received after its end
        former = self._by_descriptor.get(descriptor)
        if former is not None:
            self._forget(former)
        self._peers[identity] = self._by_descriptor[descriptor] = peer
        return peer

    def note_connections(self) -> None:
        """Take note of connections that began, and of those that ended: ``is_gone`` is set on their peers."""
        begun, ended = self._connections.take()
        for descriptor in ended:
            self.incoming.end(descriptor)
            peer = self._by_descriptor.get(descriptor)
            if peer is not None:
                self._forget(peer)
        for descriptor in begun:
            if descriptor in self._connections.open:
                self.incoming.begin(descriptor)

    def _forget(self, peer: Peer) -> None:
        self._mark_gone(peer)
        del self._by_descriptor[peer.descriptor]
        if self._peers.get(peer.identity) is peer:
            del self._peers[peer.identity]

    def _mark_gone(self, peer: Peer) -> None:
        peer.is_gone = True
        self._owed.discard(peer)
        self.untaken -= peer.untaken
        peer.untaken = 0

    def access_changed(self) -> None:
        """Close the connections of those whose key is no longer good. What others may do is asked with each
        of their requests."""
        for peer in list(self._by_descriptor.values()):
            try:
                self._authority.principal_of(peer.user_id)
            except KvError:
                self._mark_gone(peer)
                self._connections.shut(peer.descriptor)

    def cut_off(self, peer: Peer) -> None:
        """Close the connection of a peer and drop the replies that wait for it. The peer counts as gone from
        now on, whatever may still come from it."""
        self._mark_gone(peer)
        self._connections.cut_off(peer.descriptor)

    def count_all_taken(self) -> None:
        """Find out what peers have taken."""
        for peer in list(self._owed):
            self.count_taken(peer)

    def count_taken(self, peer: Peer) -> None:
        """Find out what a peer has taken."""
        self.untaken -= peer.count_taken()
        if not peer.untaken:
            self._owed.discard(peer)

    def most_stuck(self) -> Peer | None:
        """Of the peers that have something to take, the one that has taken nothing for the longest."""
        return min(self._owed, key=attrgetter("stuck_since"), default=None)

    def reply(self, peer: Peer, envelope: Frames, frames: Frames) -> int:
        """Send a reply along ``envelope``; returns its size in bytes. Never waits; what cannot be sent at
        once is kept until the peer takes it, or is gone."""
        size = sum(map(len, frames)) + sum(map(len, envelope))
        if peer.descriptor == UNKNOWN:  # what it does not take could not be counted
            return size
        send = self._send
        try:
            for frame in envelope:
                send(frame, _MORE_FOLLOWS)
        except zmq.ZMQError:  # the peer has gone
            return size
        *first, last = frames
        for frame in first:
            send(frame, _MORE_FOLLOWS, copy=len(frame) < ZERO_COPY_BYTES)
        if peer.wants_mark(size):
            tracker = send(last, _NOBLOCK, copy=False, track=True)
            self.count_taken(peer)
            if not peer.is_gone:
                self.untaken += peer.mark(tracker)
                self._owed.add(peer)
        else:
            send(last, _NOBLOCK, copy=len(last) < ZERO_COPY_BYTES)
        return size

    def close(self) -> None:
        """Close the socket; replies already sent still go out, for ``FLUSH_MS``."""
        self.incoming.close()
        self._socket.close()
        self._connections.close()
        remove_socket_file(self.endpoint)
