"""The client for programs that block while they wait: every operation, typed.

Every call has a time-out, ``timeout`` seconds, within which it is retried; a call that takes several
requests has it for each. What retrying cannot hide is raised as :class:`KvError`. Whether a write that
failed so may have been applied stands in ``error.details["outcome"]``: ``none`` or ``unknown``.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, Self, TypeVar, overload

import zmq

from kvstore_client import commands, multi_request
from kvstore_client.arguments import address_of, count_of, must_be, requests_of, seconds_of
from kvstore_client.commands import (
    Command,
    Deleted,
    HistoryPage,
    Incremented,
    RecordPage,
    Written,
    body_of,
    body_of_one,
    result_of,
    results_of,
)
from kvstore_client.multi_request import Plan
from kvstore_client.transport import forks
from kvstore_client.transport.connection import SOCKETS, Body, Context, Lane
from kvstore_client.transport.sans_io import drive
from kvstore_core.errors import KvError, NotFound
from kvstore_core.filters import Filter
from kvstore_core.follower import LogPage
from kvstore_core.model import Cursor, Record
from kvstore_core.wire import Reply

T = TypeVar("T")
D = TypeVar("D")
BatchResults = list[T | KvError]

DEFAULT_TIMEOUT = 5.0
DEFAULT_CONNECTIONS = 16

EVERYTHING = Filter()

REQUIRED: Any = object()
"""Stands where no default was given."""


class Lanes:
    """A client's connections, the idle one used last on top; it owns their context.

    Threads may share it. Taking an idle lane and giving it back needs no lock, since the list's ``pop``
    and ``append`` are atomic. Closing leaves lanes in use to those who use them.
    """

    def __init__(self, requests: str, context_class: type[Context]) -> None:
        self._requests = requests
        self._context_class = context_class
        self.is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._generation = forks.generation()
        self._context = self._context_class()
        self._context.max_sockets *= SOCKETS
        self._lock = threading.Lock()
        self._made = 1
        try:
            self._idle = [Lane(self._context, self._requests)]
        except ValueError:
            self._context.term()
            raise

    @property
    def is_inherited(self) -> bool:
        """Whether all of this belongs to the process from which this one was forked."""
        return self._generation != forks.generation()

    def begin_anew(self) -> None:
        """Have connections of this process's own."""
        inherited.append((self._context, self._idle))
        self._begin()

    def take(self) -> Lane:
        if self.is_closed:
            raise RuntimeError("the client is closed")
        try:
            return self._idle.pop()
        except IndexError:
            with self._lock:
                self._made += 1
            return Lane(self._context, self._requests)

    def give_back(self, lane: Lane) -> None:
        self._idle.append(lane)
        if self.is_closed:
            self._close_idle()

    def close(self) -> None:
        self.is_closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        if self.is_inherited:
            return
        with self._lock:
            while self._idle:
                self._idle.pop().close()
                self._made -= 1
            if self._made == 0:
                self._context.term()


inherited: list[object] = []
"""What belongs to the parent of this process. It is kept, since to be collected is to be closed."""


def described(who: object, endpoint: str, is_closed: bool) -> str:
    """What a client is shown as."""
    return f"<{type(who).__name__} of {endpoint}{', closed' if is_closed else ''}>"


def not_portable(who: object) -> TypeError:
    """Why connections are neither copied nor sent to another process."""
    name = type(who).__name__
    return TypeError(f"a {name} can be neither pickled nor copied: make one where it is used")


def no_lane(seconds: float, body: Body) -> KvError:
    details = {"outcome": "none"} if body.writes else {}
    message = f"other calls of this client used all of its connections for {seconds:g} s"
    return KvError("timed_out", message, **details)


class Client:
    """A connection to the daemon, for programs that block while they wait.

    ``requests`` is the daemon's request endpoint, by default what ``KVSTORE_REQUESTS`` says or
    ``tcp://127.0.0.1:5555``; nothing is sent before the first call. ``timeout`` in seconds is that of
    every call that does not give its own. Threads may share a client: their calls run side by side, at
    most ``connections`` at a time. A process forked from this one may use it too, and has connections of
    its own. Use it as a context manager, or :meth:`close` it.
    """

    def __init__(
        self,
        requests: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        self._requests = requests_of(requests)
        self._timeout = seconds_of("timeout", timeout)
        self._connections = count_of("connections", connections)
        self._free = self._tokens()
        self._lanes = Lanes(self._requests, zmq.Context)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A client of the daemon at ``kvstore://HOST[:PORT][?timeout=SECONDS&connections=N]``.

        ``options`` are those of the constructor, and win over the URL's. Raises ValueError for
        another kind of URL.
        """
        address = address_of(url)
        return cls(address.requests, **{**address.options, **options})

    def _tokens(self) -> queue.SimpleQueue[None]:
        # a token for each call that may be under way; a semaphore does the same in Python, and slower
        free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self._connections):
            free.put(None)
        return free

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return described(self, self._requests, self._lanes.is_closed)

    def __reduce__(self) -> NoReturn:
        raise not_portable(self)

    def close(self) -> None:
        """Close the connections. No call may begin afterwards; one that is under way is finished."""
        self._lanes.close()

    def request(self, body: Body, timeout: float | None = None) -> Reply:
        """Send one request and give its reply as it came; what all other methods are made of."""
        must_be("body", body, Body, "a Body")
        seconds = self._timeout if timeout is None else seconds_of("timeout", timeout)
        began = time.monotonic()
        if self._lanes.is_inherited:
            self._begin_anew()
        free, lanes = self._free, self._lanes
        try:
            free.get(timeout=seconds)
        except queue.Empty as error:
            raise no_lane(seconds, body) from error
        try:
            lane = lanes.take()
            try:
                return drive(lane.call(body, seconds - (time.monotonic() - began)))
            finally:
                lanes.give_back(lane)
        finally:
            free.put(None)

    def _begin_anew(self) -> None:
        with forks.lock:
            if self._lanes.is_inherited:
                self._free = self._tokens()
                self._lanes.begin_anew()

    def run(self, command: Command[T], *, timeout: float | None = None) -> T:
        """Run one command; raises the KvError with which it fails."""
        return result_of(command, self.request(body_of_one(command), timeout))

    def _carry_out(self, plan: Plan[T], timeout: float | None) -> T:
        try:
            batch = next(plan)
            while True:
                batch = plan.send(self.batch(batch, timeout=timeout))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def batch(
        self, batch: Sequence[Command[T]], *, atomic: bool = False, timeout: float | None = None
    ) -> BatchResults[T]:
        """Run commands in one request and give their results in order. The functions of
        :mod:`kvstore_client.commands` make commands.

        Independent commands succeed or fail one by one: a failed one's result is its KvError. An
        atomic batch is applied whole, in one revision, or raises the KvError that refused it, with the
        index of the command at fault in ``details["op"]``. Reads see the batch's own writes.
        """
        return results_of(batch, self.request(body_of(batch, atomic=atomic), timeout))

    @overload
    def get(self, key: str, *, timeout: float | None = None) -> Record: ...
    @overload
    def get(self, key: str, default: D, *, timeout: float | None = None) -> Record | D: ...
    def get(self, key: str, default: Any = REQUIRED, *, timeout: float | None = None) -> Any:
        """The record of ``key``; where there is none ``default``, or without one raises :class:`NotFound`."""
        try:
            return self.run(commands.get(key), timeout=timeout)
        except NotFound:
            if default is REQUIRED:
                raise
            return default

    def get_many(self, keys: Sequence[str], *, timeout: float | None = None) -> dict[str, Record]:
        """The records of those of ``keys`` that there are. Up to 1,000 keys are one request, which sees
        one state of the store."""
        return self._carry_out(multi_request.get_many(keys), timeout)

    def put(
        self,
        key: str,
        value: bytes | str,
        *,
        content_type: str | None = None,
        ttl: float | timedelta | None = None,
        keep_ttl: bool = False,
        expires_at: int | None = None,
        if_revision: int | None = None,
        timeout: float | None = None,
    ) -> Written:
        """Store ``value``; once this returns it is durable (with the daemon's ``sync=always``).

        Text is stored as UTF-8, as ``text/plain; charset=utf-8`` unless ``content_type`` is given; bytes
        without one are ``application/octet-stream``. ``ttl`` in seconds, whole or not, from 0.001 to 100
        years, or a timedelta; a put without one clears the key's TTL, unless ``keep_ttl`` leaves its end as
        it is or ``expires_at`` names it, in milliseconds since the epoch. ``if_revision`` is the revision
        that the record must have, 0 for "must not exist"; raises ``condition_failed`` otherwise, with
        the present one in ``details["revision"]``.
        """
        command = commands.put(
            key,
            value,
            content_type=content_type,
            ttl=ttl,
            keep_ttl=keep_ttl,
            expires_at=expires_at,
            if_revision=if_revision,
        )
        return self.run(command, timeout=timeout)

    def create(
        self,
        key: str,
        value: bytes | str,
        *,
        content_type: str | None = None,
        ttl: float | timedelta | None = None,
        timeout: float | None = None,
    ) -> Written:
        """Store ``value`` if there is no such key yet; raises ``condition_failed`` if there is."""
        return self.put(key, value, content_type=content_type, ttl=ttl, if_revision=0, timeout=timeout)

    def delete(self, key: str, *, if_revision: int | None = None, timeout: float | None = None) -> Deleted:
        """Remove ``key``; raises ``not_found``, or ``condition_failed`` as :meth:`put` does."""
        return self.run(commands.delete(key, if_revision=if_revision), timeout=timeout)

    def delete_prefix(self, prefix: str, *, timeout: float | None = None) -> Deleted:
        """Remove every key that begins with ``prefix``, which must not be empty.

        Not atomic as a whole: up to 1,000 keys go in each revision. Keys that are written meanwhile
        may stay or go.
        """
        return self._carry_out(multi_request.delete_prefix(prefix), timeout)

    def incr(
        self, key: str, by: int = 1, *, if_revision: int | None = None, timeout: float | None = None
    ) -> Incremented:
        """Add ``by`` to a decimal integer, exactly once however often it had to be sent; a missing key
        counts from 0. Raises ``not_an_integer`` or ``out_of_range``."""
        return self.run(commands.incr(key, by, if_revision=if_revision), timeout=timeout)

    def touch(
        self,
        key: str,
        ttl: float | timedelta,
        *,
        if_revision: int | None = None,
        timeout: float | None = None,
    ) -> Written:
        """Give ``key`` a new TTL, seconds or a timedelta, counted from now; raises ``not_found``."""
        return self.run(commands.touch(key, ttl, if_revision=if_revision), timeout=timeout)

    def persist(self, key: str, *, if_revision: int | None = None, timeout: float | None = None) -> Written:
        """Take the TTL of ``key`` away; raises ``not_found``."""
        return self.run(commands.persist(key, if_revision=if_revision), timeout=timeout)

    def list_page(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        keys_only: bool = False,
        timeout: float | None = None,
    ) -> RecordPage:
        """A page of the records in start <= key < end that begin with ``prefix``, in key order, from
        one snapshot. A page may be short, or empty, and not be the last: that is for ``cursor`` to say."""
        command = commands.list_page(
            prefix=prefix, start=start, end=end, limit=limit, cursor=cursor, keys_only=keys_only
        )
        return self.run(command, timeout=timeout)

    def list(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        keys_only: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Record]:
        """All records of the range, page by page; each page is from a snapshot of its own."""
        cursor = None
        while True:
            page = self.list_page(
                prefix=prefix, start=start, end=end, cursor=cursor, keys_only=keys_only, timeout=timeout
            )
            yield from page.records
            if (cursor := page.cursor) is None:
                return

    def count(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """How many keys there are in the range; large ranges are counted in parts, each from a
        snapshot of its own."""
        return self._carry_out(multi_request.count(prefix, start, end), timeout)

    def events(
        self,
        since: Cursor | str | int,
        wanted: Filter = EVERYTHING,
        *,
        limit: int | None = None,
        values: bool = True,
        previous: bool = False,
        timeout: float | None = None,
    ) -> LogPage:
        """A page of the log after ``since``, oldest first, whole revisions only; go on from its
        ``next``. Raises ``cursor_expired``. To follow the store, use a Subscription."""
        command = commands.events(since, wanted, limit=limit, values=values, previous=previous)
        return self.run(command, timeout=timeout)

    def history(
        self,
        key: str,
        *,
        before: int | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        values: bool = True,
        timeout: float | None = None,
    ) -> HistoryPage:
        """A page of the events of ``key`` below revision ``before``, newest first; raises ``not_found``
        for a key that the log knows nothing of."""
        command = commands.history(key, before=before, limit=limit, cursor=cursor, values=values)
        return self.run(command, timeout=timeout)

    def get_at(self, key: str, revision: int, *, timeout: float | None = None) -> Record:
        """The record as it was after ``revision``.

        Raises ``not_found`` if there was none then, and ``revision_gone`` if the log no longer tells.
        """
        return self._carry_out(multi_request.get_at(key, revision), timeout)

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The daemon's version, position, counts and limits, as in protocol section 4."""
        return self.run(commands.status(), timeout=timeout)
