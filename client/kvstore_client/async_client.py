"""The client for asyncio: every operation, typed.

Every call is retried within its time-out, ``timeout`` seconds; an operation that takes several requests
has it for each of them. What retrying cannot hide is raised as :class:`KvError`. In that of a failed
write ``error.details["outcome"]`` says whether it may have been applied: ``none`` or ``unknown``.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar, overload

from kvstore_client import arguments, commands, multi_request
from kvstore_client.multi_request import MultiRequest
from kvstore_client.transport.async_io import AsyncConnectionPool, drive
from kvstore_client.transport.connection import RequestBody
from kvstore_client.transport.forks import NotPortable
from kvstore_core.access.tokens import new_token
from kvstore_core.errors import KvError, NotFound
from kvstore_core.filters import Filter
from kvstore_core.follower import LogPage
from kvstore_core.model import Cursor, Record
from kvstore_core.wire import Reply

T = TypeVar("T")
D = TypeVar("D")
BatchResults = list[T | KvError]


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
        timeout: float = arguments.DEFAULT_TIMEOUT,
        connections: int = arguments.DEFAULT_CONNECTIONS,
        login: str | os.PathLike[str] | None = None,
    ) -> None:
        endpoint = arguments.requests_of(requests)
        self._timeout = arguments.seconds_of("timeout", timeout)
        size, keys = arguments.count_of("connections", connections), arguments.keys_of(login, endpoint)
        self._pool = AsyncConnectionPool(endpoint, size, keys)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A client of the daemon at ``kvstore://HOST[:PORT][?timeout=SECONDS&connections=N]``.

        ``options`` are those of the constructor, and win over the URL's. Raises ValueError for
        another kind of URL.
        """
        address = arguments.address_of(url)
        return cls(address.requests, **{**address.options, **options})

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
            return await drive(connection.call(body, seconds - (time.monotonic() - began)))
        finally:
            pool.give_back(connection)

    async def run(self, command: commands.Command[T], *, timeout: float | None = None) -> T:
        """Run one command; raises the KvError of a failed one."""
        return commands.result_of(command, await self.request(commands.body_of_one(command), timeout))

    async def _run_multi(self, steps: MultiRequest[T], timeout: float | None) -> T:
        try:
            batch = next(steps)
            while True:
                batch = steps.send(await self.batch(batch, timeout=timeout))
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
    async def get(self, key: str, *, timeout: float | None = None) -> Record: ...
    @overload
    async def get(self, key: str, default: D, *, timeout: float | None = None) -> Record | D: ...
    async def get(self, key: str, default: Any = arguments.REQUIRED, *, timeout: float | None = None) -> Any:
        """The record of ``key``. If there is none, returns ``default`` or, without one, raises
        :class:`NotFound`."""
        try:
            return await self.run(commands.get(key), timeout=timeout)
        except NotFound:
            if default is arguments.REQUIRED:
                raise
            return default

    async def get_many(self, keys: Sequence[str], *, timeout: float | None = None) -> dict[str, Record]:
        """The records of those of ``keys`` that exist. Up to 1,000 keys are one request, which sees one
        state of the store."""
        return await self._run_multi(multi_request.get_many(keys), timeout)

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
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Written:
        """Store ``value``; once this returns it is durable (with the daemon's ``sync=always``).

        Text is stored as UTF-8, as ``text/plain; charset=utf-8`` unless ``content_type`` is given; bytes
        without one are ``application/octet-stream``. ``ttl`` in seconds, whole or not, from 0.001 to 100
        years, or a timedelta; a put without one clears the key's TTL, unless ``keep_ttl`` leaves its end as
        it is or ``expires_at`` names it, in milliseconds since the epoch. ``if_revision`` is the revision
        that the record must have, 0 for "must not exist"; raises ``condition_failed`` otherwise, with
        the present one in ``details["revision"]``. ``message`` says why, here and wherever something is
        written: up to 200 bytes of UTF-8 in one line, kept in the record and the event.
        """
        command = commands.put(
            key,
            value,
            content_type=content_type,
            ttl=ttl,
            keep_ttl=keep_ttl,
            expires_at=expires_at,
            if_revision=if_revision,
            message=message,
        )
        return await self.run(command, timeout=timeout)

    async def create(
        self,
        key: str,
        value: bytes | str,
        *,
        content_type: str | None = None,
        ttl: float | timedelta | None = None,
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Written:
        """Store ``value`` if there is no such key yet; raises ``condition_failed`` if there is."""
        return await self.put(
            key, value, content_type=content_type, ttl=ttl, if_revision=0, message=message, timeout=timeout
        )

    async def delete(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Deleted:
        """Remove ``key``; raises ``not_found``, or ``condition_failed`` as :meth:`put` does."""
        return await self.run(commands.delete(key, if_revision=if_revision, message=message), timeout=timeout)

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
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Incremented:
        """Add ``by`` to a decimal integer, exactly once however often it had to be sent; a missing key
        counts from 0. Raises ``not_an_integer`` or ``out_of_range``."""
        command = commands.incr(key, by, if_revision=if_revision, message=message)
        return await self.run(command, timeout=timeout)

    async def touch(
        self,
        key: str,
        ttl: float | timedelta,
        *,
        if_revision: int | None = None,
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Written:
        """Give ``key`` a new TTL, seconds or a timedelta, counted from now; raises ``not_found``."""
        command = commands.touch(key, ttl, if_revision=if_revision, message=message)
        return await self.run(command, timeout=timeout)

    async def persist(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        message: str | None = None,
        timeout: float | None = None,
    ) -> commands.Written:
        """Take the TTL of ``key`` away; raises ``not_found``."""
        command = commands.persist(key, if_revision=if_revision, message=message)
        return await self.run(command, timeout=timeout)

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
    ) -> commands.RecordPage:
        """A page of the records in start <= key < end that begin with ``prefix``, in key order, from
        one snapshot. A page may be short, or empty, and not be the last: only ``cursor`` says so."""
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
        """All records of the range, page by page; each page is from its own snapshot."""
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
        """How many keys there are in the range; large ranges are counted in parts, each from its
        own snapshot."""
        return await self._run_multi(multi_request.count(prefix, start, end), timeout)

    async def events(
        self,
        since: Cursor | str | int,
        wanted: Filter = commands.EVERYTHING,
        *,
        limit: int | None = None,
        values: bool = True,
        previous: bool = False,
        timeout: float | None = None,
    ) -> LogPage:
        """A page of the log after ``since``, oldest first, whole revisions only; go on from its
        ``next``. Raises ``cursor_expired``. To follow the store, use a Subscription."""
        command = commands.events(since, wanted, limit=limit, values=values, previous=previous)
        return await self.run(command, timeout=timeout)

    async def history(
        self,
        key: str | None = None,
        *,
        prefix: str | None = None,
        before: int | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        values: bool = True,
        timeout: float | None = None,
    ) -> commands.HistoryPage:
        """A page of the events of ``key``, or of all keys that begin with ``prefix``, below revision
        ``before``, newest first; raises ``not_found`` for a key of which the log has none."""
        command = commands.history(
            key, prefix=prefix, before=before, limit=limit, cursor=cursor, values=values
        )
        return await self.run(command, timeout=timeout)

    async def get_at(self, key: str, revision: int, *, timeout: float | None = None) -> Record:
        """The record as it was after ``revision``.

        Raises ``not_found`` if there was none then, and ``revision_gone`` if the log no longer reaches back.
        """
        return await self._run_multi(multi_request.get_at(key, revision), timeout)

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The daemon's version, position, counts and limits, as in protocol section 4."""
        return await self.run(commands.status(), timeout=timeout)

    # ── access ───────────────────────────────────────────────────────────────────────────────────

    async def whoami(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Who this client is to the daemon: ``name``, ``grants``, and its credential."""
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
        ``ungrant`` takes some away. Raises ``condition_failed`` with ``create`` if it is there, and
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
