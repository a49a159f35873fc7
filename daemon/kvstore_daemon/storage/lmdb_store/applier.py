"""Requests turned into changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import StoredEvent, StoredRecord, Write, WriteAnswer, WriteRequest
from kvstore_daemon.storage.lmdb_store.row_format import (
    NO_EVENT_ROW,
    DamageError,
    damaged_record,
    encode_event_id,
)
from kvstore_daemon.storage.lmdb_store.write_transaction import WriteTransaction
from kvstore_daemon.storage.write_rules import GROWING, NEEDS_VALUE, PlannedWrite, plan

_DAMAGED = StoredRecord(None, "", 0, 0, 0, 0, None)
"""In place of a record that cannot be read but may be deleted."""


class Applier:
    """Applies requests, one after the other, within one write transaction.

    ``refusal`` is the ``store_full`` for writes that grow the store, None if there is room.
    """

    def __init__(self, transaction: WriteTransaction, refusal: KvError | None) -> None:
        self._transaction = transaction
        self._now = transaction.now
        self._refusal = refusal

    def apply(self, request: WriteRequest) -> WriteAnswer:
        """Apply what can be applied of ``request``, and say what became of it."""
        if request.atomic:
            try:
                return WriteAnswer(request.ticket, self._all(request.writes))
            except KvError as error:
                return WriteAnswer(request.ticket, None, error)
        results: list[dict[str, Any] | KvError] = []
        for write in request.writes:
            try:
                results.append(self._one(write))
            except KvError as error:
                results.append(error)
        return WriteAnswer(request.ticket, results)

    def _one(self, write: Write) -> dict[str, Any]:
        if write.op == "delete_prefix":
            return self._delete_prefix(write)
        self._check_room(write)
        current, before = self._current(write)
        revision = self._transaction.head + 1
        if current is _DAMAGED:
            self._apply("delete", write, None, None, before, revision, 0, 1)
            return {"revision": revision, "deleted": 1}
        op, record, result = plan(write, current, revision, self._now)
        if op is not None:
            self._apply(op, write, record, current, before, revision, 0, 1)
        return result

    def _all(self, writes: Sequence[Write]) -> list[dict[str, Any] | KvError]:
        """All writes in one revision. Every write is planned before the first is applied; their keys differ,
        so none depends on another."""
        found: list[tuple[StoredRecord | None, bytes]] = []
        planned: list[PlannedWrite] = []
        try:
            for write in writes:
                found.append(self._found(write))  # noqa: PERF401 - how many there are tells which one failed
            revision, now = self._transaction.head + 1, self._now
            for write, (current, _) in zip(writes, found, strict=True):
                planned.append(plan(write, current, revision, now))
        except KvError as error:
            at = len(planned) if len(found) == len(writes) else len(found)
            raise KvError(error.code, error.message, **{**error.details, "op": at}) from error
        changing = [at for at, (op, _, _) in enumerate(planned) if op is not None]
        for index, at in enumerate(changing):
            op, record, _ = planned[at]
            current, before = found[at]
            self._apply(op or "", writes[at], record, current, before, revision, index, len(changing))
        return [result for _, _, result in planned]

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
        """The live record of the write's key and the encoded id of its newest event.

        A record whose time has come is expired first, in a revision of its own, so that no write ever builds
        on it. A damaged record may be replaced or deleted without a condition.
        """
        try:
            current, before = self._transaction.current(write.key, value=write.op in NEEDS_VALUE)
        except DamageError as damage:
            if write.if_revision is not None or write.op not in ("put", "delete"):
                raise damaged_record(write.key, damage) from damage
            self._transaction.forget_expiry(write.key)
            return (None if write.op == "put" else _DAMAGED), NO_EVENT_ROW
        if current is None or write.op == "expire":
            return current, before
        expires_at = current.expires_at
        if expires_at is None or expires_at > self._now:
            return current, before
        current, _ = self._transaction.current(write.key, value=True)
        revision = self._transaction.head + 1
        # nobody's: whoever writes here did not ask for it
        self._apply("expire", Write("expire", write.key), None, current, before, revision, 0, 1)
        return None, encode_event_id(revision, 0)

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
    ) -> None:
        """Store an event of ``write``; on an expire ``current`` has its value."""
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
        self._transaction.apply(event, current, before)

    def _delete_prefix(self, write: Write) -> dict[str, Any]:
        """Delete the first keys with the prefix. Those found expired get an expire event and do not count."""
        keys = self._transaction.keys(write.key, write.limit + 1)
        found = []
        for key in keys[: write.limit]:
            current, before = self._current(Write("delete", key))
            if current is not None:
                found.append((key, current, before))
        revision = self._transaction.head + 1
        for index, (key, current, before) in enumerate(found):
            live = None if current is _DAMAGED else current
            self._apply("delete", write._replace(key=key), None, live, before, revision, index, len(found))
        result = {"deleted": len(found), "more": len(keys) > write.limit}
        return {"revision": revision, **result} if found else result
