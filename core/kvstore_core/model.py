"""What a user of the store handles: records, events and cursors.

Times are whole milliseconds since the Unix epoch, in UTC. Keys are text; values are bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_KEY_BYTES, MAX_REPEATED, MAX_REVISION


class Record(NamedTuple):
    """A key's present state. Times are milliseconds since the Unix epoch, in UTC.

    ``author`` and ``message`` are those of the change that made ``revision``, which need not be the one that
    wrote the value.
    """

    key: str
    value: bytes | None
    """None where only metadata was asked for."""
    content_type: str
    """The value's media type, as the writer gave it."""
    revision: int
    """The store's revision that changed the key last, its TTL included."""
    create_revision: int
    """The revision that created the key."""
    version: int
    """1 for a new key, and 1 more with every ``put`` and ``incr``."""
    modified_at: int
    """When the value was written."""
    expires_at: int | None = None
    """When the key will be gone; None without a TTL."""
    author: str | None = None
    """Who made the last change, where that is known."""
    message: str | None = None
    """Why, where that was said."""

    @property
    def text(self) -> str:
        """The value as UTF-8 text; raises UnicodeDecodeError, or ValueError where no value was asked for."""
        if self.value is None:
            raise ValueError(f"the value of {self.key!r} was not asked for")
        return self.value.decode()

    def __repr__(self) -> str:
        shown = (f"{name}={_short(value)}" for name, value in zip(self._fields, self, strict=True))
        return f"Record({', '.join(shown)})"


def _short(value: object) -> str:
    """``repr`` of a value, cut off where a log would get a megabyte."""
    if isinstance(value, bytes) and len(value) > MAX_REPEATED:
        return f"{value[:MAX_REPEATED]!r}… ({len(value)} bytes)"
    return repr(value)


@dataclass(slots=True)
class Event:
    """One change; treat it as read-only."""

    op: str
    """``put``, ``delete`` or ``expire``."""
    key: str
    revision: int
    """The store's revision that the change made."""
    index: int
    """Which of the ``count`` events of the revision it is, from 0."""
    count: int
    """How many events share the revision."""
    time: int
    """When it happened, in milliseconds since the Unix epoch."""
    record: Record | None
    """The new record of a put, else None."""
    previous: Record | None
    """The record that was replaced or removed: always on an ``expire``, on request on the others. None where
    there was none, or where the log no longer has it; ``previous_revision`` is not 0 then."""
    previous_revision: int
    """The revision that the key had before, 0 for none."""
    author: str | None = None
    """Who made the change, where that is known; None on every ``expire``."""
    message: str | None = None
    """Why, where that was said; None on every ``expire``."""


ResetReason = Literal["expired", "epoch"]


class Cursor(NamedTuple):
    """A place in the change log: everything up to ``revision`` has been seen.

    Written ``REVISION-EPOCH``. The epoch names one history of one store, so a cursor from before a
    restore is noticed and never continued wrongly.
    """

    revision: int
    epoch: str

    def __str__(self) -> str:
        return f"{self.revision}-{self.epoch}"

    def reset_reason(self, epoch: str, floor: int) -> ResetReason:
        """Why this cursor cannot be continued in the history ``epoch``, whose log begins after ``floor``:
        ``expired``, or ``epoch`` if it is of another history. A revision above the head, or one that a
        restore jumped over, counts as one of another history too: this one has never given it out."""
        return "expired" if self.epoch == epoch and self.revision < floor else "epoch"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The cursor written as ``text``; raises ``invalid_cursor`` for anything else."""
        match = _CURSOR.fullmatch(text)
        if match is None or int(match[1]) > MAX_REVISION:
            what = f"{text[:MAX_REPEATED]!r} is not a cursor"
            raise KvError(
                "invalid_cursor", f"{what}; pass one back exactly as an event's id or a reply gave it"
            )
        return cls(int(match[1]), match[2])


_CURSOR = re.compile(r"([0-9]{1,19})-([0-9a-f]{16})", re.ASCII)


def is_plain_key(key: object) -> bool:
    """Whether ``key`` is ASCII text that :func:`check_key` accepts, the quick check that most keys pass."""
    return type(key) is str and 0 < len(key) <= MAX_KEY_BYTES and key.isascii() and "\0" not in key


def check_key(key: str) -> bytes:
    """The key's UTF-8 bytes; raises ``invalid_key`` if it is not 1 to 511 bytes of NUL-free UTF-8."""
    try:
        raw = key.encode()
    except UnicodeEncodeError as error:
        raise KvError("invalid_key", "a key is UTF-8 text; this one holds a lone surrogate") from error
    if not raw:
        raise KvError("invalid_key", "the key is empty; a key has 1 to 511 bytes of UTF-8")
    if len(raw) > MAX_KEY_BYTES:
        raise KvError(
            "invalid_key",
            f"the key has {len(raw)} bytes of UTF-8; the limit is {MAX_KEY_BYTES}",
            limit=MAX_KEY_BYTES,
        )
    if b"\0" in raw:
        raise KvError("invalid_key", "a key may hold any character but NUL")
    return raw
