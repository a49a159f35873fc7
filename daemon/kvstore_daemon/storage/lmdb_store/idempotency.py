"""The last reply of every client that numbers its writes, kept beside the data.

A row is written in the transaction that applies the request, so after a crash either both are there or
neither is. Rows are forgotten ``KEPT_MINUTES`` after their last use, a few with every commit. ``now`` is
what :meth:`kvstore_daemon.storage.clock.StoreClock.running` gives: a wrong date must not make a repeat a new
request.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from itertools import islice, takewhile
from typing import Any, NamedTuple

import lmdb
import orjson

from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import WriteAnswer, WriteRequest
from kvstore_daemon.storage.lmdb_store.tables import Tables
from kvstore_daemon.storage.write_rules import repeat_error

KEPT_MINUTES = 10

# seq u64, fingerprint u32, minute of the last use u64; then the results as JSON, none of checks alone
_ROW = struct.Struct(">QIQ")
_MINUTE = struct.Struct(">Q")

# the clients whose last numbers are held in memory; those of others are looked up
_REMEMBERED = 10_000

_REFUSED_SECONDS = 60.0


class _Last(NamedTuple):
    """What a client's row begins with."""

    seq: int
    fingerprint: int
    minute: int


class IdempotencyTable:
    """The tables ``clients`` (client -> row) and ``client_ages`` (minute -> clients); used by the
    loop's thread only.

    The last numbers of clients are held in memory as well, so that a new request, as most are, is known to
    be new without a look into the table.
    """

    def __init__(self, tables: Tables) -> None:
        self._clients = tables.clients
        self._ages = tables.client_ages
        self._last: dict[bytes, _Last] = {}
        self._refused: dict[bytes, tuple[_Last, WriteAnswer, float]] = {}
        self._newly_refused: list[bytes] = []
        self._forgotten_before = 0

    @contextlib.contextmanager
    def remembering(self) -> Iterator[None]:
        """Enclose a transaction: what it put into memory is dropped if it fails."""
        self._newly_refused.clear()
        try:
            yield
        except BaseException:
            self._last.clear()
            for client in self._newly_refused:
                self._refused.pop(client, None)
            raise

    def find(self, txn: lmdb.Transaction[bytes], request: WriteRequest) -> WriteAnswer | None:
        """The answer that a repeat of ``request`` gets, None if it is new.

        A number below the client's last is ``sequence_stale``; the last number with other content is
        ``sequence_reused``.
        """
        client = _name(request)
        last, refused = self._last_of(txn, client), self._refused.get(client)
        if refused is not None and refused[2] < time.monotonic():
            refused = None
        if refused is not None and (last is None or refused[0].seq > last.seq):
            last = refused[0]
        if last is None or request.seq > last.seq:
            return None
        seq, fingerprint, _ = last
        error = repeat_error(request, seq, fingerprint)
        if error is not None:
            return WriteAnswer(request.ticket, None, error)
        if refused is not None and last is refused[0]:
            return refused[1]._replace(ticket=request.ticket)
        row = txn.get(client, b"", db=self._clients)
        answer = _decode(request.ticket, row[_ROW.size :])
        return None if answer.results == [] else answer

    def _last_of(self, txn: lmdb.Transaction[bytes], client: bytes) -> _Last | None:
        last = self._last.get(client)
        if last is None:
            row = txn.get(client, db=self._clients)
            if row is None:
                return None
            last = self._last[client] = _Last(*_ROW.unpack_from(row))
        return last

    def keep(
        self, txn: lmdb.Transaction[bytes], request: WriteRequest, answer: WriteAnswer, now: int
    ) -> None:
        """Remember the answer. A refusal for want of room is held in memory only, since there is no room."""
        if _is_refused(answer):
            self.keep_refusal(request, answer)
            return
        client, minute = _name(request), now // 60_000
        last = self._last_of(txn, client)
        if last is None or last.minute != minute:
            if last is not None:
                txn.delete(_MINUTE.pack(last.minute), client, db=self._ages)
            txn.put(_MINUTE.pack(minute), client, db=self._ages)
        if len(self._last) >= _REMEMBERED:
            self._last.clear()
        last = self._last[client] = _Last(request.seq, request.fingerprint, minute)
        if request.only_checks:
            answer = WriteAnswer(None, [])
        txn.put(client, _ROW.pack(*last) + _encode(answer), db=self._clients)

    def reset(self) -> None:
        """Forget what was kept of requests that were not committed after all."""
        self._last.clear()

    def keep_refusal(self, request: WriteRequest, answer: WriteAnswer) -> None:
        """Remember that a request was refused and nothing of it applied, for a minute.

        Its client knows that, so a late copy of it must not be applied after all. A stop of the daemon ends
        that too, but also the connections in which a copy could wait. After a minute it is a new attempt.
        """
        client = _name(request)
        if len(self._refused) >= _REMEMBERED:
            self._refused.pop(next(iter(self._refused)))
        last = _Last(request.seq, request.fingerprint, 0)
        self._refused.pop(client, None)  # keeps the dictionary in the order of the times
        self._refused[client] = (last, answer._replace(ticket=None), time.monotonic() + _REFUSED_SECONDS)
        self._newly_refused.append(client)

    def forget(self, txn: lmdb.Transaction[bytes], now: int, budget: int) -> None:
        """Drop up to ``budget`` rows that have not been used for ``KEPT_MINUTES``."""
        oldest = max(0, now // 60_000 - KEPT_MINUTES)
        if oldest == self._forgotten_before:
            return
        kept = _MINUTE.pack(oldest)
        old = list(islice(takewhile(lambda age: age[0] < kept, txn.cursor(self._ages)), budget + 1))
        for minute, client in old[:budget]:
            self._last.pop(client, None)
            txn.delete(client, db=self._clients)
            txn.delete(minute, client, db=self._ages)
        if len(old) > budget:
            return
        self._forgotten_before = oldest


def _name(request: WriteRequest) -> bytes:
    return (request.client or "").encode()


def _is_refused(answer: WriteAnswer) -> bool:
    """Whether nothing was applied, for a reason that may pass."""
    if answer.error is not None:
        return answer.error.row.retryable
    for result in answer.results or ():
        if not isinstance(result, KvError) or not result.row.retryable:
            return False
    return True


def _encode(answer: WriteAnswer) -> bytes:
    if answer.error is not None:
        return orjson.dumps({"error": answer.error.as_json()})
    return orjson.dumps({"results": answer.results}, default=_error_as_json)


def _error_as_json(error: KvError) -> dict[str, Any]:
    return {"error": error.as_json()}


def _decode(ticket: Any, data: bytes) -> WriteAnswer:
    kept = orjson.loads(data)
    if "error" in kept:
        return WriteAnswer(ticket, None, KvError.from_json(kept["error"]))
    return WriteAnswer(
        ticket,
        [KvError.from_json(result["error"]) if "error" in result else result for result in kept["results"]],
    )
