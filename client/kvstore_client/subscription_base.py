"""What both forms of a subscription share: all but the waiting."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Collection
from typing import Any, Self

import zmq

from kvstore_client.arguments import (
    address_of,
    changes_of,
    flag_of,
    keys_of,
    requests_of,
    seconds_of,
    texts_of,
)
from kvstore_client.commands import since_of
from kvstore_client.subscription_state import Item, Reset, SubscriptionState, Sync
from kvstore_client.transport import forks
from kvstore_client.transport.connection import Connection, RequestBody, connect
from kvstore_client.transport.contexts import OwningContext
from kvstore_client.transport.handshake import refused_key
from kvstore_client.transport.wait import IoGenerator, SocketWait
from kvstore_core.connection_monitor import POLLIN, Monitor, Socket
from kvstore_core.curve import apply_curve
from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import PAGE_SECONDS, Batch
from kvstore_core.limits import MAX_REVISION
from kvstore_core.model import Cursor, Event, check_key
from kvstore_core.operations import EVENT_OPS
from kvstore_core.wire import HEARTBEAT_TOPIC, Heartbeat, Reply

QUEUED_MESSAGES = 1_000
"""How many messages the SUB socket queues for a slow consumer; what PUB cannot deliver then is read from
the log."""

_MESSAGES_PER_TURN = 500


class SubscriptionBase(forks.NotPortable):
    """The sockets of a subscription and the generators that use them; the two forms wait for them."""

    _context_class: type[OwningContext]

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
        login: str | os.PathLike[str] | None = None,
    ) -> None:
        self._wanted = filter_of(prefixes, keys, ops)
        self._requests, self._changes = requests_of(requests), changes_of(changes)
        self._keys = keys_of(login, self._requests)
        self._state = SubscriptionState(
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
        self._call: IoGenerator[Reply] | None = None
        self._call_waits = SocketWait((), 0)
        self._context = self._context_class()
        try:
            self._connection = Connection(self._context, self._requests, self._keys)
            self._sub = self._open()
        except (ValueError, KvError):
            self._context.destroy(linger=0)
            raise

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A subscription to the daemon at ``kvstore://HOST[:PORT][?changes=PORT]``; the changes are by
        default on the port above PORT. ``options`` are those of the constructor; what in the URL is only
        for a client is ignored. Raises ValueError for another kind of URL."""
        address = address_of(url)
        return cls(address.requests, address.changes, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._changes}{', closed' if self._is_closed else ''}>"

    @property
    def cursor(self) -> Cursor | None:
        """What to pass as ``since`` to a later subscription, once everything returned so far has been
        handled; a revision that was returned in part comes again as a whole.

        None while there is nothing to continue from: before the first Sync of a subscription that did not
        start from a cursor, and from a Reset to the Sync after it.
        """
        return self._rest_begins_after if self._rest else self._state.cursor

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
            self._replace_inherited()
        if not self._use.acquire(blocking=False):
            raise RuntimeError(
                "a subscription can be used by one thread or task at a time, and another is waiting in it"
            )

    def _end_use(self) -> None:
        self._use.release()

    def _replace_inherited(self) -> None:
        """Go on in a process forked from the one that made the sockets."""
        forks.leave_to_parent(self._context, self._connection, self._sub, self._monitor, self._call)
        if self._call is not None:
            self._state.on_error(KvError("unavailable", "the request was left to the parent process"))
        self._connect()
        self._state.on_reconnect(time.monotonic())

    def _open(self) -> Socket:
        """A SUB socket, connected and subscribed."""
        sub = self._context.socket(zmq.SUB)
        sub.linger = 0
        sub.rcvhwm = QUEUED_MESSAGES
        # Subscriptions are messages too: with a bound, a socket with many topics silently loses some
        # when it sends them again to a restarted daemon.
        sub.sndhwm = 0
        sub.reconnect_ivl_max = 1000
        sub.subscribe(HEARTBEAT_TOPIC)
        # where access is on, a grant on one key covers its exact topic, and no prefix
        for topic in self._wanted.topics(exact=self._keys is not None):
            sub.subscribe(topic)
        apply_curve(sub, self._keys)
        self._monitor = None if self._keys is None else Monitor(sub)
        connect(sub, self._changes)
        return sub

    def _close_sub(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
        self._sub.close()

    def _next_item(self, seconds: float | None) -> IoGenerator[Item | None]:
        """The next item, None if there is none in time."""
        if seconds is not None:
            seconds = seconds_of("timeout", seconds, may_be_zero=True)
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._state.has_items:
            self._listen()
            self._ask()
            if self._state.has_items:
                break
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return None
            yield self._wait(now, deadline)
        return self._state.take()

    def _next_event(self, seconds: float | None) -> IoGenerator[Event | Sync | Reset | Heartbeat | None]:
        if not self._rest:
            before = self._state.cursor
            item = yield from self._next_item(seconds)
            if not isinstance(item, list):
                return item
            self._rest.extend(item)
            self._rest_begins_after = before
        return self._rest.popleft()

    def _take_rest(self) -> Batch:
        """The rest of a revision from which single events were taken."""
        rest = list(self._rest)
        self._rest.clear()
        return rest

    def _wait(self, now: float, deadline: float | None) -> SocketWait:
        seconds = self._state.silent_at() - now
        if deadline is not None:
            seconds = min(seconds, deadline - now)
        if self._call is not None:
            seconds = min(seconds, self._call_waits.seconds)
        sockets = [(self._sub, POLLIN), *self._call_waits.sockets]
        if self._monitor is not None:
            sockets.append((self._monitor.socket, POLLIN))
        return SocketWait(sockets, seconds)

    def _listen(self) -> None:
        """Take in what was published, up to the first item; replace the socket if it is dead."""
        for _ in range(_MESSAGES_PER_TURN):
            try:
                frames = self._sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._state.on_message(frames, time.monotonic())
            if self._state.has_items:
                return
        if self._monitor is not None:
            self._monitor.take()
            if self._monitor.is_refused:
                raise refused_key(self._changes)
        if time.monotonic() >= self._state.silent_at():
            self._close_sub()
            self._sub = self._open()
            self._state.on_reconnect(time.monotonic())

    def _ask(self) -> None:
        """Go on with the request under way, or begin the next one."""
        while not self._state.has_items:
            if self._call is None:
                ops = self._state.next_ops()
                if not ops:
                    return
                self._call = self._connection.call(RequestBody(ops), PAGE_SECONDS)
            if not self._advance(self._call):
                return

    def _advance(self, call: IoGenerator[Reply]) -> bool:
        """Let the request do what it can; returns whether it is finished."""
        try:
            self._call_waits = next(call)
            return False
        except StopIteration as done:
            self._end_call()
            self._state.on_reply(done.value)
        except KvError as error:
            self._end_call()
            self._state.on_error(error)
        return True

    def _end_call(self) -> None:
        self._call = None
        self._call_waits = SocketWait((), 0)


def filter_of(prefixes: Collection[str], keys: Collection[str], ops: Collection[str]) -> Filter:
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
