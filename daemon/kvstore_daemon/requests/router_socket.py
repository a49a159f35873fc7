"""The sockets of the daemon: binding an endpoint, and the request address.

Everything here is used by the loop's thread only.

Requests come to one ROUTER that does what a REP socket does, for any number of requests at once: it
keeps each one's envelope and answers along it. A pool of REP sockets behind ``zmq_proxy`` was here
before, and cost more: the proxy deals requests out in turns, also to a REP that waits for a sync, so it
took hundreds of them, and every message crossed one thread more. CPU for a request's way in and out,
measured with an echo: 18 µs against 34 at 32 REQ clients, 14 against 25 at 256 requests of a DEALER; a
lone round trip took 110 µs against 190.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import socket as plain_socket
import stat
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import zmq

from kvstore_core.errors import KvError
from kvstore_core.process.address_in_use import patiently
from kvstore_daemon.peer_limits.connections import ConnectionLimit, Connections
from kvstore_daemon.peer_limits.incoming import PART_HEADER, IncomingLimit
from kvstore_daemon.peer_limits.peer import UNKNOWN, Peer

Frames = list[bytes]

FLUSH_MS = 1_000
"""How long a closing socket may take to hand the last replies or changes to the network."""

REQUEST_FRAMES = 2
MAX_ENVELOPE_FRAMES = 10
"""The sender's identity, eight frames of its own, and the empty one (protocol section 2)."""
MAX_ENVELOPE_BYTES = 4096
"""Of the sender's own frames together. They are kept for as long as the request waits for its reply."""
HANDSHAKE_MS = 5_000
"""How long a connection may take until both sides have said who they are (libzmq's default is 30 s)."""
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 15, 5, 3
"""Seconds, and how often: a peer that vanished without a word is known to be gone after half a minute, and
an identity that it chose is free again."""
UNTAKEN_MS = 30_000
"""The same where something was on its way to the peer, which TCP would repeat for a quarter of an hour; and
for one that is there but takes nothing at all from its full buffers for so long."""
REQUEST_QUEUE = 128
ZERO_COPY_BYTES = 64 * 1024

# plain integers: pyzmq's enums take longer to combine than the socket takes to receive
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)
_SOURCE = int(zmq.SRCFD)


def make_identities_unpredictable() -> None:
    """To be called before the first context. libzmq numbers the peers of a ROUTER from a random number of
    the C library's on, and never seeds that: every daemon began with 1804289383. Whoever claimed one of the
    next numbers for itself ended the daemon, by an assertion, when an ordinary client came to it."""
    ctypes.CDLL(None).srand(secrets.randbits(32))


def listen(socket: zmq.Socket[bytes], endpoint: str, option: str) -> str:
    """Bind ``socket`` and return the endpoint it got, with the real port where 0 was asked for.

    Raises ``unavailable`` with a sentence that names ``option`` if the endpoint cannot be used.
    """
    _leave_to_its_owner(endpoint, option)
    # Only for an address written with brackets: with IPv6 on, a plain 127.0.0.1 becomes ::ffff:127.0.0.1
    # in everything that is reported.
    socket.ipv6 = "[" in endpoint
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT)
    socket.setsockopt(zmq.TCP_MAXRT, UNTAKEN_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise _cannot_listen(endpoint, _reason(error), option) from error
    bound: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
    return bound.decode()


def forget(endpoint: str) -> None:
    """Remove what :func:`listen` made in the file system; libzmq does not."""
    path = _socket_path(endpoint)
    if path is not None:
        with suppress(OSError):
            Path(path).unlink()


def _socket_path(endpoint: str) -> str | None:
    """The path of an ``ipc://`` endpoint; None of one that is no file (abstract names begin with @)."""
    scheme, _, path = endpoint.partition("://")
    return path if scheme == "ipc" and not path.startswith(("@", "*")) else None


def _cannot_listen(endpoint: str, reason: str, option: str) -> KvError:
    return KvError(
        "unavailable", f"cannot listen on {endpoint}: {reason}; choose another address with {option}"
    )


def _reason(error: zmq.ZMQError) -> str:
    # not the error's own text, in which pyzmq may name the endpoint once more
    reason = zmq.strerror(error.errno or 0).lower()
    return f"{reason}, perhaps by another kvstore" if error.errno == zmq.EADDRINUSE else reason


def _leave_to_its_owner(endpoint: str, option: str) -> None:
    """Raise ``unavailable`` if an ``ipc://`` path is somebody's: libzmq removes whatever is there before
    it binds, a living daemon's socket and a file that is none too. What a crash left may be removed."""
    path = _socket_path(endpoint)
    if path is None:
        return
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise _cannot_listen(endpoint, "there is a file that is no socket", option)
        is_alive = _accepts_connections(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_listen(endpoint, str(error.strerror).lower(), option) from error
    if is_alive:
        in_use = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        raise _cannot_listen(
            endpoint, "address in use, perhaps by another daemon: stop that one", option
        ) from in_use


def _accepts_connections(path: str) -> bool:
    """Whether a process listens on the socket at ``path``."""
    with plain_socket.socket(plain_socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # more connections wait for it than it allows
            return True
    return True


class RequestMessage(NamedTuple):
    """One request: the frames that lead back to its sender, up to the empty one, and those it consists
    of; of a request with too many, the first few that show it; of a message that is no request, none."""

    peer: Peer
    envelope: Frames
    frames: Frames

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(map(len, self.frames)) + sum(map(len, self.envelope))


class RouterSocket:
    """The request address: a ROUTER that keeps to the rules of REP (ZeroMQ RFC 28).

    Its descriptor is edge-triggered inside ØMQ: it becomes readable once when the socket's state
    changes, and any call may consume that. So :meth:`has_request` is to be asked whenever the loop is
    about to sleep.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        max_frame_bytes: int,
        room: ConnectionLimit,
    ) -> None:
        """Bind; raises ``unavailable`` as :func:`listen` does."""
        socket = context.socket(zmq.ROUTER)
        socket.linger = FLUSH_MS
        # a larger frame ends its sender's connection
        socket.maxmsgsize = max_frame_bytes
        # What is not received yet waits with its sender, where TCP bounds it.
        socket.rcvhwm = REQUEST_QUEUE
        # Replies are counted in bytes, by peer: see Peer.
        socket.sndhwm = 0
        socket.copy_threshold = 0
        # A reply to a peer that has gone fails, so that its peer is known to be gone.
        socket.router_mandatory = True
        # ROUTER_HANDOVER stays off: with it, whoever names another's identity gets its replies.
        self._connections = Connections(context, socket, "requests", room)
        self._peers: dict[bytes, Peer] = {}
        self._by_descriptor: dict[int, Peer] = {}
        self._indebted: set[Peer] = set()
        self.untaken = 0
        """The bytes of replies that peers have not taken yet."""
        try:
            self.endpoint = patiently(partial(listen, socket, endpoint, "--requests"))
        except KvError:
            socket.close(0)
            self._connections.close()
            raise
        self._socket = socket
        self.intake = IncomingLimit(self._connections, self._by_descriptor.get, max_frame_bytes)

    def monitor_fileno(self) -> int:
        """The descriptor that tells of connections, for :meth:`notice_gone`."""
        return self._connections.fileno()

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    def has_request(self) -> bool:
        """Whether something can be received now."""
        events: int = self._socket.getsockopt(_EVENTS)  # type: ignore[assignment]
        return events & _POLLIN != 0

    def receive(self) -> RequestMessage | None:
        """The next request, or None if there is none now.

        A message that is no request has no frames in what is returned, and an envelope of the sender's
        identity and the empty frame: that is where an answer is most likely to be seen.
        """
        receive = self._socket.recv
        try:
            # Frames that are not copied know whether more follow; to ask the socket takes a third longer.
            frame: zmq.Frame = receive(_NOBLOCK, copy=False)
        except zmq.Again:
            return None
        envelope: Frames = [identity := frame.bytes]
        peer = self._peers.get(identity) or self._meet(identity, frame)
        frames: Frames = []
        room = MAX_ENVELOPE_BYTES
        is_enclosed = True
        handed_over = 0
        while frame.more:
            frame = receive(_NOBLOCK, copy=False)
            handed_over += PART_HEADER + len(frame)
            if not is_enclosed:
                if len(frames) <= REQUEST_FRAMES:
                    frames.append(frame.bytes)
                continue
            room -= len(frame)
            if len(envelope) < MAX_ENVELOPE_FRAMES and room >= 0:
                envelope.append(frame.bytes)
                is_enclosed = len(frame) > 0
        peer.handed_over += handed_over
        if not frames:
            del envelope[1:]
            envelope.append(b"")
        return RequestMessage(peer, envelope, frames)

    def _meet(self, identity: bytes, frame: zmq.Frame) -> Peer:
        """The peer whose first message begins with ``frame``, if it is still there."""
        self.notice_gone()
        try:
            descriptor = int(frame.get(_SOURCE))
        except zmq.ZMQError:
            descriptor = UNKNOWN
        peer = Peer(identity, descriptor)
        if descriptor not in self._connections.open:
            peer.is_gone = True
            return peer
        # Of the connection that had this descriptor before, something was received after its end.
        former = self._by_descriptor.get(descriptor)
        if former is not None:
            self._lose(former)
        self._peers[identity] = self._by_descriptor[descriptor] = peer
        return peer

    def notice_gone(self) -> None:
        """Take note of connections that began, and of those that ended: ``is_gone`` is set on their peers."""
        begun, ended = self._connections.take()
        for descriptor in ended:
            self.intake.end(descriptor)
            peer = self._by_descriptor.get(descriptor)
            if peer is not None:
                self._lose(peer)
        for descriptor in begun:
            if descriptor in self._connections.open:
                self.intake.begin(descriptor)

    def _lose(self, peer: Peer) -> None:
        self._give_up(peer)
        del self._by_descriptor[peer.descriptor]
        if self._peers.get(peer.identity) is peer:
            del self._peers[peer.identity]

    def _give_up(self, peer: Peer) -> None:
        peer.is_gone = True
        self._indebted.discard(peer)
        self.untaken -= peer.untaken
        peer.untaken = 0

    def cut_off(self, peer: Peer) -> None:
        """Close the connection of a peer and drop the replies that wait for it. What may still come from
        it until that has happened comes from a peer that is gone."""
        self._give_up(peer)
        self._connections.cut_off(peer.descriptor)

    def settle_all(self) -> None:
        """Find out what peers have taken."""
        for peer in list(self._indebted):
            self.settle(peer)

    def settle(self, peer: Peer) -> None:
        """Find out what a peer has taken."""
        self.untaken -= peer.settle()
        if not peer.untaken:
            self._indebted.discard(peer)

    def most_stuck(self) -> Peer | None:
        """Of the peers that have something to take, the one that has taken nothing for the longest."""
        return min(self._indebted, key=_stuck_since, default=None)

    def reply(self, peer: Peer, envelope: Frames, frames: Frames) -> int:
        """Answer the request that came from ``peer`` with ``envelope``; returns the reply's size. Never
        waits; what cannot be sent at once is kept until the peer takes it, or is gone."""
        size = sum(map(len, frames)) + sum(map(len, envelope))
        if peer.descriptor == UNKNOWN:  # what it does not take could not be counted
            return size
        send = self._socket.send
        try:
            for frame in envelope:
                send(frame, _NOBLOCK | _SNDMORE)
        except zmq.ZMQError:  # there is no such peer any more
            return size
        *first, last = frames
        for frame in first:
            send(frame, _NOBLOCK | _SNDMORE, copy=len(frame) < ZERO_COPY_BYTES)
        if peer.wants_mark(size):
            tracker = send(last, _NOBLOCK, copy=False, track=True)
            self.settle(peer)
            if not peer.is_gone:
                self.untaken += peer.mark(tracker)
                self._indebted.add(peer)
        else:
            send(last, _NOBLOCK, copy=len(last) < ZERO_COPY_BYTES)
        return size

    def close(self) -> None:
        """Close the socket; replies already given still go out, for a while."""
        self.intake.close()
        self._socket.close()
        self._connections.close()
        forget(self.endpoint)


_stuck_since = attrgetter("stuck_since")
