"""Pages of the log as streams get them: read once, and written once for all who are sent the same."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from kvstore_core.filters import Filter
from kvstore_core.follower import Batch, LogPage, by_revision
from kvstore_core.model import Cursor, Event
from kvstore_core.operations import MAX_FILTERS
from kvstore_core.snapshot_merge import SnapshotMerge
from kvstore_http.streaming.event_format import Encoder, Format
from kvstore_http.streaming.filter_index import Index

if TYPE_CHECKING:
    from kvstore_http.streaming.broadcaster import Kind

KEPT_JOINED = 16
WRITTEN_BYTES = 8 * 1024 * 1024
"""What was written of a page for so many kinds of streams is forgotten."""

Place: TypeAlias = "tuple[Kind, SnapshotMerge | None]"


class Standing(Protocol):
    """A stream, as a page sees it: it has everything up to ``position``."""

    position: Cursor
    kind: Kind

    @property
    def place(self) -> Place:
        """What is the same for all who are sent the same."""


class Message(NamedTuple):
    """What a stream gets of one revision, or of one record of a snapshot; unframed."""

    revision: int
    data: bytes
    events: int


class Messages:
    """The messages of a page for one kind of stream, and joined as those need them who stand at one
    place: in a storm that is mostly the same one."""

    __slots__ = ("_joined", "messages", "revisions", "size")

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.revisions = [message.revision for message in messages]
        self.size = sum(len(message.data) for message in messages)
        self._joined: dict[tuple[int, int], tuple[bytes, int, int]] = {}

    def after(self, revision: int) -> int:
        """Where the messages after ``revision`` begin."""
        return bisect_right(self.revisions, revision)

    def part(self, form: Format, begin: int, most: int) -> tuple[bytes, int, int]:
        """From message ``begin`` on up to ``most`` bytes, but at least one message: framed, how many
        events are in it, and the message after it."""
        joined = self._joined.get((begin, most))
        if joined is not None:
            return joined
        end, size, events = begin, 0, 0
        while end < len(self.messages):
            message = self.messages[end]
            size += len(message.data)
            if size > most and end > begin:
                break
            events += message.events
            end += 1
        data = form.framed(b"".join(message.data for message in self.messages[begin:end]))
        if len(self._joined) >= KEPT_JOINED:
            self._joined.clear()
        self._joined[begin, most] = data, events, end
        return data, events, end


NOTHING = Messages(())


class Page:
    """A page of the log: what happened after ``begin``, through ``next``, as far as it was asked for."""

    def __init__(self, begin: int, page: LogPage, asked: Kind, now: float) -> None:
        self.begin = begin
        self.next, self.head, self.epoch = page.next, page.head, page.epoch
        self.read_at = now
        self.batches = by_revision(page.events)
        self.size = sum(map(weight, page.events))
        self.encoder = Encoder(page.epoch)
        self.written: dict[Place, Messages] = {}
        self._asked = asked

    def serves(self, rider: Standing) -> bool:
        """Whether it has what ``rider`` needs next."""
        position, kind = rider.position, rider.kind
        return (
            position.epoch == self.epoch
            and self.begin <= position.revision < self.next
            and kind.previous == self._asked.previous
            and (self._asked.form.has_values or not kind.form.has_values)
            and covers(self._asked.wanted, kind.wanted)
        )

    def write(self, riders: Iterable[Standing]) -> None:
        """Have ready what each of ``riders`` gets; once for each kind, with one look at each event."""
        if sum(written.size for written in self.written.values()) > WRITTEN_BYTES:
            self.written.clear()
        index: Index[Kind] = Index()
        missing = {rider.place for rider in riders if rider.place not in self.written}
        for kind in {kind for kind, _ in missing}:
            index.add(kind, kind.wanted)
        found = index.matches(self.batches) if missing else {}
        for kind, merge in missing:
            messages = written(self.encoder, kind.form, found.get(kind, []), merge)
            self.written[kind, merge] = Messages(messages) if messages else NOTHING


def written(
    encoder: Encoder, form: Format, batches: Iterable[Batch], merge: SnapshotMerge | None
) -> list[Message]:
    """The messages of what ``batches`` has, but for what a snapshot has shown."""
    messages = []
    for batch in batches:
        left = batch if merge is None else [event for event in batch if not merge.shows(event)]
        if left:
            messages.append(Message(left[0].revision, encoder.batches(form, [left]), len(left)))
    return messages


def only(wanted: Filter, batches: Iterable[Batch]) -> Iterator[Batch]:
    """What ``wanted`` takes of ``batches``."""
    for batch in batches:
        taken = [event for event in batch if wanted.matches(event.op, event.key)]
        if taken:
            yield taken


def union(filters: Iterable[Filter]) -> Filter:
    """A filter that takes at least what ``filters`` take, in as many words as the daemon takes."""
    prefixes: set[str] = set()
    keys: set[str] = set()
    ops: set[str] = set()
    is_any_op = takes_all = False
    for wanted in set(filters):
        prefixes.update(wanted.prefixes)
        keys.update(wanted.keys)
        ops.update(wanted.ops)
        is_any_op |= not wanted.ops
        takes_all |= wanted.takes_every_key
    some_ops = () if is_any_op else ops
    if takes_all:
        return Filter.normalized(("",), (), some_ops)
    found = Filter.normalized(prefixes, keys, some_ops)
    if len(found.prefixes) > MAX_FILTERS or len(found.keys) > MAX_FILTERS:
        return Filter.normalized(("",), (), some_ops)
    return found


def covers(wide: Filter, wanted: Filter) -> bool:
    """Whether ``wide`` takes all that ``wanted`` takes."""
    if wide.ops and not (wanted.ops and wanted.ops <= wide.ops):
        return False
    if wide.takes_every_key:
        return True
    if wanted.takes_every_key:
        return False
    return all(prefix.startswith(wide.prefixes) for prefix in wanted.prefixes) and all(
        key in wide.keys or key.startswith(wide.prefixes) for key in wanted.keys
    )


def weight(event: Event) -> int:
    """About what the event takes in memory and as a message."""
    values = sum(len(record.value or b"") for record in (event.record, event.previous) if record is not None)
    return 400 + values
