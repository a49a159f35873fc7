"""``GET /v1/changes``: the changes in pages, for those who come from time to time."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import falcon
import orjson

from kvstore_core.access.principal import Principal
from kvstore_core.limits import MAX_PAGE
from kvstore_core.media_types import JSON, NDJSON
from kvstore_core.model import Cursor
from kvstore_core.operations import OPERATIONS
from kvstore_http import routes
from kvstore_http.access.callers import Refreshed
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.backend.stale_reads import Reads, reads_of, say_age
from kvstore_http.protocol.bodies import choose_type
from kvstore_http.protocol.environ import WAITS, WHO, leaving_of
from kvstore_http.protocol.json_records import reply_json
from kvstore_http.protocol.query_params import (
    CACHE,
    CHANGES_LIMIT,
    CHANGES_SINCE,
    CHANGES_WAIT,
    INLINE,
    OPS,
    PREVIOUS,
    STREAM_KEY,
    STREAM_PREFIX,
    VALUES,
    Query,
    SinceTime,
    filters_of,
    read_query,
)
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.change_pages import ChangesPage, present, read_page, wait_for_page
from kvstore_http.streaming.long_poll import WaitingCaller


class ChangesResource:
    """A page of the log after ``since``, and the cursor at which the next one begins."""

    def __init__(self, daemon: DaemonClient, feed: ChangeFeed, page_bytes: int, refreshed: Refreshed) -> None:
        self._daemon = daemon
        self._feed = feed
        self._page_bytes = page_bytes
        self._refreshed = refreshed

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        query = read_query(req.env, routes.CHANGES)
        media_type = choose_type(req, JSON, NDJSON)
        cache, inline = query.get(CACHE), query.get(INLINE) or False
        since = query.get(CHANGES_SINCE)
        page = self._page(query, since, req.env)
        # only what follows a cursor stays the same: a revision may come to mean another history
        is_fixed = page.more and isinstance(since, Cursor) and since.epoch != ""
        body = _body(page, media_type, inline=inline, is_fixed=is_fixed and cache is not None)
        tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
        resp.set_header("etag", tag)
        resp.set_header("vary", "Accept")
        if is_fixed and cache is not None:
            resp.set_header("cache-control", f"max-age={cache}, immutable")
        else:
            resp.set_header("cache-control", "no-cache")
        say_age(req.env, resp)
        if _has(req.env, tag):
            resp.status = "304 Not Modified"
        else:
            resp.content_type, resp.data = media_type, body

    def _page(self, query: Query, since: Cursor | SinceTime | None, environ: dict[str, Any]) -> ChangesPage:
        who: Principal = environ[WHO]
        reads = reads_of(self._daemon, query, environ)
        op = {**_events_op(query), "max_bytes": self._page_bytes}
        if not who.is_unrestricted:
            who.check_op(op, OPERATIONS["events"].needs)
        op |= _begin(reads, since)
        seconds = query.get(CHANGES_WAIT)
        if seconds is None:
            return read_page(reads, op, who)
        environ[WAITS] = True
        needs = [*OPERATIONS["events"].needs(op)]
        caller = WaitingCaller(partial(self._refreshed, who), needs, leaving_of(environ))
        return wait_for_page(reads, self._feed, op, seconds, caller)


def _events_op(query: Query) -> dict[str, Any]:
    """The op that the query asks for, but for where it begins."""
    chosen: dict[str, Any] = {
        "prefixes": filters_of(query, STREAM_PREFIX),
        "keys": filters_of(query, STREAM_KEY),
        "ops": query.get(OPS),
    }
    op: dict[str, Any] = {"op": "events", **{name: texts for name, texts in chosen.items() if texts}}
    op["limit"] = query.get(CHANGES_LIMIT) or MAX_PAGE
    if query.get(VALUES) is False:
        op["values"] = False
    if query.get(PREVIOUS):
        op["previous"] = True
    return op


def _begin(reads: Reads, since: Cursor | SinceTime | None) -> dict[str, Any]:
    if isinstance(since, SinceTime):
        return {"since_time": since.milliseconds}
    begin = present(reads) if since is None else since
    return {"since": str(begin) if begin.epoch else begin.revision}


def _body(page: ChangesPage, media_type: str, *, inline: bool, is_fixed: bool) -> bytes:
    """The page as it is sent. One that is to stay as it is says nothing of where the log begins and ends."""
    events = [reply_json(event, inline=inline) for event in page.events]
    end: dict[str, Any] = {"cursor": str(page.cursor)}
    if not is_fixed:
        end |= {"floor": page.floor, "head": page.head}
    end["more"] = page.more
    if media_type == JSON:
        return orjson.dumps({"events": events, **end})
    return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in (*events, end))


def _has(environ: dict[str, Any], tag: str) -> bool:
    """Whether the client has the page with this tag (RFC 9110 section 13.1.2): compared weakly, since a proxy
    that compresses an answer makes its tag a weak one."""
    tags = environ.get("HTTP_IF_NONE_MATCH", "").split(",")
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in tags)
