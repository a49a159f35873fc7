"""``/openapi.json``: the table of routes as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

import falcon
import orjson

from kvstore_core.access.identities import MAX_NAME
from kvstore_core.distribution import installed_version
from kvstore_core.errors import ERRORS
from kvstore_core.limits import MAX_KEY_BYTES
from kvstore_core.media_types import JSON, PROBLEM
from kvstore_core.operations import EVENT_OPS
from kvstore_http import routes
from kvstore_http.protocol import subscription_body
from kvstore_http.protocol.query_params import Parameter, read_query
from kvstore_http.resources.batch import OPS
from kvstore_http.resources.callers import KINDS
from kvstore_http.resources.service.health import FAILED, OK, WARNING
from kvstore_http.routes import Endpoint

_PATH_KEY = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "the key, percent-encoded; everything after the slash is part of it, also slashes",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_BYTES},
}


_PATH_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "the name of an identity",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
}


_PATH_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "an id, as the list of all has it",
    "schema": {"type": "string"},
}


class OpenApiResource:
    """``/openapi.json``."""

    def __init__(self) -> None:
        self._document = orjson.dumps(document())

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        resp.data = self._document
        resp.content_type = JSON
        resp.set_header("cache-control", "no-cache")


def document() -> dict[str, Any]:
    """The description of the service."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvstore",
            "version": installed_version(),
            "description": "A key-value store that notifies subscribers of every change.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": {path: _path(endpoints) for path, endpoints in routes.paths().items()},
        "components": {"schemas": SCHEMAS},
    }


def reference(schema: str) -> dict[str, str]:
    """A reference to the schema in the document."""
    return {"$ref": f"#/components/schemas/{schema}"}


def member_of(method: str) -> str:
    """Where a path's item has the operation of ``method``. OpenAPI 3.1 has no place for QUERY; 3.2 has, which
    few programs read so far."""
    return "x-query" if method == "QUERY" else method.lower()


def _path(endpoints: list[Endpoint]) -> dict[str, Any]:
    item: dict[str, Any] = {member_of(endpoint.method): _operation(endpoint) for endpoint in endpoints}
    if "get" in item:
        item["head"] = _head(item["get"])
    if "{key}" in endpoints[0].path:
        item["parameters"] = [_PATH_KEY]
    elif "{name}" in endpoints[0].path:
        item["parameters"] = [_PATH_NAME]
    elif "{id}" in endpoints[0].path:
        item["parameters"] = [_PATH_ID]
    return item


def _head(get: dict[str, Any]) -> dict[str, Any]:
    """HEAD answers as GET does, without bodies."""
    responses = {
        status: {name: part for name, part in response.items() if name != "content"}
        for status, response in get["responses"].items()
    }
    summary = f"{get['summary']}: the headers only"
    return {**get, "operationId": f"head{get['operationId'][3:]}", "summary": summary, "responses": responses}


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(endpoint),
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": _responses(endpoint),
    }
    if endpoint.body:
        operation["requestBody"] = {"required": True, "content": _content(endpoint.body)}
    if endpoint.deprecated:
        operation["deprecated"] = True
    return operation


def _operation_id(endpoint: Endpoint) -> str:
    words = (
        endpoint.path.removeprefix("/v1")
        .replace("{key}", "one")
        .replace("{name}", "one")
        .replace("{id}", "one")
        .replace(".", "/")
        .split("/")
    )
    return endpoint.method.lower() + ("".join(word.capitalize() for word in words) or "Root")


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    queries = [_query_parameter(endpoint, parameter) for parameter in endpoint.query.values()]
    headers = [
        {"name": header.name, "in": "header", "description": header.meaning, "schema": {"type": "string"}}
        for header in endpoint.headers
    ]
    return queries + headers


def _query_parameter(endpoint: Endpoint, parameter: Parameter[Any]) -> dict[str, Any]:
    schema = {"type": "array", "items": parameter.schema} if parameter.many else parameter.schema
    described: dict[str, Any] = {
        "name": parameter.name,
        "in": "query",
        "description": f"{parameter.meaning}: {parameter.must_be}",
        "schema": schema,
    }
    if parameter in endpoint.required:
        described["required"] = True
    return described


def _content(schemas: dict[str, str]) -> dict[str, Any]:
    return {media_type: {"schema": reference(schema)} for media_type, schema in schemas.items()}


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for response in endpoint.responses:
        described: dict[str, Any] = {"description": response.meaning}
        if response.content:
            described["content"] = _content(response.content)
        responses[str(response.status)] = described
    for status, codes in _errors(endpoint).items():
        responses[str(status)] = {
            "description": "; ".join(f"`{code}`: {ERRORS[code].title}" for code in codes),
            "content": {PROBLEM: {"schema": reference("Problem")}},
        }
    return responses


def _errors(endpoint: Endpoint) -> dict[int, list[str]]:
    by_status: dict[int, list[str]] = {}
    for code in (*endpoint.errors, *routes.ANYWHERE):
        by_status.setdefault(ERRORS[code].status, []).append(code)
    return dict(sorted(by_status.items()))


# ── the schemas of bodies, by the names that the table of routes uses ────────────────────────────

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
_BYLINE: Schema = {
    "author": {**_TEXT, "description": "who made the change, where that is known"},
    "message": {**_TEXT, "description": "why the change was made"},
}
_RECORD: Schema = {
    **_WRITTEN,
    **_VALUE,
    **_INLINE,
    **_BYLINE,
    "content_type": _TEXT,
    "modified_at": _TIME,
}
_LENGTH: Schema = {**_INTEGER, "description": "the length of the value, where keys=1 leaves that out"}
_EVENT: Schema = {
    **_RECORD,
    "op": {"type": "string", "enum": list(EVENT_OPS)},
    "index": _INTEGER,
    "count": _INTEGER,
    "snapshot": {"const": True, "description": "of a stream: a record that was there, and no change"},
    "skipped": {
        **_INTEGER,
        "description": "of a stream of the latest: how many changes of the key were left out",
    },
    "time": _TIME,
    "previous_revision": _INTEGER,
    "previous": reference("Record"),
}
_PAGE_END: Schema = {
    "cursor": {"type": "string", "description": "where the next page begins"},
    "floor": {**_INTEGER, "description": "events up to here are no longer kept; not in a page with cache"},
    "head": {**_INTEGER, "description": "the newest revision; not in a page with cache"},
    "more": {**_FLAG, "description": "whether there are changes behind the cursor already"},
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
    "if_value": {"type": "string", "description": "the whole value that the key must have"},
    "if_value_b64": {
        "type": "string",
        "contentEncoding": "base64",
        "description": "the bytes that it must be",
    },
    "exists": {"type": "boolean", "description": "of a check: whether there must be such a key"},
    "sequence": {
        "type": "boolean",
        "description": "the key begins with this one, and has a number of its own",
    },
    "by": _INTEGER,
    "prefix": _TEXT,
    "limit": _INTEGER,
    "message": _BYLINE["message"],
}
_PROBLEM: Schema = {
    "type": {"type": "string", "format": "uri-reference"},
    "title": _TEXT,
    "status": {"type": "integer"},
    "detail": _TEXT,
    "code": _TEXT,
    "retryable": _FLAG,
    "key": {"type": "string", "description": "the key of the guard or check that failed"},
    "op": {"type": "integer", "description": "of a batch: the operation that is concerned, from 0 on"},
    "revision": _INTEGER,
    "cursor": {"type": "string", "description": "of a wait that was in vain: where to wait on"},
    "floor": {**_INTEGER, "description": "of a cursor that has expired: the log begins after it"},
    "outcome": {"const": "unknown"},
    "request_id": _TEXT,
}

_TEXTS: Schema = {"type": "array", "items": _TEXT}


def _if_known(kind: str, **more: Any) -> Schema:
    return {"type": [kind, "null"], **more}


_SUBSCRIBER: Schema = {
    "id": _TEXT,
    "kind": {"type": "string", "enum": ["http", "native"]},
    "address": _if_known("string"),
    "name": _if_known("string", description="of the identity; null while access is off"),
    "prefixes": _if_known("array", items=_TEXT, description="the first of them; an empty one: every key"),
    "keys": _if_known("array", items=_TEXT, description="the first of them"),
    "filters": _if_known("integer", description="how many prefixes and keys there are"),
    "since": _TIME,
    "sent_bytes": _INTEGER,
    "queued_bytes": {**_INTEGER, "description": "what the system keeps until the client has it"},
    "unsent_bytes": _if_known("integer", description="what waits in the service"),
    "events": _if_known("integer", description="how many it was given"),
    "revision": _if_known("integer", description="up to which the system has all for it, at least"),
    "lag": _if_known("integer", description="how many revisions that is behind"),
    "blocked_seconds": _if_known("number", description="since when it has not taken all that waits"),
    "worker": _if_known("integer"),
}
_MANY: Schema = {
    "type": ["integer", "null"],
    "format": "int64",
    "description": "how many keys are below a prefix; null: more than are counted",
}
_SECRET: Schema = {"type": "string", "description": "shown only here"}
_ENDS: Schema = {
    "for": {"type": ["string", "number"], "description": "how long it is good: 90d, or seconds"},
    "expires_at": {
        "type": ["string", "null"],
        "format": "date-time",
        "description": "instead of for; null: no end",
    },
}
_LIFE: Schema = {"created_at": _TIME, "expires_at": _TIME}
_IDENTITY: Schema = {
    "name": _TEXT,
    "grants": _TEXTS,
    **_LIFE,
    "tokens": {
        "type": "array",
        "items": _object({"id": _TEXT, **_LIFE}, "id"),
    },
    "keys": {
        "type": "array",
        "items": _object({"public_key": _TEXT, **_LIFE}, "public_key"),
    },
}

_BACKUP: Schema = {
    "id": _TEXT,
    "state": {"type": "string", "enum": ["making", "ready", "failed"]},
    **_LIFE,
    "bytes": {**_INTEGER, "description": "the length of the file; while it is made, that by now"},
    "sha256": {"type": "string", "description": "of the file, and its ETag"},
    "epoch": _TEXT,
    "revision": _INTEGER,
    "keys": _INTEGER,
    "log_events": _INTEGER,
    "error": {"type": "object", "description": "why it failed"},
}
_SLOW_REQUEST: Schema = {
    "side": {"type": "string", "enum": ["http", "daemon"], "description": "who measured"},
    "time": {**_TIME, "description": "when it ended"},
    "seconds": {"type": "number"},
    "daemon_seconds": _if_known("number", description="how long the facade waited for the daemon"),
    "client_seconds": _if_known("number", description="how long for the client to take the answer"),
    "queued_seconds": _if_known("number", description="how long it waited for its turn in the daemon"),
    "what": {**_TEXT, "description": "the method and the target, or the operations; no values"},
    "status": _if_known("integer"),
    "bytes": {**_INTEGER, "description": "of the answer over HTTP, of the request at the daemon"},
    "address": _if_known("string"),
    "name": _if_known("string", description="of the identity; null while access is off"),
    "request_id": _if_known("string"),
    "worker": _if_known("integer"),
}

SCHEMAS: dict[str, Schema] = {
    "Value": {"description": "any bytes"},
    "Lines": {"type": "string", "description": "a line for each check, and one for all of them"},
    "Metrics": {"type": "string", "description": "Prometheus' exposition format"},
    "Object": {"type": "object"},
    "Record": _object(
        {**_RECORD, "bytes": _LENGTH}, "revision", "create_revision", "version", "content_type", "modified_at"
    ),
    "Written": _object(_WRITTEN, "key", "revision", "create_revision", "version"),
    "Counted": _object({**_WRITTEN, "value": _INTEGER, "text": _DIGITS}, "key", "revision", "value", "text"),
    "Deleted": _object(
        {"key": _TEXT, "prefix": _TEXT, "deleted": _INTEGER, "revision": {"type": ["integer", "null"]}},
        "deleted",
        "revision",
    ),
    "Page": _object(
        {
            "items": _list("Record"),
            "prefixes": {**_TEXTS, "description": "with a delimiter: what folded keys begin with"},
            "counts": {"type": "array", "items": _MANY},
            "count": _INTEGER,
            "revision": _INTEGER,
            "cursor": _CURSOR,
        },
        "revision",
    ),
    "Entry": {"anyOf": [reference("Record"), reference("Folder")]},
    "Folder": _object({"prefix": _TEXT, "count": _MANY}, "prefix"),
    "Event": _object(_EVENT, "op", "key", "revision", "index", "count", "time", "previous_revision"),
    "History": _object(
        {"key": _TEXT, "prefix": _TEXT, "events": _list("Event"), "cursor": _CURSOR, "truncated": _FLAG},
        "events",
        "cursor",
        "truncated",
    ),
    "Changes": _object({"events": _list("Event"), **_PAGE_END}, "events", "cursor", "more"),
    "ChangesLine": {"anyOf": [reference("Event"), reference("ChangesEnd")]},
    "ChangesEnd": _object(_PAGE_END, "cursor", "more"),
    "Digest": _object(
        {"digest": _TEXT, "count": _INTEGER, "revision": _INTEGER, "epoch": _TEXT},
        "digest",
        "count",
        "revision",
        "epoch",
    ),
    "Pair": _object({"key": _TEXT, "value": _TEXT}, "key", "value"),
    "Subscription": subscription_body.schema(),
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
    "Status": _object(
        {"epoch": _TEXT, "revision": _INTEGER, "floor": _INTEGER, "digest": {"type": ["string", "null"]}},
        "epoch",
        "revision",
    ),
    "Login": _object(
        {
            "token": _TEXT,
            "page": {"type": "string", "description": "the service's path at its host", "default": "/"},
        },
        "token",
    ),
    "Session": _object(
        {
            "half": {"type": "string", "description": "what the page sends as X-Kvstore-Page"},
            "name": _TEXT,
            "grants": {"type": "array", "items": _TEXT},
            "expires_at": _TIME,
        },
        "half",
        "name",
        "grants",
        "expires_at",
    ),
    "Caller": _object(
        {
            "access": {
                "type": "boolean",
                "description": "false: everybody may do everything",
            },
            "name": {"type": "string", "description": "of the identity; empty while access is off"},
            "kind": {"type": "string", "enum": list(KINDS)},
            "credential": {"type": "string", "description": "the id of the token; empty where there is none"},
            "grants": _TEXTS,
            "expires_at": _TIME,
        },
        "access",
        "name",
        "kind",
        "credential",
        "grants",
    ),
    "Identity": _object(_IDENTITY, "name", "grants", "created_at", "tokens", "keys"),
    "Identities": _object({"identities": _list("Identity")}, "identities"),
    "NewIdentity": _object({"name": _TEXT, "grants": _TEXTS, **_ENDS}, "name", "grants"),
    "Token": _object({**_IDENTITY, "id": _TEXT, "token": _SECRET}, "name", "id", "token"),
    "GrantChange": _object({"grants": _TEXTS, "grant": _TEXTS, "ungrant": _TEXTS, **_ENDS}),
    "NewToken": _object(_ENDS),
    "NewKey": _object({"public_key": _TEXT, "grants": _TEXTS, **_ENDS}, "public_key"),
    "Key": _object({**_IDENTITY, "server_key": _TEXT}, "name", "server_key"),
    "Narrowing": _object({"grants": _TEXTS, **_ENDS}),
    "Narrowed": _object(
        {"token": _SECRET, "name": _TEXT, "grants": _TEXTS, "expires_at": _TIME},
        "token",
        "name",
        "grants",
        "expires_at",
    ),
    "Backup": _object(_BACKUP, "id", "state", "created_at", "expires_at"),
    "Backups": _object({"backups": _list("Backup")}, "backups"),
    "Health": _object({"status": _TEXT, "checks": _list("Check")}, "status"),
    "Check": _object(
        {"name": _TEXT, "status": {"type": "string", "enum": [OK, WARNING, FAILED]}, "message": _TEXT},
        "name",
        "status",
        "message",
    ),
    "Subscribers": _object(
        {
            "subscribers": _list("Subscriber"),
            "count": {**_INTEGER, "description": "of all, also of those that are not shown"},
            "unheard": {**_TEXTS, "description": "the processes that did not answer in time"},
        },
        "subscribers",
        "count",
        "unheard",
    ),
    "Subscriber": _object(_SUBSCRIBER, *_SUBSCRIBER),
    "SlowRequests": _object(
        {
            "requests": _list("SlowRequest"),
            "unheard": {**_TEXTS, "description": "the processes that did not answer in time"},
        },
        "requests",
        "unheard",
    ),
    "SlowRequest": _object(_SLOW_REQUEST, *_SLOW_REQUEST),
    "Kicked": _object({"kicked": _TEXT}, "kicked"),
    "Problem": _object(_PROBLEM, "type", "title", "status", "detail", "code", "retryable"),
}
