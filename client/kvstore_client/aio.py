"""The asyncio forms of the client and of the subscription.

They run the same routines, commands and plans as the blocking forms; only the waiting is another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, Self, TypeVar, overload

from kvstore_client import commands, multi_request
from kvstore_client.arguments import address_of, count_of, must_be, requests_of, seconds_of
from kvstore_client.client import (
    DEFAULT_CONNECTIONS,
    DEFAULT_TIMEOUT,
    EVERYTHING,
    REQUIRED,
    BatchResults,
    Lanes,
    described,
    no_lane,
    not_portable,
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
from kvstore_client.multi_request import Plan
from kvstore_client.subscription import Watching
from kvstore_client.subscription_state import Reset, Sync
from kvstore_client.transport.asyncio_poll import WatchedContext, until_ready
from kvstore_client.transport.connection import Body
from kvstore_client.transport.sans_io import Routine
from kvstore_core.errors import NotFound
from kvstore_core.filters import Filter
from kvstore_core.follower import Batch, LogPage
from kvstore_core.model import Cursor, Event, Record
from kvstore_core.wire import Heartbeat, Reply

T = TypeVar("T")
D = TypeVar("D")


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
    whose task is cancelled may have been applied. A client is used in one event loop at a time: in
    another once the first has ended, or in a forked process.
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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.BoundedSemaphore(self._connections)
        self._lanes = Lanes(self._requests, WatchedContext)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """See :meth:`Client.from_url`."""
        address = address_of(url)
        return cls(address.requests, **{**address.options, **options})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return described(self, self._requests, self._lanes.is_closed)

    def __reduce__(self) -> NoReturn:
        raise not_portable(self)

    def close(self) -> None:
        """Close the connections. No call may begin afterwards; one that is under way is finished."""
        self._lanes.close()

    async def request(self, body: Body, timeout: float | None = None) -> Reply:
        """See :meth:`Client.request`."""
        must_be("body", body, Body, "a Body")
        seconds = self._timeout if timeout is None else seconds_of("timeout", timeout)
        began = time.monotonic()
        if self._loop is not asyncio.get_running_loop() or self._lanes.is_inherited:
            self._move(asyncio.get_running_loop())
        free, lanes = self._free, self._lanes
        if free.locked():
            await self._acquire(free, seconds, body)
        else:
            await free.acquire()
        try:
            lane = lanes.take()
            try:
                return await drive_async(lane.call(body, seconds - (time.monotonic() - began)))
            finally:
                lanes.give_back(lane)
        finally:
            free.release()

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Be used in this event loop from now on."""
        if self._lanes.is_inherited:
            self._lanes.begin_anew()
        elif self._loop is not None and self._loop is not loop and self._loop.is_running():
            raise RuntimeError("this client is used in another event loop that still runs; make one for each")
        self._loop = loop
        self._free = asyncio.BoundedSemaphore(self._connections)

    async def _acquire(self, free: asyncio.Semaphore, seconds: float, body: Body) -> None:
        """Wait for another call to end."""
        try:
            async with asyncio.timeout(seconds):
                await free.acquire()
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
        self, batch: Sequence[Command[T]], *, atomic: bool = False, timeout: float | None = None
    ) -> BatchResults[T]:
        """See :meth:`Client.batch`."""
        return results_of(batch, await self.request(body_of(batch, atomic=atomic), timeout))

    @overload
    async def get(self, key: str, *, timeout: float | None = None) -> Record: ...
    @overload
    async def get(self, key: str, default: D, *, timeout: float | None = None) -> Record | D: ...
    async def get(self, key: str, default: Any = REQUIRED, *, timeout: float | None = None) -> Any:
        """See :meth:`Client.get`."""
        try:
            return await self.run(commands.get(key), timeout=timeout)
        except NotFound:
            if default is REQUIRED:
                raise
            return default

    async def get_many(self, keys: Sequence[str], *, timeout: float | None = None) -> dict[str, Record]:
        """See :meth:`Client.get_many`."""
        return await self._carry_out(multi_request.get_many(keys), timeout)

    async def put(
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
        value: bytes | str,
        *,
        content_type: str | None = None,
        ttl: float | timedelta | None = None,
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
        return await self._carry_out(multi_request.delete_prefix(prefix), timeout)

    async def incr(
        self, key: str, by: int = 1, *, if_revision: int | None = None, timeout: float | None = None
    ) -> Incremented:
        """See :meth:`Client.incr`."""
        return await self.run(commands.incr(key, by, if_revision=if_revision), timeout=timeout)

    async def touch(
        self,
        key: str,
        ttl: float | timedelta,
        *,
        if_revision: int | None = None,
        timeout: float | None = None,
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
        return await self._carry_out(multi_request.count(prefix, start, end), timeout)

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
        return await self._carry_out(multi_request.get_at(key, revision), timeout)

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
        self._begin_use()
        try:
            return await drive_async(self._next_event(timeout))
        finally:
            self._end_use()

    async def next_batch(self, timeout: float | None = None) -> Batch | Sync | Reset | Heartbeat | None:
        """See :meth:`Subscription.next_batch`."""
        self._begin_use()
        try:
            return self._take_rest() or await drive_async(self._next_item(timeout))
        finally:
            self._end_use()
