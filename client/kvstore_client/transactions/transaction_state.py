"""What a transaction has read, and is going to write; no sockets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from kvstore_client import commands, multi_request
from kvstore_client.arguments import texts_of
from kvstore_client.commands import Command
from kvstore_client.multi_request import MultiRequest
from kvstore_core.errors import KvError, NotFound
from kvstore_core.limits import INT64, MAX_OPS
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE, TEXT_CONTENT_TYPE
from kvstore_core.model import Record

_INTEGER = re.compile(rb"-?[0-9]{1,19}")
_ENDS = ("ttl", "expires_at", "keep_ttl")


class BufferedWrite(NamedTuple):
    """What is to become of a key: a put, a delete or an incr. ``may_miss``: a delete of what this transaction
    wrote before, so that it is no error if the store has no such key."""

    command: Command[Any]
    may_miss: bool = False

    @property
    def name(self) -> str:
        """The op's name."""
        return str(self.command.op["op"])


class Commit(NamedTuple):
    """The request that ends a transaction: its commands, of which those from ``first_write`` on write, and
    the indexes of those that assert what was read."""

    commands: list[Command[Any]]
    first_write: int
    asserted: frozenset[int]


class TransactionState:
    """The reads and the buffered writes of one transaction.

    Each key has at most one write, since an atomic request changes a key once: a later one is joined with
    what is there. Conditions of the user's own are kept apart, as checks, because they are about the store
    and not about what is buffered.
    """

    def __init__(self) -> None:
        self._reads: dict[str, Record | None] = {}
        self._writes: dict[str, BufferedWrite] = {}
        self._more_writes: list[Command[Any]] = []
        self._checks: list[Command[Any]] = []

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def get_many(self, keys: Sequence[str]) -> MultiRequest[dict[str, Record]]:
        """Those of ``keys`` that exist, with what is buffered; only what was not read before is asked for."""
        wanted = list(dict.fromkeys(texts_of("keys", keys)))
        yield from self._read(key for key in wanted if self._depends_on_store(key))
        shown = ((key, self._shown(key)) for key in wanted)
        return {key: record for key, record in shown if record is not None}

    def _depends_on_store(self, key: str) -> bool:
        write = self._writes.get(key)
        return write is None or write.name == "incr" or "keep_ttl" in write.command.op

    def _read(self, keys: Iterable[str]) -> MultiRequest[None]:
        unread = [key for key in keys if key not in self._reads]
        if unread:
            self._check_size(len(unread))
            found = yield from multi_request.get_many(unread)
            for key in unread:
                self._reads[key] = found.get(key)

    def _check_size(self, more: int) -> None:
        if len(self._reads) + more > MAX_OPS:
            raise KvError(
                "request_too_large",
                f"a transaction can assert at most {MAX_OPS} keys, and this one has read more",
                limit=MAX_OPS,
            )

    def list(self, prefix: str | None, start: str | None, end: str | None) -> MultiRequest[list[Record]]:
        """The records of the range, in the order of their keys, with what is buffered."""
        cursor = None
        while True:
            page = yield from multi_request.single(
                commands.list_page(prefix=prefix, start=start, end=end, cursor=cursor)
            )
            self._check_size(sum(record.key not in self._reads for record in page.records))
            for record in page.records:
                # what was read first stays: the request at the end finds out that they differ
                self._reads.setdefault(record.key, record)
            if (cursor := page.cursor) is None:
                break
        keys = self._reads.keys() | self._writes.keys()
        # text is compared by code point, which is the byte order of UTF-8
        wanted = sorted(
            key
            for key in keys
            if key.startswith(prefix or "") and key >= (start or "") and (not end or key < end)
        )
        found = yield from self.get_many(wanted)
        return list(found.values())

    def _shown(self, key: str) -> Record | None:
        """The record with what is buffered. One that is not stored yet has revision 0."""
        base = self._reads.get(key)
        write = self._writes.get(key)
        if write is None:
            return base
        if write.name == "delete":
            return None
        command = write.command
        if write.name == "incr":
            value = _sum(b"0" if base is None else base.value, command.op["by"])
            kind = TEXT_CONTENT_TYPE if base is None else base.content_type
        else:
            value = command.value or b""
            kind = command.op.get("content_type", DEFAULT_CONTENT_TYPE)
        expires_at = command.op.get("expires_at")
        if base is not None and (write.name == "incr" or command.op.get("keep_ttl")):
            expires_at = base.expires_at
        created, version = (0, 0) if base is None else (base.create_revision, base.version)
        return Record(key, value, kind, 0, created, version + 1, 0, expires_at)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def check(self, command: Command[Any]) -> None:
        """Assert something of the store when this ends."""
        self._checks.append(command)

    def write(self, command: Command[Any]) -> None:
        """Buffer a put, a delete or an incr; raises the error that is certain already."""
        command, condition = commands.without_condition(command)
        if condition is not None:
            self._checks.append(condition)
        key = command.op["key"]
        if command.op.get("sequence"):
            self._more_writes.append(command)
            return
        old = self._writes.get(key)
        if old is None and command.op["op"] == "delete" and key in self._reads and self._reads[key] is None:
            raise _no_such_key(key)
        self._writes[key] = BufferedWrite(command) if old is None else _joined(old, command)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def commit(self) -> MultiRequest[Commit]:
        """The request that ends it, after reads of the keys of which it depends on them what to write."""
        yield from self._read(key for key, write in self._writes.items() if write.may_miss)
        kept = {
            key: write.command
            for key, write in self._writes.items()
            if not (write.may_miss and self._reads[key] is None)
        }
        read = {key: 0 if record is None else record.revision for key, record in self._reads.items()}
        checks = [
            commands.check(key, if_revision=revision) for key, revision in read.items() if key not in kept
        ]
        asserted = set(range(len(checks)))
        checks += self._checks
        for index, key in enumerate(kept, len(checks)):
            if key in read:
                kept[key] = replace(kept[key], op={**kept[key].op, "if_revision": read[key]})
                asserted.add(index)
        return Commit([*checks, *kept.values(), *self._more_writes], len(checks), frozenset(asserted))


def _no_such_key(key: str) -> NotFound:
    return NotFound("not_found", f"there is no key {key!r}")


def _joined(old: BufferedWrite, command: Command[Any]) -> BufferedWrite:
    """What two writes of a key come to."""
    key, name, message = command.op["key"], command.op["op"], command.op.get("message")
    if name == "put":
        return BufferedWrite(_with_end_of(old, command))
    if name == "delete":
        if old.name == "delete":
            raise _no_such_key(key)
        return BufferedWrite(command, may_miss=True)
    by = command.op["by"]
    if old.name == "incr":
        return BufferedWrite(commands.incr(key, old.command.op["by"] + by, message=message))
    if old.name == "delete":
        return BufferedWrite(commands.put(key, str(by), message=message))
    value = _sum(old.command.value, by)
    return BufferedWrite(replace(old.command, op={**old.command.op, "size": len(value)}, value=value))


def _with_end_of(old: BufferedWrite, put: Command[Any]) -> Command[Any]:
    """The put; one that keeps the key's time to live has that of the put before it, if there is one."""
    if not put.op.get("keep_ttl") or old.name == "incr":
        return put
    left = {name: value for name, value in put.op.items() if name != "keep_ttl"}
    ends = {name: old.command.op[name] for name in _ENDS if name in old.command.op}
    return replace(put, op={**left, **ends})


def _sum(value: bytes | None, by: int) -> bytes:
    """As the daemon counts."""
    if value is None or _INTEGER.fullmatch(value) is None:
        raise KvError("not_an_integer", "the value is not a decimal integer, which incr needs")
    total = int(value) + by
    if not -INT64 <= total < INT64:
        raise KvError("out_of_range", f"the result {total} does not fit a signed 64-bit integer")
    return b"%d" % total
