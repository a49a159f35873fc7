"""How streams get from where they want to begin to where their track stands, without gap or repeat.

A present-state snapshot is read page by page, then the log from before its first page; a cursor is
continued from the log. Either ends when the track's memory reaches back to what has been sent: the
rest is then sent and the stream becomes live, in one step in which nothing else runs.

Many streams come back in one moment when a worker, the facade or a proxy ends, so what they need is
read and written once for all of them, and the daemon has one page of the log to read at a time:

- A page of the log is read from where the stream stands that was served least recently. Every stream
  that stands somewhere within the page gets its part of it, whatever its filter; what it takes is
  written once for each kind of stream. The last few pages are kept for those who come a moment later.
- Streams of one kind that want a snapshot and are there when it begins share it, page by page.
- A stream whose socket takes no more is left out until it has taken what it was given, so that the
  slow keep nobody waiting; and one whose client is gone is nobody's reason to read anything.

What waits for all streams that catch up is bounded by ``CATCH_UP_BYTES``, or by ``LEAST_SHARE`` and one
message for each of them if that is more.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent.event import Event as Signal

from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import LogPage
from kvstore_core.model import Cursor
from kvstore_core.operations import MAX_PAGE
from kvstore_core.snapshot_merge import SnapshotMerge
from kvstore_core.wire import Reply
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.greenlet_pool import GreenletPool
from kvstore_http.streaming import event_format
from kvstore_http.streaming.change_cursor import RETRY_SECONDS, Track, reset_reason
from kvstore_http.streaming.event_format import Encoder
from kvstore_http.streaming.log_pages import (
    NOTHING,
    Message,
    Messages,
    Page,
    Place,
    only,
    union,
    weight,
    written,
)
from kvstore_http.streaming.stream_sockets import Stream

if TYPE_CHECKING:
    from kvstore_http.streaming.broadcaster import Broadcaster, Kind
    from kvstore_http.streaming.change_feed import ChangeFeed

SNAPSHOT_ITEMS = 200
SNAPSHOTS_AT_ONCE = 4
"""How many pages of snapshots are read at once; there is always one page of the log at a time."""

GATHER_SECONDS = 0.05
"""How soon after one snapshot another of the same kind begins, for all who came in between."""

TURN_STREAMS = 25
"""How many streams are written to before the loop looks at requests again."""

CATCH_UP_BYTES = 64 * 1024 * 1024
LEAST_SHARE = 16 * 1024
PAGE_BYTES = 1024 * 1024
"""About what a page shall hold; the daemon ends one at 4 MiB."""

KINDS_AT_ONCE = 64
"""For how many kinds of streams a page is written before they get it."""

KEPT_PAGES = 4
KEPT_BYTES = 8 * 1024 * 1024
KEEP_SECONDS = 2.0
TICK_SECONDS = 1.0
STALL_SECONDS = 30.0
"""A stream that is being caught up and reads nothing for this long is given up."""

log = logging.getLogger("kvstore.http")


class Start(NamedTuple):
    """Where a stream begins: after ``since`` (in this epoch, if its own is empty), or with the present
    records, or (neither) now.

    ``reset_reason`` says that a continuation was expected and why there is none.
    """

    since: Cursor | None
    snapshot: bool = False
    reset_reason: str | None = None
    floor: int = 0


class _Rider:
    """A stream that is not live yet.

    It has everything up to ``position``; ``is_known`` says that the store is known to have given that
    out. With a ``merge``, which it shares with others at the same page, it is being shown a snapshot or
    was shown one that what follows has to be compared with; ``shown`` is what of a page it still is
    to be given, from ``next_shown`` on.
    """

    __slots__ = (
        "is_known",
        "kind",
        "merge",
        "moved_at",
        "next_shown",
        "position",
        "shown",
        "start",
        "stream",
        "unsent",
    )

    def __init__(self, stream: Stream, start: Start) -> None:
        self.stream = stream
        self.kind: Kind = stream.group.kind
        self.start: Start = start
        self.position = Cursor(0, "")
        self.is_known = True
        self.merge: SnapshotMerge | None = None
        self.shown: Messages = NOTHING
        self.next_shown = 0
        self.unsent = 0
        self.moved_at = 0.0

    @property
    def place(self) -> Place:
        """What is the same for all who are sent the same."""
        return self.kind, self.merge

    @property
    def is_in_snapshot(self) -> bool:
        return self.start.snapshot and (self.merge is None or not self.merge.is_complete)


class Joining:
    """All streams of a worker that are not live. Every method runs in the hub's thread and none waits
    but those of the greenlets that it starts."""

    def __init__(
        self, broadcaster: Broadcaster, daemon: DaemonClient, feed: ChangeFeed, pool: GreenletPool
    ) -> None:
        self._broadcaster = broadcaster
        self._daemon = daemon
        self._feed = feed
        self._pool = pool
        self._loop = gevent.get_hub().loop
        self._riders: dict[Stream, _Rider] = {}
        # in the order in which they were served last; the first is the next
        self._for_log: dict[_Rider, None] = {}
        self._for_snapshot: dict[_Rider, None] = {}
        self._blocked: dict[_Rider, None] = {}
        self._ahead_of_track: dict[_Rider, None] = {}
        self._fresh: dict[_Rider, None] = {}
        self._pages: deque[Page] = deque()
        self._event_bytes = self._floor = 0
        self._begun: dict[Kind, float] = {}
        self._is_closed = False
        self._has_log_work, self._has_snapshot_work = Signal(), Signal()
        self._idle = [self._follow_log, *[self._show_snapshots] * SNAPSHOTS_AT_ONCE]
        self._ticker = self._loop.timer(TICK_SECONDS, TICK_SECONDS)

    def __len__(self) -> int:
        return len(self._riders)

    @property
    def is_held(self) -> bool:
        """Whether streams wait for a daemon that was never heard of, and have begun nowhere yet."""
        return bool(self._fresh)

    # ── streams come and go ─────────────────────────────────────────────────────────────────────

    def add(self, stream: Stream, start: Start) -> None:
        """Bring ``stream`` from ``start`` to live; outlasts an absence of the daemon."""
        rider = _Rider(stream, start)
        self._riders[stream] = rider
        self._count()
        self._feed.wake_up()
        self._fresh[rider] = None
        if self._feed.is_started:
            self._begin_fresh()
        self._run()

    def forget(self, stream: Stream) -> None:
        """``stream`` is gone: nothing is read for it any more."""
        rider = self._riders.pop(stream, None)
        if rider is not None:
            for queue in (
                self._fresh,
                self._for_snapshot,
                self._for_log,
                self._ahead_of_track,
                self._blocked,
            ):
                queue.pop(rider, None)
            self._count()

    def drained(self, stream: Stream) -> None:
        """The socket has taken all that there was."""
        rider = self._riders.get(stream)
        if rider is not None and rider in self._blocked:
            del self._blocked[rider]
            self._go_on(rider)

    def close(self) -> None:
        """Catch up nobody any more."""
        self._is_closed = True
        self._riders.clear()
        self._fresh.clear()
        self._has_log_work.set()
        self._has_snapshot_work.set()
        self._ticker.close()

    def _count(self) -> None:
        self._broadcaster.counters.note_catching_up(len(self._riders))

    # ── who is to be served by what ─────────────────────────────────────────────────────────────

    def _begin_fresh(self) -> None:
        """There is a position to begin from."""
        riders, self._fresh = list(self._fresh), {}
        for rider in riders:
            self._begin(rider, rider.start)

    def _begin(self, rider: _Rider, start: Start) -> None:
        rider.start, rider.merge = start, None
        rider.shown, rider.next_shown = NOTHING, 0
        here = self._track(rider).cursor
        since = start.since
        if not start.snapshot and since is not None:
            # the store may never have given this revision out; the log has to confirm it
            rider.position, rider.is_known = Cursor(since.revision, since.epoch or here.epoch), False
        else:
            rider.position, rider.is_known = here, True
        self._go_on(rider)

    def _go_on(self, rider: _Rider) -> None:
        """Let ``rider`` have what comes next for it, when it is its turn."""
        stream = rider.stream
        if stream.is_gone or stream.is_ending or stream not in self._riders:
            return
        if stream.pending is not None and stream.is_blocked:
            rider.unsent, rider.moved_at = stream.unsent, monotonic()
            self._blocked[rider] = None
        elif rider.is_in_snapshot or rider.next_shown < len(rider.shown.messages):
            self._for_snapshot[rider] = None
            self._has_snapshot_work.set()
        else:
            self._for_log[rider] = None
            self._has_log_work.set()

    def _track(self, rider: _Rider) -> Track:
        return self._feed.track(previous=rider.kind.previous)

    def _run(self) -> None:
        """Have the greenlets that do the work, as long as there is any."""
        if self._is_closed or not self._idle:
            return
        self._ticker.start(self._tick)
        idle, self._idle = self._idle, []
        for work in idle:
            # not at once: this may be a greenlet, and a runner starts from the hub only
            self._loop.run_callback(self._pool.run, lambda work=work: self._work(work))

    def _work(self, work: Callable[[], None]) -> None:
        try:
            if self._wait_for_start():
                work()
        finally:
            self._idle.append(work)
            if self._riders:
                self._run()
            elif not self._is_closed:
                self._ticker.stop()
                self._pages.clear()

    def _wait_for_start(self) -> bool:
        while self._riders and not self._is_closed:
            if self._feed.is_started:
                self._begin_fresh()
                return True
            self._feed.wait_for_start(TICK_SECONDS)
        return False

    def _serve(self, work: Signal, queue: dict[_Rider, None], serve: Callable[[_Rider], None]) -> None:
        """Serve the first of ``queue``, and whoever needs the same, until nobody catches up."""
        while self._riders and not self._is_closed:
            if self._fresh and self._feed.is_started:
                self._begin_fresh()
            rider = next(iter(queue), None)
            if rider is None:
                work.clear()
                work.wait(TICK_SECONDS)
                continue
            with self._in_hand([rider]):
                serve(rider)

    @contextmanager
    def _in_hand(self, riders: Iterable[_Rider], *queues: dict[_Rider, None]) -> Iterator[None]:
        """Take ``riders`` out of the queues while they are served; if that fails they are cut off."""
        for rider in riders:
            for queue in queues:
                queue.pop(rider, None)
        try:
            yield
        except Exception:
            log.exception("streams could not be caught up")
            for rider in riders:
                if rider.stream in self._riders:
                    self._broadcaster.counters.stream_dropped("failed")
                    self._broadcaster.drop(rider.stream, "it could not be caught up")

    def _tick(self) -> None:
        """Give up who reads nothing; let those look again who wait for the track; forget old pages."""
        now = monotonic()
        for rider in list(self._blocked):
            stream = rider.stream
            if stream.unsent < rider.unsent:
                rider.unsent, rider.moved_at = stream.unsent, now
            elif now - rider.moved_at >= STALL_SECONDS:
                self._broadcaster.counters.stream_dropped("stalled")
                self._broadcaster.drop(stream, "it was not read any more")
        while self._pages and now - self._pages[0].read_at > KEEP_SECONDS:
            self._pages.popleft()
        self._begun = {kind: at for kind, at in self._begun.items() if now - at < TICK_SECONDS}
        self.track_moved()

    def track_moved(self) -> None:
        """A track delivered something: who waits for it may go on."""
        if self._ahead_of_track:
            riders, self._ahead_of_track = list(self._ahead_of_track), {}
            for rider in riders:
                self._go_on(rider)

    # ── giving ──────────────────────────────────────────────────────────────────────────────────

    def _share(self) -> int:
        """How many bytes may be given to a stream before it has taken them."""
        share = max(LEAST_SHARE, CATCH_UP_BYTES // max(1, len(self._riders)))
        return min(share, self._broadcaster.buffer_bytes)

    def _in_turns(self, riders: Iterable[_Rider]) -> Iterator[_Rider]:
        """Those of ``riders`` that are there when it is their turn, with pauses for everything else."""
        for number, rider in enumerate(list(riders)):
            if number % TURN_STREAMS == TURN_STREAMS - 1:
                gevent.sleep(1e-6)  # not 0, with which the loop would not look at its sockets
            if rider.stream in self._riders and not rider.stream.is_ending:
                yield rider

    def _give(self, rider: _Rider, messages: Messages, begin: int) -> int:
        """Give messages from ``begin`` on while the socket takes them; the first that was not given."""
        form, share = rider.kind.form, self._share()
        stream = rider.stream
        while begin < len(messages.messages) and not stream.is_blocked and not stream.is_gone:
            data, events, begin = messages.part(form, begin, share)
            stream.events += events
            self._broadcaster.counters.sent(len(data), events)
            self._broadcaster.offer(stream, data)
        return begin

    # ── snapshots ───────────────────────────────────────────────────────────────────────────────

    def _show_snapshots(self) -> None:
        self._serve(self._has_snapshot_work, self._for_snapshot, self._show)

    def _show(self, first: _Rider) -> None:
        if first.next_shown < len(first.shown.messages):
            with self._in_hand([first], self._for_snapshot):
                self._show_on([first])
            return
        riders = self._with(first)
        with self._in_hand(riders, self._for_snapshot):
            try:
                if first.merge is None:
                    riders += self._gathered(first)
                    self._begin_snapshot(riders)
                else:
                    self._show_page(riders, self._own(riders, first.merge))
            except KvError as error:
                if error.code != "cursor_expired":
                    raise
                self._reset(riders, error)

    def _gathered(self, first: _Rider) -> list[_Rider]:
        """Wait a little if others of the kind began a moment ago, and take with them who came meanwhile."""
        now, kind = monotonic(), first.kind
        pause = self._begun.get(kind, 0.0) + GATHER_SECONDS - now
        self._begun[kind] = now + max(0.0, pause)
        if pause <= 0:
            return []
        gevent.sleep(pause)
        riders = self._with(first)
        for rider in riders:
            del self._for_snapshot[rider]
        return riders

    def _with(self, first: _Rider) -> list[_Rider]:
        """Those who are at the same place of a snapshot as ``first`` and have taken all before it."""
        return [
            rider
            for rider in self._for_snapshot
            if rider.place == first.place
            and rider.start == first.start
            and rider.next_shown >= len(rider.shown.messages)
        ]

    def _begin_snapshot(self, riders: list[_Rider]) -> None:
        kind, start = riders[0].kind, riders[0].start
        # asked anew: after a restore the track may not yet know of the other epoch
        reply = self._ask([{"op": "status"}], riders)
        if reply is None:
            return
        here = Cursor(reply.revision, reply.epoch)
        sizes = {"page_size": SNAPSHOT_ITEMS, "max_bytes": PAGE_BYTES}
        merge = SnapshotMerge(kind.wanted, here, values=kind.form.has_values, **sizes)
        told = b""
        if start.reset_reason is not None:
            told = event_format.reset(kind.form, start.reset_reason, start.floor, here)
        shown = Messages([Message(0, told, 0)]) if told else NOTHING
        is_empty = bool(kind.wanted.ops) and "put" not in kind.wanted.ops
        for rider in riders:
            rider.position, rider.is_known, rider.merge = here, True, merge
            if is_empty:
                rider.merge, rider.start = None, rider.start._replace(snapshot=False)
        self._hand_out(riders, shown)

    def _own(self, riders: list[_Rider], merge: SnapshotMerge) -> SnapshotMerge:
        """The merge of ``riders`` alone: who shared it and is not here now goes on later, from a copy."""
        here = set(riders)
        others = [rider for rider in self._riders.values() if rider.merge is merge and rider not in here]
        if others:
            left = copy.deepcopy(merge)
            for rider in others:
                rider.merge = left
        return merge

    def _show_page(self, riders: list[_Rider], merge: SnapshotMerge) -> None:
        reply = self._ask(merge.next_ops(), riders)
        if reply is None:
            return
        form = riders[0].kind.form
        records = merge.accept(reply)
        shown = [Message(0, event_format.snapshot(form, [record]), 1) for record in records]
        self._hand_out(riders, Messages(shown))

    def _hand_out(self, riders: list[_Rider], shown: Messages) -> None:
        for rider in riders:
            rider.shown, rider.next_shown = shown, 0
        self._show_on(riders)

    def _show_on(self, riders: list[_Rider]) -> None:
        """Give what is to be shown. All go on together, so that they share the next page too."""
        for rider in self._in_turns(riders):
            rider.next_shown = self._give(rider, rider.shown, rider.next_shown)
            if rider.next_shown >= len(rider.shown.messages):
                rider.shown, rider.next_shown = NOTHING, 0
        for rider in riders:
            self._go_on(rider)

    def _reset(self, riders: Iterable[_Rider], error: KvError) -> None:
        """A snapshot instead of a continuation that does not exist."""
        floor = error.details.get("floor", 0)
        for rider in list(riders):
            if rider.stream in self._riders:
                self._broadcaster.counters.streams_reset(1)
                reason = error.details.get("reason") or reset_reason(
                    rider.position, self._daemon.epoch, floor
                )
                self._begin(rider, Start(None, snapshot=True, reset_reason=reason, floor=floor))

    # ── the log ─────────────────────────────────────────────────────────────────────────────────

    def _follow_log(self) -> None:
        self._serve(self._has_log_work, self._for_log, self._follow)

    def _follow(self, first: _Rider) -> None:
        if self._is_remembered(first):
            epoch = first.position.epoch
            ready = [
                rider
                for rider in self._for_log
                if rider.position.epoch == epoch and self._is_remembered(rider)
            ]
            with self._in_hand(ready, self._for_log):
                self._finish(ready)
            return
        page = next((page for page in self._pages if page.serves(first)), None)
        if page is None:
            self._read_page(first)
            return
        riders = [rider for rider in self._for_log if page.serves(rider)]
        with self._in_hand(riders, self._for_log):
            self._give_page(page, riders)

    def _is_remembered(self, rider: _Rider) -> bool:
        """Whether the track still has all that it delivered after where ``rider`` stands."""
        position, track = rider.position, self._track(rider)
        reached = track.cursor
        if position.epoch != reached.epoch or (position.revision > reached.revision and not rider.is_known):
            return False
        if rider.merge is not None and max(position, reached).revision < rider.merge.through:
            return False  # what the track delivers next may stand in the snapshot
        return track.remembers(position.revision)

    def _finish(self, riders: list[_Rider]) -> None:
        """Let those go live whose track has what they miss; of a long rest they first take a part."""
        begins: dict[Place, int] = {}
        for rider in riders:
            revision = rider.position.revision
            begins[rider.place] = min(begins.get(rider.place, revision), revision)
        done: dict[Place, tuple[Cursor, Messages]] = {}
        encoder = Encoder(riders[0].position.epoch)
        for rider in self._in_turns(riders):
            if not self._is_remembered(rider):
                self._go_on(rider)
                continue
            track, place = self._track(rider), rider.place
            reached, messages = done.get(place, (None, NOTHING))
            if reached != track.cursor:
                messages = self._remembered(encoder, track, place, begins[place])
                done[place] = track.cursor, messages
            self._finish_one(rider, messages, max(rider.position, track.cursor))

    def _remembered(self, encoder: Encoder, track: Track, place: Place, begin: int) -> Messages:
        kind, merge = place
        # what was remembered when it was asked for may be forgotten by now, but not for all of them
        batches = track.after(max(begin, track.recent_floor)) or []
        return Messages(written(encoder, kind.form, only(kind.wanted, batches), merge))

    def _finish_one(self, rider: _Rider, messages: Messages, reached: Cursor) -> None:
        form, counters = rider.kind.form, self._broadcaster.counters
        begin = messages.after(rider.position.revision)
        data, events, end = messages.part(form, begin, self._share())
        rider.stream.events += events
        counters.sent(len(data), events)
        if end < len(messages.messages):
            self._broadcaster.offer(rider.stream, data)
            rider.position = Cursor(messages.revisions[end - 1], reached.epoch)
            self._go_on(rider)
            return
        del self._riders[rider.stream]
        self._count()
        self._broadcaster.go_live(rider.stream, data, event_format.sync(form, reached), reached.revision)

    def _read_page(self, first: _Rider) -> None:
        """Read the log from where ``first`` stands, or a little before it if others do, and give what
        was found to all of them."""
        limit = self._page_limit()
        epoch, through, previous = first.position.epoch, first.position.revision, first.kind.previous
        near = [
            rider
            for rider in self._for_log
            if rider.position.epoch == epoch
            and rider.kind.previous == previous
            and through - limit // 2 <= rider.position.revision < through + limit
            and not (rider.is_known and self._is_remembered(rider))
        ]
        begin = needed = min(rider.position for rider in near)
        wanted = union(rider.kind.wanted for rider in near)
        values = any(rider.kind.form.has_values for rider in near)
        if self._pages and begin.revision > self._daemon.head - limit >= 0 and epoch == self._daemon.epoch:
            # one after another comes back: a page from which all of them can go on is read once
            begin = Cursor(min(needed.revision, max(self._floor, self._daemon.head - limit)), epoch)
            wanted, values = Filter(), True
        op = {"op": "events", "since": str(begin), "limit": limit, **wanted.fields()}
        if not values:
            op["values"] = False
        if previous:
            op["previous"] = True
        asked = first.kind._replace(wanted=wanted, form=first.kind.form._replace(has_values=values))
        with self._in_hand(near, self._for_log):
            reply = self._ask([op], near)
            if reply is None:
                return
            try:
                page = LogPage.from_reply(reply)
            except KvError as error:
                if error.code != "cursor_expired":
                    raise
                self._sort_out(near, begin, error)
                return
            self._floor = page.floor
            self._note_size(page)
            found = Page(begin.revision, page, asked, monotonic())
            self._keep(found)
            if found.next <= needed.revision:
                self._pages.clear()  # large values: the next page begins where it is needed
            self._give_page(found, self._confirmed(near, page))

    def _confirmed(self, riders: list[_Rider], page: LogPage) -> list[_Rider]:
        """Those of whose snapshot the store has lost nothing; the others begin anew."""
        good = []
        for rider in riders:
            try:
                if rider.merge is not None:
                    rider.merge.check(page)
            except KvError as error:
                self._reset([rider], error)
            else:
                good.append(rider)
        return good

    def _page_limit(self) -> int:
        """How many events are about a page."""
        return max(10, min(MAX_PAGE, PAGE_BYTES // max(1, self._event_bytes)))

    def _note_size(self, page: LogPage) -> None:
        if page.events:
            self._event_bytes = sum(map(weight, page.events)) // len(page.events)

    def _keep(self, page: Page) -> None:
        if page.batches:
            self._pages.append(page)
        while len(self._pages) > KEPT_PAGES or sum(page.size for page in self._pages) > KEPT_BYTES:
            self._pages.popleft()

    def _give_page(self, page: Page, riders: list[_Rider]) -> None:
        by_kind: dict[Kind, list[_Rider]] = {}
        for rider in riders:
            by_kind.setdefault(rider.kind, []).append(rider)
            if page.begin <= rider.position.revision <= page.next:
                rider.is_known = True
        kinds = iter(by_kind.values())
        while some := list(chain.from_iterable(islice(kinds, KINDS_AT_ONCE))):
            page.write(rider for rider in some if rider.position.revision < page.next)
            for rider in self._in_turns(some):
                if rider.position.revision < page.next:
                    self._give_part(page, rider)
                    self._go_on(rider)
                elif rider.position.revision != page.head or self._is_remembered(rider):
                    self._go_on(rider)
                else:
                    self._ahead_of_track[rider] = None  # it is the track that has to get on

    def _give_part(self, page: Page, rider: _Rider) -> None:
        messages = page.written[rider.place]
        begin = messages.after(rider.position.revision)
        end = self._give(rider, messages, begin)
        reached = page.next if end == len(messages.messages) else rider.position.revision
        if begin < end < len(messages.messages):
            reached = messages.revisions[end - 1]
        rider.position = Cursor(reached, page.epoch)

    def _sort_out(self, riders: list[_Rider], asked: Cursor, error: KvError) -> None:
        """Reset those whose position has no continuation; the page was asked for the oldest."""
        epoch = error.details.get("epoch", self._daemon.epoch)
        floor, head = error.details.get("floor", 0), error.details.get("head", -1)
        self._floor = floor
        for rider in riders:
            if rider.stream not in self._riders:
                continue
            at = rider.position
            if at != asked and at.epoch == epoch and floor <= at.revision <= head:
                self._go_on(rider)
            else:
                reason = reset_reason(at, epoch, floor)
                self._reset([rider], KvError(error.code, error.message, reason=reason, floor=floor))

    # ── asking ──────────────────────────────────────────────────────────────────────────────────

    def _ask(self, ops: list[dict[str, Any]], riders: Sequence[_Rider]) -> Reply | None:
        """The reply, however long the daemon is away; None once all ``riders`` are gone."""
        while not self._is_closed and any(rider.stream in self._riders for rider in riders):
            try:
                return self._daemon.read_in_background(ops)
            except KvError as error:
                if not error.row.retryable:
                    raise
                gevent.sleep(RETRY_SECONDS)
        return None
