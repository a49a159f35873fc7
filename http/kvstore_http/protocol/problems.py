"""Errors as RFC 9457 problem documents, from the one table in ``kvstore_core.errors``.

An error in answering a request is raised as a KvError and becomes a response here; the server uses
:func:`rendered` for requests that it refuses before the application sees them.
"""

from __future__ import annotations

import logging
from typing import Any

import falcon
import orjson

from kvstore_core.errors import KvError
from kvstore_core.media_types import PROBLEM
from kvstore_core.process.logging import request_extra
from kvstore_http.protocol.environ import REQUEST_ID, ROUTE, STALE_AGE
from kvstore_http.protocol.query_params import AGE_HEADER

RETRY_AFTER_SECONDS = 1

BATCH_PATH = "/v1/batch"
"""The route whose callers number their operations."""

log = logging.getLogger("kvstore.http")


def problem(error: KvError, request_id: str | None = None) -> dict[str, Any]:
    """The problem document: details are added to the members of RFC 9457 and never replace one."""
    row = error.row
    members = {
        "type": f"urn:kvstore:error:{row.code}",
        "title": row.title,
        "status": row.status,
        "detail": error.message,
        "code": row.code,
        "retryable": row.retryable,
    }
    if request_id is not None:
        members["request_id"] = request_id
    return {**members, **error.details, **members}


def rendered(error: KvError, request_id: str | None) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers and body of the response that reports ``error`` to the request."""
    status = falcon.code_to_http_status(error.row.status)
    return status, _headers(error), orjson.dumps(problem(error, request_id))


def _headers(error: KvError) -> dict[str, str]:
    # 404, 405, 410 and 414 may be cached without being asked to (RFC 9110 section 15.1)
    headers = {"content-type": PROBLEM, "cache-control": "no-store"}
    if "revision" in error.details:  # in a header too, for HEAD and for scripts
        headers["x-kvstore-revision"] = str(error.details["revision"])
    if error.row.status == 503:
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    if error.code == "range_not_satisfiable" and "bytes" in error.details:
        headers["content-range"] = f"bytes */{error.details['bytes']}"
    if error.code == "method_not_allowed":
        headers["allow"] = ", ".join(error.details["allow"])
    if error.code == "unsupported_media_type":
        headers |= {name.replace("_", "-"): types for name, types in error.details.items()}
    challenge = _challenge(error)
    if challenge is not None:
        headers["www-authenticate"] = f'Bearer realm="kvstore"{challenge}'
    return headers


def _challenge(error: KvError) -> str | None:
    """What RFC 6750 section 3 has a refusal say about the credential; None where it is not about one."""
    if error.code == "unauthenticated":
        return "" if error.details.get("reason") == "missing" else ', error="invalid_token"'
    if error.code == "not_allowed" and "needs" in error.details:
        return f', error="insufficient_scope", scope="{error.details["needs"]}"'
    return None


def failure(error: Exception, method: str, path: str, request_id: str | None) -> KvError:
    """What is said of a request that we failed to answer, when the log has been told why."""
    log.error("%s %s failed", method, path, exc_info=error, extra=request_extra(request_id))
    return KvError("internal", "the facade failed; see its log")


def install(app: falcon.App[Any, Any]) -> None:
    """Make ``app`` answer every exception with a problem document."""
    app.add_error_handler(Exception, _on_exception)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
    app.add_error_handler(KvError, _on_error)


def _on_error(req: falcon.Request, resp: falcon.Response, error: KvError, _params: dict[str, Any]) -> None:
    if req.env.get(ROUTE) != BATCH_PATH:
        error.details.pop("op", None)  # an index in a request that the caller never saw
    # headers that were set already describe another response
    for name in resp.headers:
        resp.delete_header(name)
    resp.status, headers, resp.data = rendered(error, req.env.get(REQUEST_ID))
    resp.set_headers(headers)
    if STALE_AGE in req.env:
        resp.set_header(AGE_HEADER, str(req.env[STALE_AGE]))


def _on_http_error(
    req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: dict[str, Any]
) -> None:
    """Falcon's errors. Only one is left to it: a path at which nothing is mounted."""
    if error.status_code == 404:
        message = f"there is no route {req.path[:200]!r}; the routes are listed at /openapi.json"
        _on_error(req, resp, KvError("no_such_route", message), params)
    else:
        _on_error(req, resp, KvError("bad_request", error.title or "the request is malformed"), params)


def _on_exception(
    req: falcon.Request, resp: falcon.Response, error: Exception, params: dict[str, Any]
) -> None:
    _on_error(req, resp, failure(error, req.method, req.path, req.env.get(REQUEST_ID)), params)
