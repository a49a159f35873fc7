"""The asyncio forms of the client and of the subscription.

They run the same routines, commands and plans as the blocking forms; only the waiting is another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self, TypeVar

from kvstore_client import commands, plans
from kvstore_client.client import (
    DEFAULT_CONNECTIONS,
    DEFAULT_TIMEOUT,
    EVERYTHING,
    Lanes,
    no_lane,
)
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
from kvstore_client.follow import Batch, Filter, LogPage
from kvstore_client.lane import DEFAULT_REQUESTS, Body
from kvstore_client.model import Cursor, Event, Record
from kvstore_client.plans import Plan
from kvstore_client.protocol import Heartbeat, Reply
from kvstore_client.readiness import WatchedContext, until_ready
from kvstore_client.routine import Routine
from kvstore_client.subscription import Watching
from kvstore_client.watcher import Reset, Sync

T = TypeVar("T")
_Results = list[Any]


async def drive_async(routine: Routine[T]) -> T:
    """Run a routine to its end, waiting in the event loop. If the task is cancelled, the routine is
    closed, which lets it leave its sockets in order."""
    try:
        while True:
            try:
                wait = next(routine)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            await until_ready(wait)
    finally:
        routine.close()


class AsyncClient:
    """A connection to the daemon for asyncio; its methods promise what those of :class:`Client` do.

    Tasks may share a client: their calls run side by side, at most ``connections`` at a time. A write
    whose task is cancelled may have been applied. A client belongs to one event loop.
    """

    def __init__(
        self,
        requests: str = DEFAULT_REQUESTS,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        self._timeout = timeout
        self._free = asyncio.BoundedSemaphore(connections)
        self._lanes = Lanes(requests, WatchedContext())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. No call may be made afterwards."""
        self._lanes.close()

    async def request(self, body: Body, timeout: float | None = None) -> Reply:
        """See :meth:`Client.request`."""
        seconds = self._timeout if timeout is None else timeout
        began = time.monotonic()
        if self._free.locked():
            await self._acquire(seconds, body)
        else:
            await self._free.acquire()
        try:
            lane = self._lanes.take()
            try:
                return await drive_async(lane.call(body, seconds - (time.monotonic() - began)))
            finally:
                self._lanes.give_back(lane)
        finally:
            self._free.release()

    async def _acquire(self, seconds: float, body: Body) -> None:
        """Wait for another call to end."""
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError as error:
            raise no_lane(seconds, body) from error

    async def run(self, command: Command[T], *, timeout: float | None = None) -> T:
        """See :meth:`Client.run`."""
        return result_of(command, await self.request(body_of_one(command), timeout))

    async def _carry_out(self, plan: Plan[T], timeout: float | None) -> T:
        try:
            batch = next(plan)
            while True:
                batch = plan.send(await self.batch(batch, timeout=timeout))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def batch(
        self, batch: Sequence[Command[Any]], *, atomic: bool = False, timeout: float | None = None
    ) -> _Results:
        """See :meth:`Client.batch`."""
        return results_of(batch, await self.request(body_of(batch, atomic=atomic), timeout))

    async def get(self, key: str, *, timeout: float | None = None) -> Record:
        """See :meth:`Client.get`."""
        return await self.run(commands.get(key), timeout=timeout)

    async def get_many(self, keys: Sequence[str], *, timeout: float | None = None) -> dict[str, Record]:
        """See :meth:`Client.get_many`."""
        return await self._carry_out(plans.get_many(keys), timeout)

    async def put(
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
        """See :meth:`Client.put`."""
        command = commands.put(
            key,
            value,
            content_type=content_type,
            ttl=ttl,
            keep_ttl=keep_ttl,
            expires_at=expires_at,
            if_revision=if_revision,
        )
        return await self.run(command, timeout=timeout)

    async def create(
        self,
        key: str,
        value: bytes,
        *,
        content_type: str | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> Written:
        """See :meth:`Client.create`."""
        return await self.put(key, value, content_type=content_type, ttl=ttl, if_revision=0, timeout=timeout)

    async def delete(
        self, key: str, *, if_revision: int | None = None, timeout: float | None = None
    ) -> Deleted:
        """See :meth:`Client.delete`."""
        return await self.run(commands.delete(key, if_revision=if_revision), timeout=timeout)

    async def delete_prefix(self, prefix: str, *, timeout: float | None = None) -> Deleted:
        """See :meth:`Client.delete_prefix`."""
        return await self._carry_out(plans.delete_prefix(prefix), timeout)

    async def incr(
        self, key: str, by: int = 1, *, if_revision: int | None = None, timeout: float | None = None
    ) -> Incremented:
        """See :meth:`Client.incr`."""
        return await self.run(commands.incr(key, by, if_revision=if_revision), timeout=timeout)

    async def touch(
        self, key: str, ttl: float, *, if_revision: int | None = None, timeout: float | None = None
    ) -> Written:
        """See :meth:`Client.touch`."""
        return await self.run(commands.touch(key, ttl, if_revision=if_revision), timeout=timeout)

    async def persist(
        self, key: str, *, if_revision: int | None = None, timeout: float | None = None
    ) -> Written:
        """See :meth:`Client.persist`."""
        return await self.run(commands.persist(key, if_revision=if_revision), timeout=timeout)

    async def list_page(
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
        """See :meth:`Client.list_page`."""
        command = commands.list_page(
            prefix=prefix, start=start, end=end, limit=limit, cursor=cursor, keys_only=keys_only
        )
        return await self.run(command, timeout=timeout)

    async def list(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        keys_only: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[Record]:
        """See :meth:`Client.list`."""
        cursor = None
        while True:
            page = await self.list_page(
                prefix=prefix, start=start, end=end, cursor=cursor, keys_only=keys_only, timeout=timeout
            )
            for record in page.records:
                yield record
            if (cursor := page.cursor) is None:
                return

    async def count(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """See :meth:`Client.count`."""
        return await self._carry_out(plans.count(prefix, start, end), timeout)

    async def events(
        self,
        since: Cursor | str | int,
        wanted: Filter = EVERYTHING,
        *,
        limit: int | None = None,
        values: bool = True,
        previous: bool = False,
        timeout: float | None = None,
    ) -> LogPage:
        """See :meth:`Client.events`."""
        command = commands.events(since, wanted, limit=limit, values=values, previous=previous)
        return await self.run(command, timeout=timeout)

    async def history(
        self,
        key: str,
        *,
        before: int | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        values: bool = True,
        timeout: float | None = None,
    ) -> HistoryPage:
        """See :meth:`Client.history`."""
        command = commands.history(key, before=before, limit=limit, cursor=cursor, values=values)
        return await self.run(command, timeout=timeout)

    async def get_at(self, key: str, revision: int, *, timeout: float | None = None) -> Record:
        """See :meth:`Client.get_at`."""
        return await self._carry_out(plans.get_at(key, revision), timeout)

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """See :meth:`Client.status`."""
        return await self.run(commands.status(), timeout=timeout)


class AsyncSubscription(Watching):
    """The changes of a store, as an asynchronous iterator; see :class:`Subscription` for the arguments,
    the items and what is promised. To be used by one task at a time; a cancelled wait loses nothing."""

    _context_class = WatchedContext

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | Sync | Reset | Heartbeat:
        while (item := await self.next()) is None:
            continue
        return item

    async def next(self, timeout: float | None = None) -> Event | Sync | Reset | Heartbeat | None:
        """See :meth:`Subscription.next`."""
        return await drive_async(self._next_event(timeout))

    async def next_batch(self, timeout: float | None = None) -> Batch | Sync | Reset | Heartbeat | None:
        """See :meth:`Subscription.next_batch`."""
        return self._take_rest() or await drive_async(self._next_item(timeout))
