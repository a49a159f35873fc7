"""``deliver=latest`` and ``sample=``: of each key only the newest change is kept for a stream.

Both are here without a socket or a clock. What a change is written as is made once for all streams of one
kind (:class:`kvstore_http.streaming.event_format.Encoder`), so what waits is bytes, and is counted in bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvstore_core.follower import Batch
from kvstore_core.model import Event

ENTRY_BYTES = 400
"""About what a key takes beside its name and what its event is written as."""

SENT_BYTES = 200
"""About what it takes to remember when a key was last sent, beside its name."""


class NewestChange(NamedTuple):
    """The newest of several changes of a key, and how many older ones it stands for. ``after`` is the
    revision before the first of them."""

    event: Event
    skipped: int
    after: int


class KeptChange(NamedTuple):
    """The same as it waits: ``at`` is the event's index in its revision, ``body`` its JSON object, without
    ``skipped``."""

    key: str
    op: str
    revision: int
    at: int
    body: bytes
    skipped: int
    after: int

    @property
    def size(self) -> int:
        """What it takes in memory, about."""
        return ENTRY_BYTES + len(self.key) + len(self.body)


def newest_of(batches: Iterable[Batch]) -> list[NewestChange]:
    """Of each key in ``batches`` the newest change, in the order of the log."""
    found: dict[str, NewestChange] = {}
    for batch in batches:
        for event in batch:
            older = found.pop(event.key, None)
            if older is None:
                found[event.key] = NewestChange(event, 0, event.revision - 1)
            else:
                found[event.key] = NewestChange(event, older.skipped + 1, older.after)
    return list(found.values())


class Conflation:
    """What one stream has not been sent: the newest change of each key, ``max_bytes`` at most.

    With an ``interval`` (seconds) a key that was sent waits until that is over; the caller gives the time, of
    a clock that never goes back.
    """

    __slots__ = (
        "_interval",
        "_kept",
        "_limit",
        "_max_bytes",
        "_order",
        "_ready",
        "_sent_at",
        "owes_sync",
        "size",
        "wants_room",
    )

    def __init__(self, max_bytes: int, interval: float = 0.0) -> None:
        self.size = 0
        self.owes_sync = False
        """Whether the stream is to be told that it has been caught up, once nothing older waits."""
        self.wants_room = False
        """Whether something was not taken, and there is not yet much more room than there was then."""
        self._max_bytes = self._limit = max_bytes
        self._interval = interval
        self._kept: dict[str, KeptChange] = {}
        self._ready: dict[str, None] = {}
        self._sent_at: dict[str, float] = {}
        self._order: deque[tuple[int, str]] = deque()

    def __len__(self) -> int:
        """How many keys wait."""
        return len(self._kept)

    def add(
        self, changes: Sequence[KeptChange], max_bytes: int | None = None, *, whatever: bool = False
    ) -> bool:
        """Keep ``changes``, which are newer than all that wait, each in the place of an older one of its key;
        or none of them, if that would be more than ``max_bytes`` or the usual bound (unless it is to be done
        ``whatever`` it takes). Returns whether they are kept."""
        kept = self._kept
        size = self.size
        for change in changes:
            older = kept.get(change.key)
            size += change.size - (older.size if older is not None else 0)
        limit = self._max_bytes if max_bytes is None else min(max_bytes, self._max_bytes)
        if size > limit and not whatever:
            self.wants_room, self._limit = True, limit
            return False
        self.size, self.wants_room = size, False
        if self._interval:
            # of one revision before the next, so that the first in it is always the oldest
            self._order.extend(sorted((each.after, each.key) for each in changes if each.key not in kept))
        for change in changes:
            self._keep(change)
        return True

    def _keep(self, change: KeptChange) -> None:
        key = change.key
        older = self._kept.pop(key, None)
        if older is not None:
            skipped = older.skipped + 1 + change.skipped
            change = change._replace(skipped=skipped, after=older.after)
        elif self._interval and key not in self._sent_at:
            self._ready[key] = None
        self._kept[key] = change

    def take(self, now: float) -> list[KeptChange]:
        """All that may be sent at ``now``, in the order of the log: it is not kept any longer."""
        if not self._interval:
            taken = list(self._kept.values())
            self._kept.clear()
            self.size, self.wants_room = 0, False
            return taken
        self._end_intervals(now)
        taken = sorted(map(self._kept.pop, self._ready), key=lambda kept: (kept.revision, kept.at))
        self._ready.clear()
        for each in taken:
            self._sent_at[each.key] = now
            self.size += SENT_BYTES + len(each.key) - each.size
        if self.size <= self._limit // 2:
            self.wants_room = False
        return taken

    def _end_intervals(self, now: float) -> None:
        sent_at = self._sent_at
        while sent_at:
            key = next(iter(sent_at))
            if sent_at[key] + self._interval > now:
                return
            del sent_at[key]
            self.size -= SENT_BYTES + len(key)
            if key in self._kept:
                self._ready[key] = None

    def next_at(self) -> float | None:
        """When something more may be sent, or there is more room; None if nobody has to look by then."""
        key = next(iter(self._sent_at), None)
        if key is None or not (self._kept or self.wants_room):
            return None
        return self._sent_at[key] + self._interval

    def sent_through(self, reached: int) -> int:
        """The revision from which the stream misses nothing if it is resumed there, having been given
        everything up to ``reached`` or keeping it here."""
        kept, order = self._kept, self._order
        if not kept:
            order.clear()
            return reached
        if not self._interval:
            return min(each.after for each in kept.values())
        while True:
            after, key = order[0]
            waits = kept.get(key)
            if waits is not None and waits.after == after:
                return after
            order.popleft()

    def clear(self) -> None:
        """Forget what waits; when keys were sent is kept in mind."""
        self._kept.clear()
        self._ready.clear()
        self._order.clear()
        self.owes_sync = self.wants_room = False
        self.size = sum(SENT_BYTES + len(key) for key in self._sent_at)
