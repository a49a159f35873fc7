"""The log for streams: each page is read once, and written once, for all streams whose position is in it."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import chain, islice
from time import monotonic
from typing import Any

from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import Batch, LogPage, by_revision
from kvstore_core.limits import MAX_PAGE
from kvstore_core.model import Cursor
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.streaming.change_cursor import ChangeCursor, value_bytes
from kvstore_http.streaming.event_format import NOTHING, Encoder, Messages, messages_of, not_shown
from kvstore_http.streaming.filter_index import FilterIndex, covers, only, union
from kvstore_http.streaming.lagging_streams import Audience, LaggingStream, LaggingStreams
from kvstore_http.streaming.stream_sockets import StreamSpec

PAGE_BYTES = 1024 * 1024
"""About what a page shall hold; the daemon ends one at 4 MiB."""

SPECS_AT_ONCE = 64
"""For how many specs of streams a page is written before they are sent it."""

KEPT_PAGES = 4
KEPT_BYTES = 8 * 1024 * 1024
KEEP_SECONDS = 2.0
EVENT_BYTES = 400
"""About what an event without its values takes in memory and as a message."""

WRITTEN_BYTES = 8 * 1024 * 1024
"""What is kept of the messages of one page, for all audiences together."""


class SharedPage:
    """A page of the log, read as ``asked``: what happened after ``begin``, through ``next``."""

    def __init__(self, begin: int, page: LogPage, asked: StreamSpec, now: float) -> None:
        self.begin = begin
        self.next, self.head, self.epoch = page.next, page.head, page.epoch
        self.read_at = now
        self.batches = by_revision(page.events)
        self.size = EVENT_BYTES * len(page.events) + value_bytes(page.events)
        self.messages: dict[Audience, Messages] = {}
        self.taken: dict[Audience, list[Batch]] = {}
        """For streams of the latest: they are written once it is known from where each goes on."""
        self.encoder = Encoder(page.epoch)
        self._asked = asked

    def serves(self, lagging: LaggingStream) -> bool:
        """Whether it has what ``lagging`` needs next."""
        position, spec = lagging.position, lagging.spec
        return (
            position.epoch == self.epoch
            and self.begin <= position.revision < self.next
            and spec.previous == self._asked.previous
            and (self._asked.form.has_values or not spec.form.has_values)
            and covers(self._asked.wanted, spec.wanted)
        )

    def write(self, streams: Iterable[LaggingStream]) -> None:
        """Make the ``messages`` of each of ``streams``: once for each audience, with one look at each
        event."""
        if sum(messages.size for messages in self.messages.values()) > WRITTEN_BYTES:
            self.messages.clear()
        if len(self.taken) > SPECS_AT_ONCE:
            self.taken.clear()
        index: FilterIndex[StreamSpec] = FilterIndex()
        missing = {lagging.audience for lagging in streams} - self.messages.keys()
        missing -= self.taken.keys()
        for spec in {spec for spec, _ in missing}:
            index.add(spec, spec.wanted)
        found = index.matches(self.batches) if missing else {}
        for spec, merge in missing:
            batches = found.get(spec, ())
            if spec.is_latest:
                self.taken[spec, merge] = list(not_shown(batches, merge))
            else:
                self.messages[spec, merge] = messages_of(batches, self.encoder, spec.form, merge)


class LogReader:
    """Serves the streams that wait for the log. :meth:`serve` runs in one greenlet."""

    def __init__(self, streams: LaggingStreams, daemon: DaemonClient) -> None:
        self._streams = streams
        self._queue = streams.for_log
        self._daemon = daemon
        self._pages: deque[SharedPage] = deque()
        self._event_bytes = self._floor = 0

    def serve(self, first: LaggingStream) -> None:
        """Send what comes next to ``first``, and to all that the same page serves: what the feed
        remembers, which completes them, or else a page of the log."""
        if self._is_remembered(first):
            epoch = first.position.epoch
            ready = [
                lagging
                for lagging in self._queue
                if lagging.position.epoch == epoch and self._is_remembered(lagging)
            ]
            with self._streams.serving(ready, self._queue):
                self._complete(ready)
            return
        page = next((page for page in self._pages if page.serves(first)), None)
        if page is None:
            self._read_page(first)
            return
        streams = [lagging for lagging in self._queue if page.serves(lagging)]
        with self._streams.serving(streams, self._queue):
            self._send_page(page, streams)

    def forget_old(self) -> None:
        """Forget pages that were read some time ago."""
        while self._pages and monotonic() - self._pages[0].read_at > KEEP_SECONDS:
            self._pages.popleft()

    @property
    def has_pages(self) -> bool:
        """Whether pages are kept for streams that may come."""
        return bool(self._pages)

    # ── from what the feed remembers ────────────────────────────────────────────────────────────

    def _is_remembered(self, lagging: LaggingStream) -> bool:
        """Whether the feed still has everything that it delivered after the stream's position."""
        position, cursor = lagging.position, self._streams.cursor(lagging)
        reached = cursor.position
        if position.epoch != reached.epoch:
            return False
        if position.revision > reached.revision and not lagging.is_confirmed:
            return False
        if lagging.merge is not None and max(position, reached).revision < lagging.merge.through:
            return False  # what the feed delivers next may be in the snapshot
        return cursor.remembers(position.revision)

    def _complete(self, streams: list[LaggingStream]) -> None:
        """Send the rest to ``streams``, all of which are remembered; of a long rest a part comes first."""
        begins: dict[Audience, int] = {}
        for lagging in streams:
            revision = lagging.position.revision
            begins[lagging.audience] = min(begins.get(lagging.audience, revision), revision)
        rests: dict[Audience, tuple[Cursor, Messages]] = {}
        found: dict[tuple[Audience, Cursor, Cursor], list[Batch]] = {}
        encoder = Encoder(streams[0].position.epoch)
        for lagging in self._streams.in_turns(streams):
            if not self._is_remembered(lagging):
                self._streams.enqueue(lagging)
                continue
            if lagging.spec.is_latest:
                self._complete_newest(lagging, encoder, found)
                continue
            cursor, audience = self._streams.cursor(lagging), lagging.audience
            reached, messages = rests.get(audience, (None, NOTHING))
            if reached != cursor.position:
                messages = _remembered(encoder, cursor, audience, begins[audience])
                rests[audience] = cursor.position, messages
            self._streams.send_rest(lagging, messages, max(lagging.position, cursor.position))

    def _complete_newest(
        self,
        lagging: LaggingStream,
        encoder: Encoder,
        found: dict[tuple[Audience, Cursor, Cursor], list[Batch]],
    ) -> None:
        cursor, position, (spec, merge) = self._streams.cursor(lagging), lagging.position, lagging.audience
        which = (lagging.audience, position, cursor.position)
        batches = found.get(which)
        if batches is None:
            remembered = cursor.after(position.revision) or []
            batches = found[which] = list(not_shown(only(spec.wanted, remembered), merge))
        if self._streams.keep_newest(lagging, batches, encoder, max(position, cursor.position)):
            self._streams.end_with_newest(lagging)
        else:
            self._streams.enqueue(lagging)

    # ── from the log ────────────────────────────────────────────────────────────────────────────

    def _read_page(self, first: LaggingStream) -> None:
        """Read the log from the position of ``first``, or a little before it if others are there, and send
        what was found to all of them."""
        near = self._near(first)
        needed = min(lagging.position for lagging in near)
        op, asked, begin = self._page_op(first.spec, near, needed)
        with self._streams.serving(near, self._queue):
            reply = self._streams.read([op], near)
            if reply is None:
                return
            try:
                page = LogPage.from_reply(reply)
            except KvError as error:
                if error.code != "cursor_expired":
                    raise
                self._sort_out(near, begin, error)
                return
            found = SharedPage(begin.revision, page, asked, monotonic())
            self._floor = page.floor
            self._keep(found, page)
            if found.next <= needed.revision:
                self._pages.clear()  # large values: the next page begins where it is needed
            self._send_page(found, self._confirmed(near, page))

    def _near(self, first: LaggingStream) -> list[LaggingStream]:
        """The waiting streams that a page from about the position of ``first`` on can serve."""
        limit = self._page_limit()
        epoch, revision, previous = first.position.epoch, first.position.revision, first.spec.previous
        return [
            lagging
            for lagging in self._queue
            if lagging.position.epoch == epoch
            and lagging.spec.previous == previous
            and revision - limit // 2 <= lagging.position.revision < revision + limit
            and not (lagging.is_confirmed and self._is_remembered(lagging))
        ]

    def _page_op(
        self, spec: StreamSpec, near: list[LaggingStream], needed: Cursor
    ) -> tuple[dict[str, Any], StreamSpec, Cursor]:
        """The op that reads a page for the streams ``near``, what that page has, and where it begins."""
        limit, begin = self._page_limit(), needed
        wanted = union(lagging.spec.wanted for lagging in near)
        values = any(lagging.spec.form.has_values for lagging in near)
        end = self._daemon.head - limit
        if self._pages and needed.revision > end >= 0 and needed.epoch == self._daemon.epoch:
            # one after another comes back: a page from which all of them can go on is read once
            begin = Cursor(min(needed.revision, max(self._floor, end)), needed.epoch)
            wanted, values = Filter(), True
        op: dict[str, Any] = {"op": "events", "since": str(begin), "limit": limit, "stale": True}
        op |= wanted.fields()
        if not values:
            op["values"] = False
        if spec.previous:
            op["previous"] = True
        return op, spec._replace(wanted=wanted, form=spec.form._replace(has_values=values)), begin

    def _page_limit(self) -> int:
        """How many events are about a page."""
        return max(10, min(MAX_PAGE, PAGE_BYTES // max(1, self._event_bytes)))

    def _keep(self, shared: SharedPage, page: LogPage) -> None:
        if page.events:
            self._event_bytes = shared.size // len(page.events)
            self._pages.append(shared)
        while len(self._pages) > KEPT_PAGES or sum(page.size for page in self._pages) > KEPT_BYTES:
            self._pages.popleft()

    def _confirmed(self, streams: list[LaggingStream], page: LogPage) -> list[LaggingStream]:
        """The streams of whose snapshot the store has lost nothing; the others begin again."""
        confirmed = []
        for lagging in streams:
            try:
                if lagging.merge is not None:
                    lagging.merge.check(page)
            except KvError as error:
                self._streams.reset(lagging, error)
            else:
                confirmed.append(lagging)
        return confirmed

    def _send_page(self, page: SharedPage, streams: list[LaggingStream]) -> None:
        by_spec: dict[StreamSpec, list[LaggingStream]] = {}
        for lagging in streams:
            by_spec.setdefault(lagging.spec, []).append(lagging)
            if page.begin <= lagging.position.revision <= page.next:
                lagging.is_confirmed = True
        groups = iter(by_spec.values())
        while some := list(chain.from_iterable(islice(groups, SPECS_AT_ONCE))):
            page.write(lagging for lagging in some if lagging.position.revision < page.next)
            for lagging in self._streams.in_turns(some):
                if lagging.position.revision < page.next:
                    self._send_part(page, lagging)
                    self._streams.enqueue(lagging)
                elif lagging.position.revision != page.head or self._is_remembered(lagging):
                    self._streams.enqueue(lagging)
                else:
                    self._streams.await_feed(lagging)

    def _send_part(self, page: SharedPage, lagging: LaggingStream) -> None:
        if lagging.spec.is_latest:
            # not sent before there is no more to read, or no more room: then it stands for the most changes
            taken, position = page.taken[lagging.audience], lagging.position.revision
            later = taken[bisect_right(taken, position, key=_revision_of) :]
            self._streams.keep_newest(lagging, later, page.encoder, Cursor(page.next, page.epoch))
            return
        messages = page.messages[lagging.audience]
        begin = messages.after(lagging.position.revision)
        end = self._streams.send(lagging, messages, begin)
        reached = page.next if end == len(messages) else lagging.position.revision
        if begin < end < len(messages):
            reached = messages.revisions[end - 1]
        lagging.position = Cursor(reached, page.epoch)

    def _sort_out(self, streams: list[LaggingStream], asked: Cursor, error: KvError) -> None:
        """Reset the streams whose position has no continuation; the page was read from the oldest on."""
        epoch = error.details.get("epoch", self._daemon.epoch)
        floor, head = error.details.get("floor", 0), error.details.get("head", -1)
        self._floor = floor
        for lagging in streams:
            at = lagging.position
            if at != asked and at.epoch == epoch and floor <= at.revision <= head:
                self._streams.enqueue(lagging)
            else:
                reason = at.reset_reason(epoch, floor)
                self._streams.reset(lagging, KvError(error.code, error.message, reason=reason, floor=floor))


def _revision_of(batch: Batch) -> int:
    return batch[0].revision


def _remembered(encoder: Encoder, cursor: ChangeCursor, audience: Audience, begin: int) -> Messages:
    spec, merge = audience
    # some of what was remembered when it was asked for may be forgotten by now, but not for all of them
    batches = cursor.after(max(begin, cursor.recent_floor)) or []
    return messages_of(only(spec.wanted, batches), encoder, spec.form, merge)
