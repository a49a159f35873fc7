"""What a write does to a record: conditions, versions, counters, times. Without I/O, and the same on every
engine."""

from __future__ import annotations

import re
from typing import Any

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_MOMENT
from kvstore_core.media_types import TEXT_CONTENT_TYPE
from kvstore_core.operations import OPERATIONS
from kvstore_daemon.storage.interface import StoredRecord, Write, WriteRequest, no_such_key

_INTEGER = re.compile(rb"-?[0-9]{1,19}")
_INT64 = 2**63

GROWING = frozenset(row.name for row in OPERATIONS.values() if row.writes) - {
    "check",
    "delete",
    "delete_prefix",
}
"""The ops that a full store refuses."""

NEEDS_VALUE = frozenset(("incr", "touch", "persist", "expire"))
"""The ops that need the present value, for the new one or for the event."""


PlannedWrite = tuple[str | None, StoredRecord | None, dict[str, Any]]
"""The event's op (None if nothing changes), the record it leaves, and the reply's fields. A bare tuple, since
one is made with every write."""


def plan(write: Write, current: StoredRecord | None, revision: int, now: int) -> PlannedWrite:
    """What ``write`` comes to when it is committed at ``revision``.

    ``current`` is the live record, None where there is none. Raises KvError if the write cannot be
    done: ``bad_request``, ``condition_failed``, ``not_found``, ``not_an_integer``, ``out_of_range``.
    """
    if write.if_revision is not None:
        _check_revision(write, current)
    elif write.if_value is not None:
        _check_value(write, current)
    elif write.sequence and current is not None:
        raise _condition_failed(write, f"the key {write.key.decode()!r} is there already", current)
    return _PLANS[write.op](write, current, revision, now)


def needs_value(write: Write) -> bool:
    """Whether the present value has to be read for it."""
    return write.op in NEEDS_VALUE or write.if_value is not None


def is_conditional(write: Write) -> bool:
    """Whether it depends on what the key is like."""
    return write.if_revision is not None or write.if_value is not None or write.sequence


def _check_revision(write: Write, current: StoredRecord | None) -> None:
    wanted = write.if_revision
    found = 0 if current is None else current.revision
    if wanted == found or write.op == "expire":
        return
    key = repr(write.key.decode())
    if wanted == 0:
        raise _condition_failed(write, f"the key {key} exists already, at revision {found}", current)
    if found == 0:
        message = f"the key {key} does not exist; revision {wanted} was asked for"
    else:
        message = f"the key {key} is at revision {found}; {wanted} was asked for"
    raise _condition_failed(write, message + _advice(write), current)


def _advice(write: Write) -> str:
    """What to do where the key itself was to be written; what a check is for only its sender knows: it may be
    a lock that is lost."""
    return "" if write.op == "check" else ": read it again and retry"


def _check_value(write: Write, current: StoredRecord | None) -> None:
    key = repr(write.key.decode())
    if current is None:
        message = f"the key {key} does not exist; it was to have a certain value"
        raise _condition_failed(write, message, current)
    if current.value != write.if_value:
        message = f"the key {key} has another value than that, at revision {current.revision}"
        raise _condition_failed(write, message + _advice(write), current)


def _condition_failed(write: Write, message: str, current: StoredRecord | None) -> KvError:
    """A check's key is a detail, too: it need not be the one that is written."""
    found = 0 if current is None else current.revision
    details = {"key": write.key.decode()} if write.op == "check" else {}
    return KvError("condition_failed", message, revision=found, **details)


def _check(write: Write, current: StoredRecord | None, _revision: int, _now: int) -> PlannedWrite:
    if write.must_exist and current is None:
        raise _condition_failed(write, f"the key {write.key.decode()!r} does not exist", current)
    return None, None, {"revision": 0 if current is None else current.revision}


def _put(write: Write, current: StoredRecord | None, revision: int, now: int) -> PlannedWrite:
    if write.ttl_ms is not None:
        expires_at: int | None = _end(now, write.ttl_ms)
    elif write.keep_ttl:
        expires_at = None if current is None else current.expires_at
    else:
        expires_at = write.expires_at
    planned = _store(write, write.value, write.content_type, current, revision, now, expires_at)
    if write.sequence:
        planned[2]["key"] = write.key.decode()
    return planned


def sequence_key(prefix: bytes, number: int, place: int | None = None) -> bytes:
    """The key that numbers itself; ``place`` is which one it is of several in one atomic request. All have
    the same length, so they are in the order in which they were committed."""
    return prefix + (b"%020d" % number if place is None else b"%020d-%05d" % (number, place))


_NUMBER = re.compile(rb"([0-9]{20})(-[0-9]{5})?")


def sequence_number(key: bytes, prefix: bytes) -> int | None:
    """The number of a key that :func:`sequence_key` made of ``prefix``, None for any other."""
    found = _NUMBER.fullmatch(key.removeprefix(prefix))
    return None if found is None else int(found[1])


def _end(now: int, ttl_ms: int) -> int:
    """When a time to live that begins now is over; raises ``bad_request`` beyond the last date."""
    end = now + ttl_ms
    if end > MAX_MOMENT:
        raise KvError("bad_request", "ttl ends beyond the year 9999; take a shorter one, or none")
    return end


def _store(
    write: Write,
    value: bytes,
    content_type: str,
    current: StoredRecord | None,
    revision: int,
    now: int,
    expires_at: int | None,
) -> PlannedWrite:
    created, version = (revision, 1) if current is None else (current.create_revision, current.version + 1)
    # as StoredRecord(...) does, but with one call less, since one is made with every write
    record = tuple.__new__(
        StoredRecord,
        (value, content_type, revision, created, version, now, expires_at, write.author, write.message),
    )
    return "put", record, _result(record)


def _result(record: StoredRecord) -> dict[str, Any]:
    _, _, revision, created, version, _, expires_at, _, _ = record
    result: dict[str, Any] = {"revision": revision, "create_revision": created, "version": version}
    if expires_at is not None:
        result["expires_at"] = expires_at
    return result


def _incr(write: Write, current: StoredRecord | None, revision: int, now: int) -> PlannedWrite:
    if current is None:
        return _count(write, write.by, TEXT_CONTENT_TYPE, current, revision, now)
    value = current.value or b""
    if _INTEGER.fullmatch(value) is None:
        raise KvError("not_an_integer", "the value is not a decimal integer, which incr needs")
    return _count(write, int(value) + write.by, current.content_type, current, revision, now)


def _count(
    write: Write, total: int, content_type: str, current: StoredRecord | None, revision: int, now: int
) -> PlannedWrite:
    if not -_INT64 <= total < _INT64:
        raise KvError("out_of_range", f"the result {total} does not fit a signed 64-bit integer")
    expires_at = None if current is None else current.expires_at
    op, record, result = _store(write, b"%d" % total, content_type, current, revision, now, expires_at)
    return op, record, {"value": total, **result}


def _touch(write: Write, current: StoredRecord | None, revision: int, now: int) -> PlannedWrite:
    return _set_expiry(write, _existing(write, current), revision, _end(now, write.ttl_ms or 0))


def _persist(write: Write, current: StoredRecord | None, revision: int, _now: int) -> PlannedWrite:
    found = _existing(write, current)
    if found.expires_at is None:
        return None, None, _result(found)
    return _set_expiry(write, found, revision, None)


def _set_expiry(write: Write, found: StoredRecord, revision: int, expires_at: int | None) -> PlannedWrite:
    # version and modified_at are those of the value, which does not change
    record = found._replace(
        revision=revision, expires_at=expires_at, author=write.author, message=write.message
    )
    return "put", record, _result(record)


def _existing(write: Write, current: StoredRecord | None) -> StoredRecord:
    if current is None:
        raise no_such_key(write.key)
    return current


def _delete(write: Write, current: StoredRecord | None, revision: int, _now: int) -> PlannedWrite:
    _existing(write, current)
    return "delete", None, {"revision": revision, "deleted": 1}


def _expire(write: Write, current: StoredRecord | None, _revision: int, now: int) -> PlannedWrite:
    if current is None or current.revision != write.if_revision or (current.expires_at or now + 1) > now:
        return None, None, {}  # it has changed since the daemon saw it
    return "expire", None, {}


_PLANS = {
    "check": _check,
    "put": _put,
    "incr": _incr,
    "touch": _touch,
    "persist": _persist,
    "delete": _delete,
    "expire": _expire,
}


def repeat_error(request: WriteRequest, seq: int, fingerprint: int) -> KvError | None:
    """The error of a request whose client's last number was ``seq``, None if it is a repeat of that one."""
    if request.seq < seq:
        message = f"request {request.seq} of this client came after {seq} was applied; it was not applied"
        return KvError("sequence_stale", message, seq=seq)
    if request.fingerprint != fingerprint:
        message = f"number {seq} of this client belongs to a request with other content; use a new one"
        return KvError("sequence_reused", message)
    return None
