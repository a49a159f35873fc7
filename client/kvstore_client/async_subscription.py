"""The subscription for asyncio.

It returns every change once, in order and in whole revisions, across lost connections and restarts.
"""

from __future__ import annotations

from typing import Self

from kvstore_client.subscription_base import SubscriptionBase
from kvstore_client.subscription_state import Reset, Sync
from kvstore_client.transport.async_io import AsyncContext, drive
from kvstore_core.follower import Batch
from kvstore_core.model import Event
from kvstore_core.wire import Heartbeat


class AsyncSubscription(SubscriptionBase):
    """The changes of a store, as an iterator that waits for the next one.

    ``requests`` and ``changes`` are the daemon's endpoints, by default what ``KVSTORE_REQUESTS`` and
    ``KVSTORE_CHANGES`` say, or ports 5555 and 5556 of this machine. ``login`` is the path of a login file, as
    that of a client; its keys for ``requests`` are used at both.

    ``prefixes`` and ``keys`` choose keys (both empty: all), ``ops`` out of ``put``, ``delete`` and
    ``expire`` choose kinds of change. ``since`` is a cursor to continue after, or a revision of the
    present epoch. Without it the subscription starts now, and with ``snapshot`` it begins with the
    present records, as put events. ``values=False`` leaves the values out, ``previous`` adds the
    replaced records (and takes every event from the log), ``heartbeats`` also returns the daemon's
    heartbeats, each after everything before it was delivered.

    Items are :class:`Event`, :class:`Sync`, :class:`Reset`, and :class:`Heartbeat` if asked for::

        async with AsyncSubscription(prefixes=["jobs/"], snapshot=True) as subscription:
            async for item in subscription:
                match item:
                    case Reset(): state.clear()
                    case Event(): apply(item)
                    case Sync(): print("up to date at", item.cursor)

    While the daemon is away nothing is returned; the subscription goes on by itself when it is back.
    Errors that do not pass by waiting are raised as KvError: ``unauthenticated`` once the key of the login
    is no longer good, ``not_allowed`` once it may not watch or read all of this. A new subscription goes on
    from ``cursor`` then. To be used by one task at a time. In a
    process forked from this one it goes on from the same position, with connections of its own.

    With asyncio, a wait that is cancelled loses nothing.
    """

    _context_class = AsyncContext

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
        """The next item; None if there is none within ``timeout`` seconds (None: no limit)."""
        self._begin_use()
        try:
            return await drive(self._next_event(timeout))
        finally:
            self._end_use()

    async def next_batch(self, timeout: float | None = None) -> Batch | Sync | Reset | Heartbeat | None:
        """Like :meth:`next`, but with all wanted events of one revision as one list. A snapshot comes
        as lists of records of any revision."""
        self._begin_use()
        try:
            return self._take_rest() or await drive(self._next_item(timeout))
        finally:
            self._end_use()
