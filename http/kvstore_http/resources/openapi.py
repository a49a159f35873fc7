"""``/openapi.json``: the table of routes as an OpenAPI 3.1 document."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import falcon
import orjson

from kvstore_core.errors import ERRORS
from kvstore_core.media_types import JSON, PROBLEM
from kvstore_http import routes
from kvstore_http.protocol.query_params import Parameter, read_query
from kvstore_http.resources.openapi_schemas import SCHEMAS, reference
from kvstore_http.routes import Endpoint


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
            "version": version("kvstore"),
            "description": "A key-value store that notifies subscribers of every change.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": {path: _path(endpoints) for path, endpoints in routes.paths().items()},
        "components": {"schemas": SCHEMAS},
    }


def _path(endpoints: list[Endpoint]) -> dict[str, Any]:
    item: dict[str, Any] = {endpoint.method.lower(): _operation(endpoint) for endpoint in endpoints}
    if "get" in item:
        item["head"] = _head(item["get"])
    if endpoints[0].takes_key:
        item["parameters"] = [_path_key()]
    return item


def _path_key() -> dict[str, Any]:
    return {
        "name": "key",
        "in": "path",
        "required": True,
        "description": "the key, percent-encoded; everything after the slash is part of it, also slashes",
        "schema": {"type": "string", "minLength": 1, "maxLength": 511},
    }


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
    words = endpoint.path.removeprefix("/v1").replace("{key}", "one").replace(".", "/").split("/")
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
