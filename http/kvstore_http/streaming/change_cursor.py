"""The changes in order, from PUB and the log together; the latest of them are remembered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Protocol

import gevent

from kvstore_core.errors import KvError
from kvstore_core.follower import Batch, Follower, LogPage
from kvstore_core.limits import MAX_PAGE
from kvstore_core.model import Cursor, Event
from kvstore_core.wire import Heartbeat, PublishedEvent
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.greenlet_pool import GreenletPool

RETRY_SECONDS = 0.2
RECENT_EVENTS = 8192
RECENT_BYTES = 8 * 1024 * 1024


class ChangeListener(Protocol):
    """What a change cursor delivers to. Neither method may wait."""

    def deliver(self, cursor: ChangeCursor, batches: list[Batch]) -> None:
        """The next changes, whole revisions; ``cursor.position`` is already behind them."""

    def reset(self, cursor: ChangeCursor, reason: str, floor: int) -> None:
        """The changes up to now have no continuation; ``cursor.position`` is where new ones begin.
        ``reason`` is ``expired`` or ``epoch``."""


class ChangeCursor:
    """Delivers every change after its start to one listener: in order, each once, in whole revisions.

    With ``previous`` the events carry what they replaced. PUB does not carry that, so they then come from
    the log alone, and PUB only says when to look. All methods run in the hub's thread; a greenlet reads
    the log.
    """

    def __init__(
        self, daemon: DaemonClient, pool: GreenletPool, listener: ChangeListener, *, previous: bool
    ) -> None:
        self.previous = previous
        self._daemon = daemon
        self._pool = pool
        self._listener = listener
        self._follower: Follower | None = None
        self.is_reading = False
        """Whether the log is being read."""
        self._is_closed = False
        self._recent: deque[Batch] = deque()
        self._recent_events = 0
        self._recent_bytes = 0
        self.recent_floor = 0
        """The changes after this revision are remembered."""

    def start(self, position: Cursor) -> None:
        """Follow everything after ``position`` and forget what came before. Not while the log is
        being read."""
        self._follower = Follower(position, log_only=self.previous)
        self._forget_recent(position.revision)
        self._read_log_soon()

    @property
    def is_started(self) -> bool:
        """Whether there is a position yet."""
        return self._follower is not None

    @property
    def position(self) -> Cursor:
        """Everything up to here was delivered. Raises ``unavailable`` before the start."""
        if self._follower is None:
            raise KvError("unavailable", "the changes cannot be followed: the daemon was not reached yet")
        return self._follower.cursor

    def hear(self, messages: Sequence[PublishedEvent | Heartbeat]) -> None:
        """Take in messages of PUB."""
        if self._follower is None:
            return
        batches: list[Batch] = []
        for message in messages:
            batches += self._follower.hear(message)
        self._publish(batches)
        self._read_log_soon()

    def doubt(self) -> None:
        """Read the log, since PUB has been silent."""
        if self._follower is not None:
            self._follower.doubt()
            self._read_log_soon()

    def close(self) -> None:
        """Stop delivering."""
        self._is_closed = True
        self._follower = None
        self._recent.clear()

    def remembers(self, revision: int) -> bool:
        """Whether all changes after ``revision`` are remembered."""
        return revision >= self.recent_floor

    def after(self, revision: int) -> list[Batch] | None:
        """The changes after ``revision``, oldest first; None if they are not all remembered."""
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
            self._recent_bytes += value_bytes(batch)
        while recent and (self._recent_events > RECENT_EVENTS or self._recent_bytes > RECENT_BYTES):
            oldest = recent.popleft()
            self._recent_events -= len(oldest)
            self._recent_bytes -= value_bytes(oldest)
            self.recent_floor = oldest[0].revision

    def _forget_recent(self, floor: int) -> None:
        self._recent.clear()
        self._recent_events = self._recent_bytes = 0
        self.recent_floor = floor

    def _read_log_soon(self) -> None:
        if self._follower is not None and self._follower.is_behind and not self.is_reading:
            self.is_reading = True
            # not at once: the caller may be a greenlet, and the pool runs from the hub only
            gevent.get_hub().loop.run_callback(self._pool.run, self._read_log)

    def _read_log(self) -> None:
        try:
            while self._follower is not None and (cursor := self._follower.ask()) is not None:
                self._read_page(self._follower, cursor)
        finally:
            self.is_reading = False

    def _read_page(self, follower: Follower, cursor: Cursor) -> None:
        op = {"op": "events", "since": str(cursor), "limit": MAX_PAGE, "stale": True}
        if self.previous:
            op["previous"] = True
        try:
            page = LogPage.from_reply(self._daemon.read_in_background([op]))
            if not self._is_closed:
                self._publish(follower.answer(page))
        except KvError as error:
            follower.fail()
            if error.code == "cursor_expired":
                self._restart(follower, cursor)
            else:
                gevent.sleep(RETRY_SECONDS)

    def _restart(self, follower: Follower, lost: Cursor) -> None:
        """Follow from the present on; the listener makes up for what was lost."""
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
        floor: int = status["floor"]  # type: ignore[index]
        self._listener.reset(self, lost.reset_reason(start.epoch, floor), floor)


def value_bytes(events: Iterable[Event]) -> int:
    """The bytes of all values in ``events``, of those that they replaced too."""
    size = 0
    for event in events:
        if event.record is not None:
            size += len(event.record.value or b"")
        if event.previous is not None:
            size += len(event.previous.value or b"")
    return size
