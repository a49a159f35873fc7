"""Requests turned into changes: the same on every engine, whatever it keeps them in."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_PRESENT_BYTES
from kvstore_daemon.storage.damage import DamageError, damaged_record
from kvstore_daemon.storage.interface import StoredEvent, StoredRecord, Write, WriteAnswer, WriteRequest
from kvstore_daemon.storage.write_rules import (
    GROWING,
    PlannedWrite,
    is_conditional,
    needs_value,
    plan,
    sequence_key,
)

T = TypeVar("T")

_DAMAGED = StoredRecord(None, "", 0, 0, 0, 0, None)
"""In place of a record that cannot be read but may be deleted."""


class Changes(Protocol):
    """What an :class:`Applier` needs of a transaction, or of what will become one.

    ``now`` is the time that its changes are stamped with, and ``head`` the revision of the last one: the next
    gets the one after it. A change is seen by what is asked for after it.

    What goes by the name of ``before`` is the engine's own: where the key's newest event is, in whatever form
    it needs that with the next.
    """

    @property
    def now(self) -> int: ...

    @property
    def head(self) -> int: ...

    def next_number(self) -> int:
        """The number of keys that number themselves, for the next request that has any: above all that were
        given out before. The next revision, where that is known."""

    def last_number(self, prefix: bytes, number: int) -> int:
        """The highest number of the keys that number themselves behind ``prefix``, if it may be ``number`` or
        more; else 0. Such keys come from elsewhere, by an import."""

    def current(self, key: bytes, *, value: bool) -> tuple[StoredRecord | None, bytes]:
        """The key's record, expired or not, with or without its value; and its ``before``. Raises
        DamageError."""

    @property
    def most(self) -> int:
        """How many keys one write may delete at once."""

    def keys(self, prefix: bytes, limit: int) -> list[bytes]:
        """Up to ``limit`` keys that begin with ``prefix``, in order."""

    def apply(self, event: StoredEvent, current: StoredRecord | None, before: bytes) -> bytes:
        """Store a change of the record ``current``, and return the key's ``before`` from now on. The event's
        revision is ``head``, or the next above it."""

    def forget_expiry(self, key: bytes) -> bytes:
        """Forget when the key expires: its record is damaged, so its time is not known. Returns the
        ``before`` of a key of which nothing is known."""


class CacheBound(Protocol):
    """What the records below some prefixes may take together."""

    @property
    def prefixes(self) -> tuple[bytes, ...]: ...

    def refuse_too_large(self, records: Iterable[tuple[bytes, StoredRecord]]) -> None:
        """Raise ``value_too_large``, or for several ``request_too_large``, where those of ``records`` below
        the prefixes could not stay together, though all others went."""


def as_answer(error: KvError) -> KvError:
    """``error`` as one that is kept: without the frames that it went through. They hold the transaction, and
    the list that the error is put into; so both would stay, and LMDB's reader with them, until the garbage
    collector comes by."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def returned(steps: Generator[None, None, T]) -> T:
    """What ``steps`` return in the end, all done at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


class Applier:
    """Applies requests, one after the other, within one transaction.

    ``refusal`` is the ``store_full`` for writes that grow the store, None if there is room.
    ``bound`` says which records are too large to be stored.
    """

    def __init__(
        self,
        transaction: Changes,
        refusal: KvError | None,
        bound: CacheBound | None = None,
    ) -> None:
        self._transaction = transaction
        self._bound = bound
        self._now = transaction.now
        self._refusal = refusal
        self._present_bytes = 0

    def apply(self, request: WriteRequest) -> Generator[None, None, WriteAnswer]:
        """Apply what can be applied of ``request``, and return what became of it. Each step is one write, or
        part of one, so that the caller can do something else in between; but no other request may be applied
        there."""
        if request.atomic:
            try:
                return WriteAnswer(request.ticket, (yield from self.together(request.writes)))
            except KvError as error:
                return WriteAnswer(request.ticket, None, as_answer(error))
        self._present_bytes = 0
        results: list[dict[str, Any] | KvError] = []
        for write in request.writes:
            try:
                results.append(self._one(write))
            except KvError as error:
                results.append(as_answer(error))
            yield
        return WriteAnswer(request.ticket, results)

    def one(self, write: Write) -> dict[str, Any]:
        """Apply one write; returns the fields of its reply, or raises the KvError with which it failed."""
        self._present_bytes = 0
        return self._one(write)

    def _one(self, write: Write) -> dict[str, Any]:
        if write.op == "delete_prefix":
            return self._delete_prefix(write)
        self._check_room(write)
        if write.sequence:
            number = self._transaction.next_number()
            number = max(number, self._transaction.last_number(write.key, number) + 1)
            write = write._replace(key=sequence_key(write.key, number))
        current, before = self._current(write)
        revision = self._transaction.head + 1
        if current is _DAMAGED:
            self._apply("delete", write, None, None, before, revision, 0, 1)
            return {"revision": revision, "deleted": 1}
        op, record, result = plan(write, current, revision, self._now)
        if self._bound is not None and record is not None and write.key.startswith(self._bound.prefixes):
            self._bound.refuse_too_large([(write.key, record)])
        if op is not None:
            self._apply(op, write, record, current, before, revision, 0, 1)
        return result

    def together(self, writes: Sequence[Write]) -> Generator[None, None, list[dict[str, Any] | KvError]]:
        """Apply all writes in one revision, or none: raises the KvError of the first that cannot be done,
        with its index. Every write is planned before the first is applied; the keys that they change differ,
        so none depends on another. In steps, as :meth:`apply`."""
        self._present_bytes = 0
        found: list[tuple[StoredRecord | None, bytes]] = []
        planned: list[PlannedWrite] = []
        taken: list[Write] = []
        at = 0
        try:
            for at, write in enumerate(writes):  # noqa: B007 - the error says which it was
                taken.append(write)
                found.append((None, b"") if write.sequence else self._found(write))
                yield
            # only now: a key that was found to have expired took a revision
            prefixes = dict.fromkeys([write.key for write in taken if write.sequence])
            number = self._transaction.next_number() if prefixes else 0
            for prefix in prefixes:
                number = max(number, self._transaction.last_number(prefix, number) + 1)
                yield
            writes = self._numbered(taken, number)
            for at, write in enumerate(writes):
                if write.sequence:
                    found[at] = self._found(write)
                    yield
            revision, now = self._transaction.head + 1, self._now
            for at, write in enumerate(writes):
                planned.append(plan(write, found[at][0], revision, now))
                yield
        except KvError as error:
            raise KvError(error.code, error.message, **{"op": at, **error.details}) from error
        if self._bound is not None:
            stored = zip(writes, planned, strict=True)
            self._bound.refuse_too_large((write.key, record) for write, (_, record, _) in stored if record)
        changing = [at for at, (op, _, _) in enumerate(planned) if op is not None]
        for index, at in enumerate(changing):
            op, record, _ = planned[at]
            current, before = found[at]
            self._apply(op or "", writes[at], record, current, before, revision, index, len(changing))
            yield
        return [result for _, _, result in planned]

    def expire(self, keys: Sequence[bytes]) -> Generator[None, None, int]:
        """Expire the records of ``keys`` in one revision, though their time has not come, and return how many
        those were: one that is damaged stays. In steps, as :meth:`apply`."""
        found: list[tuple[bytes, StoredRecord, bytes]] = []
        for key in keys:
            try:
                current, before = self._transaction.current(key, value=True)
            except DamageError:
                continue
            if current is not None:
                found.append((key, current, before))
            yield
        revision = self._transaction.head + 1
        for index, (key, current, before) in enumerate(found):
            # nobody's: the one who writes here did not ask for it
            write = Write("expire", key)
            self._apply("expire", write, None, current, before, revision, index, len(found))
            yield
        return len(found)

    def _numbered(self, writes: Sequence[Write], number: int) -> Sequence[Write]:
        """``writes`` with the keys that number themselves by ``number``; raises ``condition_failed`` where
        another write has such a key already."""
        count = sum(write.sequence for write in writes)
        if not count:
            return writes
        places = iter(range(count))
        numbered = [
            write._replace(key=sequence_key(write.key, number, next(places) if count > 1 else None))
            if write.sequence
            else write
            for write in writes
        ]
        changed = {write.key for write in writes if not write.sequence and write.op != "check"}
        for at, write in enumerate(numbered):
            if write.sequence and write.key in changed:
                message = f"the key {write.key.decode()!r} is written by another op of this batch"
                raise KvError("condition_failed", message, revision=0, op=at)
        return numbered

    def _found(self, write: Write) -> tuple[StoredRecord | None, bytes]:
        self._check_room(write)
        current, before = self._current(write)
        if current is _DAMAGED:
            raise damaged_record(write.key, DamageError("it cannot be deleted in an atomic batch"))
        return current, before

    def _check_room(self, write: Write) -> None:
        if self._refusal is not None and write.op in GROWING:
            raise self._refusal

    def _current(self, write: Write) -> tuple[StoredRecord | None, bytes]:
        """The live record of the write's key, and its ``before``.

        A record whose time has come is expired first, in a revision of its own, so that no write ever builds
        on it. A damaged record may be replaced or deleted without a condition.
        """
        current: StoredRecord | None
        try:
            current, before = self._transaction.current(write.key, value=needs_value(write))
        except DamageError as damage:
            if is_conditional(write) or write.op not in ("put", "delete"):
                raise damaged_record(write.key, damage) from damage
            before = self._transaction.forget_expiry(write.key)
            return (None if write.op == "put" else _DAMAGED), before
        if current is None:
            return current, before
        self._count_present(current)
        expires_at = current.expires_at
        if write.op == "expire" or expires_at is None or expires_at > self._now:
            return current, before
        if current.value is None:
            current, _ = self._transaction.current(write.key, value=True)
            self._count_present(current)
        revision = self._transaction.head + 1
        # nobody's: the one who writes here did not ask for it
        return None, self._apply("expire", Write("expire", write.key), None, current, before, revision, 0, 1)

    def _count_present(self, current: StoredRecord | None) -> None:
        """Refuse a request whose keys have larger values than it may make the daemon read, and keep."""
        if current is None or not current.value:
            return
        size = len(current.value)
        if self._present_bytes and self._present_bytes + size > MAX_PRESENT_BYTES:
            raise KvError(
                "request_too_large",
                f"the present values that this needs have more than {MAX_PRESENT_BYTES} bytes together: send "
                "several requests",
                limit=MAX_PRESENT_BYTES,
            )
        self._present_bytes += size

    def _apply(
        self,
        op: str,
        write: Write,
        record: StoredRecord | None,
        current: StoredRecord | None,
        before: bytes,
        revision: int,
        index: int,
        count: int,
    ) -> bytes:
        """Store an event of ``write``; on an expire ``current`` has its value. Returns the key's new
        ``before``."""
        previous = current if op == "expire" else None
        previous_revision = 0 if current is None else current.revision
        event = StoredEvent(
            op,
            write.key,
            revision,
            index,
            count,
            self._now,
            record,
            previous,
            previous_revision,
            write.author,
            write.message,
        )
        return self._transaction.apply(event, current, before)

    def _delete_prefix(self, write: Write) -> dict[str, Any]:
        """Delete the first keys with the prefix. Those found expired get an expire event and do not count."""
        limit = min(write.limit, self._transaction.most)
        keys = self._transaction.keys(write.key, limit + 1)
        found = []
        for key in keys[:limit]:
            current, before = self._current(Write("delete", key))
            if current is not None:
                found.append((key, current, before))
        revision = self._transaction.head + 1
        for index, (key, current, before) in enumerate(found):
            live = None if current is _DAMAGED else current
            self._apply("delete", write._replace(key=key), None, live, before, revision, index, len(found))
        result = {"deleted": len(found), "more": len(keys) > limit}
        return {"revision": revision, **result} if found else result
