"""Seeing every change: ordered, each once, none missing, whole revisions, across restarts."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection
from typing import Any, NoReturn, Self

import zmq

from kvstore_client.arguments import address_of, changes_of, flag_of, requests_of, seconds_of, texts_of
from kvstore_client.client import described, inherited, not_portable
from kvstore_client.commands import since_of
from kvstore_client.subscription_state import Item, Reset, Sync, Watcher
from kvstore_client.transport import forks
from kvstore_client.transport.connection import Body, Context, Lane, connect
from kvstore_client.transport.sans_io import Routine, Wait, drive
from kvstore_core.connection_monitor import Socket
from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import PAGE_SECONDS, Batch
from kvstore_core.model import MAX_REVISION, Cursor, Event, check_key
from kvstore_core.operations import EVENT_OPS
from kvstore_core.wire import HEARTBEAT_TOPIC, Heartbeat, Reply

QUEUED_MESSAGES = 1_000
"""How many messages wait in the SUB socket for a consumer that is slow; what PUB cannot deliver then
is read from the log."""

_MESSAGES_PER_TURN = 500


class Watching:
    """The sockets of a subscription and the routine that uses them; the two forms below wait for it."""

    _context_class: type[Context] = zmq.Context

    def __init__(
        self,
        requests: str | None = None,
        changes: str | None = None,
        *,
        prefixes: Collection[str] = (),
        keys: Collection[str] = (),
        ops: Collection[str] = (),
        since: Cursor | str | int | None = None,
        snapshot: bool = False,
        values: bool = True,
        previous: bool = False,
        heartbeats: bool = False,
    ) -> None:
        self._wanted = _filter(prefixes, keys, ops)
        self._requests, self._changes = requests_of(requests), changes_of(changes)
        self._watcher = Watcher(
            self._wanted,
            since=_start(since),
            snapshot=flag_of("snapshot", snapshot),
            values=flag_of("values", values),
            previous=flag_of("previous", previous),
            heartbeats=flag_of("heartbeats", heartbeats),
            now=time.monotonic(),
        )
        self._rest: deque[Event] = deque()
        self._rest_begins_after: Cursor | None = None
        self._is_closed = False
        self._connect()

    def _connect(self) -> None:
        self._generation = forks.generation()
        self._use = threading.Lock()
        self._call: Routine[Reply] | None = None
        self._call_waits = Wait((), 0)
        self._context = self._context_class()
        try:
            self._lane = Lane(self._context, self._requests)
            self._sub = self._open()
        except ValueError:
            self._context.destroy(linger=0)
            raise

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A subscription to the daemon at ``kvstore://HOST[:PORT][?changes=PORT]``; the changes are by
        default on the port above PORT. ``options`` are those of the constructor; what the URL says for
        a client alone is passed over. Raises ValueError for another kind of URL."""
        address = address_of(url)
        return cls(address.requests, address.changes, **options)

    def __repr__(self) -> str:
        return described(self, self._changes, self._is_closed)

    def __reduce__(self) -> NoReturn:
        raise not_portable(self)

    @property
    def cursor(self) -> Cursor | None:
        """Where a later subscription continues with ``since``, when everything returned so far has been
        handled; of a revision that was returned in part, everything comes again.

        None while there is nothing to continue: before the first Sync of a subscription that did not
        start from a cursor, and from a Reset to the Sync after it.
        """
        return self._rest_begins_after if self._rest else self._watcher.cursor

    def close(self) -> None:
        """Close the sockets. The subscription cannot be used afterwards. Raises RuntimeError while
        another thread or task waits in it."""
        if self._is_closed or self._generation != forks.generation():
            self._is_closed = True
            return
        self._begin_use()
        self._is_closed = True
        if self._call is not None:
            self._call.close()
        self._context.destroy(linger=0)

    def _begin_use(self) -> None:
        if self._is_closed:
            raise RuntimeError("the subscription is closed")
        if self._generation != forks.generation():
            self._begin_anew()
        if not self._use.acquire(blocking=False):
            raise RuntimeError(
                "a subscription is used by one thread or task at a time, and another waits in it"
            )

    def _end_use(self) -> None:
        self._use.release()

    def _begin_anew(self) -> None:
        """Go on in a process forked from the one that this was made in."""
        inherited.append((self._context, self._lane, self._sub, self._call))
        if self._call is not None:
            self._watcher.refuse(KvError("unavailable", "the request was left to the parent process"))
        self._connect()
        self._watcher.remade(time.monotonic())

    def _open(self) -> Socket:
        """A SUB socket, connected and subscribed."""
        sub = self._context.socket(zmq.SUB)
        sub.linger = 0
        sub.rcvhwm = QUEUED_MESSAGES
        # Subscriptions are messages too: with a bound, a socket with many topics silently forgets
        # some when it sends them again to a daemon that was restarted.
        sub.sndhwm = 0
        sub.reconnect_ivl_max = 1000
        sub.subscribe(HEARTBEAT_TOPIC)
        for topic in self._wanted.topics():
            sub.subscribe(topic)
        connect(sub, self._changes)
        return sub

    # ── the routine ──────────────────────────────────────────────────────────────────────────────

    def _next_item(self, seconds: float | None) -> Routine[Item | None]:
        """The next item, None if there is none in time."""
        if seconds is not None:
            seconds = seconds_of("timeout", seconds, may_be_zero=True)
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._watcher.has_items:
            self._listen()
            self._ask()
            if self._watcher.has_items:
                break
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return None
            yield self._wait(now, deadline)
        return self._watcher.take()

    def _next_event(self, seconds: float | None) -> Routine[Event | Sync | Reset | Heartbeat | None]:
        if not self._rest:
            before = self._watcher.cursor
            item = yield from self._next_item(seconds)
            if not isinstance(item, list):
                return item
            self._rest.extend(item)
            self._rest_begins_after = before
        return self._rest.popleft()

    def _take_rest(self) -> Batch:
        """What is left of a revision of which single events were taken."""
        rest = list(self._rest)
        self._rest.clear()
        return rest

    def _wait(self, now: float, deadline: float | None) -> Wait:
        seconds = self._watcher.silent_at() - now
        if deadline is not None:
            seconds = min(seconds, deadline - now)
        if self._call is not None:
            seconds = min(seconds, self._call_waits.seconds)
        return Wait([(self._sub, zmq.POLLIN), *self._call_waits.sockets], seconds)

    def _listen(self) -> None:
        """Take what was published, up to the first item; replace the socket if it is dead."""
        for _ in range(_MESSAGES_PER_TURN):
            try:
                frames = self._sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._watcher.hear(frames, time.monotonic())
            if self._watcher.has_items:
                return
        if self._watcher.is_silent(time.monotonic()):
            self._sub.close()
            self._sub = self._open()
            self._watcher.remade(time.monotonic())

    def _ask(self) -> None:
        """Go on with the request under way, or begin the next one that is needed."""
        while not self._watcher.has_items:
            if self._call is None:
                ops = self._watcher.next_ops()
                if not ops:
                    return
                self._call = self._lane.call(Body(ops), PAGE_SECONDS)
            if not self._advance(self._call):
                return

    def _advance(self, call: Routine[Reply]) -> bool:
        """Let the request do what it can; says whether it is finished."""
        try:
            self._call_waits = next(call)
            return False
        except StopIteration as done:
            self._end_call()
            self._watcher.accept(done.value)
        except KvError as error:
            self._end_call()
            self._watcher.refuse(error)
        return True

    def _end_call(self) -> None:
        self._call = None
        self._call_waits = Wait((), 0)


class Subscription(Watching):
    """The changes of a store, as an iterator that waits for the next one.

    ``requests`` and ``changes`` are the daemon's endpoints, by default what ``KVSTORE_REQUESTS`` and
    ``KVSTORE_CHANGES`` say, or ports 5555 and 5556 of this machine.

    ``prefixes`` and ``keys`` choose keys (both empty: all), ``ops`` out of ``put``, ``delete`` and
    ``expire`` choose kinds of change. ``since`` is a cursor to continue after, or a revision of the
    present epoch. Without it the subscription starts now, and with ``snapshot`` it begins with the
    present records, as put events. ``values=False`` leaves the values out, ``previous`` adds the
    replaced records (and takes every event from the log), ``heartbeats`` also gives the daemon's
    heartbeats, once everything before them was delivered.

    Items are :class:`Event`, :class:`Sync`, :class:`Reset`, and :class:`Heartbeat` where asked for::

        with Subscription(prefixes=["jobs/"], snapshot=True) as subscription:
            for item in subscription:
                match item:
                    case Reset(): state.clear()
                    case Event(): apply(item)
                    case Sync(): print("up to date at", item.cursor)

    While the daemon is away nothing is returned; the subscription goes on by itself when it is back.
    Errors that waiting does not cure are raised as KvError. To be used by one thread at a time. In a
    process forked from this one it goes on from the same place, with connections of its own.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event | Sync | Reset | Heartbeat:
        while (item := self.next()) is None:
            continue
        return item

    def next(self, timeout: float | None = None) -> Event | Sync | Reset | Heartbeat | None:
        """The next item; None if there is none within ``timeout`` seconds (None: for ever)."""
        self._begin_use()
        try:
            return drive(self._next_event(timeout))
        finally:
            self._end_use()

    def next_batch(self, timeout: float | None = None) -> Batch | Sync | Reset | Heartbeat | None:
        """Like :meth:`next`, but with all wanted events of one revision as one list. A snapshot comes
        as lists of records of any revision."""
        self._begin_use()
        try:
            return self._take_rest() or drive(self._next_item(timeout))
        finally:
            self._end_use()


def _filter(prefixes: Collection[str], keys: Collection[str], ops: Collection[str]) -> Filter:
    """The checked filter; raises ``invalid_key`` or ``bad_request``."""
    prefixes, keys, ops = texts_of("prefixes", prefixes), texts_of("keys", keys), texts_of("ops", ops)
    for text in (*keys, *filter(None, prefixes)):
        check_key(text)
    for op in ops:
        if op not in EVENT_OPS:
            raise KvError("bad_request", f"ops are out of {', '.join(EVENT_OPS)}, not {op!r}")
    return Filter(tuple(prefixes), frozenset(keys), frozenset(ops))


def _start(since: Any) -> Cursor | int | None:
    """Where to begin; raises ``invalid_cursor``, ``bad_request`` or TypeError."""
    if since is None:
        return None
    start = since_of(since)
    if isinstance(start, str):
        return Cursor.parse(start)
    if not 0 <= start <= MAX_REVISION:
        raise KvError("bad_request", f"since is a cursor or a revision, and {start} is neither")
    return start
