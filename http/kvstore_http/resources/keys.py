"""One key: its value as a body, its revision as an ETag."""

from __future__ import annotations

import calendar
import re
import time
from email.utils import parsedate
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import falcon

from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError
from kvstore_core.media_types import MERGE_PATCH
from kvstore_core.operations import OPERATIONS
from kvstore_http import routes
from kvstore_http.access.callers import Refreshed
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.protocol.bodies import (
    read_body,
    read_value,
    refuse_body,
    require_type,
    send_json,
    value_type,
)
from kvstore_http.protocol.environ import BODY_AWAITED, WAITS, WHO
from kvstore_http.protocol.json_records import http_date, reply_json, timestamp
from kvstore_http.protocol.merge_patch import LARGE_BYTES, Patch
from kvstore_http.protocol.preconditions import (
    check_write,
    condition_of,
    etag,
    is_listed,
    message_of,
    parse_tags,
    refuse_idempotency_key,
)
from kvstore_http.protocol.query_params import (
    EMPTY,
    EXPIRES_AT,
    FORMAT,
    INLINE,
    KEEP_TTL,
    REVISION,
    SINCE,
    TTL,
    WAIT,
    Query,
    read_keyed_query,
    read_query,
)
from kvstore_http.resources.history import read_as_of
from kvstore_http.resources.writes import read_then_write, write
from kvstore_http.routes import Endpoint
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.long_poll import Unchanged, read_after_change

# Anybody may store a value, and it is served from the origin of this service: a browser must neither guess
# that it is a page nor run scripts in it.
_VALUE_HEADERS: Final = {
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "accept-ranges": "bytes",
}

_IN_HEADERS: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What is not percent-encoded in a header's text: all that is printable ASCII, as people write it."""

_ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)


class KeyResource:
    """``/v1/kv/{key}``, and ``/v1/kv?key=`` where ``key`` is None."""

    def __init__(self, daemon: DaemonClient, feed: ChangeFeed, refreshed: Refreshed) -> None:
        self._daemon = daemon
        self._refreshed = refreshed
        self._feed = feed

    # ── reading ─────────────────────────────────────────────────────────────────────────────────

    def on_get(self, req: falcon.Request, resp: falcon.Response, key: str | None = None) -> None:
        key, query = read_keyed_query(req.env, key, routes.GET_KEY)
        if query is not EMPTY and WAIT in query:
            req.env[WAITS] = True
        record = self._record(key, query, req.env[WHO])
        if isinstance(record, Unchanged):
            _send_unchanged(resp, record)
            return
        resp.set_headers(_headers(record))
        if _is_unmodified(req.env, record):
            resp.status = "304 Not Modified"
        elif query is not EMPTY and _wants_record(query):
            send_json(resp, reply_json(record, inline=query.get(INLINE) or False, key=key))
        else:
            resp.content_type = record["content_type"]
            resp.data = record["value"]
            if "HTTP_RANGE" in req.env:
                _send_range(req.env, resp, record)

    def _record(self, key: str, query: Query, who: Principal) -> dict[str, Any] | Unchanged:
        """The record that the query asks for; raises ``not_found``."""
        if query is EMPTY:
            return self._daemon.call({"op": "get", "key": key}, who=who)
        revision, wait, since = query.get(REVISION), query.get(WAIT), query.get(SINCE)
        if wait is None:
            if since is not None:
                raise KvError("bad_request", "since goes with wait: ?wait=30s&since=7", parameter="since")
            if revision is None:
                return self._daemon.call({"op": "get", "key": key}, who=who)
            return read_as_of(self._daemon, key, revision, who)
        if revision is not None:
            raise KvError("bad_request", "revision asks for the past, wait for the future: use one of them")
        asks = partial(self._refreshed, who)
        return read_after_change(self._daemon, self._feed, key, since, wait, asks)

    # ── writing ─────────────────────────────────────────────────────────────────────────────────

    def on_put(self, req: falcon.Request, resp: falcon.Response, key: str | None = None) -> None:
        key, query = read_keyed_query(req.env, key, routes.PUT_KEY)
        environ = req.env
        op: dict[str, Any] = {"op": "put", "key": key, "content_type": value_type(environ)}
        ttl, expires_at = query.get(TTL), query.get(EXPIRES_AT)
        if query.get(KEEP_TTL):
            op["keep_ttl"] = True
        if expires_at is not None:
            op["expires_at"] = expires_at
        if BODY_AWAITED in environ:
            check_write(environ)
            self._check_size("value", int(environ["CONTENT_LENGTH"]))
        value = read_value(environ)
        if ttl is not None:
            op["ttl"] = ttl
        if query is not EMPTY:
            _refuse_several_ends(op)
        send_written(resp, key, write(self._daemon, environ, op, value))

    def _check_size(self, what: str, size: int) -> None:
        """Raise ``value_too_large``. The daemon knows the limit; asking it costs less than the upload."""
        limit = self._daemon.call({"op": "status"}, who=THE_FACADE)["limits"]["value_bytes"]
        if size > limit:
            message = f"the {what} has {size} bytes, the limit is {limit} (--max-value-bytes)"
            raise KvError("value_too_large", message, limit=limit)

    def on_delete(self, req: falcon.Request, resp: falcon.Response, key: str | None = None) -> None:
        key, _ = read_keyed_query(req.env, key, routes.NOTHING)
        refuse_body(req.env)
        result = write(self._daemon, req.env, {"op": "delete", "key": key})
        send_json(resp, {"key": key, **result})

    def on_patch(self, req: falcon.Request, resp: falcon.Response, key: str | None = None) -> None:
        key, query = read_keyed_query(req.env, key, routes.PATCH_KEY)
        require_type(req.env, MERGE_PATCH, header="accept_patch")
        refuse_idempotency_key(
            req.env, "a merge patch applied twice is the same as once; If-Match guards the rest"
        )
        if BODY_AWAITED in req.env:
            check_write(req.env)
        size = int(req.env.get("CONTENT_LENGTH") or 0)
        if size > LARGE_BYTES:  # nearly all are smaller and are not checked here
            self._check_size("patch", size)
        patch = Patch(read_body(req.env), key, query.get(TTL), message_of(req.env))
        condition, who = condition_of(req.env), req.env[WHO]
        send_written(resp, key, read_then_write(self._daemon, key, condition, patch.applied_to, who))


class KeyOpResource:
    """``/v1/incr/{key}``, ``/v1/touch/{key}``, ``/v1/persist/{key}``: one op each, without a body."""

    def __init__(self, daemon: DaemonClient, name: str, endpoint: Endpoint) -> None:
        self._daemon = daemon
        self._endpoint = endpoint
        self._name = name

    def on_post(self, req: falcon.Request, resp: falcon.Response, key: str) -> None:
        query = read_query(req.env, self._endpoint.query)
        op: dict[str, Any] = {"op": self._name, "key": key}
        for parameter in self._endpoint.query.values():
            if parameter in query or parameter in self._endpoint.required:
                op[parameter.name] = query.required(parameter)
        if self._name == "incr":  # under an idempotency key, ?by=1 is the same request as none
            op.setdefault("by", 1)
        refuse_body(req.env)
        result = write(self._daemon, req.env, op)
        resp.set_header("etag", etag(result["revision"]))
        send_json(resp, reply_json(result, key=key))


def _refuse_several_ends(op: dict[str, Any]) -> None:
    """Refuse in the words of HTTP what the daemon would refuse too."""
    given = [name for name in OPERATIONS["put"].exclusive if name in op]
    if len(given) > 1:
        raise KvError("bad_request", f"{' and '.join(given)} exclude each other", parameter=given[0])


def _wants_record(query: Query) -> bool:
    return query.get(FORMAT) == "json" or (FORMAT not in query and query.get(INLINE) is True)


def send_written(resp: falcon.Response, key: str, result: dict[str, Any]) -> None:
    """Answer a put: 201 for a key that was not there before."""
    if result["version"] == 1:
        resp.status = "201 Created"
    resp.set_header("etag", etag(result["revision"]))
    send_json(resp, reply_json(result, key=key))


def _send_unchanged(resp: falcon.Response, unchanged: Unchanged) -> None:
    resp.status = "304 Not Modified"
    if unchanged.record is None:
        resp.set_headers({**_VALUE_HEADERS, "x-kvstore-revision": str(unchanged.revision)})
    else:
        resp.set_headers(_headers(unchanged.record))


def _headers(record: dict[str, Any]) -> dict[str, str]:
    revision = str(record["revision"])
    headers = {
        **_VALUE_HEADERS,
        "etag": f'"{revision}"',
        "last-modified": http_date(_last_modified(record)),
        "x-kvstore-revision": revision,
        "x-kvstore-create-revision": str(record["create_revision"]),
        "x-kvstore-version": str(record["version"]),
    }
    if "expires_at" in record:
        headers["x-kvstore-expires-at"] = timestamp(record["expires_at"])
    for name in ("author", "message"):
        if name in record:
            text = record[name]
            # spaces at the ends of a field's value are not part of it (RFC 9110 section 5.5)
            headers[f"x-kvstore-{name}"] = quote(text, safe=_IN_HEADERS if text == text.strip(" ") else "")
    return headers


def _last_modified(record: dict[str, Any]) -> int:
    """The second for Last-Modified: not later than the answer's Date (RFC 9110 section 8.8.2.1), though the
    daemon's clock may have been ahead when the value was stored. If-Modified-Since is compared with the
    stored time: while that lies ahead, no copy is fresh."""
    modified: int = record["modified_at"] // 1000
    return min(modified, int(time.time()))


def _is_unmodified(environ: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether the client's copy is still valid (RFC 9110 section 13.2.2, steps 3 and 4)."""
    none_match = environ.get("HTTP_IF_NONE_MATCH")
    if none_match is not None:
        return is_listed(record["revision"], parse_tags(none_match, "If-None-Match"))
    since = environ.get("HTTP_IF_MODIFIED_SINCE")
    if since is None:
        return False
    seconds = _seconds(since)
    return seconds is not None and record["modified_at"] // 1000 <= seconds


def _seconds(date: str) -> int | None:
    """The time in a header; None for a malformed one, which is ignored (RFC 9110 section 13.1.3), and for the
    year 99999, which ``parsedate`` takes."""
    try:
        parsed = parsedate(date)
        return None if parsed is None else calendar.timegm(parsed)
    except (ValueError, OverflowError):
        return None


def _send_range(environ: dict[str, Any], resp: falcon.Response, record: dict[str, Any]) -> None:
    """Narrow the answer to the one range that is asked for.

    A list of ranges, a range that cannot be satisfied, and one of another revision (If-Range) are answered
    with the whole value: RFC 9110 section 14.2 lets a server ignore Range.
    """
    if environ.get("HTTP_IF_RANGE", resp.get_header("etag")) != resp.get_header("etag"):
        return
    value = record["value"]
    bounds = _range(environ["HTTP_RANGE"], len(value))
    if bounds is not None:
        first, end = bounds
        resp.status = "206 Partial Content"
        resp.set_header("content-range", f"bytes {first}-{end - 1}/{len(value)}")
        resp.data = value[first:end]


def _range(text: str, size: int) -> tuple[int, int] | None:
    match = _ONE_RANGE.fullmatch(text)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        first, end = max(0, size - int(match[2])), size
    else:
        first, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    return (first, end) if first < end else None
