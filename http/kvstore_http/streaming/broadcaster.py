"""From the feed to the open streams: each change is matched once, and written once for each kind of stream.

A stream whose position is that of the feed is *caught up*: it is in its group and gets what the group gets.
Until then it is caught up by :mod:`kvstore_http.streaming.catch_up`, which hands it over in the same step as
the last of what it missed, so that no change can come in between.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from socket import socket
from typing import Any

import gevent

from kvstore_core.access.grants import Need
from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import Batch
from kvstore_core.model import Cursor
from kvstore_core.wall_clock import now_ms
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.settings import HttpSettings
from kvstore_http.streaming import event_format
from kvstore_http.streaming.catch_up import CatchUp
from kvstore_http.streaming.change_cursor import ChangeCursor
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.conflation import KeptChange
from kvstore_http.streaming.event_format import Encoder
from kvstore_http.streaming.filter_index import FilterIndex
from kvstore_http.streaming.lagging_streams import LaggingStreams
from kvstore_http.streaming.latest_streams import LatestStreams
from kvstore_http.streaming.stream_sockets import Stream, StreamSockets, StreamSpec, StreamStart

EXPIRY_SECONDS = 0.5
"""How often is looked for streams whose callers' credentials have ended."""

LEAVING_SECONDS = 10.0
"""How long a stream that its caller may not have any more may take to read its end."""

MAX_FILTER_BYTES = 64 * 1024 * 1024
"""What the filters of all streams of a worker may hold, equal ones counted once."""

BEATS = 15
"""Heartbeats of all streams are spread over this many ticks of the interval."""

HELD = "the daemon cannot be reached yet; this stream starts when it can be"

RETRY_MS = (500, 2500)
"""An EventSource reconnects after a random time in this range, so that those of a stopped worker do not
all come back at once."""

Judge = Callable[[Principal, Iterable[Need]], Principal | KvError]
"""Gives who somebody is now; or why they may not have what they need."""

log = logging.getLogger("kvstore.http")


@dataclass(slots=True, eq=False)
class StreamGroup:
    """The streams of one spec. Those that are ``caught_up`` get every delivery; those that are
    ``ahead_of_feed`` already have everything up to a revision that the feed has not reached. ``events``
    counts what the group was sent; what a stream had of it is worked out when it enters and leaves."""

    spec: StreamSpec
    size: int = 0
    """How many streams there are of the spec, with those that are being caught up."""
    caught_up: set[Stream] = field(default_factory=set)
    ahead_of_feed: dict[Stream, int] = field(default_factory=dict)
    events: int = 0

    def enter(self, stream: Stream) -> None:
        """Let ``stream`` have what the group gets."""
        stream.events -= self.events
        self.caught_up.add(stream)

    def leave(self, stream: Stream) -> None:
        """Let ``stream`` have nothing more of the group."""
        if stream in self.caught_up:
            self.caught_up.remove(stream)
            stream.events += self.events
        self.ahead_of_feed.pop(stream, None)


class Broadcaster:
    """All streams of the worker. Every method runs in the hub's thread and none waits."""

    def __init__(
        self, daemon: DaemonClient, feed: ChangeFeed, settings: HttpSettings, counters: WorkerCounters
    ) -> None:
        self._counters = counters
        self._hub = gevent.get_hub()
        self._loop = self._hub.loop
        self.feed = feed
        self._max_streams = settings.max_streams
        self._sockets = StreamSockets(
            self._hub, settings.stream_buffer_bytes, self._drained, self._forget, counters
        )
        self._latest = LatestStreams(
            self._loop, self._sockets, counters, self._given_to, lambda stream: self._lagging.drained(stream)
        )
        self._lagging = LaggingStreams(
            daemon, feed, self._sockets, counters, self._caught_up, self._latest.send
        )
        self._catch_up = CatchUp(daemon, feed, self._lagging)
        self._groups: dict[StreamSpec, StreamGroup] = {}
        self._filter_bytes = 0
        self._indexes: dict[bool, FilterIndex[StreamGroup]] = {False: FilterIndex(), True: FilterIndex()}
        self._ahead_of_feed: set[StreamGroup] = set()
        self._is_stopping = False
        self._beats: list[set[Stream]] = [set() for _ in range(BEATS)]
        self._beat = 0
        interval = settings.stream_heartbeat_ms / 1000 / BEATS
        self._ticker = self._loop.timer(interval, interval)
        self._ticker.start(self._tick)
        feed.listener = self
        self._judge: Judge | None = None
        self._by_caller: dict[Principal, set[Stream]] = {}
        self._leaving: dict[Stream, float] = {}
        """Those that were told to go, and when they are cut off if they have not taken that."""
        self._expiry_ticker = self._loop.timer(EXPIRY_SECONDS, EXPIRY_SECONDS)

    def __len__(self) -> int:
        return len(self._sockets)

    def streams(self) -> Iterator[Stream]:
        """All streams that are open now."""
        return iter(self._sockets)

    def events_of(self, stream: Stream) -> int:
        """How many events ``stream`` was given."""
        group: StreamGroup = stream.group
        return stream.events + (group.events if stream in group.caught_up else 0)

    def kick(self, stream: Stream) -> None:
        """Cut ``stream`` off because an operator says so; its client comes back where it was."""
        self._counters.stream_dropped("kicked")
        self._sockets.drop(stream, "it was kicked")

    # ── streams come and go ─────────────────────────────────────────────────────────────────────

    def check_room(self, spec: StreamSpec) -> None:
        """Raise ``too_busy`` if no further stream, or none that asks for so many keys, is taken."""
        if self._is_stopping:
            raise KvError("unavailable", "the service is stopping; connect again")
        if len(self._sockets) >= self._max_streams:
            limit = self._max_streams
            self._counters.stream_refused()
            raise KvError("too_busy", f"{limit} streams are open, the limit (--max-streams)", limit=limit)
        if self._filter_bytes + _size_of(spec.wanted) > MAX_FILTER_BYTES and not self._has_filter(spec):
            self._counters.stream_refused()
            raise KvError("too_busy", "the open streams name too many keys and prefixes; name fewer")

    def _has_filter(self, spec: StreamSpec) -> bool:
        return any(
            spec._replace(form=spec.form._replace(is_chunked=is_chunked)) in self._groups
            for is_chunked in (True, False)
        )

    def adopt(
        self, spec: StreamSpec, start: StreamStart, who: Principal, sock: socket, unsent: bytes
    ) -> Stream:
        """Take over a connection of ``who``, whose response headers are sent, except for ``unsent``."""
        form = spec.form
        stream = Stream(sock.fileno(), sock, form, who, now_ms())
        stream.group = group = self._group(spec)
        group.size += 1
        self._sockets.add(stream)
        if spec.is_latest:
            self._latest.open(stream, spec)
        self._counters.stream_opened(is_resumed=start.since is not None)
        self._beats[stream.fd % BEATS].add(stream)
        hello = event_format.retry(form, random.randint(*RETRY_MS))  # noqa: S311  # not a secret
        if not self.feed.is_started:
            hello += event_format.comment(form, HELD)
        self._sockets.queue(stream, unsent + form.framed(hello))
        if self._is_stopping:
            self._sockets.end(stream)
        else:
            self._catch_up.add(stream, group.spec, start)  # not another copy of a long filter
        if self._judge is not None:
            self._by_caller.setdefault(who, set()).add(stream)
            self._review({who: {stream}})  # it may have lost what it needs since it was asked
        return stream

    def _group(self, spec: StreamSpec) -> StreamGroup:
        group = self._groups.get(spec)
        if group is None:
            group = self._groups[spec] = StreamGroup(spec)
            self._filter_bytes += _size_of(spec.wanted)
            self._indexes[spec.previous].add(group, spec.wanted)
        return group

    def _forget(self, stream: Stream) -> None:
        group: StreamGroup = stream.group
        self._leaving.pop(stream, None)
        self._forget_caller(stream)
        self._lagging.discard(stream)
        self._latest.forget(stream)
        group.leave(stream)
        self._beats[stream.fd % BEATS].discard(stream)
        group.size -= 1
        if group.size:
            return
        previous = group.spec.previous
        del self._groups[group.spec]
        self._filter_bytes -= _size_of(group.spec.wanted)
        self._ahead_of_feed.discard(group)
        self._indexes[previous].remove(group)
        if previous and not self._indexes[True]:
            self.feed.close_previous_cursor()

    def _drained(self, stream: Stream) -> None:
        self._latest.send(stream)
        if not stream.is_blocked:
            self._lagging.drained(stream)

    def _caught_up(self, stream: Stream, data: bytes, sync: bytes, position: int) -> None:
        """Send the last of what the stream missed, and let it have what the feed delivers from now on."""
        if stream.conflation is not None:
            stream.conflation.owes_sync |= bool(sync)
        else:
            end = stream.form.framed(sync)
            self._counters.sent(len(end))
            self._sockets.queue(stream, data + end)
        if stream.is_gone or stream.is_ending:
            return
        group: StreamGroup = stream.group
        if position > self.feed.cursor(previous=group.spec.previous).position.revision:
            group.ahead_of_feed[stream] = position
            self._ahead_of_feed.add(group)
        else:
            group.enter(stream)
        self._latest.send(stream)

    # ── changes ─────────────────────────────────────────────────────────────────────────────────

    def deliver(self, cursor: ChangeCursor, batches: list[Batch]) -> None:
        """Send the changes to all streams that want them. (ChangeListener)"""
        encoder = Encoder(cursor.position.epoch)
        found = self._indexes[cursor.previous].matches(batches)
        for group, taken in list(found.items()):
            try:
                self._deliver_to(group, encoder, taken)
            except Exception:
                # the cursor has moved on: a stream that stayed would never get these changes
                log.exception("changes could not be written; the streams that need them are cut off")
                self._cut_off(group)
        # not in the next turn of the loop: requests may be served first
        self._sockets.flush()
        self._enter_reached(cursor)
        self._lagging.feed_moved()
        if found:
            self._counters.changes_sent(time.time_ns() // 1_000_000 - batches[-1][0].time)

    def _deliver_to(self, group: StreamGroup, encoder: Encoder, taken: list[Batch]) -> None:
        form = group.spec.form
        if group.spec.is_latest:
            self._deliver_newest(group, encoder, taken)
            return
        if group.caught_up:
            data = form.framed(encoder.batches(form, taken))
            readers, events = len(group.caught_up), sum(map(len, taken))
            self._counters.sent(readers * len(data), readers * events)
            group.events += events
            before = taken[0][0].revision - 1
            for stream in list(group.caught_up):
                if stream.pending is None:
                    stream.sent_through = before
                self._sockets.queue(stream, data)
        if group.ahead_of_feed:
            self._deliver_ahead(group, encoder, taken)

    def _deliver_newest(self, group: StreamGroup, encoder: Encoder, taken: list[Batch]) -> None:
        form, bound = group.spec.form, self._sockets.buffer_bytes
        changes = encoder.newest(form, taken)
        waits = bool(group.spec.sample_ms) or sum(change.size for change in changes) > bound
        data, readers = b"", 0
        for stream in list(group.caught_up):
            if waits or stream.is_blocked or stream.conflation:
                self._give(stream, taken, changes)
                continue
            if not data:
                epoch = self.feed.cursor(previous=group.spec.previous).position.epoch
                data = form.framed(event_format.newest(form, changes, epoch))
            stream.events += len(changes)
            readers += 1
            if stream.pending is None:
                stream.sent_through = taken[0][0].revision - 1
            if stream.unsent <= bound:
                self._sockets.queue(stream, data)
            else:
                self._sockets.offer(stream, data)
        self._counters.sent(readers * len(data), readers * len(changes))
        self._counters.conflated(readers * sum(change.skipped for change in changes))
        for stream, position in list(group.ahead_of_feed.items()):
            later = [batch for batch in taken if batch[0].revision > position]
            if later:
                self._give(stream, later, encoder.newest(form, later))

    def _give(self, stream: Stream, batches: list[Batch], changes: Sequence[KeptChange]) -> None:
        """Let ``stream`` have the newest of ``batches``, or, if that is too much to wait, read them later."""
        group: StreamGroup = stream.group
        if not self._latest.give(stream, changes) and not stream.is_gone:
            epoch = self.feed.cursor(previous=group.spec.previous).position.epoch
            group.leave(stream)
            self._catch_up.go_on(stream, group.spec, Cursor(batches[0][0].revision - 1, epoch))

    def _cut_off(self, group: StreamGroup) -> None:
        for stream in [*group.caught_up, *group.ahead_of_feed]:
            self._counters.stream_dropped("failed")
            self._sockets.drop(stream, "changes could not be written")

    def _deliver_ahead(self, group: StreamGroup, encoder: Encoder, batches: list[Batch]) -> None:
        form = group.spec.form
        for stream, position in list(group.ahead_of_feed.items()):
            later = [batch for batch in batches if batch[0].revision > position]
            if later:
                data, events = form.framed(encoder.batches(form, later)), sum(map(len, later))
                self._counters.sent(len(data), events)
                stream.events += events
                if stream.pending is None:
                    stream.sent_through = later[0][0].revision - 1
                self._sockets.queue(stream, data)

    def _enter_reached(self, cursor: ChangeCursor) -> None:
        """Let the streams that the feed has now reached have what their group gets."""
        reached = cursor.position.revision
        for group in [group for group in self._ahead_of_feed if group.spec.previous == cursor.previous]:
            for stream, position in list(group.ahead_of_feed.items()):
                if position <= reached:
                    del group.ahead_of_feed[stream]
                    group.enter(stream)
            if not group.ahead_of_feed:
                self._ahead_of_feed.discard(group)

    def reset(self, cursor: ChangeCursor, reason: str, floor: int) -> None:
        """Begin all streams again: what they were sent has no continuation. (ChangeListener)"""
        start = StreamStart(None, snapshot=True, reset_reason=reason, floor=floor)
        for group in self._groups.values():
            if group.spec.previous == cursor.previous:
                streams = [*group.caught_up, *group.ahead_of_feed]
                self._counters.streams_reset(len(streams))
                for stream in streams:
                    group.leave(stream)
                    if stream.conflation is not None:
                        stream.conflation.clear()
                    self._catch_up.add(stream, group.spec, start)
        self._lagging.feed_moved()

    # ── who may no longer listen ────────────────────────────────────────────────────────────────

    def judge_by(self, judge: Judge) -> None:
        """Ask ``judge`` of each stream whether its caller may have it, from now on."""
        self._judge = judge
        self._expiry_ticker.start(self._review_expired)

    def review(self) -> None:
        """Identities or grants have changed: end the streams whose callers may not have them any more."""
        self._review(dict(self._by_caller))

    def _review_expired(self) -> None:
        now = time.time_ns() // 1_000_000
        self._review(
            {who: s for who, s in self._by_caller.items() if who.expires_at and who.expires_at <= now}
        )
        for stream in [each for each, until in self._leaving.items() if until <= time.monotonic()]:
            self._sockets.drop(stream, stream.end_reason)

    def _review(self, callers: dict[Principal, set[Stream]]) -> None:
        if self._judge is None:
            return
        for who, streams in callers.items():
            found: dict[StreamSpec, Principal | KvError] = {}
            for stream in list(streams):
                spec: StreamSpec = stream.group.spec
                verdict = found.get(spec)
                if verdict is None:
                    verdict = found[spec] = self._judge(who, spec.needs())
                if isinstance(verdict, KvError):
                    self._send_away(stream, verdict.code)
                elif verdict is not stream.who:
                    self._forget_caller(stream)
                    stream.who = verdict
                    self._by_caller.setdefault(verdict, set()).add(stream)

    def _send_away(self, stream: Stream, code: str) -> None:
        """Tell ``stream`` why it ends, and where it can go on once its caller may have it again."""
        if stream.is_ending:
            return
        form = stream.form
        self._forget_caller(stream)
        self._sockets.queue(stream, form.framed(event_format.end(form, code, self._position_of(stream))))
        self._leaving[stream] = time.monotonic() + LEAVING_SECONDS
        self._sockets.end(stream, f"its caller is {code}")

    def _position_of(self, stream: Stream) -> Cursor | None:
        """From where ``stream`` can be resumed; None if it cannot be yet."""
        position = self._followed_to(stream) or self._lagging.position_of(stream)
        if position is not None and stream.conflation:
            return position._replace(revision=stream.conflation.sent_through(position.revision))
        return position

    def sent_through(self, stream: Stream) -> int | None:
        """The revision up to which the system has everything that ``stream`` wants, and perhaps more; None if
        it has not begun, or is being sent a snapshot."""
        position = self._position_of(stream)
        if position is None:
            return None
        return position.revision if stream.pending is None else min(position.revision, stream.sent_through)

    def _given_to(self, stream: Stream) -> Cursor | None:
        return self._followed_to(stream) or self._lagging.given_to(stream)

    def _followed_to(self, stream: Stream) -> Cursor | None:
        """The position of a stream that is not being caught up."""
        group: StreamGroup = stream.group
        ahead = group.ahead_of_feed.get(stream)
        if ahead is None and stream not in group.caught_up:
            return None
        position = self.feed.cursor(previous=group.spec.previous).position
        return position if ahead is None else Cursor(ahead, position.epoch)

    def _forget_caller(self, stream: Stream) -> None:
        streams = self._by_caller.get(stream.who)
        if streams is not None:
            streams.discard(stream)
            if not streams:
                del self._by_caller[stream.who]

    # ── heartbeats ──────────────────────────────────────────────────────────────────────────────

    def _tick(self) -> None:
        self._counters.note_backlog(self._sockets.backlog_bytes)
        self._beat = (self._beat + 1) % BEATS
        streams = self._beats[self._beat]
        if self.feed.cursor(previous=False).is_started:
            self._send_heartbeats(streams)
        else:
            for stream in list(streams):
                self._sockets.offer(stream, stream.form.framed(event_format.comment(stream.form, HELD)))

    def _send_heartbeats(self, streams: Iterable[Stream]) -> None:
        now = time.time_ns() // 1_000_000
        made: dict[tuple[Any, ...], bytes] = {}
        for stream in list(streams):
            if stream.pending is not None:
                continue  # it is being sent something else
            group: StreamGroup = stream.group
            cursor, is_caught_up = self.feed.cursor(previous=group.spec.previous), stream in group.caught_up
            is_caught_up = is_caught_up and not stream.conflation
            which = (stream.form, group.spec.previous, is_caught_up)
            data = made.get(which)
            if data is None:
                beat = event_format.heartbeat(stream.form, cursor.position, now, is_position=is_caught_up)
                data = made[which] = stream.form.framed(beat)
            self._counters.sent(len(data))
            self._sockets.queue(stream, data)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """End all streams properly; ``len()`` is 0 when they have ended."""
        self._is_stopping = True
        self._sockets.end_all()

    def close(self) -> None:
        """Drop what is left."""
        self._is_stopping = True
        self._ticker.close()
        self._expiry_ticker.close()
        self._catch_up.close()
        self._sockets.close()


def _size_of(wanted: Filter) -> int:
    return sum(len(text.encode()) for texts in (wanted.prefixes, wanted.keys) for text in texts)
