"""Following the store's changes without a gap: the decisions, and no socket.

Two sources are joined. The PUB socket is fast and may lose messages: a late join, a full queue, a
restart. The log (the ``events`` operation) is slower and is the truth. :class:`Follower` delivers
from PUB while every message continues where the last one ended, and says when the log must be asked. It is
plain state: a subscription or the facade's feed has the sockets, feeds it and does what it asks. It is not
safe for use from several threads at once.

What is promised, whatever PUB loses, repeats or reorders (protocol section 5): events are delivered
in order, each once, none missing, and those that share a revision together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import groupby, islice
from typing import Any, NamedTuple

from kvstore_core.errors import KvError
from kvstore_core.model import Cursor, Event
from kvstore_core.wire import Heartbeat, PublishedEvent, Reply, event_from

MAX_HELD_EVENTS = 10_000
MAX_HELD_BYTES = 16 * 1024 * 1024

PAGE_SECONDS = 60.0
"""The time-out of a read in the background, such as a page of the log for a subscription: it must not fail
because the daemon is busy."""

RESTORED = "the store was restored; it has a different history now"

Batch = list[Event]
"""The wanted events of one revision, in the order of their ``index``; never empty."""


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

    ``filtered`` says that PUB does not bring every message (a SUB socket with topics), so that a missing
    one looks like an unwanted one: what does not continue directly is then read from the log. ``log_only``
    takes PUB as a hint only, for events that need what PUB does not carry.

    Its owner passes every decoded message to :meth:`hear` and then calls :meth:`ask`; when that returns
    a cursor, the owner reads the events since it from the log, and passes the outcome to :meth:`answer` or
    :meth:`fail`. It begins by asking.
    """

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
        self._held: deque[PublishedEvent] = deque()
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

    def hear(self, message: PublishedEvent | Heartbeat) -> list[Batch]:
        """What can be delivered now that PUB said this."""
        if message.epoch != self._epoch:
            # Either the store was restored, or this is a left-over from before that: two connections
            # of one SUB socket are not ordered against each other. Only the log knows.
            self._doubtful = True
            return []
        if isinstance(message, Heartbeat):
            # below the position it is a left-over, or the store was rolled back: again, only the log knows
            self._doubtful |= message.revision < self._revision
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

    def _note(self, change: PublishedEvent) -> None:
        """Raise ``_known`` to the last revision of which nothing more can be under way on PUB."""
        event = change.event
        is_last = event.index == event.count - 1
        # where others of the same revision may be filtered out, waiting for them could be for ever
        whole = is_last or self._filtered or self._log_only
        self._known = max(self._known, event.revision if whole else change.prev)

    def _hold(self, change: PublishedEvent) -> None:
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
        daemon, means that this position has no continuation: call :meth:`restart`.
        """
        if page.epoch != self._epoch:
            raise KvError("cursor_expired", RESTORED)
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
