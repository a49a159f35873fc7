"""Waiting for a key to change, ``?wait=30s&since=7``, or to fulfil a condition, ``?wait=30s&until=gone``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple

import gevent

from kvstore_core.access.grants import Need
from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.model import Cursor
from kvstore_core.predicates import Predicate
from kvstore_core.wire import Reply
from kvstore_http.backend.stale_reads import Reads
from kvstore_http.large_work import maybe_in_thread
from kvstore_http.streaming.change_cursor import RETRY_SECONDS
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.waiting import Asking, Woken

Asks = Callable[[], Principal]

PAGE_BYTES = 64 * 1024
"""About what a page of changes holds that a condition is looked for in: to look into much more would take too
long at once."""

LATE_SECONDS = 0.05
"""How long after the end of a credential its wait ends, so that the credential is not good any more then."""


class _State(NamedTuple):
    """A key as one read found it: its record (None: missing), and the revision of its last change, 0 if
    the log has none. ``seen`` is the snapshot that was read."""

    record: dict[str, Any] | None
    changed: int
    seen: Cursor


class Unchanged(NamedTuple):
    """Nothing happened to the key since ``revision``; its ``record``, None if it is missing."""

    record: dict[str, Any] | None
    revision: int


class WaitingCaller(NamedTuple):
    """Who waits. ``asks`` gives who asks, as of now, and raises if that is nobody any more; ``needs`` is what
    they must be granted all the time; ``has_left`` says whether they have gone."""

    asks: Asks
    needs: Sequence[Need]
    has_left: Callable[[], bool]

    def wait(
        self, feed: ChangeFeed, who: Principal, wanted: Filter, since: Cursor, remaining: float
    ) -> Woken:
        """Block until something that is ``wanted`` may have happened after ``since``, or for ``remaining``
        seconds; or until the credential of ``who`` has ended, which is a reason to go on."""
        asking = Asking(lambda: self.asks().check(self.needs), self.has_left)
        seconds = min(remaining, _seconds_left(who) + LATE_SECONDS)
        woken = feed.wait_for_change(wanted, since, seconds, asking)
        return woken if _seconds_left(who) > 0 else woken._replace(goes_on=True)


class Poll(NamedTuple):
    """Who waits for what: as of ``since`` they know the key."""

    key: str
    since: Cursor | None
    seconds: float
    caller: WaitingCaller

    @classmethod
    def of_key(
        cls, key: str, since: Cursor | None, seconds: float, asks: Asks, has_left: Callable[[], bool]
    ) -> Poll:
        """The poll of one who needs to read and to watch the key."""
        needs = [Need("read", key), Need("watch", key)]
        return cls(key, since, seconds, WaitingCaller(asks, needs, has_left))

    def wait(self, feed: ChangeFeed, who: Principal, since: Cursor, remaining: float) -> Woken:
        """As :meth:`WaitingCaller.wait`, for a change of the key."""
        return self.caller.wait(feed, who, Filter(keys=frozenset((self.key,))), since, remaining)


def read_after_change(daemon: Reads, feed: ChangeFeed, poll: Poll) -> dict[str, Any] | Unchanged:
    """The key's record once it has changed after ``since``; raises ``not_found`` if it is gone then.

    ``since`` is the revision that the caller knows: 0 for a missing key. When nothing changed in
    ``seconds``, the answer is Unchanged. Without ``since`` the caller knows nothing: the next change
    from now on counts, and when there is none the answer is the state at the end of the wait.
    """
    deadline = time.monotonic() + poll.seconds
    since, who = poll.since, poll.caller.asks()
    state = _read(daemon, poll, who)
    if since is not None and since.revision > state.seen.revision:
        is_history(daemon, since.revision)  # where the daemon lags, and reads are stale, this waits for it
        state = _read(daemon, poll, who)
    if since is not None and _is_news(daemon, state, since):
        return _answer(state)
    known = state.seen.revision
    while (remaining := deadline - time.monotonic()) > 0:
        woken = poll.wait(feed, who, state.seen, remaining)
        # read again even at the end of the time: if the feed was cut off, this finds what it missed, or
        # fails because the daemon is away
        who = poll.caller.asks()
        state = _read(daemon, poll, who)
        if state.changed > known:
            return _answer(state)
        if not woken.goes_on:
            break
    return _answer(state) if since is None else Unchanged(state.record, since.revision)


def _is_news(daemon: Reads, state: _State, since: Cursor) -> bool:
    """Whether the state differs from what somebody saw who knows it as of ``since``."""
    if since.revision > state.seen.revision or (since.epoch and since.epoch != daemon.epoch):
        return True  # a revision of another history of the store
    if state.record is None and since.revision == 0:
        return False
    if state.record is None and state.changed == 0:
        # The log knows nothing of the key, so it was not deleted since, as far as the log goes.
        floor: int = daemon.call({"op": "status"}, who=THE_FACADE)["floor"]
        return since.revision < floor
    return state.changed > since.revision or not is_history(daemon, since.revision)


def is_history(daemon: Reads, revision: int) -> bool:
    """Whether ``revision`` belongs to this history of the store. A restore skips revisions, which then belong
    to another history; what is older than the log counts as part of this one."""
    if revision == 0:
        return True
    try:
        # the facade asks: nothing is told of what happened, and to whom
        daemon.call({"op": "events", "since": revision, "limit": 1, "values": False}, who=THE_FACADE)
    except KvError as error:
        if error.code != "cursor_expired":
            raise
        return bool(error.details.get("reason") == "expired")
    return True


def _seconds_left(who: Principal) -> float:
    """How long the credential of ``who`` is still good."""
    return inf if who.expires_at is None else max(0.0, who.expires_at / 1000 - time.time())


def _read(daemon: Reads, poll: Poll, who: Principal) -> _State:
    who.check(poll.caller.needs)
    key = poll.key
    get = {"op": "get", "key": key}
    last = {"op": "history", "key": key, "limit": 1, "values": False}
    reply = daemon.request([get, last], who=who)
    record, page = reply.results
    seen = Cursor(reply.revision, reply.epoch)
    if not isinstance(record, KvError):
        return _State(record, record["revision"], seen)
    if record.code != "not_found":
        raise record
    if isinstance(page, KvError):
        if page.code != "not_found":
            raise page
        return _State(None, 0, seen)
    changed = page["events"][0]["revision"] if page["events"] else 0
    return _State(None, changed, seen)


def _answer(state: _State) -> dict[str, Any]:
    if state.record is not None:
        return state.record
    revision = state.changed or state.seen.revision
    raise KvError("not_found", "the key is gone, or was never there", revision=revision)


# ── conditions ───────────────────────────────────────────────────────────────────────────────────


class Held(NamedTuple):
    """What fulfilled a condition: the key's record, None if it has none, as of ``revision``."""

    record: dict[str, Any] | None
    revision: int


def read_once_it_holds(daemon: Reads, feed: ChangeFeed, poll: Poll, predicate: Predicate) -> Held:
    """The first state of the key that fulfils ``predicate``: of its state now and all that come, or with
    ``since`` of all after that, and if there is none of the state now. Where the log no longer has them, or
    the store was replaced, it goes on with the state now.

    Each change is looked at, in the order of the log, though another may follow at once. While the daemon is
    away, if it was there at the beginning, this waits on. Raises ``timed_out``, with the ``revision`` up to
    which the key did not fulfil it, to wait on from there; what else fails at the end of the time says that
    too.
    """
    return _Search(daemon, feed, poll, predicate).run()


class _Search:
    def __init__(self, daemon: Reads, feed: ChangeFeed, poll: Poll, predicate: Predicate) -> None:
        self._daemon = daemon
        self._feed = feed
        self._poll = poll
        self._predicate = predicate
        self._who = poll.caller.asks()
        self._position = poll.since or Cursor(0, "")
        self._is_lost = poll.since is None
        """Whether the changes after the position cannot be had, so that only the state now can."""
        self._has_looked = False
        """Whether a state of the key was looked at."""

    def run(self) -> Held:
        poll = self._poll
        self._who.check(poll.caller.needs)
        deadline = time.monotonic() + poll.seconds
        while True:
            held, trouble = self._try_to_read_on()
            if held is not None:
                return held
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise trouble or self._not_held("timed_out", f"not fulfilled within {poll.seconds:g} s")
            if trouble is None:
                self._wait(remaining)
            else:
                gevent.sleep(min(RETRY_SECONDS, remaining))

    def _try_to_read_on(self) -> tuple[Held | None, KvError | None]:
        """What :meth:`_read_on` finds, or what kept it from that and may pass."""
        try:
            return self._read_on(), None
        except KvError as error:
            if not (error.row.is_temporary and self._has_looked):
                raise
            return None, self._not_held(error.code, error.message)

    def _not_held(self, code: str, message: str) -> KvError:
        position = self._position
        return KvError(code, message, revision=position.revision, cursor=str(position))

    def _wait(self, remaining: float) -> None:
        """Block until there may be more to read, or the time is up. Raises ``unavailable`` if the service
        stops, ``timed_out`` if the client has left."""
        woken = self._poll.wait(self._feed, self._who, self._position, remaining)
        self._position = self._position._replace(revision=woken.revision)
        if woken.goes_on:
            return
        if self._feed.is_closed:
            raise self._not_held("unavailable", "the service is stopping; ask again")
        if self._poll.caller.has_left():
            raise self._not_held("timed_out", "the client has left")

    def _read_on(self) -> Held | None:
        """Look at what has happened, up to now."""
        through = None
        while not self._is_lost:
            reply = self._request(self._events())
            page = reply.results[0]
            if isinstance(page, KvError):
                if page.code != "cursor_expired":
                    raise page
                self._is_lost = True
                break
            held = self._first_held(page["events"])
            if held is not None:
                return held
            self._has_looked |= bool(page["events"])
            self._position = Cursor(page["next"], reply.epoch)
            through = page["head"] if through is None else through
            if page["next"] >= through:
                break
        return self._look() if self._is_lost or not self._has_looked else None

    def _request(self, op: dict[str, Any]) -> Reply:
        self._who = self._poll.caller.asks()
        return self._daemon.request([op], who=self._who)

    def _events(self) -> dict[str, Any]:
        position = self._position
        since = str(position) if position.epoch else position.revision
        return {"op": "events", "since": since, "keys": [self._poll.key], "max_bytes": PAGE_BYTES}

    def _first_held(self, events: list[dict[str, Any]]) -> Held | None:
        values = [event["value"] if event["op"] == "put" else None for event in events]
        index = self._first_of(values)
        if index is None:
            return None
        event = events[index]
        record = {name: event[name] for name in _RECORD if name in event} if event["op"] == "put" else None
        return Held(record, event["revision"])

    def _first_of(self, values: list[bytes | None]) -> int | None:
        holds = self._predicate.holds
        size = sum(map(len, filter(None, values))) if self._predicate.needs_value else 0

        def first() -> int | None:
            return next((index for index, value in enumerate(values) if holds(value)), None)

        return maybe_in_thread(size, first)

    def _look(self) -> Held | None:
        """Look at the state now."""
        reply = self._request({"op": "get", "key": self._poll.key})
        record = reply.results[0]
        if isinstance(record, KvError) and record.code != "not_found":
            raise record
        self._has_looked = True
        if self._is_lost:
            self._position, self._is_lost = Cursor(reply.revision, reply.epoch), False
        value = None if isinstance(record, KvError) else record["value"]
        if self._first_of([value]) is None:
            return None
        return Held(None, reply.revision) if isinstance(record, KvError) else Held(record, record["revision"])


_RECORD = frozenset(
    (
        "value",
        "content_type",
        "revision",
        "create_revision",
        "version",
        "modified_at",
        "expires_at",
        "author",
        "message",
    )
)
"""What an event of a put has of its record."""
