"""The worker's view of the changes: one SUB socket for all of its streams and long polls.

PUB is the fast path and the log is the truth (:mod:`kvstore_core.follower`). When the daemon goes away
the feed keeps its position, and goes on from there when the daemon is back.

Without listeners the feed is *asleep*: it subscribes to heartbeats alone, so that writes cost this
worker nothing. To wake up it subscribes to everything, asks for the store's position, and follows from
there. The subscription may take effect at the daemon before or after that: what it misses is found in
the log, which is read once at the start, and again as soon as a heartbeat or a change shows that
something is missing. Streams wait for the position, not for a heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

import gevent
import zmq
from gevent.event import Event as Signal

from kvstore_core.access.login_file import CurveKeys
from kvstore_core.access.principal import THE_FACADE
from kvstore_core.connection_monitor import NOBLOCK, POLLIN, notice_death
from kvstore_core.curve import apply_curve
from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import Batch
from kvstore_core.model import Cursor
from kvstore_core.wire import HEARTBEAT_TOPIC, Heartbeat, decode_change
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.backend.dealer_socket import READ, RECONNECT_MAX_MS, RECONNECT_MS
from kvstore_http.greenlet_pool import GreenletPool
from kvstore_http.streaming.change_cursor import RETRY_SECONDS, ChangeCursor, ChangeListener
from kvstore_http.streaming.filter_index import only
from kvstore_http.streaming.waiting import Asking, WaitingRequests, Woken

MESSAGES_PER_TURN = 500
"""How many messages are received before the loop serves everything else."""

SILENCE_SECONDS = 3.0
"""The daemon sends a heartbeat every second; when three are missing the log is read."""

TICK_SECONDS = 1.0
"""The feed falls asleep at the second tick without listeners, so that a client that polls, or a stream
that reconnects, finds it awake."""

EVERYTHING = b""

_EVENTS = int(zmq.EVENTS)


def _ignore(_tag: str) -> None:
    """While access is off nobody listens."""


class FeedListener(ChangeListener, Protocol):
    """What the feed delivers to: the streams of the worker."""

    def __len__(self) -> int:
        """How many streams there are; while there are none, the feed may sleep."""


class ChangeFeed:
    """Follows all changes at the PUB socket ``endpoint``, passes them on to one listener, and wakes the
    long polls.

    All methods run in the hub's thread; those that say so block, and then only their greenlet waits.
    """

    def __init__(
        self, context: zmq.Context[Any], daemon: DaemonClient, endpoint: str, keys: CurveKeys | None = None
    ) -> None:
        self._hub = gevent.get_hub()
        self._loop = self._hub.loop
        self._daemon = daemon
        self._pool = GreenletPool(self._hub)
        self.listener: FeedListener | None = None
        """Whom all changes are delivered to."""
        self._is_awake = False
        self._is_idle = False
        self._started = Signal()  # awake, and the cursor has the store's present position
        self.is_closed = False
        """Whether the service stops, so that nothing is waited for any more."""
        self._waiting = WaitingRequests(self._hub)
        self._cursor = ChangeCursor(daemon, self._pool, self, previous=False)
        self._previous_cursor: ChangeCursor | None = None
        self._heard_at = self._published_at = monotonic()
        self.on_access_tag: Callable[[str], None] = _ignore
        """Called with what each heartbeat says of the daemon's table of identities."""
        self._open_socket(context, endpoint, keys)
        self._ticker = self._loop.timer(TICK_SECONDS, TICK_SECONDS)
        self._ticker.start(self._tick)

    def _open_socket(self, context: zmq.Context[Any], endpoint: str, keys: CurveKeys | None) -> None:
        self._socket = context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = 100_000
        notice_death(self._socket)
        self._socket.reconnect_ivl = RECONNECT_MS
        self._socket.reconnect_ivl_max = RECONNECT_MAX_MS
        apply_curve(self._socket, keys)
        self._socket.connect(endpoint)
        self._socket.subscribe(HEARTBEAT_TOPIC)
        # before everything else that is ready in a turn: an event does not wait for the requests
        self._reader = self._loop.io(self._socket.getsockopt(zmq.FD), READ, priority=self._loop.MAXPRI)
        self._reader.start(self._receive)
        # ZMQ_FD, which is edge-triggered, reports only what comes after the socket was found empty
        self._loop.run_callback(self._receive)

    # ── awake and asleep ────────────────────────────────────────────────────────────────────────

    def wait_until_started(self, seconds: float) -> None:
        """Wake up, for somebody who is about to listen, and block until there is a position to begin
        from; raises ``unavailable`` after ``seconds``."""
        self.wake_up()
        # where there was a position before, there will be one again: see _start
        if not self._started.wait(None if self._cursor.is_started else seconds):
            raise KvError("unavailable", "the changes cannot be followed: the daemon was not reached yet")

    @property
    def is_started(self) -> bool:
        """Whether there is a position to begin from."""
        return self._started.is_set() and self._cursor.is_started

    def wait_for_start(self, seconds: float) -> None:
        """Block up to ``seconds`` until there is one; the feed must be awake."""
        self._started.wait(seconds)

    @property
    def silent_seconds(self) -> float:
        """How long PUB, where something comes every second, has been silent."""
        return monotonic() - self._published_at

    def wake_up(self) -> None:
        """Follow the changes, since somebody listens."""
        self._is_idle = False
        if not self._is_awake and not self.is_closed:
            self._is_awake = True
            self._socket.subscribe(EVERYTHING)
            self._loop.run_callback(self._receive)  # the edge of ZMQ_FD may have been consumed
            # not at once: the caller may be a greenlet, and the pool runs from the hub only
            self._loop.run_callback(self._pool.run, self._start)

    def _start(self) -> None:
        """Follow from the present on. No stream needs what was missed, since none was there; a long poll
        that read before that finds it forgotten, and reads again."""
        while not self.is_closed:
            try:
                reply = self._daemon.request([{"op": "status"}], who=THE_FACADE)
            except KvError:
                if self._cursor.is_started:
                    # the daemon is away: a stream may begin at its last known position
                    self._cursor.doubt()
                    break
                gevent.sleep(RETRY_SECONDS)
            else:
                self._cursor.start(Cursor(reply.revision, reply.epoch))
                break
        self._started.set()

    def _fall_asleep(self) -> None:
        self._is_awake = False
        self._started.clear()
        self._socket.unsubscribe(EVERYTHING)
        self._loop.run_callback(self._receive)

    def _tick(self) -> None:
        self._waiting.end_those_who_left()
        if not self._started.is_set():
            return
        if monotonic() - self._heard_at >= SILENCE_SECONDS:
            self._doubt()
        has_listeners = self._waiting or self.listener or self._cursor.is_reading
        if self._is_idle and not has_listeners:
            self._fall_asleep()
        self._is_idle = not has_listeners

    def _doubt(self) -> None:
        """PUB has been silent."""
        self._heard_at = monotonic()
        self._cursor.doubt()
        if self._previous_cursor is not None:
            self._previous_cursor.doubt()

    # ── cursors ─────────────────────────────────────────────────────────────────────────────────

    def cursor(self, *, previous: bool) -> ChangeCursor:
        """The cursor whose events carry, or do not carry, what they replaced."""
        if not previous:
            return self._cursor
        if self._previous_cursor is None:
            # only while somebody wants it, since each change is then read from the log once more
            self._previous_cursor = ChangeCursor(self._daemon, self._pool, self, previous=True)
            self._previous_cursor.start(self._cursor.position)
        return self._previous_cursor

    def close_previous_cursor(self) -> None:
        """Nobody wants events that carry what they replaced any more."""
        if self._previous_cursor is not None:
            self._previous_cursor.close()
            self._previous_cursor = None

    def deliver(self, cursor: ChangeCursor, batches: list[Batch]) -> None:
        """Pass the changes on, and wake the long polls that wait for one of them. (ChangeListener)"""
        if self.listener is not None:
            self.listener.deliver(cursor, batches)
        if self._waiting and cursor is self._cursor:
            self._waiting.tell(batches)

    def reset(self, cursor: ChangeCursor, reason: str, floor: int) -> None:
        """Pass the reset on, and wake all long polls: anything may have changed. (ChangeListener)"""
        if self.listener is not None:
            self.listener.reset(cursor, reason, floor)
        if cursor is self._cursor:
            self._waiting.tell_all()

    # ── PUB ─────────────────────────────────────────────────────────────────────────────────────

    def _receive(self) -> None:
        received = self._receive_messages()
        if not received:
            return
        self._heard_at = self._published_at = monotonic()
        messages = [message for frames in received if (message := decode_change(frames)) is not None]
        if not messages:
            return
        newest = messages[-1]
        revision = newest.revision if isinstance(newest, Heartbeat) else newest.event.revision
        self._daemon.note_position(newest.epoch, revision)
        for message in messages:
            if isinstance(message, Heartbeat) and message.access:
                self.on_access_tag(message.access)
        if not self._started.is_set():
            return  # the log has what comes before the position is known
        self._cursor.hear(messages)
        if self._previous_cursor is not None:
            self._previous_cursor.hear(messages)

    def _receive_messages(self) -> list[list[bytes]]:
        received: list[list[bytes]] = []
        socket = self._socket
        if socket.closed:
            return received
        try:
            received.append(socket.recv_multipart(NOBLOCK))
            # Often a lone change came: to ask takes less than to receive nothing.
            if not socket.get(_EVENTS) & POLLIN:
                return received
            for _ in range(MESSAGES_PER_TURN - 1):
                received.append(socket.recv_multipart(NOBLOCK))  # noqa: PERF401  # ends by an error
        except zmq.Again:
            return received
        # there may be more, and ZMQ_FD, which is edge-triggered, does not report it again
        timer = self._loop.timer(0)
        timer.start(self._receive)
        self._again = timer
        return received

    # ── long polls ──────────────────────────────────────────────────────────────────────────────

    def wait_for_change(self, wanted: Filter, since: Cursor, timeout: float, asking: Asking) -> Woken:
        """Block up to ``timeout`` seconds until something that is ``wanted`` (normalized) may have happened
        after ``since``, up to which the caller has read.

        It also ends, with ``goes_on``, if the changes since then are no longer remembered or belong to
        another history, or if ``asking.check`` raises: read again. Without, it ends at the end of the time
        and, within two seconds, when the client has left; and when the service stops.
        """
        deadline = monotonic() + timeout
        self.wake_up()
        if not self._started.wait(timeout) or self.is_closed:
            return Woken(goes_on=False, revision=since.revision)
        is_here = self._cursor.position.epoch == since.epoch
        if not is_here and since.epoch != self._daemon.epoch:
            return Woken(goes_on=True, revision=since.revision)
        if is_here:  # else the feed is about to notice another history, and tells all
            batches = self._cursor.after(since.revision)
            first = None if batches is None else next(only(wanted, batches), None)
            if batches is None or first:
                return Woken(
                    goes_on=True, revision=since.revision if first is None else first[0].revision - 1
                )
        goes_on, quiet_until = self._waiting.wait(wanted, since.revision, deadline - monotonic(), asking)
        if quiet_until is None:
            reached = self._cursor.position
            is_here = reached.epoch == since.epoch
            quiet_until = max(since.revision, reached.revision) if is_here else since.revision
        return Woken(goes_on, quiet_until)

    def end_waits(self) -> None:
        """Let all long polls go on as if their time were up."""
        self.is_closed = True
        self._started.set()
        self._waiting.end()

    def end_waits_of_refused(self) -> None:
        """Let the long polls go on whose callers may no longer read what they wait for: they are told so."""
        self._waiting.end_those_refused()

    def close(self) -> None:
        """Stop following the changes; streams are not touched."""
        self.is_closed = True
        self._cursor.close()
        if self._previous_cursor is not None:
            self._previous_cursor.close()
        self._reader.close()
        self._ticker.close()
        self._socket.close()
