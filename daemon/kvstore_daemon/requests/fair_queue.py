"""Whose request is worked on next: peers take turns, and one that does not take its replies has to wait.

A ROUTER hands out messages of all peers in turn, but cannot leave those of one peer waiting. So requests
that cannot be worked on yet wait here, by peer, and count as pending. When there is no room for more of
them, all peers wait with what they send. That is right as long as the requests here are worked on; a peer
that fills the room and takes no replies is cut off."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from kvstore_core.process.logging import RateLimitedLog
from kvstore_daemon.event_loop import Loop
from kvstore_daemon.peer_limits.peer import WINDOW_BYTES, Peer
from kvstore_daemon.requests.pending_request import PendingRequest
from kvstore_daemon.requests.router_socket import RequestMessage, RouterSocket
from kvstore_daemon.status import Counters

log = logging.getLogger("kvstore.daemon")

PENDING_BYTES = 64 * 1024 * 1024
"""Of all pending requests, those that were received and not answered yet; with more, the next ones wait with
their senders."""

SLICE_SECONDS = 0.002
"""How long one turn of the loop works on what can be done in parts, before it looks for new requests."""

REPLIES_BYTES = 256 * 1024 * 1024
"""Of replies that are being made or were not taken yet, of all peers. Beyond it, the peer that has taken
nothing for the longest is cut off, and long reads are done one after another."""

STUCK_SECONDS = 0.25
"""A peer that has taken nothing for so long is cut off if its requests take the room that others need."""

SHARE = 4
"""Of the requests that may be pending, by number or bytes, the part that a peer may fill with those that
wait until it takes some replies; further ones are refused."""

SHORTEST_CHECK, LONGEST_CHECK = 0.001, 0.05
"""Seconds between two checks whether the peers that were set aside have taken some replies."""


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


class _PeerQueue:
    """What a peer has asked for and waits for; exists only while there is something."""

    __slots__ = ("making", "peer", "reading", "reads_next", "waiting", "waiting_bytes")

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.waiting: deque[RequestMessage] = deque()
        """Requests that nothing was done for yet."""
        self.waiting_bytes = 0
        self.reading: deque[PendingRequest] = deque()
        """Requests whose reads have begun and did not fit into a slice."""
        self.making = 0
        """The bytes of their replies so far."""
        self.reads_next = False


class FairQueue:
    """The requests that wait to be begun, and those whose reads did not fit into a slice; used by the loop's
    thread only."""

    def __init__(
        self,
        loop: Loop,
        socket: RouterSocket,
        pending: PendingLimit,
        counters: Counters,
        begin: Callable[[RequestMessage], None],
        proceed: Callable[[PendingRequest], None],
    ) -> None:
        """At a peer's turn, ``begin`` is called for a request, or ``proceed`` for one whose reads have
        begun."""
        self._socket = socket
        self._pending = pending
        self._counters = counters
        self._begin = begin
        self._proceed = proceed
        self._queues: dict[Peer, _PeerQueue] = {}
        self._turns: deque[_PeerQueue] = deque()
        self._set_aside: dict[Peer, _PeerQueue] = {}
        self._postponed: deque[PendingRequest] = deque()
        self._check = loop.timer(self._check_set_aside)
        self._check_seconds = SHORTEST_CHECK
        self._warned = RateLimitedLog(log)
        self.making = 0
        """The bytes of replies in the making, without the one that is worked on."""

    def has_work(self) -> bool:
        """Whether there is something that can be worked on now."""
        return bool(self._turns) or self._can_resume_postponed()

    # ── what waits ───────────────────────────────────────────────────────────────────────────────

    def is_open_to(self, peer: Peer) -> bool:
        """Whether a request of ``peer`` may be begun at once: nothing waits, and it takes its replies."""
        return not self._turns and peer not in self._queues and peer.untaken < WINDOW_BYTES

    def is_full_for(self, peer: Peer) -> bool:
        """Whether ``peer`` does not take its replies, and its share of pending requests waits already."""
        queue, pending = self._set_aside.get(peer), self._pending
        return queue is not None and (
            len(queue.waiting) >= max(1, pending.max_requests // SHARE)
            or queue.waiting_bytes >= PENDING_BYTES // SHARE
        )

    def add(self, message: RequestMessage) -> None:
        """Let a request wait for its peer's turn."""
        queue = self._queue_of(message.peer)
        queue.waiting.append(message)
        queue.waiting_bytes += message.size

    def add_reading(self, request: PendingRequest) -> None:
        """Let a request whose reads are not done wait for its peer's next turn. If all replies in the making
        are too large together, its reads are begun again later."""
        if self.making > REPLIES_BYTES:
            request.restart_reads()
            self._postponed.append(request)
            return
        queue = self._queue_of(request.peer)
        self._count(queue, request.held)
        if queue.making < WINDOW_BYTES:
            queue.reading.append(request)
        else:  # finish the one that is furthest
            queue.reading.appendleft(request)

    def restart_reads(self) -> None:
        """Begin all reads again that have begun."""
        for queue in self._queues.values():
            self._count(queue, -queue.making)
            for request in queue.reading:
                request.restart_reads()
                self._count(queue, request.held)

    def _queue_of(self, peer: Peer) -> _PeerQueue:
        queue = self._queues.get(peer)
        if queue is None:
            queue = self._queues[peer] = _PeerQueue(peer)
            self._schedule(queue)
        return queue

    def _schedule(self, queue: _PeerQueue) -> None:
        """Give the peer a turn, or set it aside until it has taken some replies."""
        peer = queue.peer
        if peer.untaken >= WINDOW_BYTES:
            self._socket.count_taken(peer)
        if peer.untaken < WINDOW_BYTES:
            self._turns.append(queue)
            return
        self._set_aside[peer] = queue
        if self._check.at is None:
            self._check.set(self._check_seconds)

    def _count(self, queue: _PeerQueue, size: int) -> None:
        queue.making += size
        self.making += size

    # ── turns ────────────────────────────────────────────────────────────────────────────────────

    def work(self) -> None:
        """Give peers their turns, for a slice of time."""
        deadline = time.monotonic() + SLICE_SECONDS
        if self._can_resume_postponed():
            request = self._postponed.popleft()
            self._queue_of(request.peer).reading.append(request)
        turns = self._turns
        while turns:
            queue = turns.popleft()
            self._serve(queue)
            self._reschedule(queue)
            if time.monotonic() > deadline:
                break

    def _can_resume_postponed(self) -> bool:
        return bool(self._postponed) and self.making < REPLIES_BYTES // 2

    def _serve(self, queue: _PeerQueue) -> None:
        peer = queue.peer
        if peer.is_gone:
            self._drop_reading(queue)
        is_full = peer.untaken + queue.making >= WINDOW_BYTES
        if queue.reading and (is_full or queue.reads_next or not queue.waiting):
            queue.reads_next = False
            request = queue.reading.popleft()
            self._count(queue, -request.held)
            self._proceed(request)
        elif queue.waiting:
            queue.reads_next = True
            message = queue.waiting.popleft()
            queue.waiting_bytes -= message.size
            self._begin(message)

    def _reschedule(self, queue: _PeerQueue) -> None:
        if queue.waiting or queue.reading:
            self._schedule(queue)
        else:
            del self._queues[queue.peer]

    def _check_set_aside(self) -> None:
        """Give a turn to the peers that have taken some replies, or have gone."""
        queues = list(self._set_aside.values())
        self._set_aside.clear()
        for queue in queues:
            self._reschedule(queue)
        is_moving = len(self._set_aside) < len(queues)
        self._check_seconds = SHORTEST_CHECK if is_moving else min(2 * self._check_seconds, LONGEST_CHECK)
        if self._set_aside:
            self._check.set(self._check_seconds)

    # ── peers that do not take their replies ─────────────────────────────────────────────────────

    def cut_off_stuck(self) -> None:
        """Cut off peers that take no replies, if what is kept for them takes the room that others need."""
        socket = self._socket
        if socket.untaken > REPLIES_BYTES:
            socket.count_all_taken()
            while socket.untaken > REPLIES_BYTES and (peer := socket.most_stuck()):
                self._cut_off(peer)
        if self._set_aside and not self._pending.has_room():
            before = time.monotonic() - STUCK_SECONDS
            for peer in sorted(self._set_aside, key=lambda peer: peer.stuck_since):
                if self._pending.has_room() or peer.stuck_since > before:
                    break
                self._cut_off(peer)

    def _cut_off(self, peer: Peer) -> None:
        queue = self._queues.get(peer) or _PeerQueue(peer)
        self._warned.warning(
            "closed the connection of a peer that does not read its replies: %d requests and %d bytes of "
            "replies waited for it",
            len(queue.waiting) + len(queue.reading),
            peer.untaken + queue.making,
        )
        self._socket.cut_off(peer)
        self._drop_reading(queue)
        for message in queue.waiting:
            self._drop(message.size)
        queue.waiting.clear()
        queue.waiting_bytes = 0

    def _drop_reading(self, queue: _PeerQueue) -> None:
        """Drop the reads of a peer that has gone. Not its writes: it may have closed its connection because
        it was sure that the request would arrive."""
        for request in queue.reading:
            self._count(queue, -request.held)
            self._drop(request.size)
        queue.reading.clear()

    def _drop(self, size: int) -> None:
        self._counters.requests_dropped += 1
        self._pending.remove(size)
