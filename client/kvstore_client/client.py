"""The client for programs that block while they wait: every operation, typed.

Every call has a time-out, ``timeout`` seconds, within which it is retried; a call that takes several
requests has it for each. What retrying cannot hide is raised as :class:`KvError`. Whether a write that
failed so may have been applied stands in ``error.details["outcome"]``: ``none`` or ``unknown``.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeVar

import zmq

from kvstore_client import commands, plans
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
from kvstore_client.errors import KvError
from kvstore_client.follow import Filter, LogPage
from kvstore_client.lane import DEFAULT_REQUESTS, Body, Context, Lane
from kvstore_client.model import Cursor, Record
from kvstore_client.plans import Plan
from kvstore_client.protocol import Reply
from kvstore_client.routine import drive

T = TypeVar("T")
_Results = list[Any]

DEFAULT_TIMEOUT = 5.0
DEFAULT_CONNECTIONS = 16

EVERYTHING = Filter()


class Lanes:
    """A client's idle lanes, the one used last on top.

    Threads may share it without a lock: the list's ``pop`` and ``append`` are atomic. It owns ``context``.
    """

    def __init__(self, requests: str, context: Context) -> None:
        self._requests = requests
        self._context = context
        self._is_closed = False
        try:
            self._idle = [Lane(self._context, requests)]
        except ValueError:
            self._context.term()
            raise

    def take(self) -> Lane:
        if self._is_closed:
            raise RuntimeError("the client is closed")
        try:
            return self._idle.pop()
        except IndexError:
            return Lane(self._context, self._requests)

    def give_back(self, lane: Lane) -> None:
        self._idle.append(lane)

    def close(self) -> None:
        self._is_closed = True
        self._context.destroy(linger=0)


def no_lane(seconds: float, body: Body) -> KvError:
    details = {"outcome": "none"} if body.writes else {}
    message = f"other calls of this client used all of its connections for {seconds:g} s"
    return KvError("timed_out", message, **details)


class Client:
    """A connection to the daemon, for programs that block while they wait.

    ``requests`` is the daemon's request endpoint; nothing is sent before the first call. ``timeout``
    in seconds is that of every call that does not give its own. Threads may share a client: their
    calls run side by side, at most ``connections`` at a time. A client must not be used on both sides
    of a fork. Use it as a context manager, or :meth:`close` it once no call is under way.
    """

    def __init__(
        self,
        requests: str = DEFAULT_REQUESTS,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        self._timeout = timeout
        # a token for each call that may be under way; a semaphore does the same in Python, and slower
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(connections):
            self._free.put(None)
        self._lanes = Lanes(requests, zmq.Context())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. No call may be made afterwards."""
        self._lanes.close()

    def request(self, body: Body, timeout: float | None = None) -> Reply:
        """Send one request and give its reply as it came; what all other methods are made of."""
        seconds = self._timeout if timeout is None else timeout
        began = time.monotonic()
        try:
            self._free.get(timeout=max(0.0, seconds))
        except queue.Empty as error:
            raise no_lane(seconds, body) from error
        try:
            lane = self._lanes.take()
            try:
                return drive(lane.call(body, seconds - (time.monotonic() - began)))
            finally:
                self._lanes.give_back(lane)
        finally:
            self._free.put(None)

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
        self, batch: Sequence[Command[Any]], *, atomic: bool = False, timeout: float | None = None
    ) -> _Results:
        """Run commands in one request and give their results in order.

        Independent commands succeed or fail one by one: a failed one's result is its KvError. An
        atomic batch is applied whole, in one revision, or raises the KvError that refused it, with the
        index of the command at fault in ``details["op"]``. Reads see the batch's own writes.
        """
        return results_of(batch, self.request(body_of(batch, atomic=atomic), timeout))

    def get(self, key: str, *, timeout: float | None = None) -> Record:
        """The record of ``key``; raises ``not_found``."""
        return self.run(commands.get(key), timeout=timeout)

    def get_many(self, keys: Sequence[str], *, timeout: float | None = None) -> dict[str, Record]:
        """The records of those of ``keys`` that there are. Up to 1,000 keys are one request, which sees
        one state of the store."""
        return self._carry_out(plans.get_many(keys), timeout)

    def put(
        self,
        key: str,
        value: bytes,
        *,
        content_type: str | None = None,
        ttl: float | None = None,
        keep_ttl: bool = False,
        expires_at: int | None = None,
        if_revision: int | None = None,
        timeout: float | None = None,
    ) -> Written:
        """Store ``value``; once this returns it is durable (with the daemon's ``sync=always``).

        ``ttl`` in seconds; a put without one clears the key's TTL, unless ``keep_ttl`` leaves its end as
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
        value: bytes,
        *,
        content_type: str | None = None,
        ttl: float | None = None,
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
        return self._carry_out(plans.delete_prefix(prefix), timeout)

    def incr(
        self, key: str, by: int = 1, *, if_revision: int | None = None, timeout: float | None = None
    ) -> Incremented:
        """Add ``by`` to a decimal integer, exactly once however often it had to be sent; a missing key
        counts from 0. Raises ``not_an_integer`` or ``out_of_range``."""
        return self.run(commands.incr(key, by, if_revision=if_revision), timeout=timeout)

    def touch(
        self, key: str, ttl: float, *, if_revision: int | None = None, timeout: float | None = None
    ) -> Written:
        """Give ``key`` a new TTL in seconds, counted from now; raises ``not_found``."""
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
        return self._carry_out(plans.count(prefix, start, end), timeout)

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
        return self._carry_out(plans.get_at(key, revision), timeout)

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The daemon's version, position, counts and limits, as in protocol section 4."""
        return self.run(commands.status(), timeout=timeout)
