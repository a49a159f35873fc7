"""The JSON schemas of answers and bodies, by the names that the table of routes uses."""

from __future__ import annotations

from typing import Any


def schemas() -> dict[str, Any]:
    """The JSON schemas that answers and bodies name."""
    integer = {"type": "integer", "format": "int64"}
    time = {"type": "string", "format": "date-time"}
    text = {"type": "string"}
    record = {
        "key": text,
        "value": {"type": "string", "description": "the value, where it is UTF-8 text"},
        "value_b64": {
            "type": "string",
            "contentEncoding": "base64",
            "description": "the value, where it is not",
        },
        "content_type": text,
        "revision": integer,
        "create_revision": integer,
        "version": integer,
        "modified_at": time,
        "expires_at": time,
    }
    written = {name: record[name] for name in ("key", "revision", "create_revision", "version", "expires_at")}
    event = {
        **record,
        "op": {"type": "string", "enum": ["put", "delete", "expire"]},
        "index": integer,
        "count": integer,
        "time": time,
        "previous_revision": integer,
        "previous": {"$ref": "#/components/schemas/Record"},
    }
    cursor = {"type": ["string", "null"]}
    return {
        "Value": {"description": "any bytes"},
        "Object": {"type": "object"},
        "Record": _object(record, "revision", "create_revision", "version", "content_type", "modified_at"),
        "Written": _object(written, "key", "revision", "create_revision", "version"),
        "Counted": _object({**written, "value": integer}, "key", "revision", "value"),
        "Deleted": _object(
            {"key": text, "prefix": text, "deleted": integer, "revision": {"type": ["integer", "null"]}},
            "deleted",
            "revision",
        ),
        "Page": _object(
            {"items": _list("Record"), "count": integer, "revision": integer, "cursor": cursor}, "revision"
        ),
        "Event": _object(event, "op", "key", "revision", "index", "count", "time", "previous_revision"),
        "History": _object(
            {"key": text, "events": _list("Event"), "cursor": cursor, "truncated": {"type": "boolean"}},
            "key",
            "events",
            "cursor",
            "truncated",
        ),
        "Batch": _object({"atomic": {"type": "boolean", "default": False}, "ops": _list("BatchOp")}, "ops"),
        "BatchOp": _object(
            {
                "op": {
                    "type": "string",
                    "enum": ["get", "put", "delete", "delete_prefix", "incr", "touch", "persist"],
                },
                "key": text,
                "value": text,
                "value_b64": record["value_b64"],
                "content_type": text,
                "ttl": {"type": ["number", "string"]},
                "if_revision": integer,
                "by": integer,
                "prefix": text,
                "limit": integer,
            },
            "op",
        ),
        "BatchResults": _object({"results": {"type": "array", "items": {"type": "object"}}}, "results"),
        "Pair": _object({"key": text, "value": text}, "key", "value"),
        "Status": _object({"epoch": text, "revision": integer, "floor": integer}, "epoch", "revision"),
        "Health": _object({"status": text}, "status"),
        "Problem": _object(
            {
                "type": {"type": "string", "format": "uri-reference"},
                "title": text,
                "status": {"type": "integer"},
                "detail": text,
                "code": text,
                "retryable": {"type": "boolean"},
                "revision": integer,
                "outcome": {"const": "unknown"},
            },
            "type",
            "title",
            "status",
            "detail",
            "code",
            "retryable",
        ),
    }


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _list(schema: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/components/schemas/{schema}"}}
