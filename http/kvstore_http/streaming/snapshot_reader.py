"""Snapshots for streams: read once for all streams of one kind that want one at the same time."""

from __future__ import annotations

import copy
from time import monotonic

import gevent

from kvstore_core.errors import KvError
from kvstore_core.model import Cursor
from kvstore_core.snapshot_merge import SnapshotMerge
from kvstore_core.wire import Reply
from kvstore_http.streaming import event_format
from kvstore_http.streaming.event_format import NOTHING, Message, Messages
from kvstore_http.streaming.lagging_streams import LaggingStream, LaggingStreams
from kvstore_http.streaming.stream_sockets import StreamSpec

PAGE_RECORDS = 200
PAGE_BYTES = 1024 * 1024

GATHER_SECONDS = 0.05
"""The least time between two snapshots of one kind, so that all streams that come in between share one."""


class SnapshotReader:
    """Serves the streams that wait for a snapshot. :meth:`serve` may run in several greenlets at once."""

    def __init__(self, streams: LaggingStreams) -> None:
        self._streams = streams
        self._queue = streams.for_snapshot
        self._begun: dict[StreamSpec, float] = {}

    def serve(self, first: LaggingStream) -> None:
        """Send to ``first``, and to all that need the same, the next page of their snapshot."""
        if first.has_page:
            with self._streams.serving([first], self._queue):
                self._send([first])
            return
        streams = self._beside(first)
        with self._streams.serving(streams, self._queue):
            try:
                if first.merge is None:
                    streams += self._gather(first)
                    self._begin(streams)
                else:
                    self._separate(streams, first.merge)
                    self._read_page(streams, first.merge)
            except KvError as error:
                if error.code != "cursor_expired":
                    raise
                for lagging in streams:
                    self._streams.reset(lagging, error)

    def forget_old(self) -> None:
        """Forget the snapshots that were begun longer ago than GATHER_SECONDS."""
        now = monotonic()
        self._begun = {spec: at for spec, at in self._begun.items() if now - at < GATHER_SECONDS}

    def _beside(self, first: LaggingStream) -> list[LaggingStream]:
        """The streams that are as far in a snapshot as ``first``, and have taken everything up to there."""
        return [
            lagging
            for lagging in self._queue
            if lagging.audience == first.audience and lagging.start == first.start and not lagging.has_page
        ]

    def _gather(self, first: LaggingStream) -> list[LaggingStream]:
        """Wait a little if another snapshot of the kind has just begun; the streams that came meanwhile."""
        now, spec = monotonic(), first.spec
        pause = self._begun.get(spec, 0.0) + GATHER_SECONDS - now
        self._begun[spec] = now + max(0.0, pause)
        if pause <= 0:
            return []
        gevent.sleep(pause)
        streams = self._beside(first)
        for lagging in streams:
            self._queue.discard(lagging)
        return streams

    def _begin(self, streams: list[LaggingStream]) -> None:
        spec, start = streams[0].spec, streams[0].start
        # asked anew: after a restore the feed may not know of the other epoch yet
        reply = self._streams.read([{"op": "status"}], streams)
        if reply is None:
            return
        here = Cursor(reply.revision, reply.epoch)
        sizes = {"page_size": PAGE_RECORDS, "max_bytes": PAGE_BYTES}
        merge = SnapshotMerge(spec.wanted, here, values=spec.form.has_values, **sizes)
        page = NOTHING
        if start.reset_reason is not None:
            reset = event_format.reset(spec.form, start.reset_reason, start.floor, here)
            page = Messages([Message(0, reset, 0)])
        is_empty = not spec.lists or (bool(spec.wanted.ops) and "put" not in spec.wanted.ops)
        for lagging in streams:
            lagging.position, lagging.is_confirmed, lagging.merge = here, True, merge
            if is_empty:
                lagging.merge, lagging.start = None, lagging.start._replace(snapshot=False)
        self._send_page(streams, page)

    def _separate(self, streams: list[LaggingStream], merge: SnapshotMerge) -> None:
        """Let ``streams`` alone have the merge: the others that share it go on later, from a copy."""
        served = set(streams)
        others = [lagging for lagging in self._streams if lagging.merge is merge and lagging not in served]
        if others:
            left = copy.deepcopy(merge)
            for lagging in others:
                lagging.merge = left

    def _read_page(self, streams: list[LaggingStream], merge: SnapshotMerge) -> None:
        reply = self._ask(streams, merge)
        if reply is None:
            return
        form = streams[0].spec.form
        records = merge.accept(reply)
        page = Messages([Message(0, event_format.snapshot(form, [record]), 1) for record in records])
        self._send_page(streams, page)

    def _ask(self, streams: list[LaggingStream], merge: SnapshotMerge) -> Reply | None:
        while True:
            try:
                return self._streams.read(merge.next_ops(), streams)
            except KvError as error:
                merge.refuse(error)

    def _send_page(self, streams: list[LaggingStream], page: Messages) -> None:
        for lagging in streams:
            lagging.page, lagging.next_message = page, 0
        self._send(streams)

    def _send(self, streams: list[LaggingStream]) -> None:
        """Send what is left of the page. All are queued together, so that they share the next page too."""
        for lagging in self._streams.in_turns(streams):
            lagging.next_message = self._streams.send(lagging, lagging.page, lagging.next_message)
            if not lagging.has_page:
                lagging.page, lagging.next_message = NOTHING, 0
        for lagging in streams:
            self._streams.enqueue(lagging)
