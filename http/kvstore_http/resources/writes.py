"""How a request's writes reach the daemon: with its message, under its preconditions and guards, and once for
an ``Idempotency-Key``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.operations import OPERATIONS
from kvstore_core.wire import Reply
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.backend.stale_reads import Reads
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.preconditions import (
    Condition,
    condition_of,
    idempotency_key_of,
    message_of,
    refuse_idempotency_key,
)

ATTEMPTS = 32
"""How often a read-then-write is tried against other writers before the answer is ``too_busy``."""

Prepare = Callable[[dict[str, Any] | None], tuple[dict[str, Any], bytes | None]]
"""Makes an op and its value from a record (None: the key is missing)."""

Guards = Sequence[dict[str, Any]]
"""The checks that a request asks for beside its one write."""


def write(
    daemon: DaemonClient,
    environ: dict[str, Any],
    op: dict[str, Any],
    value: bytes | None = None,
    guards: Guards = (),
) -> dict[str, Any]:
    """Apply one op with the request's message, under its precondition, ``guards`` and idempotency key; the
    op's result.

    A precondition that no single revision fulfils is resolved by reading first.
    """
    say_why(environ, op)
    condition, who = condition_of(environ), environ[WHO]
    if condition is not None:
        if condition.revision is None:
            refuse_idempotency_key(
                environ, 'with it, If-Match takes one entity tag and If-None-Match only "*"'
            )
            return read_then_write(daemon, op["key"], condition, lambda _record: (op, value), who, guards)
        op["if_revision"] = condition.revision
    return write_op(daemon, op, value, idempotency_key_of(environ), who, guards=guards)


def say_why(environ: dict[str, Any], *ops: dict[str, Any]) -> None:
    """Give the request's message to those ops that change something and have none of their own."""
    message = message_of(environ)
    if message is not None:
        for op in ops:
            if "message" in OPERATIONS[op["op"]].fields:
                op.setdefault("message", message)


def write_op(
    daemon: DaemonClient,
    op: dict[str, Any],
    value: bytes | None,
    idempotency_key: str | None,
    who: Principal,
    step: int = 0,
    guards: Guards = (),
) -> dict[str, Any]:
    """Apply one op as it is; once, however often it is sent, if it has an ``idempotency_key``. Under
    ``guards`` it is part of an atomic batch, whose first ops they are: so a detail ``op`` of the error says
    which of them failed.

    ``step`` tells apart the writes of one request, which share its key.
    """
    if idempotency_key is None and not guards:
        return daemon.call(op, value, who=who)
    sized = op if value is None else {**op, "size": len(value)}
    values = [] if value is None else [value]
    try:
        reply = write_batch(
            daemon, [*guards, sized], values, idempotency_key, who, atomic=bool(guards), step=step
        )
    except KvError as error:
        if error.code != "request_too_large" or not guards:
            raise
        message = f"{error.message}; a write with guards is such a batch, of one op for each"
        raise KvError(error.code, message, **error.details) from error
    result = reply.results[-1]
    if isinstance(result, KvError):
        raise result
    return result


def write_batch(
    daemon: DaemonClient,
    ops: list[dict[str, Any]],
    values: list[bytes],
    idempotency_key: str | None,
    who: Principal,
    *,
    atomic: bool = False,
    step: int = 0,
) -> Reply:
    """The reply to several ops in one request to the daemon; ``idempotency_key`` and ``step`` are as for
    :func:`write_op`."""
    if step:
        # no key that a client can send holds a control character
        idempotency_key = f"{idempotency_key}\n{step}"
    try:
        reply = daemon.request(ops, values, who=who, atomic=atomic, idempotency_key=idempotency_key)
    except KvError as error:
        if error.code != "sequence_reused":
            raise
        raise KvError(
            error.code, "this Idempotency-Key was used for another request; use a new one"
        ) from error
    return reply


def read_then_write(
    daemon: DaemonClient,
    key: str,
    condition: Condition | None,
    prepare: Prepare,
    who: Principal,
    guards: Guards = (),
) -> dict[str, Any]:
    """Read the key, let ``prepare`` make an op from its record, and write on condition that the key is as it
    was read and the ``guards`` hold; again if somebody wrote in between. Raises ``condition_failed`` and
    ``too_busy``."""
    for _ in range(ATTEMPTS):
        record = present_record(daemon, key, who)
        revision = 0 if record is None else record["revision"]
        if condition is not None:
            condition.check(key, revision)
        op, value = prepare(record)
        try:
            return write_op(daemon, {**op, "if_revision": revision}, value, None, who, guards=guards)
        except KvError as error:
            is_of_guard = error.details.get("op", len(guards)) < len(guards)
            if error.code != "condition_failed" or is_of_guard:
                raise
    raise KvError("too_busy", f"other writers changed the key in each of {ATTEMPTS} attempts")


def present_record(daemon: Reads, key: str, who: Principal) -> dict[str, Any] | None:
    """The key's record, None if the key is missing."""
    try:
        return daemon.call({"op": "get", "key": key}, who=who)
    except KvError as error:
        if error.code != "not_found":
            raise
        return None
