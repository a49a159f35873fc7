"""``/v1/subscribe``: checked here, then the connection is handed over to the broadcaster."""

from __future__ import annotations

import random
from functools import partial
from socket import socket

import falcon

from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.media_types import JSON, NDJSON, SSE
from kvstore_http import routes
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.protocol import query_params
from kvstore_http.protocol.bodies import choose_type, read_json, require_type
from kvstore_http.protocol.environ import HAND_OVER, NO_ROOM, WHO
from kvstore_http.protocol.query_params import Query, SinceTime, filters_of, read_query
from kvstore_http.protocol.subscription_body import read_subscription
from kvstore_http.settings import HttpSettings
from kvstore_http.streaming.broadcaster import Broadcaster
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.change_pages import position_at
from kvstore_http.streaming.event_format import Format
from kvstore_http.streaming.stream_sockets import Stream, StreamSpec, StreamStart

EVENT_SOURCE_WAIT_SECONDS = 1.0
"""How long an EventSource waits for its headers before its stream is opened without the daemon."""

NO_ROOM_RETRY_MS = (3_000, 9_000)
"""An EventSource that found no room tries again after a time in this range."""


class SubscribeResource:
    """The event stream. A request is refused before the first byte of it.

    What time may cure is a 503, except for an EventSource, which never connects again after anything but a
    200 that ends. Its stream is opened, and begins when the daemon is there; if there is no room, it is ended
    at once, and the EventSource comes back later.
    """

    def __init__(
        self, daemon: DaemonClient, feed: ChangeFeed, broadcaster: Broadcaster, settings: HttpSettings
    ) -> None:
        self._daemon = daemon
        self._feed = feed
        self._broadcaster = broadcaster
        self._patience = settings.daemon_timeout_ms / 1000

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the stream's headers; after them the server hands the connection over."""
        query = read_query(req.env, routes.SUBSCRIBE)
        media_type = choose_type(req, SSE, NDJSON)
        is_event_source = media_type == SSE and SSE in (req.get_header("Accept") or "").lower()
        self._begin(req, resp, query, media_type, is_event_source=is_event_source)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The same, with the parameters in a JSON body."""
        require_type(req.env, JSON)
        read_query(req.env, routes.NOTHING)
        media_type = choose_type(req, SSE, NDJSON)
        query = read_subscription(read_json(req.env))
        self._begin(req, resp, query, media_type, is_event_source=False)

    on_query = on_post

    def _begin(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        query: Query,
        media_type: str,
        *,
        is_event_source: bool,
    ) -> None:
        who: Principal = req.env[WHO]
        spec, begin = _spec(query, media_type), _start(req, query)
        start = StreamStart(None) if isinstance(begin, SinceTime) else begin
        resp.content_type = media_type
        resp.set_header("cache-control", "no-store, no-transform")
        resp.set_header("x-accel-buffering", "no")
        resp.set_header("vary", "Accept")
        if req.env["SERVER_PROTOCOL"] == "HTTP/1.0":
            # for clients behind a proxy, which cannot see that it speaks HTTP/1.0 here
            resp.set_header("x-kvstore-body-ends", "with the connection")
        resp.stream = ()
        try:
            if NO_ROOM in req.env:
                raise req.env[NO_ROOM]
            spec = _permitted(spec, start, who)
            self._wait_for_daemon(is_event_source=is_event_source)
            if isinstance(begin, SinceTime):
                start = StreamStart(position_at(self._daemon, begin.milliseconds))
            if req.method != "HEAD":
                self._broadcaster.check_room(spec)
        except KvError as error:
            if not is_event_source or not error.row.is_temporary:
                raise
            resp.data = b"retry: %d\n: %b\n\n" % (random.randint(*NO_ROOM_RETRY_MS), error.message.encode())  # noqa: S311
        else:
            if req.method != "HEAD":
                req.env[HAND_OVER](partial(self._hand_over, spec, start, who))

    def _wait_for_daemon(self, *, is_event_source: bool) -> None:
        """Wait until there is a position to begin from, so that the stream has all that is written after its
        headers. Raises ``unavailable``; not for an EventSource: without the daemon nobody can write."""
        try:
            self._feed.wait_until_started(
                min(self._patience, EVENT_SOURCE_WAIT_SECONDS) if is_event_source else self._patience
            )
        except KvError:
            if not is_event_source:
                raise

    def _hand_over(
        self,
        spec: StreamSpec,
        start: StreamStart,
        who: Principal,
        sock: socket,
        unsent: bytes,
        is_chunked: bool,
    ) -> Stream:
        spec = spec._replace(form=spec.form._replace(is_chunked=is_chunked))
        return self._broadcaster.adopt(spec, start, who, sock, unsent)


def _permitted(spec: StreamSpec, start: StreamStart, who: Principal) -> StreamSpec:
    """The spec as ``who`` may have it: without snapshots after a reset where keys may not be listed. Raises
    ``not_allowed`` or ``unauthenticated``."""
    if who.is_unrestricted:
        return spec
    lists = start.snapshot or all(map(who.may, spec.listing_needs()))
    spec = spec._replace(lists=lists)
    who.check(spec.needs())
    return spec


def _start(req: falcon.Request, query: Query) -> StreamStart | SinceTime:
    last_id = _last_event_id(req, query)
    since = query_params.EVENT_ID.read(last_id) if last_id else query.get(query_params.STREAM_SINCE)
    if isinstance(since, SinceTime):
        return since
    return StreamStart(since, snapshot=since is None and (query.get(query_params.SNAPSHOT) or False))


def _last_event_id(req: falcon.Request, query: Query) -> str:
    """The id that the client resumes after, empty if it sends none. Clients that cannot set the header put
    the id into the query, some of them behind an older one: the last counts."""
    ids = [ident for parameter in query_params.LAST_EVENT_IDS for ident in query.all(parameter)]
    return _last_of(req.get_header("Last-Event-ID") or "") or _last_of(ids[-1] if ids else "")


def _last_of(ids: str) -> str:
    """The newest of several ids: ``fetch`` joins a header that a page and its library both set."""
    return ids.rpartition(",")[2].strip()


def _spec(query: Query, media_type: str) -> StreamSpec:
    prefixes = filters_of(query, query_params.STREAM_PREFIX)
    keys = filters_of(query, query_params.STREAM_KEY)
    ops = query.get(query_params.OPS) or []
    wanted = Filter.normalized(prefixes, keys, ops)
    has_values = query.get(query_params.VALUES) is not False
    inline = query.get(query_params.INLINE) or False
    form = Format(media_type == SSE, has_values, is_chunked=False, inline=inline)
    is_latest, sample = query.get(query_params.DELIVER), query.get(query_params.SAMPLE)
    if sample is not None and is_latest is False:
        raise KvError(
            "bad_request", "sample implies deliver=latest; leave deliver=all out", parameter="sample"
        )
    return StreamSpec(
        wanted,
        form,
        query.get(query_params.PREVIOUS) or False,
        is_latest=bool(is_latest or sample),
        sample_ms=sample or 0,
    )
