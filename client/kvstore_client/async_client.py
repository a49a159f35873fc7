"""The client for asyncio: every operation, typed.

Every call is retried within its time-out, ``timeout`` seconds; an operation that takes several requests
has it for each of them. What retrying cannot hide is raised as :class:`KvError`. In that of a failed
write ``error.details["outcome"]`` says whether it may have been applied: ``none`` or ``unknown``.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar, cast, overload

from kvstore_client import arguments, commands, multi_request
from kvstore_client.async_subscription import AsyncSubscription
from kvstore_client.multi_request import MultiRequest
from kvstore_client.subscription_base import filter_of
from kvstore_client.subscription_state import Reset, Sync
from kvstore_client.transactions.async_transaction import AsyncTransaction
from kvstore_client.transport.async_io import AsyncConnectionPool, exchange, sleep
from kvstore_client.transport.connection import RequestBody, check_endpoint
from kvstore_client.transport.forks import NotPortable
from kvstore_core.access.tokens import new_token
from kvstore_core.backoff import Backoff
from kvstore_core.errors import ConditionFailed, KvError, NotFound
from kvstore_core.filters import Filter
from kvstore_core.follower import LogPage
from kvstore_core.model import Cursor, Event, Record
from kvstore_core.predicates import parse_predicate
from kvstore_core.wire import Reply

T = TypeVar("T")
D = TypeVar("D")
BatchResults = list[T | KvError]

DEFAULT_ATTEMPTS = 10


class AsyncClient(NotPortable):
    """A client of the daemon::

        async with AsyncClient(timeout=2) as client:
            await client.put("greeting", "hello", ttl=60)
            record = await client.get("greeting")
            async for job in client.list(prefix="jobs/"):
                print(job.key, job.value)

    ``requests`` is the daemon's request endpoint, by default what ``KVSTORE_REQUESTS`` says or
    ``tcp://127.0.0.1:5555``; nothing is sent before the first call. ``timeout`` in seconds is that of
    every call that does not give its own. Tasks may share a client: their calls run side by side, at
    most ``connections`` at a time. A process forked from this one may use it too, and has connections of
    its own. Use it as a context manager, or :meth:`close` it.

    Reads see every write that was answered before them, by any client. With ``stale`` a read gives at once
    what the daemon has, though others that share its store may have written since; how old that may be is in
    the ``age`` of a Reply, which :meth:`request` gives.

    ``changes`` is the daemon's endpoint for changes, to which :meth:`wait` and :meth:`changes` listen: by
    default what ``KVSTORE_CHANGES`` says, or the port above that of ``requests`` if this is given.

    ``login`` is the path of a login file, by default what ``KVSTORE_LOGIN_FILE`` says or
    ``~/.config/kvstore/login.json``: its keys for ``requests``, if it has any, are this client's. Where the
    daemon does not take them, or wants some, calls raise ``unauthenticated``.

    With asyncio, a client is used in one event loop at a time: in another one after the first has ended. A
    write whose task is cancelled may have been applied.
    """

    def __init__(
        self,
        requests: str | None = None,
        *,
        changes: str | None = None,
        timeout: float = arguments.DEFAULT_TIMEOUT,
        connections: int = arguments.DEFAULT_CONNECTIONS,
        login: str | os.PathLike[str] | None = None,
    ) -> None:
        endpoint = arguments.requests_of(requests)
        self._timeout = arguments.seconds_of("timeout", timeout)
        size, keys = arguments.count_of("connections", connections), arguments.keys_of(login, endpoint)
        if changes is not None:
            check_endpoint(arguments.changes_of(changes))
        self._pool = AsyncConnectionPool(endpoint, size, keys)
        self._given = requests, changes
        self._login = login

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A client of the daemon at ``kvstore://HOST[:PORT][?changes=PORT&timeout=SECONDS&connections=N]``.

        ``options`` are those of the constructor, and win over the URL's. Raises ValueError for
        another kind of URL.
        """
        address = arguments.address_of(url)
        return cls(address.requests, **{"changes": address.changes, **address.options, **options})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._pool.endpoint}{', closed' if self._pool.is_closed else ''}>"

    def close(self) -> None:
        """Close the connections. No call may begin afterwards; one that is under way is finished."""
        self._pool.close()

    async def request(self, body: RequestBody, timeout: float | None = None) -> Reply:
        """Send one request and return its reply as it came; all other methods use it."""
        arguments.must_be("body", body, RequestBody, "a RequestBody")
        seconds = self._timeout if timeout is None else arguments.seconds_of("timeout", timeout)
        began = time.monotonic()
        pool = self._pool
        connection = await pool.take(seconds, body)
        try:
            return await exchange(connection, body, seconds - (time.monotonic() - began))
        finally:
            pool.give_back(connection)

    async def run(self, command: commands.Command[T], *, timeout: float | None = None) -> T:
        """Run one command; raises the KvError of a failed one."""
        return commands.result_of(command, await self.request(commands.body_of_one(command), timeout))

    async def _run_multi(self, steps: MultiRequest[T], timeout: float | None) -> T:
        try:
            batch = next(steps)
            while True:
                try:
                    results = await self.batch(batch, timeout=timeout)
                except KvError as error:
                    batch = steps.throw(error)
                else:
                    batch = steps.send(results)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def batch(
        self, batch: Sequence[commands.Command[T]], *, atomic: bool = False, timeout: float | None = None
    ) -> BatchResults[T]:
        """Run commands, made by the functions of :mod:`kvstore_client.commands`, in one request and return
        their results in order.

        Independent commands succeed or fail one by one: a failed one's result is its KvError. An
        atomic batch is applied whole, in one revision, or raises the KvError that refused it, with the
        index of the command at fault in ``details["op"]``. Reads see the batch's own writes.
        """
        return commands.results_of(batch, await self.request(commands.body_of(batch, atomic=atomic), timeout))

    @overload
    async def get(
        self, key: str, *, stale: bool = False, min_revision: int | None = None, timeout: float | None = None
    ) -> Record: ...
    @overload
    async def get(
        self,
        key: str,
        default: D,
        *,
        stale: bool = False,
        min_revision: int | None = None,
        timeout: float | None = None,
    ) -> Record | D: ...
    async def get(
        self,
        key: str,
        default: Any = arguments.REQUIRED,
        *,
        stale: bool = False,
        min_revision: int | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The record of ``key``. If there is none, returns ``default`` or, without one, raises
        :class:`NotFound`. ``stale`` as for the class. ``min_revision``, here and in all that takes it: as of
        that revision or a later one; raises ``condition_failed`` where the store has not come that far."""
        command = commands.get(key, stale=stale, min_revision=min_revision)
        try:
            return await self.run(command, timeout=timeout)
        except NotFound:
            if default is arguments.REQUIRED:
                raise
            return default

    async def get_many(
        self, keys: Sequence[str], *, stale: bool = False, timeout: float | None = None
    ) -> dict[str, Record]:
        """The records of those of ``keys`` that exist. Up to 1,000 keys, or as many as the daemon takes
        (``--max-batch-ops``), are one request, which sees one state of the store."""
        return await self._run_multi(multi_request.get_many(keys, stale=stale), timeout)

    async def check(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        if_value: bytes | str | None = None,
        exists: bool | None = None,
        timeout: float | None = None,
    ) -> int:
        """The revision of ``key``, 0 for none, if it has the revision ``if_revision`` (0: must not exist) or
        the value ``if_value``, or, by ``exists``, is or is not there; give one of the three. Raises
        ``condition_failed`` otherwise, as :meth:`put` does. Changes nothing, but is done in order with the
        writes. To make writes depend on it, use ``guards``, :meth:`transaction` or an atomic batch."""
        command = commands.check(key, if_revision=if_revision, if_value=if_value, exists=exists)
        return await self.run(command, timeout=timeout)

    async def _run_guarded(
        self, command: commands.Command[T], guards: Mapping[str, int] | None, timeout: float | None
    ) -> T:
        if not guards:
            return await self.run(command, timeout=timeout)
        batch = commands.guarded(command, guards)
        try:
            results = await self.batch(batch, atomic=True, timeout=timeout)
        except KvError as error:
            # the caller knows no index of an op
            if (index := error.details.pop("op", None)) is not None:
                error.details.setdefault("key", batch[index].op["key"])
            raise
        return cast("T", results[-1])  # an atomic batch has no failed command

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
        if_value: bytes | str | None = None,
        sequence: bool = False,
        guards: Mapping[str, int] | None = None,
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Written:
        """Store ``value``; once this returns it is durable (with the daemon's ``sync=always``).

        Text is stored as UTF-8, as ``text/plain; charset=utf-8`` unless ``content_type`` is given; bytes
        without one are ``application/octet-stream``. ``ttl`` in seconds, whole or not, from 0.001 to 100
        years, or a timedelta; a put without one clears the key's TTL, unless ``keep_ttl`` leaves its end as
        it is or ``expires_at`` names it, in milliseconds since the epoch. ``message`` says why, here and
        wherever something is written: up to 200 bytes of UTF-8 in one line, kept in the record and the event.

        ``if_revision`` is the revision that the record must have, 0 for "must not exist"; ``if_value``
        instead is the value that it must have. ``guards``, here and in all single writes, are other keys and
        the revisions that they must have, 0 again for none: ``guards={"locks/deploy": 41}``. Raises
        ``condition_failed`` otherwise, with the present revision in ``details["revision"]`` and the key in
        ``details["key"]``; nothing is written then.

        With ``sequence`` the record is stored under ``key`` and a number behind it, such that such keys are
        in the order in which they were committed; the result has the ``key``.
        """
        command = commands.put(
            key,
            value,
            content_type=content_type,
            ttl=ttl,
            keep_ttl=keep_ttl,
            expires_at=expires_at,
            if_revision=if_revision,
            if_value=if_value,
            sequence=sequence,
            message=message,
        )
        return await self._run_guarded(command, guards, timeout)

    async def create(
        self,
        key: str,
        value: bytes | str,
        *,
        content_type: str | None = None,
        ttl: float | timedelta | None = None,
        guards: Mapping[str, int] | None = None,
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Written:
        """Store ``value`` if there is no such key yet; raises ``condition_failed`` if there is."""
        command = commands.put(key, value, content_type=content_type, ttl=ttl, if_revision=0, message=message)
        return await self._run_guarded(command, guards, timeout)

    async def delete(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        if_value: bytes | str | None = None,
        guards: Mapping[str, int] | None = None,
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Deleted:
        """Remove ``key``; raises ``not_found``, or ``condition_failed`` as :meth:`put` does."""
        command = commands.delete(key, if_revision=if_revision, if_value=if_value, message=message)
        return await self._run_guarded(command, guards, timeout)

    async def delete_prefix(
        self, prefix: str, *, message: str | None = None, timeout: float | None = None
    ) -> commands.Deleted:
        """Remove every key that begins with ``prefix``, which must not be empty.

        Not atomic as a whole: up to 1,000 keys go in each revision. Keys that are written meanwhile
        may stay or go.
        """
        return await self._run_multi(multi_request.delete_prefix(prefix, message), timeout)

    async def incr(
        self,
        key: str,
        by: int = 1,
        *,
        if_revision: int | None = None,
        if_value: bytes | str | None = None,
        guards: Mapping[str, int] | None = None,
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Incremented:
        """Add ``by`` to a decimal integer of 64 bits, atomically, and exactly once however often it had to be
        sent; a missing key counts from 0. The TTL stays. Raises ``not_an_integer``, ``out_of_range``, or
        ``condition_failed`` as :meth:`put` does."""
        command = commands.incr(key, by, if_revision=if_revision, if_value=if_value, message=message)
        return await self._run_guarded(command, guards, timeout)

    async def touch(
        self,
        key: str,
        ttl: float | timedelta,
        *,
        if_revision: int | None = None,
        if_value: bytes | str | None = None,
        guards: Mapping[str, int] | None = None,
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Written:
        """Give ``key`` a new TTL, counted from now, and leave its value as it is: seconds, from 0.001 to 100
        years, or a timedelta. Raises ``not_found``, or ``condition_failed`` as :meth:`put` does."""
        command = commands.touch(key, ttl, if_revision=if_revision, if_value=if_value, message=message)
        return await self._run_guarded(command, guards, timeout)

    async def persist(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        if_value: bytes | str | None = None,
        guards: Mapping[str, int] | None = None,
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Written:
        """Take the TTL of ``key`` away, so that it does not expire; raises ``not_found``, or
        ``condition_failed`` as :meth:`put` does."""
        command = commands.persist(key, if_revision=if_revision, if_value=if_value, message=message)
        return await self._run_guarded(command, guards, timeout)

    # ── transactions ─────────────────────────────────────────────────────────────────────────────

    def transaction(self, *, timeout: float | None = None) -> AsyncTransaction:
        """A transaction, for one ``async with``: what is read in it is asserted at its end, together with
        the writes, in one atomic request. Raises ``condition_failed`` there if something has changed, since
        a block cannot be run again; :meth:`transact` can. ``timeout`` is that of each request."""
        seconds = None if timeout is None else arguments.seconds_of("timeout", timeout)
        return AsyncTransaction(self.request, seconds)

    async def transact(
        self,
        work: Callable[[AsyncTransaction], Awaitable[T]],
        *,
        attempts: int = DEFAULT_ATTEMPTS,
        timeout: float | None = None,
    ) -> T:
        """Run ``work`` in a transaction, and again in a new one whenever something that it read has changed
        before its end; returns what it returned::

            async def move(t):
                left = int((await t.get("stock/tea")).text)
                t.put("stock/tea", str(left - 1))
                return left - 1

            left = await store.transact(move)

        So ``work`` may run several times, and should do nothing else than read and write ``t``. Waits a
        little longer after each attempt, and raises ``condition_failed`` after the last. What ``work``
        raises, and what it would be in vain to repeat, is raised at once: a check, or a condition of its own,
        that does not hold, and a write of which the outcome is unknown.
        """
        arguments.function_of("work", work)
        pauses = Backoff(0.005, 0.5, jitter=0.9)
        for left in reversed(range(arguments.count_of("attempts", attempts))):
            transaction = self.transaction(timeout=timeout)
            try:
                async with transaction:
                    return await work(transaction)
            except ConditionFailed:
                if not transaction.is_conflict or not left:
                    raise
            await sleep(pauses.next())
        raise AssertionError("attempts is at least 1")

    # ── ranges and changes ───────────────────────────────────────────────────────────────────────

    async def list_page(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        keys_only: bool = False,
        reverse: bool = False,
        stale: bool = False,
        min_revision: int | None = None,
        timeout: float | None = None,
    ) -> commands.RecordPage:
        """A page of the records in start <= key < end that begin with ``prefix``, in key order or with
        ``reverse`` the last first, from one snapshot. It has at most ``limit`` records, from 1 to 1,000,
        by default 1,000, and ends earlier once the values have 4 MiB. A page may be short, or empty, and not
        be the last: only ``cursor`` says so."""
        command = commands.list_page(
            prefix=prefix,
            start=start,
            end=end,
            limit=limit,
            cursor=cursor,
            keys_only=keys_only,
            reverse=reverse,
            stale=stale,
            min_revision=min_revision,
        )
        return await self.run(command, timeout=timeout)

    async def list(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        keys_only: bool = False,
        reverse: bool = False,
        stale: bool = False,
        min_revision: int | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Record]:
        """All records of the range, page by page; each page is from its own snapshot. With ``reverse`` the
        last come first, so that ``islice`` takes the last few."""
        cursor = None
        while True:
            page = await self.list_page(
                prefix=prefix,
                start=start,
                end=end,
                cursor=cursor,
                keys_only=keys_only,
                reverse=reverse,
                stale=stale,
                min_revision=min_revision,
                timeout=timeout,
            )
            for record in page.records:
                yield record
            if (cursor := page.cursor) is None:
                return

    async def level_page(
        self,
        *,
        prefix: str | None = None,
        delimiter: str = "/",
        limit: int | None = None,
        cursor: str | None = None,
        keys_only: bool = False,
        reverse: bool = False,
        counts: bool = False,
        stale: bool = False,
        min_revision: int | None = None,
        timeout: float | None = None,
    ) -> commands.LevelPage:
        """A page of one level of keys: the records directly below ``prefix``, and the prefixes of those
        further down, each up to the next ``delimiter`` and told once, however many keys it has. ``limit``,
        from 1 to 1,000, counts both; with ``counts`` the page says how many keys each prefix has, as far as
        up to 1,000."""
        command = commands.level_page(
            prefix=prefix,
            delimiter=delimiter,
            limit=limit,
            cursor=cursor,
            keys_only=keys_only,
            reverse=reverse,
            counts=counts,
            stale=stale,
            min_revision=min_revision,
        )
        return await self.run(command, timeout=timeout)

    async def ls(
        self,
        prefix: str | None = None,
        *,
        delimiter: str = "/",
        reverse: bool = False,
        stale: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[str]:
        """The names of one level, in their order: keys, and prefixes that end with ``delimiter``; page by
        page, each from its own snapshot."""
        arguments.flag_of("reverse", reverse)
        cursor = None
        while True:
            page = await self.level_page(
                prefix=prefix,
                delimiter=delimiter,
                cursor=cursor,
                keys_only=True,
                reverse=reverse,
                stale=stale,
                timeout=timeout,
            )
            names = [*page.prefixes, *(record.key for record in page.records)]
            names.sort(reverse=reverse)
            for name in names:
                yield name
            if (cursor := page.cursor) is None:
                return

    async def count(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        stale: bool = False,
        timeout: float | None = None,
    ) -> int:
        """How many keys there are in the range; large ranges are counted in parts, each from its
        own snapshot."""
        return await self._run_multi(multi_request.count(prefix, start, end, stale=stale), timeout)

    async def digest_page(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        cursor: str | None = None,
        stale: bool = False,
        min_revision: int | None = None,
        timeout: float | None = None,
    ) -> commands.DigestPage:
        """The digest of the records in the range, or in a bounded part of it. That of all records, so without
        a range, is told whole. See :mod:`kvstore_core.digest` for what it proves."""
        command = commands.digest_page(
            prefix=prefix, start=start, end=end, cursor=cursor, stale=stale, min_revision=min_revision
        )
        return await self.run(command, timeout=timeout)

    async def events(
        self,
        since: Cursor | str | int | None = None,
        wanted: Filter = commands.EVERYTHING,
        *,
        since_time: int | None = None,
        limit: int | None = None,
        values: bool = True,
        previous: bool = False,
        stale: bool = False,
        timeout: float | None = None,
    ) -> LogPage:
        """A page of the log after ``since``, or after ``since_time`` in milliseconds since the epoch, oldest
        first, whole revisions only; go on from its ``next``. It has about ``limit`` events, from 1 to 1,000.
        Raises ``cursor_expired``. :meth:`changes` also
        waits; to follow the store, use a Subscription."""
        command = commands.events(
            since,
            wanted,
            since_time=since_time,
            limit=limit,
            values=values,
            previous=previous,
            stale=stale,
        )
        return await self.run(command, timeout=timeout)

    async def changes(
        self,
        since: Cursor | str | int | None = None,
        *,
        since_time: int | None = None,
        prefixes: Collection[str] = (),
        keys: Collection[str] = (),
        ops: Collection[str] = (),
        limit: int | None = None,
        values: bool = True,
        previous: bool = False,
        wait: float = 0,
        stale: bool = False,
        timeout: float | None = None,
    ) -> commands.EventsPage:
        """A page of the changes after ``since``, a cursor or a revision of the present epoch, or after
        ``since_time``, in milliseconds since the epoch; without either there are none yet, and the page has
        the cursor from which to go on. ``prefixes``, ``keys`` and ``ops`` choose as for a Subscription.

        The page holds about ``limit`` events at most, and never ends inside a revision. Where it would be
        empty, waits up to ``wait`` seconds for the first change that is wanted. For programs that look from
        time to time, and keep the page's ``cursor``; raises ``cursor_expired``, with the ``floor``, where the
        log no longer reaches back to it.
        """
        wanted = filter_of(prefixes, keys, ops)
        deadline = time.monotonic() + arguments.seconds_of("wait", wait, may_be_zero=True)
        if since is None and since_time is None:
            reply = await self.request(commands.body_of_one(commands.status()), timeout)
            since = Cursor(reply.revision, reply.epoch)

        async def read(since: Cursor | str | int | None) -> commands.EventsPage:
            page = await self.events(
                since,
                wanted,
                since_time=since_time if since is None else None,
                limit=limit,
                values=values,
                previous=previous,
                stale=stale,
                timeout=timeout,
            )
            cursor = Cursor(page.next, page.epoch)
            return commands.EventsPage(page.events, cursor, page.next < page.head, page.floor, page.head)

        page = await read(since)
        if not wait or page.events or page.more:
            return page
        async with self._subscription(
            prefixes=wanted.prefixes, keys=wanted.keys, ops=wanted.ops, since=page.cursor, values=False
        ) as subscription:
            while not page.events:
                item = await subscription.next_batch(max(0.0, deadline - time.monotonic()))
                if item is None:
                    return page._replace(cursor=subscription.cursor or page.cursor)
                if not isinstance(item, Sync):
                    page = await read(page.cursor)
        return page

    async def wait(self, key: str, until: str = "exists", *, timeout: float | None = None) -> Record | None:
        """Wait until ``key`` fulfils a condition, and return its record then, None if it is gone::

            await store.wait("jobs/7", until='/state == "done"', timeout=30)

        ``until`` is ``exists``, ``gone``, ``equals TEXT``, or looks into a JSON value: ``POINTER exists``,
        ``POINTER gone``, or ``POINTER OP JSON`` with a JSON pointer (RFC 6901) and one of ``==``, ``!=``,
        ``<``, ``<=``, ``>`` and ``>=``; ``docs/http.md`` has the grammar. The state at the call and every
        change after it are looked at, in the order of the log, so none is missed however short it lasts.
        Raises ``timed_out`` after ``timeout`` seconds (None: no limit). Needs the grants ``watch`` and
        ``read`` on the key.
        """
        predicate = parse_predicate(until)
        arguments.must_be("key", key, str, "a text")
        seconds = arguments.LONGEST_TIMEOUT if timeout is None else arguments.seconds_of("timeout", timeout)
        deadline = time.monotonic() + seconds
        async with self._subscription(keys=[key], snapshot=True) as subscription:
            is_known = False
            while True:
                item = await subscription.next(max(0.0, deadline - time.monotonic()))
                if item is None:
                    position = subscription.cursor
                    message = f"{key!r} did not fulfil the condition within {seconds:g} s"
                    raise KvError("timed_out", message, revision=0 if position is None else position.revision)
                if isinstance(item, Event):
                    is_known, record = True, item.record
                elif isinstance(item, Sync) and not is_known:
                    is_known, record = True, None
                else:
                    is_known = is_known and not isinstance(item, Reset)
                    continue
                if predicate.holds(None if record is None else record.value):
                    return record

    def _subscription(self, **options: Any) -> AsyncSubscription:
        return AsyncSubscription(
            self._pool.endpoint, arguments.changes_beside(*self._given), login=self._login, **options
        )

    async def history(
        self,
        key: str | None = None,
        *,
        prefix: str | None = None,
        before: int | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        values: bool = True,
        stale: bool = False,
        min_revision: int | None = None,
        timeout: float | None = None,
    ) -> commands.HistoryPage:
        """A page of the events of ``key``, or of all keys that begin with ``prefix``, below revision
        ``before``, newest first, at most ``limit``, from 1 to 1,000; raises ``not_found`` for a key of which
        the log has none."""
        command = commands.history(
            key,
            prefix=prefix,
            before=before,
            limit=limit,
            cursor=cursor,
            values=values,
            stale=stale,
            min_revision=min_revision,
        )
        return await self.run(command, timeout=timeout)

    async def get_at(
        self, key: str, revision: int, *, stale: bool = False, timeout: float | None = None
    ) -> Record:
        """The record as it was after ``revision``.

        Raises ``not_found`` if there was none then, and ``revision_gone`` if the log no longer reaches back.
        """
        return await self._run_multi(multi_request.get_at(key, revision, stale=stale), timeout)

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The daemon's version, position, counts and limits, as in protocol section 4."""
        return await self.run(commands.status(), timeout=timeout)

    # ── access ───────────────────────────────────────────────────────────────────────────────────

    async def whoami(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Who this client is to the daemon: ``name``, ``grants``, the ``kind`` of its credential, and
        ``expires_at`` in milliseconds since the epoch, if it ends; ``access`` is False where nobody is
        asked."""
        return await self.run(commands.whoami(), timeout=timeout)

    async def identities(self, *, timeout: float | None = None) -> Sequence[dict[str, Any]]:
        """All identities, without their secrets; needs the grant ``admin``, as all that follow do."""
        return await self.run(commands.identities(), timeout=timeout)

    async def identity_put(
        self,
        name: str,
        *,
        create: bool | None = None,
        grants: Sequence[str] | None = None,
        grant: Sequence[str] = (),
        ungrant: Sequence[str] = (),
        expires_at: int | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Make or change an identity; returns it. ``grants`` replaces its grants, ``grant`` adds some,
        ``ungrant`` takes some away: texts such as ``rw:app/``. It ends at ``expires_at``, in milliseconds
        since the epoch, 0 for never. Raises ``condition_failed`` with ``create`` if it is there, and
        ``not_found`` with ``create=False`` if it is not."""
        command = commands.identity_put(
            name, create=create, grants=grants, grant=grant, ungrant=ungrant, expires_at=expires_at
        )
        return await self.run(command, timeout=timeout)

    async def identity_delete(self, name: str, *, timeout: float | None = None) -> None:
        """Remove an identity, with its tokens and keys; raises ``not_found``."""
        await self.run(commands.identity_delete(name), timeout=timeout)

    async def token_add(
        self,
        name: str,
        *,
        expires_at: int | None = None,
        keep: float | timedelta | None = None,
        timeout: float | None = None,
    ) -> str:
        """Make another token of an identity and return its text, which nobody can be told again. It ends at
        ``expires_at``, in milliseconds since the epoch, 0 for never; with ``keep`` the others end after so
        many seconds, and without ``expires_at`` it lasts as long as the newest of them was made for.
        """
        token = new_token()
        await self.run(commands.token_add(name, token, expires_at=expires_at, keep=keep), timeout=timeout)
        return token.text

    async def token_delete(self, name: str, token_id: str, *, timeout: float | None = None) -> None:
        """Revoke one token of an identity; raises ``not_found``."""
        await self.run(commands.token_delete(name, token_id), timeout=timeout)

    async def key_add(
        self, name: str, public_key: str, *, expires_at: int | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Let an identity in by another CURVE key, whose secret half stays here; returns the identity."""
        command = commands.key_add(name, public_key, expires_at=expires_at)
        return await self.run(command, timeout=timeout)

    async def key_delete(self, name: str, public_key: str, *, timeout: float | None = None) -> None:
        """Revoke one CURVE key of an identity; raises ``not_found``."""
        await self.run(commands.key_delete(name, public_key), timeout=timeout)

    # ── for operators ────────────────────────────────────────────────────────────────────────────

    async def subscribers(
        self, *, limit: int | None = None, timeout: float | None = None
    ) -> Sequence[dict[str, Any]]:
        """The native subscribers, up to ``limit`` of those for whom most waits, as in protocol section 4.
        It needs the grant ``admin``."""
        found = await self.run(commands.subscribers(limit=limit), timeout=timeout)
        rows: Sequence[dict[str, Any]] = found["subscribers"]
        return rows

    async def kick(self, subscriber_id: str, *, timeout: float | None = None) -> None:
        """End the connection of a subscriber, who may come back; raises ``not_found``. Needs ``admin``."""
        await self.run(commands.kick(subscriber_id), timeout=timeout)

    # ── backups ──────────────────────────────────────────────────────────────────────────────────

    async def backups(self, *, timeout: float | None = None) -> Sequence[dict[str, Any]]:
        """The backups that the daemon keeps, one at most, with ``id`` and ``state``: ``making``, ``ready`` or
        ``failed``. This and all that follow need the grant ``admin``."""
        return await self.run(commands.backups(), timeout=timeout)

    async def backup_make(
        self, backup_id: str | None = None, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Begin to make a backup of the store, which takes as long as reading it; returns it as
        :meth:`backups` does. A repeat with the same ``backup_id``, 16 hexadecimal digits, begins no other;
        without one it is chosen here. Raises ``backup_exists`` while there is another, and ``store_full``."""
        return await self.run(commands.backup_make(backup_id or secrets.token_hex(8)), timeout=timeout)

    async def backup_read(
        self, backup_id: str, offset: int, *, size: int | None = None, timeout: float | None = None
    ) -> bytes:
        """A piece of a backup that is ``ready``: up to ``size`` bytes, or a MiB, from ``offset`` on; empty at
        its end. Raises ``not_found`` once it was removed."""
        return await self.run(commands.backup_read(backup_id, offset, size=size), timeout=timeout)

    async def backup_delete(self, backup_id: str, *, timeout: float | None = None) -> None:
        """Remove a backup; raises ``not_found``."""
        await self.run(commands.backup_delete(backup_id), timeout=timeout)

    async def slow(
        self, *, limit: int | None = None, timeout: float | None = None
    ) -> Sequence[dict[str, Any]]:
        """The last requests at the daemon that took long, up to ``limit``, the newest first.
        It needs the grant ``admin``."""
        found = await self.run(commands.slow(limit=limit), timeout=timeout)
        rows: Sequence[dict[str, Any]] = found["requests"]
        return rows
