"""How streams get from where they begin to where the feed is, without gap or repeat.

A snapshot of the present is read page by page (:mod:`kvstore_http.streaming.snapshot_reader`), then the log
from before its first page; a cursor is continued from the log (:mod:`kvstore_http.streaming.log_reader`).
Either ends when the feed remembers all that follows: that is then sent, and the stream is caught up, in one
step in which nothing else runs.

Many streams come back at once when a worker, the facade or a proxy ends, so what they need is read and
written once for all of them, and the daemon has one page of the log to read at a time:

- A page of the log is read from the position of the stream that was served least recently. Every stream
  whose position is within the page gets its part of it, whatever its filter; that is written once for each
  kind of stream. The last few pages are kept for the streams that come next.
- Streams of one kind that want a snapshot and are there when it begins share it, page by page.
- A stream whose socket takes no more is left out until it has taken what it was sent, so that the slow
  delay no others; and nothing is read for a stream whose client is gone.

What waits to be sent to all streams that are being caught up is bounded by ``CATCH_UP_BYTES``, or by
``LEAST_SHARE`` and one message for each of them if that is more
(:mod:`kvstore_http.streaming.lagging_streams`).
"""

from __future__ import annotations

from collections.abc import Callable

import gevent

from kvstore_core.model import Cursor
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.greenlet_pool import GreenletPool
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.lagging_streams import LaggingStream, LaggingStreams, Queue
from kvstore_http.streaming.log_reader import LogReader
from kvstore_http.streaming.snapshot_reader import SnapshotReader
from kvstore_http.streaming.stream_sockets import Stream, StreamSpec, StreamStart

SNAPSHOTS_AT_ONCE = 4
"""How many pages of snapshots are read at once; of the log it is one."""

TICK_SECONDS = 1.0

Serve = Callable[[LaggingStream], None]


class CatchUp:
    """Catches up ``streams``, with greenlets that are there as long as there is one.

    Every method runs in the hub's thread, and none blocks.
    """

    def __init__(self, daemon: DaemonClient, feed: ChangeFeed, streams: LaggingStreams) -> None:
        self._feed = feed
        self._streams = streams
        self._log_reader, self._snapshot_reader = LogReader(streams, daemon), SnapshotReader(streams)
        snapshots = (streams.for_snapshot, self._snapshot_reader.serve)
        self._idle: list[tuple[Queue, Serve]] = [
            (streams.for_log, self._log_reader.serve),
            *[snapshots] * SNAPSHOTS_AT_ONCE,
        ]
        hub = gevent.get_hub()
        self._loop = hub.loop
        self._pool = GreenletPool(hub)
        self._ticker = self._loop.timer(TICK_SECONDS, TICK_SECONDS)
        self._is_closed = False

    def add(self, stream: Stream, spec: StreamSpec, start: StreamStart) -> None:
        """Catch ``stream`` up from ``start``, however long the daemon is away."""
        self._streams.add(stream, spec, start)
        self._feed.wake_up()
        if self._feed.is_started:
            self._streams.start()
        self._run()

    def go_on(self, stream: Stream, spec: StreamSpec, position: Cursor) -> None:
        """Catch ``stream``, which was caught up and has everything up to ``position``, up again."""
        self._streams.go_on(stream, spec, position)
        self._run()

    def close(self) -> None:
        """Stop catching up."""
        self._is_closed = True
        self._streams.clear()
        self._ticker.close()

    def _run(self) -> None:
        if self._is_closed or not self._idle:
            return
        self._ticker.start(self._tick)
        idle, self._idle = self._idle, []
        for queue, serve in idle:
            # not at once: the caller may be a greenlet, and the pool runs from the hub only
            self._loop.run_callback(self._pool.run, lambda queue=queue, serve=serve: self._work(queue, serve))

    def _work(self, queue: Queue, serve: Serve) -> None:
        try:
            self._serve(queue, serve)
        finally:
            self._idle.append((queue, serve))
            if self._streams:
                self._run()

    def _serve(self, queue: Queue, serve: Serve) -> None:
        """Serve the first of ``queue``, and all that need the same, until no stream is left."""
        while self._streams and not self._is_closed:
            if not self._feed.is_started:
                self._feed.wait_for_start(TICK_SECONDS)
                continue
            self._streams.start()
            first = next(iter(queue), None)
            if first is None:
                queue.wait(TICK_SECONDS)
                continue
            with self._streams.serving([first]):
                serve(first)

    def _tick(self) -> None:
        self._streams.drop_stalled()
        self._log_reader.forget_old()
        self._snapshot_reader.forget_old()
        self._streams.feed_moved()
        if not self._streams and not self._log_reader.has_pages:
            self._ticker.stop()
