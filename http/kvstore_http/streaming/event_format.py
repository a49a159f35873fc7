"""Events as bytes, which all streams of one kind share: Server-Sent Events or newline-delimited JSON, in
chunks of HTTP/1.1 or bare.

The cursor of a stream (the ``id`` of SSE, ``cursor`` in JSON) is sent only where everything up to it has
been sent: on the last event of a revision, on ``sync`` and on ``heartbeat``. So a client that is cut off
inside a revision gets all of it again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from kvstore_core.follower import Batch
from kvstore_core.model import Cursor, Event, Record
from kvstore_core.snapshot_merge import SnapshotMerge
from kvstore_http.protocol.json_records import inline_member, timestamp, value_member
from kvstore_http.streaming.conflation import KeptChange, newest_of

LAST_CHUNK = b"0\r\n\r\n"
KEPT_PARTS = 16


class Format(NamedTuple):
    """How a stream is written: as Server-Sent Events or as NDJSON, with values or without, as
    chunks (HTTP/1.1) or ended by the connection (HTTP/1.0), with JSON values inline or as text."""

    is_sse: bool
    has_values: bool
    is_chunked: bool
    inline: bool = False

    def message(self, name: str, body: bytes, cursor: str | None) -> bytes:
        """One event of the stream. ``body`` is a JSON object."""
        if self.is_sse:
            head = f"event: {name}\n" if cursor is None else f"event: {name}\nid: {cursor}\n"
            return b"%bdata: %b\n\n" % (head.encode(), body)
        tail = f',"cursor":"{cursor}"}}\n' if cursor is not None else "}\n"
        inner = body[1:-1]
        return b'{"event":"%b"%b%b%b' % (name.encode(), b"," if inner else b"", inner, tail.encode())

    def framed(self, messages: bytes) -> bytes:
        """``messages`` as they are written to the connection; empty stays empty, since a chunk of
        no bytes would end the body."""
        if not self.is_chunked or not messages:
            return messages
        return b"%x\r\n%b\r\n" % (len(messages), messages)

    @property
    def end(self) -> bytes:
        """What ends the body."""
        return LAST_CHUNK if self.is_chunked else b""


class Encoder:
    """Writes the changes of one delivery for any number of groups; the JSON of an event is made once
    for all of them."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._bodies: dict[tuple[int, int, bool, bool], bytes] = {}

    def batches(self, form: Format, batches: Iterable[Batch]) -> bytes:
        """The messages of ``batches``, unframed. Each batch has what a stream gets of one revision."""
        return b"".join(self._message(form, event, batch) for batch in batches for event in batch)

    def newest(self, form: Format, batches: Iterable[Batch]) -> list[KeptChange]:
        """The newest change of each key in ``batches``, in their order, as they wait for a stream."""
        return [
            KeptChange(
                event.key, event.op, event.revision, event.index, self._body(event, form), skipped, after
            )
            for event, skipped, after in newest_of(batches)
        ]

    def _message(self, form: Format, event: Event, batch: Batch) -> bytes:
        cursor = f"{event.revision}-{self._epoch}" if event is batch[-1] else None
        return form.message(event.op, self._body(event, form), cursor)

    def _body(self, event: Event, form: Format) -> bytes:
        which = (event.revision, event.index, form.has_values, form.inline)
        body = self._bodies.get(which)
        if body is None:
            fields = event_json(event, has_value=form.has_values, inline=form.inline)
            body = self._bodies[which] = orjson.dumps(fields)
        return body


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
    messages = [
        Message(left[0].revision, encoder.batches(form, [left]), len(left))
        for left in not_shown(batches, merge)
    ]
    return Messages(messages) if messages else NOTHING


def not_shown(batches: Iterable[Batch], merge: SnapshotMerge | None) -> Iterator[Batch]:
    """``batches`` without the changes that the snapshot ``merge`` has shown."""
    for batch in batches:
        left = batch if merge is None else [event for event in batch if not merge.shows(event)]
        if left:
            yield left


def newest(form: Format, changes: Sequence[KeptChange], epoch: str, waits_after: int | None = None) -> bytes:
    """``changes`` with what they stand for, in the order of the log; unframed. ``waits_after`` is the
    revision before what still waits, None if nothing does.

    A change has a cursor if all up to its revision has been sent then. The last one has one in any case, so
    that a client which waits for a cursor has all that was sent: where something older waits, it is from
    before that.
    """
    made: list[bytes] = []
    least = changes[-1].revision if waits_after is None else waits_after
    cursor: int | None = min(least, changes[-1].revision)
    for change in reversed(changes):
        if cursor is None and change.revision <= least:
            cursor = change.revision
        body = b'%b,"skipped":%d}' % (change.body[:-1], change.skipped)
        made.append(form.message(change.op, body, None if cursor is None else f"{cursor}-{epoch}"))
        least, cursor = min(least, change.after), None
    return b"".join(reversed(made))


def snapshot(form: Format, records: Iterable[Record]) -> bytes:
    """Present records, as ``put`` events without a cursor; unframed."""
    bodies = (orjson.dumps(_record_event(record, form)) for record in records)
    return b"".join(form.message("put", body, None) for body in bodies)


def sync(form: Format, cursor: Cursor) -> bytes:
    """Everything up to ``cursor`` has been sent; unframed."""
    body = {"revision": cursor.revision, "cursor": str(cursor)}
    if not form.is_sse:
        del body["cursor"]  # message() adds it
    return form.message("sync", orjson.dumps(body), str(cursor))


def heartbeat(form: Format, cursor: Cursor, time_ms: int, *, is_position: bool) -> bytes:
    """The stream is alive; unframed. ``is_position`` says that everything up to ``cursor`` has been sent,
    so that the stream can be resumed from it."""
    body = orjson.dumps({"revision": cursor.revision, "time": timestamp(time_ms)})
    return form.message("heartbeat", body, str(cursor) if is_position else None)


def reset(form: Format, reason: str, floor: int, cursor: Cursor) -> bytes:
    """What was sent before has no continuation, and a snapshot follows; unframed.

    It has no id, so that a client that is cut off before the next ``sync`` gets it again.
    """
    body = {"reason": reason, "floor": floor, "cursor": str(cursor)}
    return form.message("reset", orjson.dumps(body), None)


def end(form: Format, code: str, cursor: Cursor | None) -> bytes:
    """The service ends the stream for an error with ``code``; unframed. Without a ``cursor`` it cannot be
    resumed from where it ended."""
    text = None if cursor is None else str(cursor)
    body: dict[str, str | None] = {"code": code}
    if form.is_sse or text is None:  # message() adds it otherwise
        body["cursor"] = text
    return form.message("end", orjson.dumps(body), text)


def retry(form: Format, milliseconds: int) -> bytes:
    """How long an EventSource waits before it reconnects; unframed."""
    return b"retry: %d\n\n" % milliseconds if form.is_sse else b""


def comment(form: Format, text: str) -> bytes:
    """A line that people see and an EventSource ignores; unframed. NDJSON has no comments."""
    return f": {text}\n\n".encode() if form.is_sse else b""


def event_json(event: Event, *, has_value: bool, inline: bool = False) -> dict[str, Any]:
    """The ``data`` of an event."""
    body: dict[str, Any] = {
        "op": event.op,
        "key": event.key,
        "revision": event.revision,
        "index": event.index,
        "count": event.count,
        "time": timestamp(event.time),
        "previous_revision": event.previous_revision,
    }
    if event.record is not None:
        _add_record(body, event.record, has_value, inline)
    else:
        _add_byline(body, event)
    if event.previous is not None:
        body["previous"] = _add_record({}, event.previous, has_value, inline)
    return body


def _record_event(record: Record, form: Format) -> dict[str, Any]:
    """A present record as a change is written: alone in its revision, at the time of its put, and the
    first of its key."""
    body: dict[str, Any] = {
        "op": "put",
        "key": record.key,
        "snapshot": True,
        "revision": record.revision,
        "index": 0,
        "count": 1,
        "time": timestamp(record.modified_at),
        "previous_revision": 0,
    }
    return _add_record(body, record, form.has_values, form.inline)


def _add_byline(body: dict[str, Any], change: Event | Record) -> None:
    """Add who made a change and why, as far as that is known."""
    if change.author is not None:
        body["author"] = change.author
    if change.message is not None:
        body["message"] = change.message


def _add_record(body: dict[str, Any], record: Record, has_value: bool, inline: bool) -> dict[str, Any]:
    """Add what a record has beside its key; returns ``body``."""
    value = record.value
    body["content_type"] = record.content_type
    body["revision"] = record.revision
    body["create_revision"] = record.create_revision
    body["version"] = record.version
    body["modified_at"] = timestamp(record.modified_at)
    if record.expires_at is not None:
        body["expires_at"] = timestamp(record.expires_at)
    _add_byline(body, record)
    if has_value and value is not None:
        body |= inline_member(value, record.content_type) if inline else value_member(value)
    return body
