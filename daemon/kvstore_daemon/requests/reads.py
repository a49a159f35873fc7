"""How each operation that reads is done: a function and its row in ``READS``, by the operation's name.

A read returns a :class:`Page`: the result's fields, the values that travel beside them in the order of
their ``size``, and the revision of the snapshot it was read from. It looks at a bounded number of records or
events; a cursor continues after them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from kvstore_core.access.grants import KeyRange
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_KEY_BYTES, MAX_PAGE, MAX_PAGE_BYTES
from kvstore_core.model import Cursor
from kvstore_daemon.record_fields import Fields, event_fields, record_fields
from kvstore_daemon.storage.interface import Engine, EventFilter, LogPosition, StoredEvent

Op = dict[str, Any]


def _max_bytes(op: Op) -> int:
    """A page ends once its values have this many bytes, so it may exceed this by one value."""
    asked: int = op.get("max_bytes", MAX_PAGE_BYTES)
    return asked


class Page(NamedTuple):
    """One op's result, which is at least as new as ``revision``."""

    fields: Fields
    values: Sequence[bytes]
    revision: int


Read = Callable[[Engine, Op], Page]


def _list(engine: Engine, op: Op) -> Page:
    start, end = _bounds(op)
    counts = op.get("count", False)
    if end is not None and start >= end:
        found: Fields = {"count": 0} if counts else {"items": []}
        return Page({**found, "cursor": None}, (), engine.position().head)
    if counts:
        counted = engine.count(start, end)
        return Page({"count": counted.total, "cursor": _cursor(counted.next_key)}, (), counted.revision)
    values = not op.get("keys_only", False)
    page = engine.range(start, end, op.get("limit", MAX_PAGE), values=values, max_bytes=_max_bytes(op))
    items = [{"key": key.decode(), **record_fields(record)} for key, record in page.items]
    fields = {"items": items, "cursor": _cursor(page.next_key)}
    return Page(fields, [r.value for _, r in page.items if r.value is not None], page.revision)


def _bounds(op: Op) -> tuple[bytes, bytes | None]:
    """The range that prefix, start, end and cursor have in common: start <= key < end."""
    start, end = KeyRange.common(op.get("prefix", ""), op.get("start", ""), op.get("end", ""))
    if "cursor" in op:
        start = max(start, _parse_cursor(op["cursor"]))
    return start, end


def _cursor(key: bytes | None) -> str | None:
    """The cursor of a list that continues at ``key``. It has a checksum, or any word would be a cursor."""
    if key is None:
        return None
    return base64.urlsafe_b64encode(_checksum(key) + key).decode().rstrip("=")


def _checksum(key: bytes) -> bytes:
    return crc32(key, crc32(b"list")).to_bytes(4)


def _parse_cursor(cursor: str) -> bytes:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        sealed = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise _not_a_cursor() from error
    key = sealed[4:]
    if not 0 < len(key) <= MAX_KEY_BYTES or _cursor(key) != cursor:
        raise _not_a_cursor()
    return key


def _not_a_cursor() -> KvError:
    return KvError("invalid_cursor", "pass a list's cursor back exactly as the reply gave it")


def _events(engine: Engine, op: Op) -> Page:
    since = op["since"]
    cursor = Cursor(since, "") if isinstance(since, int) else Cursor.parse(since)
    if cursor.epoch and cursor.epoch != (position := engine.position()).epoch:
        raise _expired(cursor, position)
    page = engine.log(
        cursor.revision,
        _filter(op),
        op.get("limit", MAX_PAGE),
        values=op.get("values", True),
        previous=op.get("previous", False),
        max_bytes=_max_bytes(op),
    )
    if isinstance(page, LogPosition):
        raise _expired(cursor._replace(epoch=page.epoch), page)
    events, blobs = _event_list(page.events)
    position = page.position
    fields = {"events": events, "next": page.next_revision, "floor": position.floor, "head": position.head}
    return Page(fields, blobs, position.head)


def _expired(cursor: Cursor, position: LogPosition) -> KvError:
    epoch, floor, head = position
    reason = cursor.reset_reason(epoch, floor)
    messages = {
        "expired": f"the log begins after revision {floor}; read a snapshot and continue from there",
        "epoch": "the cursor is from another history of the store; read a snapshot and continue from there",
    }
    return KvError("cursor_expired", messages[reason], reason=reason, epoch=epoch, floor=floor, head=head)


def _filter(op: Op) -> EventFilter:
    return EventFilter(
        tuple(prefix.encode() for prefix in op.get("prefixes", ())),
        frozenset(key.encode() for key in op.get("keys", ())),
        frozenset(op.get("ops", ())),
    )


def _event_list(events: Sequence[StoredEvent]) -> tuple[list[Fields], list[bytes]]:
    values: list[bytes] = []
    return [_event(event, values) for event in events], values


def _event(event: StoredEvent, values: list[bytes]) -> Fields:
    """The event's fields; its values are added to ``values``, the new one before the previous one."""
    fields = {"key": event.key.decode(), **event_fields(event)}
    record, previous = event.record, event.previous
    if record is not None and record.value is not None:
        fields["size"] = len(record.value)
        values.append(record.value)
    if previous is not None:
        fields["previous"] = record_fields(previous)
        if previous.value is not None:
            values.append(previous.value)
    return fields


def _history(engine: Engine, op: Op) -> Page:
    before, cursor = op.get("before"), op.get("cursor")
    limit, values = op.get("limit", MAX_PAGE), op.get("values", True)
    head = engine.position().head
    read, of = (engine.recent, op["prefix"]) if "prefix" in op else (engine.history, op["key"])
    page = read(of.encode(), before, cursor, limit, values=values, max_bytes=_max_bytes(op))
    events, blobs = _event_list(page.events)
    return Page({"events": events, "cursor": page.cursor, "truncated": page.truncated}, blobs, head)


READS: dict[str, Read] = {"list": _list, "events": _events, "history": _history}
"""Two are done elsewhere: consecutive gets share a snapshot (``PendingRequest.read``), and ``status`` reads
the daemon's state beside the engine's (``RequestHandler``)."""
