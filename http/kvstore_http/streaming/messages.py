"""What streams get of the log or of a snapshot, as bytes that all streams of one kind share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvstore_core.follower import Batch
from kvstore_core.snapshot_merge import SnapshotMerge
from kvstore_http.streaming.event_format import Encoder, Format

KEPT_PARTS = 16


class Message(NamedTuple):
    """What a stream gets of one revision, or of one record of a snapshot; unframed."""

    revision: int
    data: bytes
    events: int


class Messages:
    """Messages in the order of their revisions, for streams of one kind.

    Parts of them are joined once for all streams at the same position; in a storm that is most of them.
    """

    __slots__ = ("_parts", "messages", "revisions", "size")

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.revisions = [message.revision for message in messages]
        self.size = sum(len(message.data) for message in messages)
        self._parts: dict[tuple[int, int], tuple[bytes, int, int]] = {}

    def __len__(self) -> int:
        return len(self.messages)

    def after(self, revision: int) -> int:
        """The index of the first message after ``revision``."""
        return bisect_right(self.revisions, revision)

    def part(self, form: Format, begin: int, max_bytes: int) -> tuple[bytes, int, int]:
        """The messages from index ``begin`` on, framed, up to ``max_bytes`` but at least one; how many
        events they have; and the index after them."""
        part = self._parts.get((begin, max_bytes))
        if part is not None:
            return part
        end, size, events = begin, 0, 0
        while end < len(self.messages):
            message = self.messages[end]
            size += len(message.data)
            if size > max_bytes and end > begin:
                break
            events += message.events
            end += 1
        data = form.framed(b"".join(message.data for message in self.messages[begin:end]))
        if len(self._parts) >= KEPT_PARTS:
            self._parts.clear()
        self._parts[begin, max_bytes] = data, events, end
        return data, events, end


NOTHING = Messages(())


def messages_of(
    batches: Iterable[Batch], encoder: Encoder, form: Format, merge: SnapshotMerge | None
) -> Messages:
    """The messages of ``batches``, without the changes that the snapshot ``merge`` has shown."""
    messages = []
    for batch in batches:
        left = batch if merge is None else [event for event in batch if not merge.shows(event)]
        if left:
            messages.append(Message(left[0].revision, encoder.batches(form, [left]), len(left)))
    return Messages(messages) if messages else NOTHING
