"""Requests that wait for a change, and how each is told to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gevent.hub import Waiter

from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import Batch
from kvstore_http.streaming.filter_index import FilterIndex


class Woken(NamedTuple):
    """Why a wait is over.

    ``goes_on``: the store may have changed; else its time is up, its client has left, or the service stops.
    Nothing that is waited for happened after ``since``, where the wait began, up to ``revision``.
    """

    goes_on: bool
    revision: int


class Asking(NamedTuple):
    """Who waits: ``check`` raises a KvError if they may not have any more what they wait for, ``has_left``
    says whether they have gone. Both are called in the hub and must not wait."""

    check: Callable[[], None]
    has_left: Callable[[], bool]


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that waits for a change after ``since``; ``quiet_until`` is the last revision before the
    first such change, None while there was none."""

    since: int
    waiter: Waiter
    asking: Asking
    quiet_until: int | None = None


class WaitingRequests:
    """All that wait in this worker. Every method runs in the hub's thread and none waits.

    A change finds those that wait for it by look-ups, so many of them slow no change down that they do not
    wait for.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._index: FilterIndex[Waiting] = FilterIndex()
        self._entries: dict[Waiting, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def wait(self, wanted: Filter, since: int, seconds: float, asking: Asking) -> tuple[bool, int | None]:
        """Block the greenlet until it is told to go on: whether it is, and not because its ``seconds`` are
        up; and the revision up to which nothing happened, None if nothing has happened at all."""
        entry = Waiting(since, Waiter(self._hub), asking)
        self._entries[entry] = None
        self._index.add(entry, wanted)
        timer = self._hub.loop.timer(max(seconds, 0.0))
        timer.start(entry.waiter.switch, False)
        try:
            return bool(entry.waiter.get()), entry.quiet_until
        finally:
            timer.close()
            self._index.remove(entry)
            del self._entries[entry]

    def tell(self, batches: Iterable[Batch]) -> None:
        """Let those go on that wait for one of these changes."""
        for entry, taken in self._index.matches(batches).items():
            first = next((batch[0].revision for batch in taken if batch[0].revision > entry.since), None)
            if first is not None:
                self._wake(entry, first - 1)

    def tell_all(self) -> None:
        """Let all go on: anything may have changed."""
        for entry in self._entries:
            self._wake(entry, entry.since)

    def end(self) -> None:
        """Let all go on as if their time were up."""
        for entry in self._entries:
            self._hub.loop.run_callback(entry.waiter.switch, False)

    def end_those_who_left(self) -> None:
        """Let those go on, as if their time were up, whose clients are gone."""
        for entry in self._entries:
            if entry.asking.has_left():
                self._hub.loop.run_callback(entry.waiter.switch, False)

    def end_those_refused(self) -> None:
        """Let those go on who may no longer have what they wait for: they are told so."""
        for entry in self._entries:
            try:
                entry.asking.check()
            except KvError:
                self._wake(entry, entry.since)

    def _wake(self, entry: Waiting, quiet_until: int) -> None:
        if entry.quiet_until is None:
            entry.quiet_until = quiet_until
            self._hub.loop.run_callback(entry.waiter.switch, True)
