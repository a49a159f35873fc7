"""Streams that are being caught up: how far each is, what it waits for, and how they are written to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeAlias

import gevent
from gevent.event import Event as Signal

from kvstore_core.errors import KvError
from kvstore_core.follower import Batch
from kvstore_core.limits import MAX_PAGE
from kvstore_core.model import Cursor
from kvstore_core.snapshot_merge import SnapshotMerge
from kvstore_core.wire import Reply
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.streaming import event_format
from kvstore_http.streaming.change_cursor import RETRY_SECONDS, ChangeCursor
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.event_format import NOTHING, Encoder, Messages
from kvstore_http.streaming.stream_sockets import Stream, StreamSockets, StreamSpec, StreamStart

TURN_SECONDS = 0.001
"""For how long streams are written to before the loop serves requests again."""

CATCH_UP_BYTES = 64 * 1024 * 1024
LEAST_SHARE = 16 * 1024
STALL_SECONDS = 30.0
"""A stream that is being caught up and reads nothing for this long is cut off."""

OnCaughtUp = Callable[[Stream, bytes, bytes, int], None]
"""Called with a stream, the last of what it missed (framed), a ``sync`` (unframed), and the revision up to
which it then has everything."""

Audience: TypeAlias = tuple[StreamSpec, SnapshotMerge | None]
"""What streams that are sent the same have in common: their spec, and the snapshot that what follows is
compared with."""

UNKNOWN = Cursor(0, "")

log = logging.getLogger("kvstore.http")


@dataclass(slots=True, eq=False)
class LaggingStream:
    """A stream that has everything up to ``position``.

    ``is_confirmed`` says that the store is known to have used that revision. With a ``merge``, which it
    shares with others at the same page of the same snapshot, it is being sent that snapshot, or has been
    sent it and what follows has to be compared with it. ``page`` is the page that it is being sent, from
    message ``next_message`` on. ``unsent`` and ``progress_at`` tell whether a blocked one still reads.
    ``is_back`` says that it was caught up once, and fell behind; ``reach`` is of how many revisions the
    newest changes are looked for at once: about as many as there was room for.
    """

    stream: Stream
    spec: StreamSpec
    start: StreamStart
    position: Cursor = UNKNOWN
    is_confirmed: bool = True
    merge: SnapshotMerge | None = None
    page: Messages = NOTHING
    next_message: int = 0
    unsent: int = 0
    progress_at: float = 0.0
    is_back: bool = False
    reach: int = MAX_PAGE

    @property
    def audience(self) -> Audience:
        """Equal for all that are sent the same."""
        return self.spec, self.merge

    @property
    def has_page(self) -> bool:
        """Whether there is more to send of the page of the snapshot that was read last."""
        return self.next_message < len(self.page)

    @property
    def needs_snapshot(self) -> bool:
        """Whether pages of a snapshot are to be read for it."""
        return self.start.snapshot and (self.merge is None or not self.merge.is_complete)

    def begin(self, start: StreamStart, here: Cursor) -> None:
        """Begin from ``start``, with the store at ``here``; forgets what it was sent before."""
        self.start, self.merge, self.page, self.next_message = start, None, NOTHING, 0
        self.is_back = False  # it is to be told once it has what it begins with
        since = start.since
        if not start.snapshot and since is not None:
            # the store may never have used this revision: the log has to confirm it
            self.position, self.is_confirmed = Cursor(since.revision, since.epoch or here.epoch), False
        else:
            self.position, self.is_confirmed = here, True


class Queue(dict[LaggingStream, None]):
    """Streams that wait for the same; the first is the one that was served least recently. Only :meth:`add`
    wakes who waits for one."""

    def __init__(self) -> None:
        super().__init__()
        self._is_filled = Signal()

    def add(self, lagging: LaggingStream) -> None:
        self[lagging] = None
        self._is_filled.set()

    def discard(self, lagging: LaggingStream) -> None:
        self.pop(lagging, None)

    def take_all(self) -> list[LaggingStream]:
        taken = list(self)
        self.clear()
        return taken

    def wait(self, seconds: float) -> None:
        """Block until something is added, or :meth:`wake` is called, for up to ``seconds``."""
        self._is_filled.clear()
        self._is_filled.wait(seconds)

    def wake(self) -> None:
        """End :meth:`wait`."""
        self._is_filled.set()


class LaggingStreams:
    """The streams of a worker that are not caught up, each in the queue of what it needs next, or
    in none while it is served.

    All methods run in the hub's thread. :meth:`read` and :meth:`in_turns` let others run meanwhile: a
    stream may be gone after them.
    """

    def __init__(
        self,
        daemon: DaemonClient,
        feed: ChangeFeed,
        sockets: StreamSockets,
        counters: WorkerCounters,
        on_caught_up: OnCaughtUp,
        send_newest: Callable[[Stream], None],
    ) -> None:
        self.for_snapshot, self.for_log = Queue(), Queue()
        self._unstarted, self._ahead_of_feed, self._blocked = Queue(), Queue(), Queue()
        self._queues = (self._unstarted, self.for_snapshot, self.for_log, self._ahead_of_feed, self._blocked)
        self._streams: dict[Stream, LaggingStream] = {}
        self._daemon = daemon
        self._feed = feed
        self._sockets = sockets
        self._counters = counters
        self._on_caught_up = on_caught_up
        self._send_newest = send_newest

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[LaggingStream]:
        return iter(self._streams.values())

    def __contains__(self, lagging: LaggingStream) -> bool:
        """Whether it still is to be caught up."""
        return lagging.stream in self._streams

    # ── streams come and go ─────────────────────────────────────────────────────────────────────

    def add(self, stream: Stream, spec: StreamSpec, start: StreamStart) -> None:
        """Catch ``stream`` up from ``start``, as soon as the feed has a position."""
        lagging = self._streams[stream] = LaggingStream(stream, spec, start)
        self._unstarted.add(lagging)
        self._count()

    def go_on(self, stream: Stream, spec: StreamSpec, position: Cursor) -> None:
        """Catch ``stream``, which was caught up and has everything up to ``position``, up again."""
        lagging = LaggingStream(stream, spec, StreamStart(position), position, is_back=True)
        self._streams[stream] = lagging
        self._count()
        self.enqueue(lagging)

    def discard(self, stream: Stream) -> None:
        """``stream`` is gone, or caught up."""
        lagging = self._streams.pop(stream, None)
        if lagging is not None:
            for queue in self._queues:
                queue.discard(lagging)
            self._count()

    def clear(self) -> None:
        """Catch up none of them."""
        self._streams.clear()
        self._unstarted.clear()
        self.for_log.wake()
        self.for_snapshot.wake()

    def _count(self) -> None:
        self._counters.note_catching_up(len(self._streams))

    # ── what each of them needs next ────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin with those that have not begun; the feed must have a position."""
        if self._unstarted:
            for lagging in self._unstarted.take_all():
                self._begin(lagging, lagging.start)

    def _begin(self, lagging: LaggingStream, start: StreamStart) -> None:
        if lagging.stream.conflation is not None:
            lagging.stream.conflation.clear()
        lagging.begin(start, self.cursor(lagging).position)
        self.enqueue(lagging)

    def reset(self, lagging: LaggingStream, error: KvError) -> None:
        """Send a snapshot instead of a continuation that, as ``error`` says, does not exist."""
        if lagging in self:
            floor = error.details.get("floor", 0)
            reason = error.details.get("reason") or lagging.position.reset_reason(self._daemon.epoch, floor)
            self._counters.streams_reset(1)
            self._begin(lagging, StreamStart(None, snapshot=True, reset_reason=reason, floor=floor))

    def position_of(self, stream: Stream) -> Cursor | None:
        """From where ``stream`` can be resumed; None if it has not begun, or has a part of a snapshot."""
        lagging = self._streams.get(stream)
        if lagging is None or lagging.start.snapshot or lagging.merge is not None:
            return None
        return lagging.start.since if lagging in self._unstarted else lagging.position

    def given_to(self, stream: Stream) -> Cursor | None:
        """Up to where ``stream`` was sent everything, or has it waiting; None if it has not begun."""
        lagging = self._streams.get(stream)
        return None if lagging is None or lagging in self._unstarted else lagging.position

    def enqueue(self, lagging: LaggingStream) -> None:
        """Let ``lagging`` have what it needs next, when it is its turn."""
        stream = lagging.stream
        if stream.is_gone or stream.is_ending or lagging not in self:
            return
        if stream.pending is not None and stream.is_blocked:
            lagging.unsent, lagging.progress_at = stream.unsent, monotonic()
            self._blocked.add(lagging)
        elif stream.conflation is not None and stream.conflation.wants_room:
            self._blocked.add(lagging)
        elif lagging.needs_snapshot or lagging.has_page:
            self.for_snapshot.add(lagging)
        else:
            self.for_log.add(lagging)

    def await_feed(self, lagging: LaggingStream) -> None:
        """``lagging`` has more than the feed has delivered; :meth:`feed_moved` lets it go on."""
        self._ahead_of_feed.add(lagging)

    def feed_moved(self) -> None:
        """The feed delivered something."""
        if self._ahead_of_feed:
            for lagging in self._ahead_of_feed.take_all():
                self.enqueue(lagging)

    def drained(self, stream: Stream) -> None:
        """The socket of ``stream`` has taken everything that waited, or there is room for more to wait."""
        lagging = self._streams.get(stream)
        if lagging is not None and lagging in self._blocked:
            self._blocked.discard(lagging)
            self.enqueue(lagging)

    def drop_stalled(self) -> None:
        """Cut off the streams that have read nothing for too long."""
        now = monotonic()
        for lagging in list(self._blocked):
            stream = lagging.stream
            if lagging.spec.is_latest and not lagging.has_page:
                continue  # nothing piles up for it, however long it takes
            if stream.unsent < lagging.unsent:
                lagging.unsent, lagging.progress_at = stream.unsent, now
            elif now - lagging.progress_at >= STALL_SECONDS:
                self._counters.stream_dropped("stalled")
                self._sockets.drop(stream, "it was not read any more")

    def cursor(self, lagging: LaggingStream) -> ChangeCursor:
        """The cursor of the feed that the stream follows once it is caught up."""
        return self._feed.cursor(previous=lagging.spec.previous)

    # ── serving them ────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def serving(self, streams: Iterable[LaggingStream], *queues: Queue) -> Iterator[None]:
        """Take ``streams`` out of ``queues`` while they are served; if that fails they are cut off."""
        for lagging in streams:
            for queue in queues:
                queue.discard(lagging)
        try:
            yield
        except Exception:
            log.exception("streams could not be caught up")
            for lagging in streams:
                if lagging in self:
                    self._counters.stream_dropped("failed")
                    self._sockets.drop(lagging.stream, "it could not be caught up")

    def read(self, ops: Sequence[dict[str, Any]], streams: Sequence[LaggingStream]) -> Reply | None:
        """The daemon's reply, however long the daemon is away; None once all ``streams`` are gone."""
        while any(lagging in self for lagging in streams):
            try:
                return self._daemon.read_in_background(ops)
            except KvError as error:
                if not error.row.retryable:
                    raise
                gevent.sleep(RETRY_SECONDS)
        return None

    def in_turns(self, streams: Iterable[LaggingStream]) -> Iterator[LaggingStream]:
        """Those of ``streams`` that are still there when it is their turn, with pauses for requests."""
        turn_ends = monotonic() + TURN_SECONDS
        for lagging in list(streams):
            if monotonic() >= turn_ends:
                gevent.sleep(1e-6)  # not 0, with which the loop would not look at its sockets
                turn_ends = monotonic() + TURN_SECONDS
            if lagging in self and not lagging.stream.is_ending:
                yield lagging

    def send(self, lagging: LaggingStream, messages: Messages, begin: int) -> int:
        """Send messages from index ``begin`` on while the socket takes them; the first unsent index."""
        form, share, stream = lagging.spec.form, self._share(), lagging.stream
        stream.sent_through = lagging.position.revision
        while begin < len(messages) and not stream.is_blocked and not stream.is_gone:
            data, events, begin = messages.part(form, begin, share)
            self._count_sent(stream, data, events)
            self._sockets.offer(stream, data)
        return begin

    def send_rest(self, lagging: LaggingStream, messages: Messages, reached: Cursor) -> None:
        """Send what ``messages`` has after the stream's position; if that is not too much, the stream has
        everything up to ``reached`` then and is caught up."""
        stream, form = lagging.stream, lagging.spec.form
        stream.sent_through = lagging.position.revision
        data, events, end = messages.part(form, messages.after(lagging.position.revision), self._share())
        self._count_sent(stream, data, events)
        if end < len(messages):
            self._sockets.offer(stream, data)
            lagging.position = Cursor(messages.revisions[end - 1], reached.epoch)
            self.enqueue(lagging)
            return
        del self._streams[stream]
        self._count()
        self._on_caught_up(stream, data, event_format.sync(form, reached), reached.revision)

    def keep_newest(
        self, lagging: LaggingStream, batches: list[Batch], encoder: Encoder, reached: Cursor
    ) -> bool:
        """Let the newest of ``batches`` wait for the stream, which then has everything up to ``reached``; or
        of the first of them, as far as there is room, and send what waits. Returns whether all was taken."""
        conflation, form = lagging.stream.conflation, lagging.spec.form
        assert conflation is not None  # noqa: S101 - for mypy
        share, taken = self._share(), 0
        while taken < len(batches):
            some = batches[taken : taken + lagging.reach]
            is_least = len(some) == 1 and not conflation.size
            if conflation.add(encoder.newest(form, some), share, whatever=is_least):
                taken += len(some)
                lagging.reach = min(2 * lagging.reach, MAX_PAGE)
            elif len(some) > 1:
                lagging.reach = len(some) // 2
            else:
                break
        if taken == len(batches):
            lagging.position = reached
            return True
        if taken:
            lagging.position = Cursor(batches[taken - 1][0].revision, reached.epoch)
        self._send_newest(lagging.stream)
        return False

    def end_with_newest(self, lagging: LaggingStream) -> None:
        """The stream is caught up: all that it has not been sent waits for it."""
        del self._streams[lagging.stream]
        self._count()
        position = lagging.position
        sync = b"" if lagging.is_back else event_format.sync(lagging.spec.form, position)
        self._on_caught_up(lagging.stream, b"", sync, position.revision)

    def _count_sent(self, stream: Stream, data: bytes, events: int) -> None:
        stream.events += events
        self._counters.sent(len(data), events)

    def _share(self) -> int:
        """How many bytes a stream may be sent before it has taken them."""
        share = max(LEAST_SHARE, CATCH_UP_BYTES // max(1, len(self._streams)))
        return min(share, self._sockets.buffer_bytes)
