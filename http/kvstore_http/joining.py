"""How a stream gets from where it wants to begin to where its track stands, without gap or repeat.

A present-state snapshot is read page by page, then the log from before its first page; a cursor is
continued from the log. Either ends when the track's memory reaches back to what has been sent: the
rest is then sent and the stream becomes live, in one step in which nothing else runs. The reader's
pace is the pace of it all: a page is read when the one before has been taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import gevent

from kvstore_client.errors import KvError
from kvstore_client.follow import Batch, Filter, LogPage, SnapshotMerge, by_revision
from kvstore_client.model import Cursor
from kvstore_client.protocol import Reply
from kvstore_http import framing
from kvstore_http.framing import Encoder
from kvstore_http.link import DaemonLink
from kvstore_http.streams import Stream
from kvstore_http.track import RETRY_SECONDS, reset_reason

if TYPE_CHECKING:
    from kvstore_http.broadcaster import Broadcaster

PAGE_ITEMS = 200
LAST_STEP_BYTES = 256 * 1024
"""More than this is sent at the reader's pace before the stream may become live."""


class Start(NamedTuple):
    """Where a stream begins: after ``since``, or with the present records, or (neither) now.

    ``reset_reason`` says that a continuation was expected and why there is none.
    """

    since: Cursor | None
    snapshot: bool = False
    reset_reason: str | None = None
    floor: int = 0


def catch_up(broadcaster: Broadcaster, link: DaemonLink, stream: Stream, start: Start) -> None:
    """Bring ``stream`` from ``start`` to live. Runs in a greenlet of its own; outlasts an absence of
    the daemon; raises StreamGoneError when the client goes away."""
    _Joining(broadcaster, link, stream).run(start)


class _Joining:
    def __init__(self, broadcaster: Broadcaster, link: DaemonLink, stream: Stream) -> None:
        self._broadcaster = broadcaster
        self._link = link
        self._stream = stream
        self._form = stream.form
        kind = stream.group.kind
        self._wanted: Filter = kind.wanted
        self._previous: bool = kind.previous
        self._merge: SnapshotMerge | None = None
        self._is_known = True

    def run(self, start: Start) -> None:
        while True:
            position = self._begin(start)
            try:
                self._read_snapshot()
                self._follow_log(position)
            except KvError as error:
                start = self._reset(error, position)
            else:
                return

    def _begin(self, start: Start) -> Cursor:
        if not start.snapshot and start.since is not None:
            # the store may never have given this revision out; the log has to confirm it
            self._is_known = False
            return start.since
        here = self._broadcaster.track(self._stream).cursor
        if start.snapshot:
            # asked anew: after a restore the track may not yet know of the other epoch
            reply = self._ask([{"op": "status"}])
            here = Cursor(reply.revision, reply.epoch)
            has_values = self._form.has_values
            self._merge = SnapshotMerge(self._wanted, here, values=has_values, page_size=PAGE_ITEMS)
        if start.reset_reason is not None:
            self._push(framing.reset(self._form, start.reset_reason, start.floor, here))
        self._is_known = True
        return here

    def _reset(self, error: KvError, position: Cursor) -> Start:
        """A snapshot instead of a continuation that does not exist; other errors are not handled."""
        if error.code != "cursor_expired":
            raise error
        floor = error.details.get("floor", 0)
        self._broadcaster.measures.streams_reset(1)
        reason = error.details.get("reason") or reset_reason(position, self._link.epoch, floor)
        return Start(None, snapshot=True, reset_reason=reason, floor=floor)

    # ── the snapshot ────────────────────────────────────────────────────────────────────────────

    def _read_snapshot(self) -> None:
        merge = self._merge
        if merge is None or (self._wanted.ops and "put" not in self._wanted.ops):
            return
        while not merge.is_complete:
            records = merge.accept(self._ask(merge.next_ops()))
            self._count(len(records))
            self._push(framing.snapshot(self._form, records))

    # ── the log ─────────────────────────────────────────────────────────────────────────────────

    def _follow_log(self, position: Cursor) -> None:
        while True:
            batches = self._remembered_after(position)
            if batches is None:
                position = self._read_page(position)
                continue
            reached = max(position, self._broadcaster.track(self._stream).cursor)
            messages = self._encode(batches)
            if len(messages) <= LAST_STEP_BYTES:
                messages += framing.sync(self._form, reached)
                self._broadcaster.go_live(self._stream, messages, reached.revision)
                return
            self._push(messages)
            position = reached

    def _remembered_after(self, position: Cursor) -> list[Batch] | None:
        """What the track delivered after ``position``; None if the log has to be asked."""
        track = self._broadcaster.track(self._stream)
        reached = track.cursor
        if position.epoch != reached.epoch or (position.revision > reached.revision and not self._is_known):
            return None
        if self._merge is not None and max(position, reached).revision < self._merge.through:
            return None  # what the track delivers next may stand in the snapshot
        return track.after(position.revision)

    def _read_page(self, position: Cursor) -> Cursor:
        page = LogPage.from_reply(self._ask([self._events_op(position)]))
        if self._merge is not None:
            self._merge.check(page)
        if page.next == position.revision == page.head and self._is_known:
            gevent.sleep(RETRY_SECONDS)  # it is the track that has to get on
        self._is_known = True
        self._push(self._encode(by_revision(page.events)))
        return Cursor(page.next, page.epoch)

    def _events_op(self, position: Cursor) -> dict[str, Any]:
        op = {"op": "events", "since": str(position), "limit": PAGE_ITEMS, **self._wanted.fields()}
        if not self._form.has_values:
            op["values"] = False
        if self._previous:
            op["previous"] = True
        return op

    def _encode(self, batches: list[Batch]) -> bytes:
        wanted = [[event for event in batch if self._wants(event)] for batch in batches]
        self._count(sum(map(len, wanted)))
        epoch = self._broadcaster.track(self._stream).cursor.epoch
        return Encoder(epoch).batches(self._form, [batch for batch in wanted if batch])

    def _count(self, events: int) -> None:
        self._stream.events += events
        self._broadcaster.measures.sent(0, events)

    def _wants(self, event: Any) -> bool:
        is_shown = self._merge is not None and self._merge.shows(event)
        return not is_shown and self._wanted.matches(event.op, event.key)

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────

    def _push(self, messages: bytes) -> None:
        self._broadcaster.push(self._stream, messages)

    def _ask(self, ops: list[dict[str, Any]]) -> Reply:
        """The reply, however long the daemon is away: the stream stays open."""
        while True:
            try:
                return self._link.ask(ops)
            except KvError as error:
                if not error.row.retryable:
                    raise
                gevent.sleep(RETRY_SECONDS)
                self._push(b"")  # ends this greenlet if the client is gone meanwhile
