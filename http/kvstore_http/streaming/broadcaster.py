"""From the feed to the open streams: each change matched once, written once for each kind of stream.

A stream is *live* when it stands where its track stands: it is then in its group and gets what the
group gets. Before that it is being caught up by :mod:`kvstore_http.streaming.catch_up`, and it becomes
live in one step with the end of the catching-up, between which and the next delivery nothing can come.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent

from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import Batch
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.greenlet_pool import GreenletPool
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.settings import HttpSettings
from kvstore_http.streaming import event_format
from kvstore_http.streaming.catch_up import Joining, Start
from kvstore_http.streaming.change_cursor import Track
from kvstore_http.streaming.event_format import Encoder, Format
from kvstore_http.streaming.filter_index import Index
from kvstore_http.streaming.stream_sockets import Stream, Streams

if TYPE_CHECKING:
    from kvstore_http.streaming.change_feed import ChangeFeed

BEATS = 15
"""Heartbeats of all streams are spread over this many ticks of the interval."""

HELD = "the daemon cannot be reached yet; this stream begins when it is there"

RETRY_MS = (500, 2500)
"""An EventSource connects again after a time out of this range, so that those of a stopped worker
do not come back in one moment."""


log = logging.getLogger("kvstore.http")


class Kind(NamedTuple):
    """What a stream is to be sent, and how; streams of the same kind are a group."""

    wanted: Filter
    form: Format
    previous: bool


class Group:
    """The streams of one kind. ``live`` get every delivery; those in ``ahead`` have already been
    sent everything up to a revision that their track has not reached yet. ``events`` counts what live
    ones were sent; what a stream had of it is reckoned when it comes and when it goes."""

    __slots__ = ("ahead", "events", "kind", "live")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.live: set[Stream] = set()
        self.ahead: dict[Stream, int] = {}
        self.events = 0

    def enter(self, stream: Stream) -> None:
        """Make ``stream`` live."""
        stream.events -= self.events
        self.live.add(stream)

    def leave(self, stream: Stream) -> None:
        """Let ``stream`` have nothing more of the group."""
        if stream in self.live:
            self.live.remove(stream)
            stream.events += self.events
        self.ahead.pop(stream, None)


class Broadcaster:
    """All streams of the worker. Every method runs in the hub's thread and none waits."""

    def __init__(
        self, daemon: DaemonClient, feed: ChangeFeed, settings: HttpSettings, counters: WorkerCounters
    ) -> None:
        self.counters = counters
        self._hub = gevent.get_hub()
        self._loop = self._hub.loop
        self._feed = feed
        self._max_streams = settings.max_streams
        self.buffer_bytes = settings.stream_buffer_bytes
        self._joining = Joining(self, daemon, feed, GreenletPool(self._hub))
        self._streams = Streams(
            self._hub, settings.stream_buffer_bytes, self._joining.drained, self._forget, counters
        )
        self._groups: dict[Kind, Group] = {}
        self._members: dict[Group, int] = {}
        self._indexes: dict[bool, Index[Group]] = {False: Index(), True: Index()}
        self._with_ahead: set[Group] = set()
        self._is_stopping = False
        self._beats: list[set[Stream]] = [set() for _ in range(BEATS)]
        self._beat = 0
        interval = settings.stream_heartbeat_ms / 1000 / BEATS
        self._ticker = self._loop.timer(interval, interval)
        self._ticker.start(self._tick)

    def __len__(self) -> int:
        return len(self._streams)

    # ── streams come and go ─────────────────────────────────────────────────────────────────────

    def check_room(self) -> None:
        """Raise ``too_busy`` if no further stream is taken."""
        if self._is_stopping:
            raise KvError("unavailable", "the service is stopping; connect again")
        if len(self._streams) >= self._max_streams:
            limit = self._max_streams
            self.counters.stream_refused()
            raise KvError("too_busy", f"{limit} streams are open, the limit (--max-streams)", limit=limit)

    def adopt(self, kind: Kind, start: Start, fd: int, unsent: bytes) -> Stream:
        """Take over a connection whose response headers are sent, but for what is ``unsent``."""
        form = kind.form
        stream = Stream(fd, form)
        group = self._group(kind)
        stream.group = group
        self._members[group] += 1
        self._streams.add(stream)
        self.counters.stream_opened(is_resumed=start.since is not None)
        self._beats[fd % BEATS].add(stream)
        hello = event_format.retry(form, random.randint(*RETRY_MS))  # noqa: S311  # not a secret
        if not self._feed.is_started:
            hello += event_format.comment(form, HELD)
        self._streams.queue(stream, unsent + form.framed(hello))
        if self._is_stopping:
            self._streams.end(stream)
        else:
            self._joining.add(stream, start)
        return stream

    def _group(self, kind: Kind) -> Group:
        group = self._groups.get(kind)
        if group is None:
            group = self._groups[kind] = Group(kind)
            self._members[group] = 0
            self._indexes[kind.previous].add(group, kind.wanted)
        return group

    def _forget(self, stream: Stream) -> None:
        group: Group = stream.group
        self._joining.forget(stream)
        group.leave(stream)
        self._beats[stream.fd % BEATS].discard(stream)
        self._members[group] -= 1
        if self._members[group]:
            return
        previous = group.kind.previous
        del self._members[group], self._groups[group.kind]
        self._with_ahead.discard(group)
        self._indexes[previous].remove(group)
        if previous and not self._indexes[True]:
            self._feed.drop_track(self._feed.track(previous=True))

    # ── catching up ─────────────────────────────────────────────────────────────────────────────

    def track(self, stream: Stream) -> Track:
        """The track whose changes ``stream`` gets."""
        group: Group = stream.group
        return self._feed.track(previous=group.kind.previous)

    def offer(self, stream: Stream, data: bytes) -> None:
        """Send ``data``, which is framed, to a stream that is being caught up."""
        self._streams.offer(stream, data)

    def drop(self, stream: Stream, reason: str) -> None:
        """Cut ``stream`` off."""
        self._streams.drop(stream, reason)

    def go_live(self, stream: Stream, data: bytes, sync: bytes, position: int) -> None:
        """Send ``data``, which is framed, and ``sync``, after which the stream has everything up to
        ``position``, and let it have what its track delivers beyond."""
        end = stream.form.framed(sync)
        self.counters.sent(len(end))
        self._streams.queue(stream, data + end)
        if stream.is_gone or stream.is_ending:
            return
        group: Group = stream.group
        if position > self.track(stream).cursor.revision:
            group.ahead[stream] = position
            self._with_ahead.add(group)
        else:
            group.enter(stream)

    # ── changes ─────────────────────────────────────────────────────────────────────────────────

    def deliver(self, track: Track, batches: list[Batch]) -> None:
        """Send the changes to all streams that want them. (Listener)"""
        encoder = Encoder(track.cursor.epoch)
        found = self._indexes[track.previous].matches(batches)
        for group, taken in list(found.items()):
            try:
                self._deliver_to(group, encoder, taken)
            except Exception:
                # the track has moved on: who stayed would never hear of these changes
                log.exception("changes could not be written; the streams that want them are cut off")
                self._cut_off(group)
        self._let_catch_up(track)
        self._joining.track_moved()
        # not in the next turn of the loop: requests may be served in between, each some 50 µs
        self._streams.flush()
        if found:
            self.counters.changes_sent(time.time_ns() // 1_000_000 - batches[-1][0].time)

    def _deliver_to(self, group: Group, encoder: Encoder, taken: list[Batch]) -> None:
        form = group.kind.form
        if group.live:
            data = form.framed(encoder.batches(form, taken))
            readers, events = len(group.live), sum(map(len, taken))
            self.counters.sent(readers * len(data), readers * events)
            group.events += events
            for stream in list(group.live):
                self._streams.queue(stream, data)
        if group.ahead:
            self._deliver_ahead(group, encoder, taken)

    def _cut_off(self, group: Group) -> None:
        for stream in [*group.live, *group.ahead]:
            self.counters.stream_dropped("failed")
            self.drop(stream, "changes could not be written")

    def _deliver_ahead(self, group: Group, encoder: Encoder, batches: list[Batch]) -> None:
        form = group.kind.form
        for stream, position in list(group.ahead.items()):
            later = [batch for batch in batches if batch[0].revision > position]
            if later:
                data, events = form.framed(encoder.batches(form, later)), sum(map(len, later))
                self.counters.sent(len(data), events)
                stream.events += events
                self._streams.queue(stream, data)

    def _let_catch_up(self, track: Track) -> None:
        """Streams that were ahead of the track and are not any more are like all others."""
        reached = track.cursor.revision
        for group in [group for group in self._with_ahead if group.kind.previous == track.previous]:
            for stream, position in list(group.ahead.items()):
                if position <= reached:
                    del group.ahead[stream]
                    group.enter(stream)
            if not group.ahead:
                self._with_ahead.discard(group)

    def reset(self, track: Track, reason: str, floor: int) -> None:
        """Tell all streams that what they had has no continuation, and begin anew. (Listener)"""
        start = Start(None, snapshot=True, reset_reason=reason, floor=floor)
        for group in self._groups.values():
            if group.kind.previous == track.previous:
                streams = [*group.live, *group.ahead]
                self.counters.streams_reset(len(streams))
                for stream in streams:
                    group.leave(stream)
                    self._joining.add(stream, start)
        self._joining.track_moved()

    # ── heartbeats ──────────────────────────────────────────────────────────────────────────────

    def _tick(self) -> None:
        self.counters.note_backlog(self._streams.backlog_bytes)
        self._beat = (self._beat + 1) % BEATS
        streams = self._beats[self._beat]
        if self._feed.track(previous=False).is_started:
            self._send_heartbeats(streams)
        else:
            for stream in list(streams):
                self.offer(stream, stream.form.framed(event_format.comment(stream.form, HELD)))

    def _send_heartbeats(self, streams: Iterable[Stream]) -> None:
        now = time.time_ns() // 1_000_000
        made: dict[tuple[Any, ...], bytes] = {}
        for stream in list(streams):
            if stream.pending is not None:
                continue  # it is being sent something else
            group: Group = stream.group
            track, is_live = self.track(stream), stream in group.live
            which = (stream.form, group.kind.previous, is_live)
            data = made.get(which)
            if data is None:
                beat = event_format.heartbeat(stream.form, track.cursor, now, is_position=is_live)
                data = made[which] = stream.form.framed(beat)
            self.counters.sent(len(data))
            self._streams.queue(stream, data)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """End all streams properly; ``len()`` is 0 once they are."""
        self._is_stopping = True
        self._streams.end_all()

    def close(self) -> None:
        """Drop what is left."""
        self._is_stopping = True
        self._ticker.close()
        self._joining.close()
        self._streams.close()
