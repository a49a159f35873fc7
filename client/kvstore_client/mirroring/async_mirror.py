"""The mirror for asyncio: what the store has, in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Self

from kvstore_client.arguments import (
    DEFAULT_TIMEOUT,
    address_of,
    changes_of,
    function_of,
    keys_of,
    path_of,
    requests_of,
    seconds_of,
)
from kvstore_client.async_client import AsyncClient
from kvstore_client.mirroring.async_worker import AsyncMirrorWorker
from kvstore_client.mirroring.mirror_base import MirrorBase
from kvstore_client.mirroring.mirror_file import MirrorFile
from kvstore_client.mirroring.mirrored_records import Changed, KeySpan, MirrorCopy
from kvstore_client.mirroring.poked_subscription import AsyncPokedSubscription, StoppedError
from kvstore_client.subscription_base import filter_of
from kvstore_client.transport import forks
from kvstore_core.backoff import Backoff
from kvstore_core.digest import digest_text
from kvstore_core.errors import KvError, TimedOut, Unavailable
from kvstore_core.model import Cursor
from kvstore_core.wire import Heartbeat


class AsyncMirror(MirrorBase):
    """The present records of a store, or those whose keys begin with one of ``prefixes``, kept up to date in
    this process: a mapping from keys to records that is only read, and costs no request::

        async with AsyncMirror(prefixes=["app/"]) as mirror:
            written = await store.put("app/color", "red")
            await mirror.wait(written.revision)
            print(mirror["app/color"].text, len(mirror))

    ``requests``, ``changes`` and ``login`` are as those of :class:`AsyncSubscription`. As a context manager
    it begins with a snapshot, and the block begins when that has been read: within ``timeout`` seconds, else
    ``timed_out`` is raised, or what else keeps it from the store. From then on it follows the changes, each
    once and in their order, all of one revision together; iteration is in the order of the keys. Where it
    reads a snapshot again, since the log no longer has what it missed or the store was restored, it is what
    it was until all of that has come.

    While the store is away it is what it was, and says so: :attr:`is_current`, :attr:`age`. Errors that do
    not pass by waiting are in :attr:`error`; it tries again, at most every minute.

    ``on_change`` is called with the records that have changed, by their keys, None for one that is gone:
    after each revision, and after a snapshot with what that made different. The first snapshot makes all
    records different, so it is called with them before the block begins; what comes from ``file`` is not
    new, and it is not called for that. What it raises is logged. It delays the mirror, and must not wait for
    it.

    With ``file`` it goes on where it was when it was last saved, instead of reading all again, and the
    block begins after ``timeout`` with what the file had if the store is away. The file is written at the
    end, and some seconds after a change; only its owner may read it. One that is damaged, of other prefixes
    or from another store is not used: all is read, and the log says why. One process uses a file at a time.

    A mirror of all compares itself with the digest that the daemon sends every second, and reads all again
    if they differ; :attr:`proven` is where it was last found equal. :meth:`verify` proves it now.

    Memory is that of the records.

    With asyncio, a mirror is used in the event loop in which it was begun.
    """

    def __init__(
        self,
        requests: str | None = None,
        changes: str | None = None,
        *,
        prefixes: Collection[str] = (),
        file: str | os.PathLike[str] | None = None,
        on_change: Callable[[Changed], object] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        login: str | os.PathLike[str] | None = None,
    ) -> None:
        self._requests, self._changes, self._login = requests_of(requests), changes_of(changes), login
        keys_of(login, self._requests)  # raises where a subscription would
        self._timeout = seconds_of("timeout", timeout)
        wanted = filter_of(prefixes, (), ())
        kept = None if file is None else MirrorFile(Path(path_of("file", file)), wanted)
        super().__init__(wanted, kept, on_change)
        if on_change is not None:
            function_of("on_change", on_change)
        self._client = AsyncClient(self._requests, changes=self._changes, timeout=timeout, login=login)
        self._worker = AsyncMirrorWorker()
        self._subscription: AsyncPokedSubscription | None = None

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A mirror of the daemon at ``kvstore://HOST[:PORT][?changes=PORT]``; as that of a Subscription."""
        address = address_of(url)
        return cls(address.requests, address.changes, **options)

    async def __aenter__(self) -> Self:
        if self._is_following:
            raise RuntimeError("a mirror is begun once; make another one")
        self._is_following = True
        await self._worker.aside(self._resume)
        self._worker.start(self._follow)
        try:
            await self.wait(0)
        except KvError:
            if self.cursor is None:
                await self.close()
                raise
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End following, and write the file. What the mirror has can still be read."""
        if self._generation != forks.generation():
            return  # it is the parent's
        self._worker.stop_soon()
        if (subscription := self._subscription) is not None:
            subscription.poke(stop=True)
        await self._worker.stop()
        self._client.close()
        if self._file is not None and self._file.due_in() is not None:
            await self._save(self._file)

    async def wait(self, revision: int, timeout: float | None = None) -> None:
        """Return when all up to ``revision``, that of a write for example, is in the mirror. Raises
        ``timed_out`` after ``timeout`` seconds, by default those of the mirror, and :attr:`error`."""
        seconds = self._timeout if timeout is None else seconds_of("timeout", timeout)
        self._must_be_begun()
        if not self._is_at(revision):
            if (subscription := self._subscription) is not None:
                subscription.poke()
            await self._worker.wait(partial(self._is_at, revision), seconds)
        if self.error is not None:
            raise self.error
        if not self._is_at(revision):
            raise self._behind(revision, seconds)

    async def verify(self, timeout: float | None = None) -> Cursor:
        """Prove by digests that the mirror has the keys, revisions and values that the store has; returns up
        to where. All that it has is hashed again, and the sums are compared with the store's of the same
        revision: one for a mirror of all, else one for every thousand keys. Changes meanwhile do not disturb.

        Raises ``damaged`` if it is not equal; that what differs is not just a record which had expired, and
        whose event is still to come, is known after ``timeout`` seconds, by default those of the mirror.
        Raises ``timed_out`` or ``unavailable`` where the store is away. Needs the grants ``read`` and
        ``list``."""
        self._must_be_begun()
        seconds = self._timeout if timeout is None else seconds_of("timeout", timeout)
        deadline = time.monotonic() + seconds
        copy, parts = await self._worker.aside(self._own_parts)
        pauses = Backoff(0.02, 0.5)
        position, failure = 0, None
        while parts:
            span, total = parts[-1]
            try:
                found = await self._compare(copy, span, total, deadline)
            except (TimedOut, Unavailable) as error:
                raise failure or error from None
            if isinstance(found, int):
                position, failure = found, None
                parts.pop()
                continue
            failure = found
            if time.monotonic() >= deadline:
                raise failure
            await self._worker.pause(pauses.next())
            if found.code == "timed_out":
                copy, parts = await self._worker.aside(self._own_parts)
        self.proven = Cursor(position, "" if self.cursor is None else self.cursor.epoch)
        return self.proven

    async def _compare(self, copy: MirrorCopy, span: KeySpan, total: int, deadline: float) -> int | KvError:
        """The revision at which a part is equal to the store's; or why that is not known."""
        left = max(0.001, deadline - time.monotonic())
        page = await self._client.digest_page(
            prefix=span.prefix or None, start=span.start or None, end=span.end or None, timeout=left
        )
        await self.wait(page.revision, left)
        begun = 0 if copy.cursor is None else copy.cursor.revision
        difference = self._state.difference(begun, page.revision, span)
        if difference is None or self._state.loads != copy.load:
            return KvError("timed_out", "the mirror changes faster than it can be compared")
        if page.cursor is not None or digest_text(total + difference) != page.digest:
            return self._spoiled(f"{span} differs")
        return page.revision

    # ── following ────────────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        pauses = Backoff(1.0, 60.0, jitter=0.3)
        while not self._worker.is_stopping:
            try:
                async with self._subscribe() as subscription:
                    self._subscription = subscription
                    await self._follow_by(subscription, pauses)
            except StoppedError:
                return
            except Exception as error:
                self._note_failure(error)
                self._worker.notify()
            finally:
                self._subscription = None
            await self._worker.pause(pauses.next())

    def _subscribe(self) -> AsyncPokedSubscription:
        since = None if self._state.is_loading else self.cursor
        if since is None:
            self._state.load_again()
        return AsyncPokedSubscription(
            self._requests,
            self._changes,
            prefixes=self._wanted.prefixes,
            since=since,
            snapshot=since is None,
            heartbeats=True,
            login=self._login,
        )

    async def _follow_by(self, subscription: AsyncPokedSubscription, pauses: Backoff) -> None:
        while not self._worker.is_stopping:
            due = None if self._file is None or self._state.is_loading else self._file.due_in()
            if self._file is not None and due == 0:
                await self._save(self._file)
                continue
            item = await subscription.next_batch(due)
            if item is None:
                continue
            self._take(item, subscription.cursor)
            self._worker.notify()
            if isinstance(item, Heartbeat):
                pauses.reset()
                if self._differs(item):
                    self._state.load_again()
                    return

    async def _save(self, file: MirrorFile) -> None:
        records, cursor, *_ = self._state.copy()
        if cursor is not None:
            await self._worker.aside(file.save, records, cursor)
