"""One key: its value as a body, its revision as an ETag."""

from __future__ import annotations

import calendar
from email.utils import parsedate
from functools import partial
from typing import Any

import falcon

from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError
from kvstore_core.media_types import MERGE_PATCH
from kvstore_core.operations import OPERATIONS
from kvstore_http import routes
from kvstore_http.access.callers import Refreshed
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.backend.stale_reads import reads_of, say_age
from kvstore_http.large_work import LARGE_BYTES
from kvstore_http.protocol.bodies import (
    read_body,
    read_value,
    refuse_body,
    require_type,
    send_json,
    value_type,
)
from kvstore_http.protocol.environ import BODY_AWAITED, WAITS, WHO, leaving_of
from kvstore_http.protocol.json_records import reply_json
from kvstore_http.protocol.key_answers import VALUE_HEADERS, key_address, record_headers, written
from kvstore_http.protocol.merge_patch import Patch
from kvstore_http.protocol.preconditions import (
    check_write,
    condition_of,
    etag,
    is_listed,
    message_of,
    parse_tags,
    refuse_conditions,
    refuse_idempotency_key,
)
from kvstore_http.protocol.query_params import (
    EMPTY,
    EXPIRES_AT,
    FORMAT,
    GUARD,
    IF_VALUE,
    INLINE,
    KEEP_TTL,
    MIN_REVISION,
    REVISION,
    SINCE,
    TTL,
    UNTIL,
    WAIT,
    Query,
    read_keyed_query,
    read_query,
)
from kvstore_http.protocol.ranges import content_range, range_of
from kvstore_http.resources.history import read_as_of
from kvstore_http.resources.writes import read_then_write, write
from kvstore_http.routes import Endpoint
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.long_poll import (
    Held,
    Poll,
    Unchanged,
    read_after_change,
    read_once_it_holds,
)


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
        record = self._record(key, query, req.env)
        if isinstance(record, Held):
            if record.record is None:
                _send_gone(resp, record.revision)
                say_age(req.env, resp)
                return
            record = record.record
        if isinstance(record, Unchanged):
            _send_unchanged(resp, record)
            say_age(req.env, resp)
            return
        resp.set_headers(record_headers(record))
        if query is not EMPTY:
            say_age(req.env, resp)
        if _is_unmodified(req.env, record):
            resp.status = "304 Not Modified"
        elif query is not EMPTY and _wants_record(query):
            send_json(resp, reply_json(record, inline=query.get(INLINE) or False, key=key))
        else:
            resp.content_type = record["content_type"]
            resp.data = record["value"]
            if "HTTP_RANGE" in req.env:
                _send_range(req.env, resp, record)

    def _record(self, key: str, query: Query, environ: dict[str, Any]) -> dict[str, Any] | Unchanged | Held:
        """The record that the query asks for; raises ``not_found``."""
        who: Principal = environ[WHO]
        if query is EMPTY:
            return self._daemon.call({"op": "get", "key": key}, who=who)
        reads = reads_of(self._daemon, query, environ)
        revision, wait, since = query.get(REVISION), query.get(WAIT), query.get(SINCE)
        newest = query.get(MIN_REVISION)
        if newest is not None and not (wait is None and revision is None):
            message = "min_revision goes with a read of what is there now, not with revision or wait"
            raise KvError("bad_request", message, parameter="min_revision")
        if wait is None:
            if UNTIL in query:
                raise KvError(
                    "bad_request", "until goes with wait: ?wait=30s&until=exists", parameter="until"
                )
            if since is not None:
                raise KvError("bad_request", "since goes with wait: ?wait=30s&since=7", parameter="since")
            if newest is not None:
                return reads.call({"op": "get", "key": key, "min_revision": newest}, who=who)
            if revision is None:
                return reads.call({"op": "get", "key": key}, who=who)
            return read_as_of(reads, key, revision, who)
        if revision is not None:
            raise KvError("bad_request", "revision asks for the past, wait for the future: use one of them")
        poll = Poll.of_key(key, since, wait, partial(self._refreshed, who), leaving_of(environ))
        until = query.get(UNTIL)
        if until is not None:
            return read_once_it_holds(reads, self._feed, poll, until)
        return read_after_change(reads, self._feed, poll)

    # ── writing ─────────────────────────────────────────────────────────────────────────────────

    def on_put(self, req: falcon.Request, resp: falcon.Response, key: str | None = None) -> None:
        key, query = read_keyed_query(req.env, key, routes.PUT_KEY)
        op: dict[str, Any] = {"op": "put", "key": key, "content_type": value_type(req.env)}
        send_written(resp, key, self._stored(req.env, op, query))

    def on_post(self, req: falcon.Request, resp: falcon.Response, key: str | None = None) -> None:
        """Store the body under a key that begins with ``key`` and has a number of its own behind it."""
        key, query = read_keyed_query(req.env, key, routes.POST_KEY)
        refuse_conditions(req.env, "the key is a new one; guard=KEY@REVISION is about another")
        op = {"op": "put", "key": key, "content_type": value_type(req.env), "sequence": True}
        result = self._stored(req.env, op, query)
        resp.set_header("location", key_address(result["key"]))
        send_written(resp, result["key"], result)

    def _stored(self, environ: dict[str, Any], op: dict[str, Any], query: Query) -> dict[str, Any]:
        """The result of the put ``op``, with the body as its value and what the ``query`` says."""
        guards: list[dict[str, Any]] = []
        if query is not EMPTY:
            ttl, expires_at = query.get(TTL), query.get(EXPIRES_AT)
            if query.get(KEEP_TTL):
                op["keep_ttl"] = True
            if expires_at is not None:
                op["expires_at"] = expires_at
            if ttl is not None:
                op["ttl"] = ttl
            _refuse_several_ends(op)
            _add_if_value(op, query, environ)
            guards = query.all(GUARD)
        if BODY_AWAITED in environ:
            check_write(environ)
            self._check_size("value", int(environ["CONTENT_LENGTH"]))
        return write(self._daemon, environ, op, read_value(environ), guards)

    def _check_size(self, what: str, size: int) -> None:
        """Raise ``value_too_large``. The daemon knows the limit; asking it costs less than the upload."""
        limit = self._daemon.call({"op": "status"}, who=THE_FACADE)["limits"]["value_bytes"]
        if size > limit:
            message = f"the {what} has {size} bytes, the limit is {limit} (--max-value-bytes)"
            raise KvError("value_too_large", message, limit=limit)

    def on_delete(self, req: falcon.Request, resp: falcon.Response, key: str | None = None) -> None:
        key, query = read_keyed_query(req.env, key, routes.CONDITIONS)
        op = {"op": "delete", "key": key}
        _add_if_value(op, query, req.env)
        guards = query.all(GUARD)
        refuse_body(req.env)
        result = write(self._daemon, req.env, op, guards=guards)
        send_json(resp, {"key": key, **result})

    def on_patch(self, req: falcon.Request, resp: falcon.Response, key: str | None = None) -> None:
        key, query = read_keyed_query(req.env, key, routes.PATCH_KEY)
        require_type(req.env, MERGE_PATCH, header="accept_patch")
        refuse_idempotency_key(
            req.env, "a merge patch applied twice is the same as once; If-Match guards the rest"
        )
        ttl, guards = query.get(TTL), query.all(GUARD)
        if BODY_AWAITED in req.env:
            check_write(req.env)
        size = int(req.env.get("CONTENT_LENGTH") or 0)
        if size > LARGE_BYTES:  # nearly all are smaller and are not checked here
            self._check_size("patch", size)
        patch = Patch(read_body(req.env), key, ttl, message_of(req.env))
        condition, who = condition_of(req.env), req.env[WHO]
        send_written(resp, key, read_then_write(self._daemon, key, condition, patch.applied_to, who, guards))


class KeyOpResource:
    """``/v1/incr/{key}``, ``/v1/touch/{key}``, ``/v1/persist/{key}``: one op each, without a body."""

    def __init__(self, daemon: DaemonClient, name: str, endpoint: Endpoint) -> None:
        self._daemon = daemon
        self._endpoint = endpoint
        self._name = name

    def on_post(self, req: falcon.Request, resp: falcon.Response, key: str) -> None:
        query = read_query(req.env, self._endpoint.query)
        op: dict[str, Any] = {"op": self._name, "key": key}
        for name, parameter in self._endpoint.query.items():
            if name not in routes.CONDITIONS and (parameter in query or parameter in self._endpoint.required):
                op[name] = query.required(parameter)
        _add_if_value(op, query, req.env)
        guards = query.all(GUARD)
        if self._name == "incr":  # under an idempotency key, ?by=1 is the same request as none
            op.setdefault("by", 1)
        refuse_body(req.env)
        result = write(self._daemon, req.env, op, guards=guards)
        resp.set_header("etag", etag(result["revision"]))
        send_json(resp, reply_json(result, key=key))


def _refuse_several_ends(op: dict[str, Any]) -> None:
    """Refuse in the words of HTTP what the daemon would refuse too."""
    ends = OPERATIONS["put"].exclusive[0]
    given = [name for name in ends if name in op]
    if len(given) > 1:
        raise KvError("bad_request", f"{' and '.join(given)} exclude each other", parameter=given[0])


def _add_if_value(op: dict[str, Any], query: Query, environ: dict[str, Any]) -> None:
    text = query.get(IF_VALUE)
    if text is None:
        return
    if condition_of(environ) is not None:
        message = "if_value excludes If-Match and If-None-Match: a guard of the key itself goes with it"
        raise KvError("bad_request", message, parameter="if_value")
    op["if_value"] = text


def _wants_record(query: Query) -> bool:
    return query.get(FORMAT) == "json" or (FORMAT not in query and query.get(INLINE) is True)


def send_written(resp: falcon.Response, key: str, result: dict[str, Any]) -> None:
    """Answer a put."""
    resp.status, headers, resp.data = written(key, result)
    resp.set_headers(headers)


def _send_unchanged(resp: falcon.Response, unchanged: Unchanged) -> None:
    resp.status = "304 Not Modified"
    if unchanged.record is None:
        resp.set_headers({**VALUE_HEADERS, "x-kvstore-revision": str(unchanged.revision)})
    else:
        resp.set_headers(record_headers(unchanged.record))


def _send_gone(resp: falcon.Response, revision: int) -> None:
    """Answer one who waited until there is no record: for them it is no error that there is none."""
    resp.status = "204 No Content"
    resp.set_headers({**VALUE_HEADERS, "x-kvstore-revision": str(revision)})


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
    """Narrow the answer to the one range that is asked for, if there is anything in it."""
    value = record["value"]
    part = range_of(environ, etag(record["revision"]), len(value))
    if part:
        resp.status = "206 Partial Content"
        resp.set_header("content-range", content_range(part, len(value)))
        resp.data = value[part.start : part.stop]
