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
from kvstore_core.digest import digest_text
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_KEY_BYTES, MAX_PAGE, MAX_PAGE_BYTES
from kvstore_core.model import Cursor
from kvstore_daemon.record_fields import Fields, event_fields, record_fields
from kvstore_daemon.storage.interface import (
    Engine,
    EventFilter,
    Folding,
    KeyCount,
    KeyDigest,
    LogPosition,
    RangePage,
    StoredEvent,
)

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
    reverse = op.get("reverse", False)
    folding = _folding(op)
    start, end = _bounds(op, reverse=reverse)
    if op.get("count", False):
        return _count(engine, op, start, end)
    if end is not None and start >= end:
        page = RangePage([], None, engine.position().head)
    else:
        page = engine.range(
            start,
            end,
            op.get("limit", MAX_PAGE),
            values=not op.get("keys_only", False),
            max_bytes=_max_bytes(op),
            reverse=reverse,
            folding=folding,
        )
    require_revision(op, page.revision)
    items = [{"key": key.decode(), **record_fields(record)} for key, record in page.items]
    for item, size in zip(items, page.sizes, strict=False):
        item["bytes"] = size
    fields: Fields = {
        "items": items,
        "cursor": _cursor(page.next_key, reverse=reverse),
    }
    if folding is not None:
        fields["prefixes"] = [prefix.decode() for prefix in page.prefixes]
        if folding.counts:
            fields["counts"] = page.counts
    return Page(fields, [r.value for _, r in page.items if r.value is not None], page.revision)


def _count(engine: Engine, op: Op, start: bytes, end: bytes | None) -> Page:
    if end is not None and start >= end:
        counted = KeyCount(0, None, engine.position().head)
    else:
        counted = engine.count(start, end)
    require_revision(op, counted.revision)
    return Page({"count": counted.total, "cursor": _cursor(counted.next_key)}, (), counted.revision)


def _folding(op: Op) -> Folding | None:
    delimiter = op.get("delimiter")
    if delimiter is None:
        return None
    return Folding(delimiter.encode(), len(op.get("prefix", "").encode()), op.get("counts", False))


def _digest(engine: Engine, op: Op) -> Page:
    start, end = _bounds(op, reverse=False)
    if end is not None and start >= end:
        found = KeyDigest(0, 0, None, engine.position().head)
    else:
        found = engine.digest(start, end)
    require_revision(op, found.revision)
    fields = {
        "digest": digest_text(found.digest),
        "count": found.records,
        "cursor": _cursor(found.next_key),
        "next": None if found.next_key is None else found.next_key.decode(),
    }
    return Page(fields, (), found.revision)


def _bounds(op: Op, *, reverse: bool) -> tuple[bytes, bytes | None]:
    """The range that prefix, start, end and cursor have in common: start <= key < end."""
    start, end = KeyRange.common(op.get("prefix", ""), op.get("start", ""), op.get("end", ""))
    if "cursor" in op:
        place = _parse_cursor(op["cursor"], reverse=reverse)
        if not reverse:
            start = max(start, place)
        elif end is None or place < end:
            end = place
    return start, end


def _cursor(key: bytes | None, *, reverse: bool = False) -> str | None:
    """The cursor of a list that continues at ``key`` or, with ``reverse``, below it. It has a checksum, or
    any word would be a cursor, and one of another kind would lead to another place."""
    if key is None:
        return None
    checksum = crc32(key, crc32(b"reverse" if reverse else b"list")).to_bytes(4)
    return base64.urlsafe_b64encode(checksum + key).decode().rstrip("=")


def _parse_cursor(cursor: str, *, reverse: bool) -> bytes:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        sealed = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise _not_a_cursor() from error
    key = sealed[4:]
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise _not_a_cursor()
    if _cursor(key, reverse=reverse) == cursor:
        return key
    if _cursor(key, reverse=not reverse) == cursor:
        raise KvError(
            "invalid_cursor", "this cursor is of a list in the other direction: keep reverse as it was"
        )
    raise _not_a_cursor()


def _not_a_cursor() -> KvError:
    return KvError("invalid_cursor", "pass a list's cursor back exactly as the reply gave it")


def require_revision(op: Op, revision: int) -> None:
    """Raise ``condition_failed`` unless what was read at ``revision`` is as new as ``op`` wants it."""
    wanted = op.get("min_revision", 0)
    if revision < wanted:
        raise KvError(
            "condition_failed",
            f"the store is at revision {revision}, and min_revision asks for {wanted}",
            revision=revision,
        )


def _events(engine: Engine, op: Op) -> Page:
    cursor = _since(op) if "since" in op else _since_time(engine, op["since_time"])
    page = engine.log(
        cursor.revision,
        _filter(op),
        op.get("limit", MAX_PAGE),
        values=op.get("values", True),
        previous=op.get("previous", False),
        max_bytes=_max_bytes(op),
    )
    position = page if isinstance(page, LogPosition) else page.position
    # compared with that of the page: the log may have been replaced just before it was read
    if cursor.epoch and cursor.epoch != position.epoch:
        raise _expired(cursor, position)
    if isinstance(page, LogPosition):
        raise _expired(cursor._replace(epoch=page.epoch), page)
    events, blobs = _event_list(page.events)
    fields = {"events": events, "next": page.next_revision, "floor": position.floor, "head": position.head}
    return Page(fields, blobs, position.head)


def _since(op: Op) -> Cursor:
    since = op["since"]
    return Cursor(since, "") if isinstance(since, int) else Cursor.parse(since)


def _since_time(engine: Engine, time: int) -> Cursor:
    """The cursor from which all follows that was committed after ``time``."""
    revision, position = engine.revision_at(time)
    if revision is None:
        raise _expired(Cursor(position.floor - 1, position.epoch), position)
    return Cursor(revision, position.epoch)


def must_be_current(op: Op, epoch: str, head: int) -> bool:
    """Whether ``op`` is a read that has to see all that was committed before it. One that is ``stale`` has to
    as well if it asks for what is not here yet, with the log at ``head`` of ``epoch``: by ``min_revision``,
    or as an ``events`` that goes on from there, since a subscriber that comes from another daemon would be
    told that its cursor is of no use."""
    if op["op"] not in OF_ENGINE:
        return False
    if not op.get("stale"):
        return True
    if op["op"] != "events" or "since" not in op:
        wanted: int = op.get("min_revision", 0)
        return wanted > head
    try:
        cursor = _since(op)
    except KvError:
        return False  # which the read itself will say
    return cursor.revision > head or cursor.epoch not in ("", epoch)


def _expired(cursor: Cursor, position: LogPosition) -> KvError:
    epoch, floor, head, _ = position
    reason = cursor.reset_reason(epoch, floor)
    if cursor.epoch in ("", epoch) and cursor.revision > head:
        lost = f"the cursor is above the head, revision {head}: the store was rolled back, or lost changes"
    else:
        lost = "the cursor is from another history of the store"
    messages = {
        "expired": f"the log begins after revision {floor}; read a snapshot and continue from there",
        "epoch": f"{lost}; read a snapshot and continue from there",
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
    require_revision(op, head)
    page = read(of.encode(), before, cursor, limit, values=values, max_bytes=_max_bytes(op))
    events, blobs = _event_list(page.events)
    return Page({"events": events, "cursor": page.cursor, "truncated": page.truncated}, blobs, head)


READS: dict[str, Read] = {"list": _list, "events": _events, "history": _history, "digest": _digest}
"""Two are done elsewhere: consecutive gets share a snapshot (``PendingRequest.read``), and ``status`` reads
the daemon's state beside the engine's (``RequestHandler``)."""

OF_ENGINE = frozenset(("get", *READS))
"""The reads of what the engine stores."""
