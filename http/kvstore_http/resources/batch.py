"""``POST /v1/batch``: many operations in one request."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import falcon

from kvstore_core.errors import KvError
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE, JSON, TEXT_CONTENT_TYPE
from kvstore_core.model import is_plain_key
from kvstore_core.operations import OPERATIONS, check_operation, unknown_operation
from kvstore_http import routes
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.protocol.bodies import read_json, require_type, send_json
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import reply_json
from kvstore_http.protocol.preconditions import idempotency_key_of, refuse_conditions
from kvstore_http.protocol.problems import problem
from kvstore_http.protocol.query_params import (
    AGE_HEADER,
    EXPIRES_AT,
    GUARD,
    INLINE,
    STALE,
    TTL,
    read_query,
)
from kvstore_http.resources.writes import say_why, write_batch

OPS = ("get", *(row.name for row in OPERATIONS.values() if row.writes))
_PUT_TAKES = (*(name for name in OPERATIONS["put"].fields if name != "size"), "value", "value_b64")


class BatchResource:
    """``/v1/batch``."""

    def __init__(self, daemon: DaemonClient) -> None:
        self._daemon = daemon

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        refuse_conditions(req.env, "give each operation its own if_revision")
        require_type(req.env, JSON)
        query = read_query(req.env)
        if GUARD in query:
            message = 'a batch has operations in place of guards: {"op": "check", "key": …, "if_revision": …}'
            raise KvError("bad_request", message, parameter=GUARD.name)
        query.expect(routes.BATCH)
        inline = query.get(INLINE) or False
        ops, values, atomic = _parsed(read_json(req.env))
        if query.get(STALE):
            ops = [{**op, "stale": True} if op["op"] == "get" else op for op in ops]
        say_why(req.env, *ops)
        reply = write_batch(
            self._daemon, ops, values, idempotency_key_of(req.env), req.env[WHO], atomic=atomic
        )
        if reply.age is not None:
            resp.set_header(AGE_HEADER, str(reply.age))
        pairs = zip(ops, reply.results, strict=True)
        send_json(resp, {"results": [_result(*pair, inline) for pair in pairs]})


def _parsed(body: Any) -> tuple[list[dict[str, Any]], list[bytes], bool]:
    """The ops in ``body``, their values, and whether they are atomic; checked in full: nothing of a malformed
    batch is applied."""
    if type(body) is not dict or type(body.get("ops")) is not list or not body["ops"]:
        raise KvError("bad_request", 'the body must be {"ops": [...]} with at least one operation')
    unknown = body.keys() - {"ops", "atomic"}
    if unknown:
        raise KvError("bad_request", f"unknown members: {', '.join(sorted(unknown))}; known: ops, atomic")
    atomic = body.get("atomic", False)
    if type(atomic) is not bool:
        raise KvError("bad_request", "'atomic' must be true or false")
    ops: list[dict[str, Any]] = []
    values: list[bytes] = []
    for index, entry in enumerate(body["ops"]):
        op, value = _plain(entry) or _parsed_op(entry, index)
        ops.append(op)
        if value is not None:
            values.append(value)
    return ops, values, atomic


def _plain(entry: Any) -> tuple[dict[str, Any], bytes | None] | None:
    """The op and the value of a get, or of a put of a text without options, whose key is ASCII and
    passes every check; None for all else.

    Nearly all large batches are made of these, and this takes much less time than the checks.
    """
    if type(entry) is not dict or not is_plain_key(key := entry.get("key")):
        return None
    name = entry.get("op")
    if name == "get" and len(entry) == 2:
        return entry, None
    if name == "put" and len(entry) == 3 and type(text := entry.get("value")) is str:
        value = text.encode()
        return {"op": "put", "key": key, "size": len(value), "content_type": TEXT_CONTENT_TYPE}, value
    return None


def _parsed_op(entry: Any, index: int) -> tuple[dict[str, Any], bytes | None]:
    if type(entry) is not dict:
        raise KvError("bad_request", f"ops[{index}] must be a JSON object", op=index)
    if entry.get("op") not in OPS:
        raise unknown_operation(entry, index, OPS)
    try:
        op, value = _put(entry, index) if entry["op"] == "put" else (dict(entry), None)
        if type(op.get("ttl")) is str:
            op["ttl"] = TTL.read(op["ttl"])
        if type(op.get("expires_at")) is str:
            op["expires_at"] = EXPIRES_AT.read(op["expires_at"])
        check_operation(op, index)
    except KvError as error:
        error.details["op"] = index
        raise
    return op, value


def _put(entry: dict[str, Any], index: int) -> tuple[dict[str, Any], bytes]:
    """The put as the daemon takes it, with its ``size``, and the value beside it."""
    for name in entry:
        if name != "op" and name not in _PUT_TAKES:
            takes = ", ".join(_PUT_TAKES)
            if name == "if_absent":
                takes += "; of a key that must not be there if_revision is 0"
            raise KvError("bad_request", f"ops[{index}]: put has no member {name!r}; it takes: {takes}")
    op = {name: member for name, member in entry.items() if not name.startswith("value")}
    value = _value(entry, index)
    op["size"] = len(value)
    op.setdefault("content_type", TEXT_CONTENT_TYPE if "value" in entry else DEFAULT_CONTENT_TYPE)
    return op, value


def _value(entry: dict[str, Any], index: int) -> bytes:
    text, encoded = entry.get("value"), entry.get("value_b64")
    if "value" in entry and type(text) is not str:
        raise KvError(
            "bad_request", f"ops[{index}].value must be text, not {_kind(text)}; bytes go in value_b64"
        )
    try:
        if type(text) is str and encoded is None:
            return text.encode()
        if type(encoded) is str and text is None:
            return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise KvError("bad_request", f"ops[{index}].value_b64 is not base64: {error}") from error
    raise KvError("bad_request", f"ops[{index}] needs one of value (text) and value_b64 (base64)")


def _kind(value: Any) -> str:
    """The JSON type of ``value``."""
    if value is None or type(value) is bool:
        return {None: "null", True: "true", False: "false"}[value]
    return {int: "a number", float: "a number", list: "an array", dict: "an object"}[type(value)]


def _result(op: dict[str, Any], result: dict[str, Any] | KvError, inline: bool) -> dict[str, Any]:
    """The result of one operation: ``status`` is that of the same request alone, and a failed one has its
    problem document as ``error``."""
    if isinstance(result, KvError):
        return {"status": result.row.status, "error": problem(result)}
    status = 201 if op["op"] == "put" and result["version"] == 1 else 200
    if "key" in op:
        return reply_json(result, inline=inline, status=status, key=op["key"])
    return reply_json(result, status=status, prefix=op["prefix"])
