"""The transaction for asyncio.

It asserts at its end, in one atomic request, that nothing of what it read has changed, and writes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar

from kvstore_client import arguments, commands
from kvstore_client.multi_request import MultiRequest
from kvstore_client.transactions.transaction_state import TransactionState
from kvstore_client.transport.connection import RequestBody
from kvstore_core.errors import KvError, NotFound
from kvstore_core.model import Record
from kvstore_core.wire import Reply

T = TypeVar("T")

Ask = Callable[[RequestBody, float | None], Awaitable[Reply]]
"""Sends one request; that of a client."""


class AsyncTransaction:
    """What :meth:`AsyncClient.transaction` returns, to be used as a context manager, once::

        async with store.transaction() as t:
            stock = int((await t.get("stock/tea")).text)
            if stock > 0:
                t.put("stock/tea", str(stock - 1))
                t.put("orders/", "tea", sequence=True)
        print(t.revision)

    Reads go to the store and are remembered, also that a key was not there; read again, a key is what it
    was, or what this transaction has written since. Writes are kept until the block ends. Then one atomic
    request asserts that every key read has the revision that it had, and writes: all at one revision, or
    nothing. Where a key has changed, ``condition_failed`` is raised, with its ``key`` and its present
    ``revision``, and :attr:`is_conflict` is True; :meth:`AsyncClient.transact` repeats then. A block that
    only reads asserts too; one that did nothing sends nothing, and so does one that raises.

    So the transactions that succeed are as if they had run one after the other. Two things are left to the
    program. What is read may be of different moments, so a block must not rely on what holds between two
    keys until it has ended. And :meth:`list` asserts the records that it found, not that there are no
    others: where that matters, let all who add to the range also ``incr`` one key, and read that.

    A key is written once: a later write of it is joined with the earlier one. The request is numbered, as
    all writes are: a lost connection does not apply it twice. It may have as many keys and bytes as the
    daemon takes in an atomic request (``limits`` in its status: 10,000 keys unless it says otherwise);
    ``request_too_large`` is raised for more.
    """

    def __init__(self, ask: Ask, timeout: float | None) -> None:
        self._ask = ask
        self._timeout = timeout
        self._state = TransactionState()
        self._is_open = self._has_begun = False
        self.revision: int | None = None
        """Once it is committed: the revision of its writes, or one at which all that was read held; None if
        nothing was sent."""
        self.results: Sequence[Any] = ()
        """Once it is committed: the result of each write, in the order in which the keys were first written,
        then those of puts with ``sequence``, which have the ``key``."""
        self.is_conflict = False
        """Whether it failed because a key that it read has changed since."""

    async def __aenter__(self) -> Self:
        if self._has_begun:
            raise RuntimeError("a transaction is used once; make another one")
        self._is_open = self._has_begun = True
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._is_open = False
        if kind is None:
            await self._commit()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def get(self, key: str, default: Any = arguments.REQUIRED) -> Any:
        """The record of ``key``; as :meth:`AsyncClient.get`. One that this transaction writes has revision
        0."""
        record = (await self.get_many([key])).get(key, default)
        if record is arguments.REQUIRED:
            raise NotFound("not_found", f"there is no key {key!r}")
        return record

    async def get_many(self, keys: Sequence[str]) -> dict[str, Record]:
        """The records of those of ``keys`` that exist; that the others do not is asserted too."""
        self._check_open()
        return await self._run(self._state.get_many(keys))

    async def list(
        self, *, prefix: str | None = None, start: str | None = None, end: str | None = None
    ) -> Sequence[Record]:
        """All records of the range, in key order, with what is written here. Asserts each of them, and not
        that no other key comes into the range meanwhile."""
        self._check_open()
        return await self._run(self._state.list(prefix, start, end))

    # ── writing, at the end ──────────────────────────────────────────────────────────────────────

    def check(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        if_value: bytes | str | None = None,
        exists: bool | None = None,
    ) -> None:
        """Assert at the end what :meth:`AsyncClient.check` asserts now, for example that a lock is still
        held; where it does not hold, to repeat would not help."""
        self._check_open()
        self._state.check(commands.check(key, if_revision=if_revision, if_value=if_value, exists=exists))

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
        if_value: bytes | str | None = None,
        sequence: bool = False,
        message: str | None = None,
    ) -> None:
        """Store ``value`` at the end; as :meth:`AsyncClient.put`. Conditions are about the store as it is
        before."""
        self._write(
            commands.put(
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
        )

    def delete(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        if_value: bytes | str | None = None,
        message: str | None = None,
    ) -> None:
        """Remove ``key`` at the end. Raises ``not_found``, here or at the end, if there is none."""
        self._write(commands.delete(key, if_revision=if_revision, if_value=if_value, message=message))

    def incr(
        self,
        key: str,
        by: int = 1,
        *,
        if_revision: int | None = None,
        if_value: bytes | str | None = None,
        message: str | None = None,
    ) -> None:
        """Add ``by`` to a decimal integer at the end. Without a :meth:`get` of it nothing is asserted of the
        key, so that transactions which only count do not conflict."""
        self._write(commands.incr(key, by, if_revision=if_revision, if_value=if_value, message=message))

    def _write(self, command: commands.Command[Any]) -> None:
        self._check_open()
        self._state.write(command)

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("a transaction is used inside its 'with' block")

    async def _run(self, steps: MultiRequest[T]) -> T:
        try:
            batch = next(steps)
            while True:
                try:
                    reply = await self._ask(commands.body_of(batch), self._timeout)
                except KvError as error:
                    batch = steps.throw(error)
                else:
                    batch = steps.send(commands.results_of(batch, reply))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _commit(self) -> None:
        commit = await self._run(self._state.commit())
        if not commit.commands:
            return
        try:
            reply = await self._ask(commands.body_of(commit.commands, atomic=True), self._timeout)
        except KvError as error:
            # the caller knows no index of an op
            index = error.details.pop("op", None)
            if error.code == "condition_failed" and index is not None:
                self.is_conflict = index in commit.asserted
                error.details.setdefault("key", commit.commands[index].op["key"])
            raise
        results = commands.results_of(commit.commands, reply)
        self.results = results[commit.first_write :]
        self.revision = self.results[0].revision if self.results else reply.revision
