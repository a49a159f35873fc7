"""Pages of the log: read once, and written once for all streams that they serve."""

from __future__ import annotations

from collections.abc import Iterable

from kvstore_core.follower import LogPage, by_revision
from kvstore_core.model import Event
from kvstore_http.streaming.event_format import Encoder
from kvstore_http.streaming.filter_index import FilterIndex, covers
from kvstore_http.streaming.lagging_stream import Audience, LaggingStream
from kvstore_http.streaming.messages import Messages, messages_of
from kvstore_http.streaming.stream_spec import StreamSpec

WRITTEN_BYTES = 8 * 1024 * 1024
"""What is kept of the messages of one page, for all audiences together."""


class SharedPage:
    """A page of the log, read as ``asked``: what happened after ``begin``, through ``next``."""

    def __init__(self, begin: int, page: LogPage, asked: StreamSpec, now: float) -> None:
        self.begin = begin
        self.next, self.head, self.epoch = page.next, page.head, page.epoch
        self.read_at = now
        self.batches = by_revision(page.events)
        self.size = sum(map(weight, page.events))
        self.messages: dict[Audience, Messages] = {}
        self._encoder = Encoder(page.epoch)
        self._asked = asked

    def serves(self, lagging: LaggingStream) -> bool:
        """Whether it has what ``lagging`` needs next."""
        position, spec = lagging.position, lagging.spec
        return (
            position.epoch == self.epoch
            and self.begin <= position.revision < self.next
            and spec.previous == self._asked.previous
            and (self._asked.form.has_values or not spec.form.has_values)
            and covers(self._asked.wanted, spec.wanted)
        )

    def write(self, streams: Iterable[LaggingStream]) -> None:
        """Make the ``messages`` of each of ``streams``: once for each audience, with one look at each
        event."""
        if sum(messages.size for messages in self.messages.values()) > WRITTEN_BYTES:
            self.messages.clear()
        index: FilterIndex[StreamSpec] = FilterIndex()
        missing = {lagging.audience for lagging in streams} - self.messages.keys()
        for spec in {spec for spec, _ in missing}:
            index.add(spec, spec.wanted)
        found = index.matches(self.batches) if missing else {}
        for spec, merge in missing:
            batches = found.get(spec, ())
            self.messages[spec, merge] = messages_of(batches, self._encoder, spec.form, merge)


def weight(event: Event) -> int:
    """About what the event takes in memory and as a message."""
    values = sum(len(record.value or b"") for record in (event.record, event.previous) if record is not None)
    return 400 + values
