"""Streams that get the newest change of each key: what waits for them, and when it is sent."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from kvstore_core.model import Cursor
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.streaming import event_format
from kvstore_http.streaming.conflation import Conflation, KeptChange
from kvstore_http.streaming.stream_sockets import Stream, StreamSockets, StreamSpec

UNSENT_BYTES = 16 * 1024
"""How much of what the network has not taken the system may keep of such a stream, where nothing newer can
take its place any more. Its own bound is several megabytes."""


class LatestStreams:
    """What waits for each of them is in its ``conflation``. ``given_to`` tells up to where a stream was sent
    everything, or has it waiting, and ``on_room`` is called when the time that a key has to wait is over.

    All methods run in the hub's thread.
    """

    def __init__(
        self,
        loop: Any,
        sockets: StreamSockets,
        counters: WorkerCounters,
        given_to: Callable[[Stream], Cursor | None],
        on_room: Callable[[Stream], None],
    ) -> None:
        self._loop = loop
        self._sockets = sockets
        self._counters = counters
        self._given_to = given_to
        self._on_room = on_room
        self._timers: dict[Stream, Any] = {}

    def open(self, stream: Stream, spec: StreamSpec) -> None:
        """Let what ``stream`` is given wait here."""
        stream.conflation = Conflation(self._sockets.buffer_bytes, spec.sample_ms / 1000)
        with suppress(OSError):
            stream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)

    def forget(self, stream: Stream) -> None:
        """``stream`` is gone."""
        timer = self._timers.pop(stream, None)
        if timer is not None:
            timer.close()

    def give(self, stream: Stream, changes: Sequence[KeptChange]) -> bool:
        """Send ``changes``, or let them wait; False if there is no room for them, and none of them waits."""
        assert stream.conflation is not None  # noqa: S101 - for mypy
        is_taken = stream.conflation.add(changes)
        self._send(stream, self._sockets.queue)
        return is_taken

    def send(self, stream: Stream) -> None:
        """Send what waits for ``stream`` and may be sent, unless the socket takes nothing."""
        self._send(stream, self._sockets.offer)

    def _send(self, stream: Stream, put: Callable[[Stream, bytes], None]) -> None:
        conflation = stream.conflation
        if conflation is None or stream.is_blocked or stream.is_gone or stream.is_ending:
            return
        position = self._given_to(stream)
        if position is None:
            return
        form = stream.form
        changes = conflation.take(monotonic())
        sent_through = conflation.sent_through(position.revision)
        data = b""
        if changes:
            waits_after = sent_through if conflation else None
            data = event_format.newest(form, changes, position.epoch, waits_after)
            stream.events += len(changes)
            self._counters.conflated(sum(change.skipped for change in changes))
        if conflation.owes_sync:
            conflation.owes_sync = False
            data += event_format.sync(form, Cursor(sent_through, position.epoch))
        if data:
            framed = form.framed(data)
            self._counters.sent(len(framed), len(changes))
            put(stream, framed)
        self._look_again(stream, conflation)

    def _look_again(self, stream: Stream, conflation: Conflation) -> None:
        at = conflation.next_at()
        if at is not None and stream not in self._timers and not stream.is_gone:
            self._timers[stream] = timer = self._loop.timer(max(0.0, at - monotonic()))
            timer.start(self._on_time, stream)

    def _on_time(self, stream: Stream) -> None:
        self.forget(stream)
        if not stream.is_blocked:  # else it is looked at once it is not
            self._send(stream, self._sockets.queue)
            self._on_room(stream)
