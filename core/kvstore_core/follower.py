"""Following the store's changes without a gap: the decisions, and no socket.

Two sources are joined. The PUB socket is fast and may lose messages: a late join, a full queue, a
restart. The log (the ``events`` operation) is slower and is the truth. :class:`Follower` delivers
from PUB while every message continues where the last one ended, and says when the log must be asked;
:class:`SnapshotMerge` begins with the present records and removes from what follows the changes that
those already show. Both are plain state: whoever has sockets (a subscription, the facade's feed)
feeds them and does what they ask. Neither is safe for use from several threads at once.

What is promised, whatever PUB loses, repeats or reorders (protocol section 5): events are delivered
in order, each once, none missing, and those that share a revision together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import groupby, islice
from typing import Any, NamedTuple

from kvstore_core.errors import KvError
from kvstore_core.model import Cursor, Event, Record
from kvstore_core.operations import MAX_PAGE, MAX_PAGE_BYTES
from kvstore_core.wire import Change, Heartbeat, Reply, event_from, record_from

MAX_HELD_EVENTS = 10_000
MAX_HELD_BYTES = 16 * 1024 * 1024

PAGE_SECONDS = 60.0
"""The time-out of a read that nobody awaits at a certain time, such as a page of the log for a
subscription: it does not fail because the daemon has much to do."""

_GETS_PER_REQUEST = 100
_RESTORED = "the store was restored; its history is another one now"
_LOST = "the store lost what its snapshot has shown; its history is another one now"

Batch = list[Event]
"""The wanted events of one revision, in the order of their ``index``; never empty."""


class Filter(NamedTuple):
    """Which events are wanted: those whose key is in ``keys`` or begins with one of ``prefixes``
    (both empty: all), with an op in ``ops`` (empty: all)."""

    prefixes: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    ops: frozenset[str] = frozenset()

    @property
    def takes_every_key(self) -> bool:
        """Whether no key is left out, so that a subscriber hears every message there is."""
        return (not self.prefixes and not self.keys) or "" in self.prefixes

    def matches(self, op: str, key: str) -> bool:
        """Whether an event of ``key`` is wanted."""
        if self.ops and op not in self.ops:
            return False
        return self.takes_every_key or key in self.keys or key.startswith(self.prefixes)

    def topics(self) -> list[bytes]:
        """What to subscribe a SUB socket to so that it hears at least the wanted keys.

        A topic is a prefix to ZeroMQ, so a key's topic brings longer keys as well: :meth:`matches`
        still has to be asked.
        """
        if self.takes_every_key:
            return [b""]
        return sorted({text.encode() for text in (*self.prefixes, *self.keys)})

    def fields(self) -> dict[str, Any]:
        """The fields of an ``events`` op that asks for the same."""
        fields: dict[str, Any] = {}
        if not self.takes_every_key:
            if self.prefixes:
                fields["prefixes"] = list(self.prefixes)
            if self.keys:
                fields["keys"] = sorted(self.keys)
        if self.ops:
            fields["ops"] = sorted(self.ops)
        return fields


class LogPage(NamedTuple):
    """A page of the log: all up to ``next`` was looked at, whether it was wanted or not. ``next`` is
    below ``head`` while there is more; events up to ``floor`` are no longer kept."""

    events: list[Event]
    next: int
    floor: int
    head: int
    epoch: str

    @classmethod
    def from_reply(cls, reply: Reply) -> LogPage:
        """The page in the reply to a request whose one op is ``events``; raises the op's error."""
        result = reply.results[0]
        if isinstance(result, KvError):
            raise result
        return cls.from_fields(result, reply.epoch)

    @classmethod
    def from_fields(cls, fields: dict[str, Any], epoch: str) -> LogPage:
        """The page that a reply's dict describes."""
        events = [event_from(event) for event in fields["events"]]
        return cls(events, fields["next"], fields["floor"], fields["head"], epoch)


class Follower:
    """Everything after ``start``, in order, from what PUB says and what the log answers.

    ``filtered`` says that PUB does not bring every message (a SUB socket with topics), so that a
    missing one cannot be told from an unwanted one: what does not continue directly is then asked of
    the log. ``log_only`` takes PUB as a hint only, for events that need what PUB does not carry.

    The one who owns it passes every decoded message to :meth:`hear` and afterwards looks at
    :meth:`ask`; when that gives a cursor, the log is to be asked for the events since it, and the
    outcome told with :meth:`answer` or :meth:`fail`. It begins by asking.
    """

    __slots__ = (
        "_asked_at_known",
        "_doubtful",
        "_epoch",
        "_filtered",
        "_held",
        "_held_bytes",
        "_is_asking",
        "_known",
        "_log_only",
        "_max_bytes",
        "_max_events",
        "_revision",
    )

    def __init__(
        self,
        start: Cursor,
        *,
        filtered: bool = False,
        log_only: bool = False,
        max_held_events: int = MAX_HELD_EVENTS,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._filtered = filtered
        self._log_only = log_only
        self._max_events = max_held_events
        self._max_bytes = max_held_bytes
        self._held: deque[Change] = deque()
        self.restart(start)

    def restart(self, start: Cursor) -> None:
        """Forget everything and follow from ``start``; for after a reset."""
        self._revision, self._epoch = start
        # every wanted event up to here is in the log, as far as was heard; the log is asked until
        # the position has reached it
        self._known = start.revision
        self._asked_at_known = start.revision
        self._doubtful = True
        self._is_asking = False
        self._let_go()

    @property
    def cursor(self) -> Cursor:
        """Everything up to here was delivered."""
        return Cursor(self._revision, self._epoch)

    @property
    def is_behind(self) -> bool:
        """Whether something is known, or feared, to be missing; the fear lasts until the log has answered."""
        return self._doubtful or self._is_asking or self._known > self._revision

    def doubt(self) -> None:
        """Ask the log once more although nothing is known to be missing: the socket was remade, or
        PUB has been silent."""
        self._doubtful = True

    # ── PUB ──────────────────────────────────────────────────────────────────────────────────────

    def hear(self, message: Change | Heartbeat) -> list[Batch]:
        """What can be delivered now that PUB said this."""
        if message.epoch != self._epoch:
            # Either the store was restored, or this is a left-over from before that: two connections
            # of one SUB socket are not ordered against each other. Only the log knows.
            self._doubtful = True
            return []
        if isinstance(message, Heartbeat):
            self._known = max(self._known, message.revision)
            return []
        event = message.event
        if event.revision <= self._revision:
            return []
        if event.count == 1 and message.prev <= self._revision and not self._held and not self._log_only:
            self._revision = event.revision
            return [[event]]
        self._note(message)
        if not self._log_only:
            self._hold(message)
        return self._release()

    def _note(self, change: Change) -> None:
        """Raise ``_known`` to the last revision of which nothing more can be under way on PUB."""
        event = change.event
        is_last = event.index == event.count - 1
        # where others of the same revision may be filtered out, waiting for them could be for ever
        whole = is_last or self._filtered or self._log_only
        self._known = max(self._known, event.revision if whole else change.prev)

    def _hold(self, change: Change) -> None:
        event = change.event
        if self._held:
            last = self._held[-1].event
            if (event.revision, event.index) <= (last.revision, last.index):
                return
        self._held.append(change)
        self._held_bytes += _weight(event)
        if len(self._held) > self._max_events or self._held_bytes > self._max_bytes:
            # all of it is in the log; _known remembers that it is to be fetched
            self._known = max(self._known, change.prev)
            self._let_go()

    def _release(self) -> list[Batch]:
        """Take from what is held all that continues the position without a gap."""
        batches: list[Batch] = []
        while self._holds_what_is_next():
            first = self._held[0].event
            batches.append([held.event for held in islice(self._held, first.count)])
            self._revision = first.revision
            self._let_go_through(self._revision)
        return batches

    def _holds_what_is_next(self) -> bool:
        """Whether the first held revision is whole and continues the position.

        What is held is in order and without repeats, so the revision is whole if as many events as it
        has do not reach beyond it. This is asked for every message, so it does not walk them.
        """
        held = self._held
        if not held or held[0].prev > self._revision:
            return False
        first = held[0].event
        return first.count <= len(held) and held[first.count - 1].event.revision == first.revision

    def _let_go_through(self, revision: int) -> None:
        while self._held and self._held[0].event.revision <= revision:
            self._held_bytes -= _weight(self._held.popleft().event)

    def _let_go(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    # ── the log ──────────────────────────────────────────────────────────────────────────────────

    def ask(self) -> Cursor | None:
        """Where to read the log from, or None: nothing is missing, or an answer is still awaited."""
        if self._is_asking or not self.is_behind:
            return None
        self._is_asking = True
        self._doubtful = False
        self._asked_at_known = self._known
        return self.cursor

    def fail(self) -> None:
        """The log could not be asked; :meth:`ask` will say the same again."""
        self._is_asking = False
        self._doubtful = True

    def answer(self, page: LogPage) -> list[Batch]:
        """What can be delivered now that the log answered.

        Raises ``cursor_expired`` if the page is from another epoch. That error, from here or from the
        daemon, means that this position has no continuation: begin anew with :meth:`restart`.
        """
        if page.epoch != self._epoch:
            raise KvError("cursor_expired", _RESTORED)
        self._is_asking = False
        batches = [batch for batch in by_revision(page.events) if batch[0].revision > self._revision]
        self._revision = max(self._revision, page.next)
        if page.next < page.head:
            self._known = max(self._known, page.head)
        elif self._known == self._asked_at_known:
            # The log was read to its end after all of that had been heard, so what it does not hold
            # is no more: a store with sync=none lost it in a crash.
            self._known = self._revision
        self._let_go_through(self._revision)
        return batches + self._release()


def by_revision(events: Iterable[Event]) -> list[Batch]:
    """Events in log order, cut into one list for each revision."""
    return [list(batch) for _, batch in groupby(events, key=lambda event: event.revision)]


def _weight(event: Event) -> int:
    record = event.record or event.previous
    return len(record.value or b"") if record is not None else 0


class SnapshotMerge:
    """The present records of what is wanted, page by page, and which later events they already show.

    Reading takes several requests, each of which sees the store at a revision of its own; so the
    reader takes the store's position, ``start``, *before* the first one, and afterwards follows the
    log from there, leaving out every event that the page covering its key had already seen. While
    :meth:`next_ops` gives ops, send them as one request and pass the reply to :meth:`accept`.

    What was shown is the state of the store at no revision before the log, asked after the last page,
    has been followed to its end: only then is there a cursor to give out. Pass each of its pages to
    :meth:`check`.
    """

    def __init__(
        self,
        wanted: Filter,
        start: Cursor,
        *,
        values: bool = True,
        page_size: int = MAX_PAGE,
        max_bytes: int = MAX_PAGE_BYTES,
    ) -> None:
        self.start = start
        self._values = values
        self._page_size = page_size
        self._max_bytes = max_bytes
        self._prefixes = deque(_disjoint(wanted.prefixes or (() if wanted.keys else ("",))))
        self._keys = deque(sorted(key for key in wanted.keys if not key.startswith(tuple(self._prefixes))))
        self._cursor: str | None = None
        self._lower = self._prefixes[0] if self._prefixes else ""
        self._pending: int | None = None
        self._sent_keys: list[str] = []
        # pages in key order: one that starts at _starts[i] shows the store as of _revisions[i]
        self._starts: list[str] = []
        self._revisions: list[int] = []
        self._key_revisions: dict[str, int] = {}
        self._through = 0

    @property
    def is_complete(self) -> bool:
        """Whether every page has been read."""
        return not self._prefixes and not self._keys

    @property
    def through(self) -> int:
        """The newest revision that any page shows; every event after it is to be delivered."""
        return self._through

    def next_ops(self) -> list[dict[str, Any]]:
        """The ops of the next request; empty when the snapshot is complete."""
        if self._prefixes:
            return [self._list_op(self._prefixes[0])]
        self._sent_keys = list(islice(self._keys, _GETS_PER_REQUEST))
        return [{"op": "get", "key": key} for key in self._sent_keys]

    def _list_op(self, prefix: str) -> dict[str, Any]:
        op: dict[str, Any] = {"op": "list", "prefix": prefix, "limit": self._page_size}
        if self._max_bytes < MAX_PAGE_BYTES:
            op["max_bytes"] = self._max_bytes
        if not self._values:
            op["keys_only"] = True
        if self._cursor is not None:
            op["cursor"] = self._cursor
        return op

    def accept(self, reply: Reply) -> list[Record]:
        """The records of a page, in key order.

        Raises the KvError with which an op failed, and ``cursor_expired`` if the store was restored
        since the start: what was read so far is then of another history, begin anew.
        """
        if reply.epoch != self.start.epoch:
            raise KvError("cursor_expired", _RESTORED)
        if self._prefixes:
            return self._accept_page(reply)
        return self._accept_gets(reply)

    def _accept_page(self, reply: Reply) -> list[Record]:
        result = reply.results[0]
        if isinstance(result, KvError):
            raise result
        records = [record_from(item) for item in result["items"]]
        revision = self._seen_at(reply, records)
        self._cursor = result["cursor"]
        # A page does not say how far it looked behind its last record. What lies between that and the
        # next record there is was seen by this page, or only by the one before: the older one holds.
        # No record was shown there, so none can come twice.
        between = revision if self._pending is None else min(revision, self._pending)
        if records or self._cursor is None:
            self._cover(self._lower, between)
        if records:
            self._cover(records[0].key, revision)
        self._pending = revision if records else between
        self._move_on(records)
        return records

    def _move_on(self, records: list[Record]) -> None:
        if self._cursor is None:
            self._prefixes.popleft()
            self._lower = self._prefixes[0] if self._prefixes else ""
            self._pending = None
        elif records:
            # the smallest text after the last key; never sent, since a key holds no NUL
            self._lower = records[-1].key + "\0"

    def _accept_gets(self, reply: Reply) -> list[Record]:
        records: list[Record] = []
        for key, result in zip(self._sent_keys, reply.results, strict=True):
            found = []
            if not isinstance(result, KvError):
                found = [record_from(result, key)]
            elif result.code == "reply_too_large" and len(self._sent_keys) > 1:
                continue  # the next request has room for it
            elif result.code != "not_found":
                raise result
            # each for itself: the gets of one request may be answered from several snapshots
            self._key_revisions[key] = self._seen_at(reply, found)
            self._keys.remove(key)
            records += found
        return records if self._values else [record._replace(value=None) for record in records]

    def _seen_at(self, reply: Reply, records: list[Record]) -> int:
        """The revision as of which a page shows the store. A reply states one that its reads saw at
        least; a newer record in it proves a newer one."""
        revision = max((record.revision for record in records), default=0)
        revision = max(revision, reply.revision)
        self._through = max(self._through, revision)
        return revision

    def check(self, page: LogPage) -> None:
        """Raise ``cursor_expired`` if the log, asked after the last page, ends before what was shown: a
        store with a weaker ``sync`` lost that in a crash, and will use its revisions for other changes."""
        if page.head < self._through:
            raise KvError("cursor_expired", _LOST, reason="epoch", floor=page.floor, head=page.head)

    def _cover(self, lower: str, revision: int) -> None:
        self._starts.append(lower)
        self._revisions.append(revision)

    def shows(self, event: Event) -> bool:
        """Whether the snapshot already contains the change, so that it is not to be delivered."""
        if event.revision > self._through:
            return False
        seen_at = self._key_revisions.get(event.key)
        if seen_at is None:
            # text is compared by code point, which is the byte order of UTF-8
            index = bisect_right(self._starts, event.key) - 1
            seen_at = self._revisions[index] if index >= 0 else 0
        return event.revision <= seen_at


def _disjoint(prefixes: Iterable[str]) -> list[str]:
    """The prefixes in order, without those that another one covers."""
    kept: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept
