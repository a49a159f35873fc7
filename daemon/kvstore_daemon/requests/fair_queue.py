"""Whose request is worked on next: peers take turns, and nothing is read for who does not take its replies.

A ROUTER hands out what came from everybody in turns, but cannot leave one peer's messages waiting. So what
is not to be done yet waits here, by peer, and counts as pending. While there is no room for more of that,
all peers wait with what they send, which is as it should be as long as their requests are worked on; who
keeps the room and takes no replies is cut off.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Protocol

from kvstore_core.process.logging import RateLimitedLog
from kvstore_daemon.event_loop import Loop, Timer
from kvstore_daemon.peer_limits.peer import WINDOW_BYTES, Peer
from kvstore_daemon.requests.pending_request import PendingRequest
from kvstore_daemon.requests.router_socket import RequestMessage, RouterSocket
from kvstore_daemon.status import Counters, Status
from kvstore_daemon.storage.interface import Engine

log = logging.getLogger("kvstore.daemon")

SLICE_SECONDS = 0.002
"""How long one turn of the loop works on what can be done in parts, before it looks for new requests."""

REPLIES_BYTES = 256 * 1024 * 1024
"""Of replies that are being made or were not taken yet, of all peers. Beyond it, who has taken nothing for
the longest is cut off, and long reads are done one after another."""

STUCK_SECONDS = 0.25
"""Who has taken nothing for so long is cut off where its requests take the room that others need."""

SHARE = 4
"""Of the requests that may be pending, by number or bytes, the part that a peer may fill with those that
wait until it takes some replies; further ones are refused."""

SHORTEST_LOOK, LONGEST_LOOK = 0.001, 0.05
"""Seconds from one look at whether a peer that was set aside has taken some replies to the next."""


class Work(Protocol):
    """What is done with requests, and how much room there is for more."""

    def begin(self, received: RequestMessage) -> None:
        """Work on a request that was received."""

    def go_on(self, exchange: PendingRequest) -> None:
        """Do reads that were begun, and hand the request back to :meth:`FairQueue.read` for that."""

    def drop(self, size: int) -> None:
        """Forget a request of so many bytes, whose peer has gone."""

    def has_room(self) -> bool:
        """Whether another request may be received."""


class FairQueue:
    """The requests that wait to be begun, and reads that did not fit into a slice; used by the loop's
    thread only."""

    def __init__(self, loop: Loop, requests: RouterSocket, counters: Counters, work: Work) -> None:
        self._requests = requests
        self._counters = counters
        self._work = work
        self._turns: deque[Peer] = deque()
        self._set_aside: dict[Peer, None] = {}
        self._long: deque[PendingRequest] = deque()
        self._making = 0
        self._look: Timer = loop.timer(self._look_again)
        self._pause = SHORTEST_LOOK
        self._cut = RateLimitedLog(log)

    def __bool__(self) -> bool:
        """Whether there is something that can be worked on now."""
        return bool(self._turns) or self._may_go_on_with_long()

    @property
    def making(self) -> int:
        """The bytes of replies in the making."""
        return self._making

    def is_open_to(self, peer: Peer) -> bool:
        """Whether a request of ``peer`` may be begun at once: nothing waits, and it takes its replies."""
        return not self._turns and not peer.in_turn and peer.untaken < WINDOW_BYTES

    def add(self, received: RequestMessage) -> None:
        """Let a request wait for its peer's turn."""
        peer = received.peer
        peer.waiting.append(received)
        peer.waiting_bytes += received.size
        self._give_turn(peer)

    def is_over(self, peer: Peer, count: int, size: int) -> bool:
        """Whether a peer that does not take its replies has its share of ``count`` requests and ``size``
        bytes waiting already."""
        return peer in self._set_aside and (
            len(peer.waiting) >= max(1, count // SHARE) or peer.waiting_bytes >= size // SHARE
        )

    def read(self, exchange: PendingRequest, engine: Engine, status: Status) -> bool:
        """Do the reads of a request for a slice of time; whether all are done. If not, the request waits
        for its peer's next turn."""
        peer, before = exchange.peer, exchange.held
        is_done = False
        try:
            is_done = exchange.read(engine, status, time.monotonic() + SLICE_SECONDS)
        finally:
            self._count(peer, -before)
        if is_done:
            return True
        if self._making > REPLIES_BYTES:
            exchange.read_anew()
            self._long.append(exchange)
            return False
        self._count(peer, exchange.held)
        if peer.making < WINDOW_BYTES:
            peer.reading.append(exchange)
        else:  # what is nearest to its end goes first
            peer.reading.appendleft(exchange)
        self._give_turn(peer)
        return False

    def _count(self, peer: Peer, size: int) -> None:
        peer.making += size
        self._making += size

    def work(self) -> None:
        """Give peers their turns, for a slice of time."""
        deadline = time.monotonic() + SLICE_SECONDS
        if self._may_go_on_with_long():
            exchange = self._long.popleft()
            exchange.peer.reading.append(exchange)
            self._give_turn(exchange.peer)
        turns = self._turns
        while turns:
            peer = turns.popleft()
            peer.in_turn = False
            self._serve(peer)
            self._give_turn(peer)
            if time.monotonic() > deadline:
                break

    def _may_go_on_with_long(self) -> bool:
        return bool(self._long) and self._making < REPLIES_BYTES // 2

    def _serve(self, peer: Peer) -> None:
        if peer.is_gone:
            self._drop_reads(peer)
        is_full = peer.untaken + peer.making >= WINDOW_BYTES
        if peer.reading and (is_full or peer.reads_next or not peer.waiting):
            peer.reads_next = False
            self._work.go_on(peer.reading.popleft())
        elif peer.waiting:
            peer.reads_next = True
            received = peer.waiting.popleft()
            peer.waiting_bytes -= received.size
            self._work.begin(received)

    def _give_turn(self, peer: Peer) -> None:
        if peer.in_turn or not peer.has_work():
            return
        peer.in_turn = True
        if peer.untaken >= WINDOW_BYTES and not peer.is_gone:
            self._requests.settle(peer)
        if peer.untaken < WINDOW_BYTES:
            self._turns.append(peer)
            return
        self._set_aside[peer] = None
        if self._look.at is None:
            self._look.set(self._pause)

    def _look_again(self) -> None:
        """Give those their turns again that have taken some replies, or are gone."""
        peers = list(self._set_aside)
        self._set_aside.clear()
        for peer in peers:
            peer.in_turn = False
            self._give_turn(peer)
        is_moving = len(self._set_aside) < len(peers)
        self._pause = SHORTEST_LOOK if is_moving else min(2 * self._pause, LONGEST_LOOK)
        if self._set_aside:
            self._look.set(self._pause)

    # ── those who do not take their replies ──────────────────────────────────────────────────────

    def relieve(self) -> None:
        """Cut off who takes no replies, where what is kept for it is in others' way."""
        requests = self._requests
        if requests.untaken > REPLIES_BYTES:
            requests.settle_all()
            while requests.untaken > REPLIES_BYTES and (peer := requests.most_stuck()):
                self._cut_off(peer)
        if self._set_aside and not self._work.has_room():
            before = time.monotonic() - STUCK_SECONDS
            for peer in sorted(self._set_aside, key=lambda peer: peer.stuck_since):
                if self._work.has_room() or peer.stuck_since > before:
                    break
                self._cut_off(peer)

    def _cut_off(self, peer: Peer) -> None:
        self._cut.warning(
            "closed the connection of a peer that does not take its replies: %d requests and %d bytes of "
            "replies waited for it",
            len(peer.waiting) + len(peer.reading),
            peer.untaken + peer.making,
        )
        self._requests.cut_off(peer)
        self._drop_reads(peer)
        for received in peer.waiting:
            self._drop(received.size)
        peer.waiting.clear()
        peer.waiting_bytes = 0

    def _drop_reads(self, peer: Peer) -> None:
        """Forget what a peer that has gone wanted to read. What it wrote is another matter: it may have
        closed its connection because it was sure that the request would arrive."""
        for exchange in peer.reading:
            self._count(peer, -exchange.held)
            self._drop(exchange.size)
        peer.reading.clear()

    def _drop(self, size: int) -> None:
        self._counters.requests_dropped += 1
        self._work.drop(size)
