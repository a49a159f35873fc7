"""Open streams: what each asks for, and its socket: what is unsent, who can take more, who is gone.

A stream costs a descriptor, an entry in one epoll set, and a small object: no greenlet, no watcher, and
no buffer while nothing is unsent. Streams that are sent the same bytes share one object.
All methods run in the hub's thread.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

from kvstore_core.access.grants import Need
from kvstore_core.access.principal import UNRESTRICTED, Principal
from kvstore_core.filters import Filter
from kvstore_core.model import Cursor
from kvstore_core.operations import OPERATIONS
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.streaming.conflation import Conflation
from kvstore_http.streaming.event_format import Format

READ = 1

SENDS_PER_TURN = 100
"""How many streams are written to before the loop serves requests again."""

_INPUT = select.EPOLLIN | select.EPOLLRDHUP
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

STOPPING = "the service is stopping"


class StreamSpec(NamedTuple):
    """What a stream is sent, and how. Streams with equal specs are sent the same bytes.

    ``wanted`` is normalized (:meth:`kvstore_core.filters.Filter.normalized`); with ``previous``
    events carry what they replaced. ``lists`` says that it may be sent a snapshot: one that may not learn
    which keys there are gets none after a reset. With ``is_latest`` a key's older changes are left out where
    the newer ones have come before they could be sent; with ``sample_ms``, so many milliseconds after one of
    its key at the soonest.
    """

    wanted: Filter
    form: Format
    previous: bool
    lists: bool = True
    is_latest: bool = False
    sample_ms: int = 0

    def needs(self) -> list[Need]:
        """What a stream's caller must be granted for it."""
        op = {**self.wanted.fields(), "values": self.form.has_values, "previous": self.previous}
        needs = list(OPERATIONS["events"].needs(op))
        return needs + self.listing_needs() if self.lists else needs

    def listing_needs(self) -> list[Need]:
        """What it must be granted for a snapshot besides what events need."""
        watched = OPERATIONS["events"].needs({**self.wanted.fields(), "values": False})
        return [Need("list", need.on) for need in watched]


class StreamStart(NamedTuple):
    """Where a stream begins: after ``since`` (in the present epoch if it names none), with a snapshot of the
    present records, or, with neither, at the present.

    ``reset_reason`` says why the continuation that the client expected does not exist; ``floor`` is the
    oldest revision from which one would have.
    """

    since: Cursor | None
    snapshot: bool = False
    reset_reason: str | None = None
    floor: int = 0


@dataclass(slots=True, eq=False)
class Stream:
    """One open stream. ``is_blocked`` says that the socket takes no more for now; ``pending`` is what
    waits for it then, else what is sent in this turn, and None when there is nothing. With a ``conflation``
    nothing is added to it while the socket is blocked.

    ``since`` is when it began, in milliseconds since 1970, and ``blocked_at`` when the socket last began to
    take no more, by the monotonic clock. While something is pending, the system has everything up to the
    revision ``sent_through``, and perhaps more.

    ``sent`` counts bytes and ``events`` events (without those that its group counts for it); when the
    stream has ended, ``on_end`` is called with the reason and both counts.
    """

    fd: int
    sock: socket.socket
    form: Format
    who: Principal = UNRESTRICTED
    since: int = 0
    group: Any = None
    conflation: Conflation | None = None
    pending: list[bytes | memoryview] | None = None
    unsent: int = 0
    sent: int = 0
    events: int = 0
    on_end: Callable[[str, int, int], None] | None = None
    sent_through: int = 0
    is_blocked: bool = False
    blocked_at: float = 0.0
    is_ending: bool = False
    end_reason: str = STOPPING
    is_gone: bool = False


class StreamSockets:
    """All open streams of a worker, and the one epoll set that watches them.

    ``on_drained`` is called for each stream that was blocked and has taken all that waited for it,
    ``on_gone`` once for each stream that is closed, for whatever reason. What one stream may leave unsent
    is bounded by ``buffer_bytes`` and one message: a stream that has more waiting when something is added
    is cut off.
    """

    def __init__(
        self,
        hub: Any,
        buffer_bytes: int,
        on_drained: Callable[[Stream], None],
        on_gone: Callable[[Stream], None],
        counters: WorkerCounters,
    ) -> None:
        self._loop = hub.loop
        self.buffer_bytes = buffer_bytes
        self._on_drained = on_drained
        self._on_gone = on_gone
        self._counters = counters
        self._blocked: set[Stream] = set()
        self._by_fd: dict[int, Stream] = {}
        self._due: deque[Stream] = deque()
        self._epoll = select.epoll()
        self._watcher = self._loop.io(self._epoll.fileno(), READ)
        self._watcher.start(self._on_events)
        self._flusher = self._loop.timer(0)

    def __len__(self) -> int:
        return len(self._by_fd)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._by_fd.values()))

    def add(self, stream: Stream) -> None:
        """Watch ``stream``; its socket, which does not block, is closed here when it ends."""
        self._by_fd[stream.fd] = stream
        self._epoll.register(stream.fd, _INPUT)
        self._counters.note_streams(len(self._by_fd))

    @property
    def backlog_bytes(self) -> int:
        """How many bytes wait for the stream that is furthest behind."""
        return max(map(backlog_of, self._blocked), default=0)

    def queue(self, stream: Stream, data: bytes) -> None:
        """Send ``data`` soon, together with what else is queued until then."""
        if stream.is_gone or stream.is_ending:
            return
        if stream.pending is None:
            stream.pending = [data]
            self._due.append(stream)
            if not self._flusher.active:
                self._flusher.start(self.flush)
        elif stream.is_blocked and stream.unsent > self.buffer_bytes:
            self._counters.stream_dropped("slow")
            self.drop(stream, "it was read too slowly")
            return
        else:
            stream.pending.append(data)
        stream.unsent += len(data)

    def offer(self, stream: Stream, data: bytes) -> None:
        """Send ``data`` at once, as far as the socket takes it; if that is not all, the stream is blocked."""
        self.queue(stream, data)
        if not stream.is_blocked and not stream.is_gone:
            self._write(stream)

    # ── writing ─────────────────────────────────────────────────────────────────────────────────

    def flush(self) -> None:
        """Write to some of the streams that have something pending; to the rest in the next turn of the
        loop, after everything else that is ready, so that a change for many streams delays no request."""
        due = self._due
        for _ in range(min(SENDS_PER_TURN, len(due))):
            stream = due.popleft()
            if not stream.is_blocked:
                self._write(stream)
        if not due:
            self._flusher.stop()
        elif not self._flusher.active:
            self._flusher.start(self.flush)

    def _write(self, stream: Stream) -> None:
        pending = stream.pending
        if pending is None:
            return  # written or dropped since it was queued
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        try:
            sent = stream.sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.drop(stream)
            return
        stream.unsent -= sent
        stream.sent += sent
        if sent == len(data):
            stream.pending = None
            self._drained(stream)
        else:
            stream.pending = [memoryview(data)[sent:]]
            if not stream.is_blocked:
                stream.is_blocked, stream.blocked_at = True, monotonic()
                self._blocked.add(stream)
                self._epoll.modify(stream.fd, _INPUT | select.EPOLLOUT)

    def _drained(self, stream: Stream) -> None:
        was_blocked = stream.is_blocked
        if was_blocked:
            stream.is_blocked = False
            self._blocked.discard(stream)
            self._epoll.modify(stream.fd, _INPUT)
        if stream.is_ending:
            self.drop(stream, stream.end_reason)
        elif was_blocked:
            self._on_drained(stream)

    # ── watching ────────────────────────────────────────────────────────────────────────────────

    def _on_events(self) -> None:
        for fd, events in self._epoll.poll(0, 256):
            stream = self._by_fd.get(fd)
            if stream is None:
                continue
            if events & _GONE:
                self.drop(stream)
                continue
            if events & select.EPOLLIN:
                self._discard_input(stream)
            if events & select.EPOLLOUT and not stream.is_gone:
                self._write(stream)

    def _discard_input(self, stream: Stream) -> None:
        """What a client sends after its request means nothing."""
        try:
            if not stream.sock.recv(4096):
                self.drop(stream)
        except BlockingIOError:
            return
        except OSError:
            self.drop(stream)

    # ── ending ──────────────────────────────────────────────────────────────────────────────────

    def end(self, stream: Stream, reason: str = STOPPING) -> None:
        """End the body properly and close, as soon as all is sent."""
        if stream.is_gone or stream.is_ending:
            return
        if stream.form.end:
            self.queue(stream, stream.form.end)
        stream.is_ending, stream.end_reason = True, reason
        if stream.pending is None:
            self.drop(stream, reason)

    def end_all(self) -> None:
        """End every stream."""
        for stream in self:
            self.end(stream)

    def drop(self, stream: Stream, reason: str = "the client is gone") -> None:
        """Close at once; the client sees a body that is cut off, and resumes. May be called twice."""
        if stream.is_gone:
            return
        stream.is_gone = True
        del self._by_fd[stream.fd]
        self._blocked.discard(stream)
        self._counters.note_streams(len(self._by_fd))
        stream.sock.close()  # which also takes it out of the epoll set
        stream.pending = None
        self._on_gone(stream)
        if stream.on_end is not None:
            stream.on_end(reason, stream.events, stream.sent)

    def close(self) -> None:
        """Drop every stream, and stop."""
        for stream in self:
            self.drop(stream, STOPPING)
        self._watcher.close()
        self._flusher.close()
        self._epoll.close()


def backlog_of(stream: Stream) -> int:
    """How many bytes wait for ``stream`` here."""
    return stream.unsent + (stream.conflation.size if stream.conflation is not None else 0)
