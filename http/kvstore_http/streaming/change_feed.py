"""The worker's view of the changes: one SUB socket for all of its streams and long polls.

PUB is the fast path and the log is the truth (:mod:`kvstore_core.follower`). When the daemon goes
away the feed stays where it is, and goes on from there when it is back.

While nobody listens the feed is *asleep*: it is subscribed to heartbeats alone, so that what others
write costs this worker nothing. To be woken it subscribes to everything, asks where the store stands,
and follows from there. The subscription may take effect at the daemon before or after that: what
it came too late for is found when the log is asked, once at the start, and again as soon as a
heartbeat or a change tells of something that is missing. Streams wait for the position, and for no
heartbeat.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import zmq
from gevent.event import Event as Signal
from gevent.hub import Waiter

from kvstore_core.connection_monitor import notice_death
from kvstore_core.errors import KvError
from kvstore_core.follower import Batch
from kvstore_core.model import Cursor
from kvstore_core.wire import HEARTBEAT_TOPIC, Heartbeat, decode_change
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.greenlet_pool import GreenletPool
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.settings import HttpSettings
from kvstore_http.streaming.broadcaster import Broadcaster
from kvstore_http.streaming.change_cursor import RETRY_SECONDS, Track

READ = 1
MESSAGES_PER_TURN = 500
"""How many messages are taken in before the loop looks at everything else again."""

SILENCE_SECONDS = 3.0
"""The daemon sends a heartbeat every second; after three of them are missing the log is asked."""

TICK_SECONDS = 1.0
"""The feed falls asleep at the second tick of which nobody listens, so that a client that polls, or
a stream that connects again, finds it awake."""

EVERYTHING = b""


class ChangeFeed:
    """Follows everything, tells the broadcaster, and wakes those who wait for a key.

    All methods run in the hub's thread; those that say so wait, and only their greenlet does.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        daemon: DaemonClient,
        settings: HttpSettings,
        counters: WorkerCounters | None = None,
    ) -> None:
        self._hub = gevent.get_hub()
        self._loop = self._hub.loop
        self._daemon = daemon
        self._pool = GreenletPool(self._hub)
        self._is_awake = False
        self._is_idle = False
        self._started = Signal()  # awake, and the live track has a position that is the present one
        self._is_closed = False
        self._waiting: dict[str, list[tuple[int, Waiter]]] = {}
        self.broadcaster = Broadcaster(daemon, self, settings, counters or WorkerCounters.alone())
        self._live = Track(daemon, self._pool, self, previous=False)
        self._previous: Track | None = None
        self._heard_at = self._published_at = monotonic()
        self._open_socket(context, settings.changes)
        self._ticker = self._loop.timer(TICK_SECONDS, TICK_SECONDS)
        self._ticker.start(self._tick)

    def _open_socket(self, context: zmq.Context[Any], endpoint: str) -> None:
        self._socket = context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = 100_000
        notice_death(self._socket)
        self._socket.reconnect_ivl = 50
        self._socket.reconnect_ivl_max = 500
        self._socket.connect(endpoint)
        self._socket.subscribe(HEARTBEAT_TOPIC)
        # first of what is ready in a turn: an event does not wait for the requests, each some 50 µs
        self._reader = self._loop.io(self._socket.getsockopt(zmq.FD), READ, priority=self._loop.MAXPRI)
        self._reader.start(self._receive)
        # ZMQ_FD, which is edge-triggered, only speaks of what comes after the socket was found empty
        self._loop.run_callback(self._receive)

    # ── awake and asleep ────────────────────────────────────────────────────────────────────────

    def wait_until_started(self, seconds: float) -> None:
        """Wait until there is a position to begin from; raises ``unavailable`` after ``seconds``.

        Whoever calls this is about to listen.
        """
        self.wake_up()
        # there is always one in the end where there was one before: see _start
        if not self._started.wait(None if self._live.is_started else seconds):
            raise KvError("unavailable", "the changes cannot be followed: the daemon was not reached yet")

    @property
    def is_started(self) -> bool:
        """Whether there is a position to begin from."""
        return self._started.is_set() and self._live.is_started

    def wait_for_start(self, seconds: float) -> None:
        """Wait up to ``seconds`` until there is one; the feed must have been woken."""
        self._started.wait(seconds)

    @property
    def silent_seconds(self) -> float:
        """For how long nothing was heard on PUB, which tells something every second."""
        return monotonic() - self._published_at

    def wake_up(self) -> None:
        self._is_idle = False
        if not self._is_awake and not self._is_closed:
            self._is_awake = True
            self._socket.subscribe(EVERYTHING)
            self._loop.run_callback(self._receive)  # the edge of ZMQ_FD may have been consumed
            # not at once: this may be a greenlet, and a runner starts from the hub only
            self._loop.run_callback(self._pool.run, self._start)

    def _start(self) -> None:
        """Follow from the present on. Nobody has listened, so what was missed is for nobody; a long
        poll that has read before that finds it forgotten, and reads again."""
        while not self._is_closed:
            try:
                reply = self._daemon.request([{"op": "status"}])
            except KvError:
                if self._live.is_started:
                    # the daemon is away: a stream may begin where it was last heard to be
                    self._live.doubt()
                    break
                gevent.sleep(RETRY_SECONDS)
            else:
                self._live.start(Cursor(reply.revision, reply.epoch))
                break
        self._started.set()

    def _fall_asleep(self) -> None:
        self._is_awake = False
        self._started.clear()
        self._socket.unsubscribe(EVERYTHING)
        self._loop.run_callback(self._receive)

    def _tick(self) -> None:
        if not self._started.is_set():
            return
        if monotonic() - self._heard_at >= SILENCE_SECONDS:
            self._doubt()
        has_listeners = self._waiting or len(self.broadcaster) or self._live.is_asking
        if self._is_idle and not has_listeners:
            self._fall_asleep()
        self._is_idle = not has_listeners

    def _doubt(self) -> None:
        """PUB has been silent."""
        self._heard_at = monotonic()
        self._live.doubt()
        if self._previous is not None:
            self._previous.doubt()

    # ── tracks ──────────────────────────────────────────────────────────────────────────────────

    def track(self, *, previous: bool) -> Track:
        """The track whose events carry, or do not carry, what they replaced."""
        if not previous:
            return self._live
        if self._previous is None:
            # only while somebody wants it, since each change is then read from the log once more
            self._previous = Track(self._daemon, self._pool, self.broadcaster, previous=True)
            self._previous.start(self._live.cursor)
        return self._previous

    def drop_track(self, track: Track) -> None:
        """Nobody listens to ``track`` any more."""
        if track is self._previous:
            track.close()
            self._previous = None

    # ── PUB ─────────────────────────────────────────────────────────────────────────────────────

    def _receive(self) -> None:
        received = self._take_messages()
        if not received:
            return
        self._heard_at = self._published_at = monotonic()
        messages = [message for frames in received if (message := decode_change(frames)) is not None]
        if not messages:
            return
        newest = messages[-1]
        revision = newest.revision if isinstance(newest, Heartbeat) else newest.event.revision
        self._daemon.note_position(newest.epoch, revision)
        if not self._started.is_set():
            return  # what comes before the position is known is found in the log
        self._live.hear(messages)
        if self._previous is not None:
            self._previous.hear(messages)

    def _take_messages(self) -> list[list[bytes]]:
        received: list[list[bytes]] = []
        if self._socket.closed:
            return received
        try:
            for _ in range(MESSAGES_PER_TURN):
                received.append(self._socket.recv_multipart(zmq.NOBLOCK))  # noqa: PERF401  # ends by an error
        except zmq.Again:
            return received
        # there may be more, and ZMQ_FD, which is edge-triggered, will not say so again
        timer = self._loop.timer(0)
        timer.start(self._receive)
        self._again = timer
        return received

    # ── what the live track delivers ────────────────────────────────────────────────────────────

    def deliver(self, track: Track, batches: list[Batch]) -> None:
        """Pass the changes on, and wake who waits for one of them."""
        self.broadcaster.deliver(track, batches)
        if self._waiting:
            for batch in batches:
                for event in batch:
                    self._wake(event.key, event.revision)

    def reset(self, track: Track, reason: str, floor: int) -> None:
        """Pass the reset on; everything may have changed."""
        self.broadcaster.reset(track, reason, floor)
        for key in list(self._waiting):
            self._wake(key, None)

    # ── long polls ──────────────────────────────────────────────────────────────────────────────

    def wait_for_change(self, key: str, since: int, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds until ``key`` may have changed after revision ``since`` of
        the store; whether it may have.

        ``since`` should be the store's revision as of the read that the caller bases this on. True
        is also the answer when the changes since then are no longer remembered: read again.
        """
        deadline = monotonic() + timeout
        self.wake_up()
        if not self._started.wait(timeout) or self._is_closed:
            return False
        if self._may_have_changed(key, since):
            return True
        waiter = Waiter(self._hub)
        entry = (since, waiter)
        self._waiting.setdefault(key, []).append(entry)
        timer = self._loop.timer(max(deadline - monotonic(), 0.0))
        timer.start(waiter.switch, False)
        try:
            return bool(waiter.get())
        finally:
            timer.close()
            self._forget(key, entry)

    def end_waits(self) -> None:
        """Let all who wait for a key go on as if their time were up."""
        self._is_closed = True
        self._started.set()
        for entries in self._waiting.values():
            for _, waiter in entries:
                self._loop.run_callback(waiter.switch, False)

    def _may_have_changed(self, key: str, since: int) -> bool:
        batches = self._live.after(since)
        return batches is None or any(event.key == key for batch in batches for event in batch)

    def _wake(self, key: str, revision: int | None) -> None:
        for since, waiter in self._waiting.get(key, ()):
            if revision is None or revision > since:
                self._loop.run_callback(waiter.switch, True)

    def _forget(self, key: str, entry: tuple[int, Waiter]) -> None:
        entries = self._waiting[key]
        entries.remove(entry)
        if not entries:
            del self._waiting[key]

    def close(self) -> None:
        """Stop following; streams are not touched."""
        self._is_closed = True
        self._live.close()
        if self._previous is not None:
            self._previous.close()
        self._reader.close()
        self._ticker.close()
        self._socket.close()
