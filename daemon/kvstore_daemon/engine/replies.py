"""The last reply of every client that numbers its writes, kept with the data it speaks of.

A row is written in the transaction that applied the request, so either both are there after a crash
or neither is. Rows are forgotten ``KEPT_MINUTES`` after their last use, a few with every commit.
"""

from __future__ import annotations

import struct
from typing import Any

import lmdb
import orjson

from kvstore_client.errors import KvError
from kvstore_daemon.engine import Answer, WriteRequest

KEPT_MINUTES = 10

# seq u64, fingerprint u32, minute of the last use u64; then the results as JSON
_ROW = struct.Struct(">QIQ")
_MINUTE = struct.Struct(">Q")


class Replies:
    """The tables ``clients`` (client -> row) and ``client_ages`` (minute -> clients)."""

    def __init__(self, env: lmdb.Environment) -> None:
        self._clients = env.open_db(b"clients")
        self._ages = env.open_db(b"client_ages", dupsort=True)

    def find(self, txn: lmdb.Transaction[bytes], request: WriteRequest) -> Answer | None:
        """The answer that a repeat of ``request`` gets, None if it is new.

        A number below the client's last is ``sequence_stale``; the last number with other content is
        ``sequence_reused``.
        """
        row = txn.get(_name(request), db=self._clients)
        if row is None:
            return None
        seq, fingerprint, _ = _ROW.unpack_from(row)
        if request.seq > seq:
            return None
        if request.seq < seq:
            message = f"request {request.seq} of this client came after {seq} was applied; it was not applied"
            return Answer(request.ticket, None, KvError("sequence_stale", message, seq=seq))
        if request.fingerprint != fingerprint:
            message = f"number {seq} of this client belongs to a request with other content; use a new one"
            return Answer(request.ticket, None, KvError("sequence_reused", message))
        return _decode(request.ticket, row[_ROW.size :])

    def keep(self, txn: lmdb.Transaction[bytes], request: WriteRequest, answer: Answer, now: int) -> None:
        """Remember the answer, unless the request may succeed when it is repeated."""
        if _may_be_repeated(answer):
            return
        client, minute = _name(request), now // 60_000
        old = txn.get(client, db=self._clients)
        old_minute = _ROW.unpack_from(old)[2] if old is not None else None
        if old_minute != minute:
            if old_minute is not None:
                txn.delete(_MINUTE.pack(old_minute), client, db=self._ages)
            txn.put(_MINUTE.pack(minute), client, db=self._ages)
        row = _ROW.pack(request.seq, request.fingerprint, minute) + _encode(answer)
        txn.put(client, row, db=self._clients)

    def forget(self, txn: lmdb.Transaction[bytes], now: int, budget: int) -> None:
        """Drop up to ``budget`` rows that were not used for ``KEPT_MINUTES``."""
        last = _MINUTE.pack(max(0, now // 60_000 - KEPT_MINUTES))
        cursor = txn.cursor(self._ages)
        while budget > 0 and cursor.first() and cursor.key() < last:
            txn.delete(cursor.value(), db=self._clients)
            cursor.delete()
            budget -= 1


def _name(request: WriteRequest) -> bytes:
    return (request.client or "").encode()


def _may_be_repeated(answer: Answer) -> bool:
    if answer.error is not None:
        return answer.error.row.retryable
    results = answer.results or []
    return all(isinstance(result, KvError) and result.row.retryable for result in results)


def _encode(answer: Answer) -> bytes:
    if answer.error is not None:
        return orjson.dumps({"error": answer.error.as_json()})
    results = [
        {"error": result.as_json()} if isinstance(result, KvError) else result
        for result in answer.results or ()
    ]
    return orjson.dumps({"results": results})


def _decode(ticket: Any, data: bytes) -> Answer:
    kept = orjson.loads(data)
    if "error" in kept:
        return Answer(ticket, None, KvError.from_json(kept["error"]))
    return Answer(
        ticket,
        [KvError.from_json(result["error"]) if "error" in result else result for result in kept["results"]],
    )
