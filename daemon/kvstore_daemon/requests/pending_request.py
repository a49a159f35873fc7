"""One request, and its reply in the making."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from kvstore_core.access.identities import AccessTable
from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog, request_extra
from kvstore_core.wire import Request, RequestId, encode_reply
from kvstore_daemon.peer_limits.peer import Peer
from kvstore_daemon.record_fields import Fields, record_fields
from kvstore_daemon.requests.administration import CHANGES
from kvstore_daemon.requests.reads import OF_ENGINE, Page, must_be_current, require_revision
from kvstore_daemon.requests.router_socket import Frames, RequestMessage
from kvstore_daemon.requests.writes import WRITES
from kvstore_daemon.storage.interface import Engine, WriteAnswer, no_such_key

REPLY_BYTES = 64 * 1024 * 1024
"""The most a reply holds; ops that do not fit fail with ``reply_too_large``."""

GETS_AT_ONCE = 1_000
"""Consecutive gets that share a snapshot, and the most that are read between two looks at the clock."""

log = logging.getLogger("kvstore.daemon")
_damage = RateLimitedLog(log)

SHOWN_OPS = 20
"""How many ops of a request the log shows."""

_RESULT_BYTES = 160
"""About what a result's JSON takes beside its key and value."""

_FOLDER_BYTES = 16
"""About what a prefix of a list takes beside its text."""

MAX_VALUE_IN_REPLY = REPLY_BYTES - _RESULT_BYTES
"""Of a reply with one record."""

_CHANGE_BYTES = 1024 * 1024
"""More than what the result of a change of identities takes: a hundred grants of a kilobyte, each byte of
which may take six in JSON, and twenty tokens and keys."""

_TOO_LARGE: Fields = {
    "error": KvError(
        "reply_too_large",
        f"the reply has {REPLY_BYTES // 2**20} MiB without this; ask for it in another request",
        limit=REPLY_BYTES,
    ).as_json()
}


CHANGING = frozenset((*CHANGES, "backup_make", "backup_delete", "kick"))
"""The ops that change something and are no writes."""

Answer = Callable[[dict[str, Any], Principal], Page]
"""Does an op that is no write for a sender."""


class PendingRequest:
    """A request that was received and not answered yet; used by the loop's thread only. It came from
    ``peer``, its reply goes back along ``envelope``, and it has ``size`` bytes.

    The writes come first: the engine gets them together, and :meth:`accept` takes their results. Then, once
    the engine has caught up if it :meth:`must_catch_up`, :meth:`read` does the reads, in slices, so that ten
    thousand of them do not make others wait. All reads see the request's own writes.
    """

    __slots__ = (
        "_next",
        "_ops",
        "_results",
        "_revision",
        "_room",
        "_values",
        "_writes",
        "age",
        "begun_at",
        "envelope",
        "has_stale",
        "is_current",
        "peer",
        "received_at",
        "request_id",
        "size",
        "table",
        "who",
    )

    def __init__(self, message: RequestMessage, request: Request, who: Principal, table: AccessTable) -> None:
        """``who`` may do all of it by ``table``."""
        self.peer: Peer = message.peer
        self.who = who
        self.table = table
        self.envelope: Frames = message.envelope
        self.size = message.size
        self.received_at = message.received_at
        self.begun_at = time.monotonic()
        self.request_id = request.request_id
        self.has_stale = request.stale > 0
        """Whether a read among the ops need not be current; the reply then has ``age``."""
        self.age: int | None = None
        self.is_current = False
        """Whether the reads may begin: the engine has caught up with what was committed, or need not."""
        self._writes = request.writes
        self._ops = request.ops
        self._results: list[Any] = [] if self.has_writes_only() else [None] * len(request.ops)
        self._values: list[bytes] = []
        self._next = 0
        self._room = REPLY_BYTES
        self._revision: int | None = None

    def has_writes_only(self) -> bool:
        """Whether nothing is to be read."""
        return self._writes == len(self._ops)

    @property
    def held(self) -> int:
        """About how many bytes the reply has so far."""
        return REPLY_BYTES - self._room

    def restart_reads(self) -> None:
        """Drop what was read; :meth:`read` begins again. The results of what changed something are kept."""
        self._values = []
        self._next = 0
        self._room = REPLY_BYTES
        self._revision = self.age = None

    def must_catch_up(self, epoch: str, head: int) -> bool:
        """Whether a read of it has to see all that was committed before; ``epoch`` and ``head`` are those
        that are here already."""
        if not self.has_stale and self._ops[0]["op"] in OF_ENGINE:
            return True  # as nearly always
        return any(must_be_current(op, epoch, head) for op in self._ops)

    def accept(self, answer: WriteAnswer) -> None:
        """Take the results of the writes; raises the error if the engine refused all of them."""
        if answer.error is not None:
            raise _at_op(answer.error, self._write_indexes())
        results = [
            _failure(result, self.request_id) if isinstance(result, KvError) else result
            for result in answer.results or ()
        ]
        if self.has_writes_only():
            self._results = results
            return
        for index, result in zip(self._write_indexes(), results, strict=True):
            self._results[index] = result

    def undone(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The ops that :meth:`read` has still to do, and the index of each."""
        for index in range(self._next, len(self._ops)):
            op = self._ops[index]
            if not self._is_changed_by(index, op["op"]):
                yield index, op

    def has_changed_something(self) -> bool:
        """Whether the reply has results of ops that are no reads."""
        return any(self._is_changed_by(index, op["op"]) for index, op in enumerate(self._ops))

    def refuse_rest(self, error: KvError) -> None:
        """Let ``error`` be the result of all that has changed nothing; the others keep theirs, for they are
        done."""
        refused = {"error": error.as_json()}
        for index, op in enumerate(self._ops):
            if not self._is_changed_by(index, op["op"]):
                self._results[index] = refused
        self._values = []
        self._next = len(self._ops)

    def _is_changed_by(self, index: int, name: str) -> bool:
        return name in WRITES or (name in CHANGING and self._results[index] is not None)

    def _write_indexes(self) -> list[int]:
        return [index for index, op in enumerate(self._ops) if op["op"] in WRITES]

    def read(self, engine: Engine, reads: Mapping[str, Answer], deadline: float) -> bool:
        """Do reads until all are done (True) or ``time.monotonic()`` passes ``deadline``."""
        ops = self._ops
        while self._next < len(ops):
            op = ops[self._next]
            name = op["op"]
            if name == "get":
                self._read_gets(engine)
            elif name in WRITES:
                self._next += 1
                continue
            elif name in CHANGING:
                self._do_change(reads[name], op)
                break  # others may hold other grants now, and so may the sender
            else:
                self._results[self._next] = self._read_page(reads[name], op)
                self._next += 1
            if time.monotonic() > deadline:
                break
        return self._next == len(ops)

    def _read_gets(self, engine: Engine) -> None:
        """Do the gets that follow one another here."""
        start = self._next
        keys: list[bytes] = []
        wanted = 0
        for op in self._ops[start : start + GETS_AT_ONCE]:
            if op["op"] != "get":
                break
            keys.append(op["key"].encode())
            wanted = max(wanted, op.get("min_revision", 0))
        records, revision = engine.read(keys)
        if wanted > revision:
            records = [
                self._if_new(*pair, revision) for pair in zip(self._ops[start:], records, strict=False)
            ]
        self._note_revision(revision)
        self._next = start + len(records)
        results: list[Fields] = []
        values, room = self._values, self._room
        for key, record in zip(keys, records, strict=False):  # a reply's worth may be fewer than asked for
            if record is None or isinstance(record, KvError):
                results.append(self._failure(record or no_such_key(key), start + len(results)))
                continue
            value = record.value or b""
            left = room - len(value) - _RESULT_BYTES
            if left < 0:
                results.append(_TOO_LARGE)
                continue
            room = left
            values.append(value)
            results.append(record_fields(record))
        self._room = room
        self._results[start : self._next] = results

    def _if_new(self, op: dict[str, Any], record: Any, revision: int) -> Any:
        """``record``, or what is said where it was read too early for the op."""
        try:
            require_revision(op, revision)
        except KvError as error:
            return error
        return record

    def _do_change(self, change: Answer, op: dict[str, Any]) -> None:
        """Change identities, unless that was done before the reads were begun again. It is done only if the
        reply has room to say so."""
        result = self._results[self._next]
        if result is not None:
            self._room -= len(orjson.dumps(result))
        else:
            has_room = self._room >= _CHANGE_BYTES
            self._results[self._next] = self._read_page(change, op) if has_room else _TOO_LARGE
        self._next += 1

    def _read_page(self, read: Answer, op: dict[str, Any]) -> Fields:
        if self._room <= 0:
            return _TOO_LARGE
        try:
            page = read(op, self.who)
        except KvError as error:
            return self._failure(error, self._next)
        size = _size(page)
        if size > self._room:
            return _TOO_LARGE
        self._room -= size
        self._note_revision(page.revision)
        self._values.extend(page.values)
        return page.fields

    def _failure(self, error: KvError, index: int) -> Fields:
        """The result of a read that failed; ``index`` is the op's."""
        ids = self.request_id
        return _failure(error, ids if ids is None or isinstance(ids, str) else ids[index])

    def _note_revision(self, revision: int) -> None:
        """The reply has the revision of its oldest snapshot: all in it is at least as new."""
        if self._revision is None or revision < self._revision:
            self._revision = revision

    def summary(self) -> str:
        """The ops without their values, for the log and for operators."""
        about = [(op["op"], op.get("key") or op.get("prefix", "")) for op in self._ops[:SHOWN_OPS]]
        shown = [f"{name} {keys}".rstrip() for name, keys in about]
        more = len(self._ops) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")

    def reply(self, epoch: str, head: int) -> Frames:
        """The frames of the finished reply; its revision is ``head`` if nothing was read."""
        revision = head if self._revision is None else self._revision
        return encode_reply(epoch, revision, self._results, self._values, self.request_id, self.age)


def _failure(error: KvError, request_id: RequestId | None) -> Fields:
    """The result of an op that failed. Damage is logged too: it concerns the operator."""
    if error.code == "damaged":
        _damage.error("%s", error.message, extra=request_extra(request_id))
    return {"error": error.as_json()}


def _at_op(error: KvError, writes: Sequence[int]) -> KvError:
    """The error with the index of an op of the request, instead of an index among its writes."""
    at = error.details.get("op")
    if at is None:
        return error
    return KvError(error.code, error.message, **{**error.details, "op": writes[at]})


def _size(page: Page) -> int:
    items = page.fields.get("items") or page.fields.get("events")
    if not items:
        return sum(map(len, page.values)) + len(orjson.dumps(page.fields))
    folders = page.fields.get("prefixes", ())
    names = sum(_RESULT_BYTES + len(item["key"]) for item in items) + sum(
        _FOLDER_BYTES + len(p) for p in folders
    )
    return sum(map(len, page.values)) + names
