"""One ordered way through the changes: PUB and the log joined, and the last part of it remembered."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Protocol

import gevent

from kvstore_core.errors import KvError
from kvstore_core.follower import Batch, Follower, LogPage
from kvstore_core.model import Cursor
from kvstore_core.operations import MAX_PAGE
from kvstore_core.wire import Heartbeat, PublishedEvent, Reply
from kvstore_http.greenlet_pool import GreenletPool

RETRY_SECONDS = 0.2
RECENT_EVENTS = 8192
RECENT_BYTES = 8 * 1024 * 1024


class Asks(Protocol):
    """Whoever sends a request to the daemon and waits for the whole reply."""

    def read_in_background(self, ops: Sequence[dict[str, Any]]) -> Reply:
        """The reply, also of a daemon that has much to do; raises the KvError that refused the request."""


class Listener(Protocol):
    """Who a track delivers to. Neither method may wait."""

    def deliver(self, track: Track, batches: list[Batch]) -> None:
        """The next changes, whole revisions; ``track.cursor`` stands after them."""

    def reset(self, track: Track, reason: str, floor: int) -> None:
        """What came before has no continuation; ``track.cursor`` is where a new one begins.
        ``reason`` is ``expired`` or ``epoch``."""


class Track:
    """Every change after the start, in order, each once, as whole revisions, to one listener.

    With ``previous`` the events carry what they replaced; PUB does not, so they then come from the
    log alone, and PUB only says when to look. All methods run in the hub's thread; what the log is
    asked runs in a greenlet.
    """

    def __init__(self, daemon: Asks, pool: GreenletPool, listener: Listener, *, previous: bool) -> None:
        self.previous = previous
        self._daemon = daemon
        self._pool = pool
        self._listener = listener
        self._follower: Follower | None = None
        self._is_asking = False
        self._is_closed = False
        self._recent: deque[Batch] = deque()
        self._recent_events = 0
        self._recent_bytes = 0
        self._recent_floor = 0

    def start(self, cursor: Cursor) -> None:
        """Follow everything after ``cursor``; what came before is forgotten. Not while the log is
        being asked."""
        self._follower = Follower(cursor, log_only=self.previous)
        self._forget_recent(cursor.revision)
        self._look()

    @property
    def is_started(self) -> bool:
        """Whether there is a position yet."""
        return self._follower is not None

    @property
    def cursor(self) -> Cursor:
        """Everything up to here was delivered. The track must have been started."""
        if self._follower is None:
            raise KvError("unavailable", "the changes cannot be followed: the daemon was not reached yet")
        return self._follower.cursor

    def hear(self, messages: Sequence[PublishedEvent | Heartbeat]) -> None:
        """Take in what PUB said."""
        if self._follower is None:
            return
        batches: list[Batch] = []
        for message in messages:
            batches += self._follower.hear(message)
        self._publish(batches)
        self._look()

    @property
    def is_asking(self) -> bool:
        """Whether the log is being asked."""
        return self._is_asking

    def doubt(self) -> None:
        """Ask the log, for PUB has been silent."""
        if self._follower is not None:
            self._follower.doubt()
            self._look()

    def close(self) -> None:
        """Deliver nothing any more."""
        self._is_closed = True
        self._follower = None
        self._recent.clear()

    # ── the last changes ────────────────────────────────────────────────────────────────────────

    @property
    def recent_floor(self) -> int:
        """What was delivered after this revision is remembered."""
        return self._recent_floor

    def remembers(self, revision: int) -> bool:
        """Whether all that was delivered after ``revision`` is remembered."""
        return revision >= self._recent_floor

    def after(self, revision: int) -> list[Batch] | None:
        """What was delivered after ``revision``, oldest first; None if that is not remembered."""
        if not self.remembers(revision):
            return None
        newest_first = takewhile(lambda batch: batch[0].revision > revision, reversed(self._recent))
        return list(newest_first)[::-1]

    def _publish(self, batches: list[Batch]) -> None:
        if batches:
            self._remember(batches)
            self._listener.deliver(self, batches)

    def _remember(self, batches: list[Batch]) -> None:
        recent = self._recent
        recent.extend(batches)
        for batch in batches:
            self._recent_events += len(batch)
            self._recent_bytes += _size(batch)
        while recent and (self._recent_events > RECENT_EVENTS or self._recent_bytes > RECENT_BYTES):
            oldest = recent.popleft()
            self._recent_events -= len(oldest)
            self._recent_bytes -= _size(oldest)
            self._recent_floor = oldest[0].revision

    def _forget_recent(self, floor: int) -> None:
        self._recent.clear()
        self._recent_events = self._recent_bytes = 0
        self._recent_floor = floor

    # ── the log ─────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        if self._follower is not None and self._follower.is_behind and not self._is_asking:
            self._is_asking = True
            # not at once: the caller may be a greenlet, and a runner starts from the hub only
            gevent.get_hub().loop.run_callback(self._pool.run, self._ask_log)

    def _ask_log(self) -> None:
        try:
            while self._follower is not None and (cursor := self._follower.ask()) is not None:
                self._ask_page(self._follower, cursor)
        finally:
            self._is_asking = False

    def _ask_page(self, follower: Follower, cursor: Cursor) -> None:
        op = {"op": "events", "since": str(cursor), "limit": MAX_PAGE}
        if self.previous:
            op["previous"] = True
        try:
            page = LogPage.from_reply(self._daemon.read_in_background([op]))
            if not self._is_closed:
                self._publish(follower.answer(page))
        except KvError as error:
            follower.fail()
            if error.code == "cursor_expired":
                self._begin_anew(follower, cursor)
            else:
                gevent.sleep(RETRY_SECONDS)

    def _begin_anew(self, follower: Follower, lost: Cursor) -> None:
        """Follow from the present on; what lies between is for the listener to make up for."""
        try:
            reply = self._daemon.read_in_background([{"op": "status"}])
        except KvError:
            gevent.sleep(RETRY_SECONDS)
            return
        if self._is_closed:
            return
        status = reply.results[0]
        start = Cursor(status["revision"], status["epoch"])  # type: ignore[index]  # status cannot fail
        follower.restart(start)
        self._forget_recent(start.revision)
        self._listener.reset(self, reset_reason(lost, start.epoch, status["floor"]), status["floor"])  # type: ignore[index]


def reset_reason(lost: Cursor, epoch: str, floor: int) -> str:
    """Why ``lost`` cannot be continued. A revision above the head counts as one of another epoch:
    this history never gave it out."""
    return "expired" if lost.epoch == epoch and lost.revision < floor else "epoch"


def _size(batch: Batch) -> int:
    return sum(
        len(record.value or b"") for event in batch for record in (event.record, event.previous) if record
    )
