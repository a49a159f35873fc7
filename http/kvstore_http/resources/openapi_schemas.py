"""The JSON schemas of bodies, by the names that the table of routes uses."""

from __future__ import annotations

from typing import Any

from kvstore_core.operations import EVENT_OPS
from kvstore_http.resources.batch import OPS
from kvstore_http.resources.health import FAILED, OK, WARNING

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_INTEGER: Schema = {"type": "integer", "format": "int64"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_CURSOR: Schema = {"type": ["string", "null"]}


def _object(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _list(schema: str) -> Schema:
    return {"type": "array", "items": reference(schema)}


def reference(schema: str) -> dict[str, str]:
    """A reference to the schema in the document."""
    return {"$ref": f"#/components/schemas/{schema}"}


_VALUE: Schema = {
    "value": {"type": "string", "description": "the value, where it is UTF-8 text"},
    "value_b64": {"type": "string", "contentEncoding": "base64", "description": "the value, where it is not"},
}
_WRITTEN: Schema = {
    "key": _TEXT,
    "revision": _INTEGER,
    "create_revision": _INTEGER,
    "version": _INTEGER,
    "expires_at": _TIME,
}
_INLINE: Schema = {"value_json": {"description": "the value itself, where json=1 asks for it and it is JSON"}}
_RECORD: Schema = {**_WRITTEN, **_VALUE, **_INLINE, "content_type": _TEXT, "modified_at": _TIME}
_EVENT: Schema = {
    **_RECORD,
    "op": {"type": "string", "enum": list(EVENT_OPS)},
    "index": _INTEGER,
    "count": _INTEGER,
    "snapshot": {"const": True, "description": "of a stream: a record that was there, and no change"},
    "time": _TIME,
    "previous_revision": _INTEGER,
    "previous": reference("Record"),
}
_DIGITS: Schema = {
    "type": "string",
    "description": "the same number as text, for clients that only read 53 bits",
}
_BATCH_OP: Schema = {
    **_VALUE,
    "op": {"type": "string", "enum": list(OPS)},
    "key": _TEXT,
    "content_type": _TEXT,
    "ttl": {"type": ["number", "string"], "description": "seconds, or a text such as 5m"},
    "keep_ttl": _FLAG,
    "expires_at": {"type": ["string", "integer"], "description": "a date, or milliseconds since 1970"},
    "if_revision": _INTEGER,
    "by": _INTEGER,
    "prefix": _TEXT,
    "limit": _INTEGER,
}
_PROBLEM: Schema = {
    "type": {"type": "string", "format": "uri-reference"},
    "title": _TEXT,
    "status": {"type": "integer"},
    "detail": _TEXT,
    "code": _TEXT,
    "retryable": _FLAG,
    "revision": _INTEGER,
    "outcome": {"const": "unknown"},
    "request_id": _TEXT,
}

SCHEMAS: dict[str, Schema] = {
    "Value": {"description": "any bytes"},
    "Lines": {"type": "string", "description": "a line for each check, and one for all of them"},
    "Metrics": {"type": "string", "description": "Prometheus' exposition format"},
    "Object": {"type": "object"},
    "Record": _object(_RECORD, "revision", "create_revision", "version", "content_type", "modified_at"),
    "Written": _object(_WRITTEN, "key", "revision", "create_revision", "version"),
    "Counted": _object({**_WRITTEN, "value": _INTEGER, "text": _DIGITS}, "key", "revision", "value", "text"),
    "Deleted": _object(
        {"key": _TEXT, "prefix": _TEXT, "deleted": _INTEGER, "revision": {"type": ["integer", "null"]}},
        "deleted",
        "revision",
    ),
    "Page": _object(
        {"items": _list("Record"), "count": _INTEGER, "revision": _INTEGER, "cursor": _CURSOR}, "revision"
    ),
    "Event": _object(_EVENT, "op", "key", "revision", "index", "count", "time", "previous_revision"),
    "History": _object(
        {"key": _TEXT, "events": _list("Event"), "cursor": _CURSOR, "truncated": _FLAG},
        "key",
        "events",
        "cursor",
        "truncated",
    ),
    "Pair": _object({"key": _TEXT, "value": _TEXT}, "key", "value"),
    "Batch": _object({"atomic": {"type": "boolean", "default": False}, "ops": _list("BatchOp")}, "ops"),
    "BatchOp": _object(_BATCH_OP, "op"),
    "BatchResult": _object(
        {
            "status": {"type": "integer"},
            "error": reference("Problem"),
            **_RECORD,
            "text": _DIGITS,
            "prefix": _TEXT,
        },
        "status",
    ),
    "BatchResults": _object({"results": _list("BatchResult")}, "results"),
    "Status": _object({"epoch": _TEXT, "revision": _INTEGER, "floor": _INTEGER}, "epoch", "revision"),
    "Health": _object({"status": _TEXT, "checks": _list("Check")}, "status"),
    "Check": _object(
        {"name": _TEXT, "status": {"type": "string", "enum": [OK, WARNING, FAILED]}, "message": _TEXT},
        "name",
        "status",
        "message",
    ),
    "Problem": _object(_PROBLEM, "type", "title", "status", "detail", "code", "retryable"),
}
