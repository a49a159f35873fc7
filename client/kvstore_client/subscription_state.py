"""A subscription without its sockets: messages and replies in, ops and items out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import Batch, Follower, LogPage
from kvstore_core.model import Cursor, Event, Record, ResetReason
from kvstore_core.snapshot_merge import SnapshotMerge
from kvstore_core.wire import Heartbeat, Reply, decode_change

SILENCE_SECONDS = 3.0
"""The daemon sends a heartbeat every second; after this long without any message the connection
counts as dead, even if TCP holds it up."""


class Sync(NamedTuple):
    """All that was there when the subscription began, or started over, has been delivered; what follows
    is new. ``cursor`` is the position reached."""

    cursor: Cursor


class Reset(NamedTuple):
    """The position to continue from is gone: discard all state. A snapshot of what was asked for
    follows, as put events, then a Sync.

    ``reason`` is ``expired`` (the log begins after ``floor``) or ``epoch`` (a restore has replaced the
    history). ``cursor`` is where the snapshot starts from.
    """

    reason: ResetReason
    floor: int
    cursor: Cursor


Item = Batch | Sync | Reset | Heartbeat


class SubscriptionState:
    """Where a subscription is: it finds its start, reads a snapshot if one is wanted, then follows.

    The owner passes what the SUB socket receives to :meth:`on_message`; sends :meth:`next_ops`, when they
    are not empty, as one request, and passes its outcome to :meth:`on_reply` or :meth:`on_error`; and takes
    items with :meth:`take`. It should read no further while there are items, so that nothing grows when
    the consumer is slow. Times are seconds of one monotonic clock.
    """

    def __init__(
        self,
        wanted: Filter,
        *,
        since: Cursor | int | None,
        snapshot: bool,
        values: bool,
        previous: bool,
        heartbeats: bool,
        now: float,
    ) -> None:
        self._wanted = wanted
        self._since = since
        self._begins_with_snapshot = snapshot
        self._values = values
        self._previous = previous
        self._shows_heartbeats = heartbeats
        self._heard_at = now
        self._items: deque[tuple[Item, Cursor | None]] = deque()
        self._taken: Cursor | None = since if isinstance(since, Cursor) else None
        self._follower: Follower | None = None
        self._merge: SnapshotMerge | None = None
        self._beat: Heartbeat | None = None
        self._access = ""
        self._is_synced = False
        if isinstance(since, Cursor):
            self._follow(since)

    # ── items ────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_items(self) -> bool:
        """Whether there is something to take."""
        return bool(self._items)

    def take(self) -> Item:
        """The next item; call it only when there is one."""
        item, cursor = self._items.popleft()
        self._taken = cursor
        return item

    @property
    def cursor(self) -> Cursor | None:
        """Where a later subscription continues, once every taken item has been handled.

        None before the start is known and while a snapshot is read, which cannot be continued.
        """
        if not self._items and self._follower is not None and self._merge is None:
            return self._follower.cursor
        return self._taken

    # ── PUB ──────────────────────────────────────────────────────────────────────────────────────

    def on_message(self, frames: Sequence[bytes], now: float) -> None:
        """The SUB socket received ``frames``."""
        self._heard_at = now
        message = decode_change(frames)
        # what PUB sends before the follower runs is in the log when that is first asked
        if message is None or self._follower is None:
            return
        if isinstance(message, Heartbeat):
            self._beat = message
            if self._access != message.access:
                # PUB sends nothing more where a grant was taken away; the log says so
                self._access = message.access
                self._follower.doubt()
        self._deliver(self._follower.hear(message), self._follower)

    def silent_at(self) -> float:
        """When the SUB socket must be replaced, unless something is received before."""
        return self._heard_at + SILENCE_SECONDS

    def on_reconnect(self, now: float) -> None:
        """The SUB socket was replaced; what was published in between is read from the log."""
        self._heard_at = now
        if self._follower is not None:
            self._follower.doubt()

    def sync_again(self) -> None:
        """Ask the log now, and say by another Sync when all up to its end has been delivered."""
        if self._follower is not None:
            self._follower.doubt()
            self._is_synced = False

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def next_ops(self) -> list[dict[str, Any]]:
        """The ops of the request to send now, empty for none. One request at a time."""
        if self._follower is not None:
            cursor = self._follower.ask()
            return [] if cursor is None else [self._events_op(cursor)]
        if self._merge is not None:
            return self._merge.next_ops()
        return [{"op": "status"}]

    def _events_op(self, since: Cursor) -> dict[str, Any]:
        op = {"op": "events", "since": str(since), "stale": True, **self._wanted.fields()}
        if not self._values:
            op["values"] = False
        if self._previous:
            op["previous"] = True
        return op

    def on_error(self, error: KvError) -> None:
        """The request failed. Raises ``error`` unless it is retryable, or a smaller request would do; then
        the request is sent again."""
        if self._follower is not None:
            self._follower.fail()
        if error.row.retryable:
            return
        if self._follower is not None or self._merge is None:
            raise error
        self._merge.refuse(error)

    def on_reply(self, reply: Reply) -> None:
        """The request was answered. Raises the KvError of an op that failed for good."""
        try:
            if self._follower is not None:
                self._accept_log(self._follower, LogPage.from_reply(reply))
            elif self._merge is not None:
                self._accept_snapshot(self._merge, reply)
            else:
                self._begin(reply)
        except KvError as error:
            if error.code != "cursor_expired":
                self.on_error(error)
                return
            self._reset(error, reply)

    def _begin(self, reply: Reply) -> None:
        """The store's position is known."""
        now = Cursor(reply.revision, reply.epoch)
        if isinstance(self._since, int):
            self._follow(Cursor(self._since, reply.epoch))
        elif self._begins_with_snapshot:
            self._begin_snapshot(now)
        else:
            self._follow(now)
            self._sync(now)

    def _begin_snapshot(self, now: Cursor) -> None:
        if self._wanted.ops and "put" not in self._wanted.ops:
            self._follow(now)  # the records would be put events
        else:
            self._merge = SnapshotMerge(self._wanted, now, values=self._values)

    def _follow(self, start: Cursor) -> None:
        self._follower = Follower(start, filtered=not self._wanted.takes_every_key, log_only=self._previous)

    def _accept_snapshot(self, merge: SnapshotMerge, reply: Reply) -> None:
        records = merge.accept(reply)
        if records:
            self._items.append(([_shown(record) for record in records], None))
        if merge.is_complete:
            self._follow(merge.start)

    def _accept_log(self, follower: Follower, page: LogPage) -> None:
        batches = follower.answer(page)
        if self._merge is not None:
            self._merge.check(page)
        self._deliver(batches, follower)

    def _reset(self, error: KvError, reply: Reply) -> None:
        lost = Cursor(0, "") if self._merge is None else self._merge.start
        if self._follower is not None:
            lost = self._follower.cursor
        start, floor = Cursor(reply.revision, reply.epoch), int(error.details.get("floor", 0))
        reset = Reset(error.details.get("reason") or lost.reset_reason(start.epoch, floor), floor, start)
        self._items.append((reset, None))
        self._follower = None
        self._beat = None
        self._is_synced = False
        self._merge = None
        self._begin_snapshot(start)

    # ── delivery ─────────────────────────────────────────────────────────────────────────────────

    def _deliver(self, batches: list[Batch], follower: Follower) -> None:
        for batch in batches:
            wanted = [self._trimmed(event) for event in batch if self._is_news(event)]
            if wanted:
                cursor = Cursor(batch[0].revision, follower.cursor.epoch)
                # a snapshot's pages are of different revisions until the Sync
                self._items.append((wanted, cursor if self._merge is None else None))
        if not follower.is_behind:
            self._caught_up(follower.cursor)

    def _is_news(self, event: Event) -> bool:
        if not self._wanted.matches(event.op, event.key):
            return False
        return self._merge is None or not self._merge.shows(event)

    def _trimmed(self, event: Event) -> Event:
        """The event without values if none are wanted: PUB always brings them."""
        if not self._values:
            event.record = event.record and event.record._replace(value=None)
            event.previous = event.previous and event.previous._replace(value=None)
        return event

    def _caught_up(self, cursor: Cursor) -> None:
        # the log was read after the snapshot's last page, so nothing shown is newer
        self._merge = None
        if not self._is_synced:
            self._sync(cursor)
        if self._beat is not None and self._shows_heartbeats:
            self._items.append((self._beat, cursor))
        self._beat = None

    def _sync(self, cursor: Cursor) -> None:
        self._is_synced = True
        self._items.append((Sync(cursor), cursor))


def _shown(record: Record) -> Event:
    """A snapshot's record as the put that wrote it."""
    said = record.author, record.message
    return Event("put", record.key, record.revision, 0, 1, record.modified_at, record, None, 0, *said)
