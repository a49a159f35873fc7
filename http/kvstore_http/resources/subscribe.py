"""``GET /v1/subscribe``: checked here, then the connection is handed over to the broadcaster."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import partial
from typing import Any

import falcon

from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.model import Cursor
from kvstore_core.operations import EVENT_OPS, MAX_FILTERS
from kvstore_http import routes
from kvstore_http.protocol import query_params
from kvstore_http.protocol.bodies import preferred
from kvstore_http.protocol.environ import HAND_OVER, NO_ROOM, RAW_QUERY
from kvstore_http.protocol.query_params import Parameter
from kvstore_http.protocol.raw_router import percent_decoded
from kvstore_http.settings import HttpSettings
from kvstore_http.streaming.broadcaster import Kind
from kvstore_http.streaming.catch_up import Start
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.event_format import Format
from kvstore_http.streaming.stream_sockets import Stream

SSE, NDJSON = routes.STREAM, "application/x-ndjson"

_PARAMETERS = routes.SUBSCRIBE


BRIEFLY = 1.0
"""For so many seconds an EventSource waits for its headers; then its stream is opened without the daemon."""

COME_BACK_MS = (3_000, 9_000)
"""After a time out of this range an EventSource that found no room tries again."""


class SubscribeResource:
    """The event stream. What is wrong with a request is said before the first byte.

    What only time cures is said as a 503 too, but to an EventSource: that never connects again after
    anything but a 200 that ends. Its stream is opened, and begins when the daemon is there; where there
    is no room for it, it is ended at once and comes back later.
    """

    def __init__(self, feed: ChangeFeed, settings: HttpSettings) -> None:
        self._feed = feed
        self._patience = settings.daemon_timeout_ms / 1000

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the stream's headers; the server gives the connection away after them."""
        wishes = _Wishes(req.env[RAW_QUERY])
        media_type = _media_type(req)
        start = _start(wishes, req)
        is_event_source = media_type == SSE and SSE in (req.get_header("Accept") or "").lower()
        resp.content_type = media_type
        resp.set_header("cache-control", "no-store, no-transform")
        resp.set_header("x-accel-buffering", "no")
        resp.set_header("vary", "Accept")
        if req.env["SERVER_PROTOCOL"] == "HTTP/1.0":
            # for those behind a proxy, who cannot see how it speaks to us
            resp.set_header("x-kvstore-body-ends", "with the connection")
        resp.stream = ()
        try:
            if NO_ROOM in req.env:
                raise req.env[NO_ROOM]
            self._wait_for_daemon(is_event_source=is_event_source)
            if req.method != "HEAD":
                self._feed.broadcaster.check_room()
        except KvError as error:
            if not is_event_source:
                raise
            resp.data = b"retry: %d\n: %b\n\n" % (random.randint(*COME_BACK_MS), error.message.encode())  # noqa: S311
        else:
            if req.method != "HEAD":
                req.env[HAND_OVER](partial(self._hand_over, wishes, media_type == SSE, start))

    def _wait_for_daemon(self, *, is_event_source: bool) -> None:
        """Wait until there is a position to begin from; so what is written as soon as the headers are
        there is seen. Raises ``unavailable``; not for an EventSource, which nothing is kept from while
        nobody can write."""
        try:
            self._feed.wait_until_started(min(self._patience, BRIEFLY) if is_event_source else self._patience)
        except KvError:
            if not is_event_source:
                raise

    def _hand_over(
        self, wishes: _Wishes, is_sse: bool, start: Start, fd: int, unsent: bytes, is_chunked: bool
    ) -> Stream:
        form = Format(is_sse, wishes.has_values, is_chunked, wishes.inline)
        return self._feed.broadcaster.adopt(Kind(wishes.wanted, form, wishes.previous), start, fd, unsent)


def _start(wishes: _Wishes, req: falcon.Request) -> Start:
    last_id = _last_of(req.get_header("Last-Event-ID") or "") or wishes.last_event_id
    since = query_params.STREAM_SINCE.read(last_id) if last_id else wishes.one(query_params.STREAM_SINCE)
    if since is None:
        return Start(None, snapshot=wishes.one(query_params.SNAPSHOT) or False)
    return Start(Cursor(since.revision, since.epoch))


class _Wishes:
    """The parameters of a stream, checked. Raises ``bad_request`` or ``invalid_key``."""

    def __init__(self, raw_query: str) -> None:
        self._texts: dict[str, list[str]] = {}
        for name, text in _pairs(raw_query):
            if name not in _PARAMETERS:
                known = ", ".join(_PARAMETERS)
                raise KvError(
                    "bad_request", f"there is no parameter {name!r} here; known are: {known}", parameter=name
                )
            self._texts.setdefault(name, []).append(text)
        prefixes, keys = self._many(query_params.STREAM_PREFIX), self._many(query_params.STREAM_KEY)
        self.wanted = Filter.normalized(prefixes, keys, self._ops())
        values = self.one(query_params.VALUES)
        self.has_values = True if values is None else values
        self.previous = self.one(query_params.PREVIOUS) or False
        self.inline = self.one(query_params.INLINE) or False

    @property
    def last_event_id(self) -> str:
        """The id that clients without a header for it put into the query, empty where there is none. Some add
        it to an address that has an older one: the last counts."""
        ids = [
            text for parameter in query_params.LAST_EVENT_IDS for text in self._texts.get(parameter.name, ())
        ]
        return _last_of(ids[-1]) if ids else ""

    def one(self, parameter: Parameter[Any]) -> Any:
        """The value of a parameter that may stand there once; None if it does not."""
        texts = self._texts.get(parameter.name, ())
        if len(texts) > 1:
            name = parameter.name
            raise KvError("bad_request", f"the parameter {name!r} stands there twice", parameter=name)
        return parameter.read(texts[0]) if texts else None

    def _many(self, parameter: Parameter[str]) -> list[str]:
        texts = self._texts.get(parameter.name, [])
        if len(texts) > MAX_FILTERS:
            raise KvError(
                "bad_request",
                f"{parameter.name} stands there {len(texts)} times; the limit is {MAX_FILTERS}",
                parameter=parameter.name,
                limit=MAX_FILTERS,
            )
        return [parameter.read(text) for text in texts]

    def _ops(self) -> Iterable[str]:
        text = self.one(query_params.OPS)
        ops = text.split(",") if text is not None else []
        if not all(op in EVENT_OPS for op in ops):
            raise KvError(
                "bad_request", f"ops must be {query_params.OPS.must_be}, not {text!r}", parameter="ops"
            )
        return ops


def _last_of(ids: str) -> str:
    """The newest of several ids: ``fetch`` joins a header that a page and its library both set."""
    return ids.rpartition(",")[2].strip()


def _pairs(raw_query: str) -> Iterable[tuple[str, str]]:
    for pair in filter(None, raw_query.split("&")):
        name, _, text = pair.partition("=")
        try:
            yield percent_decoded(name.replace("+", " ")), percent_decoded(text.replace("+", " "))
        except ValueError as error:
            raise KvError("bad_request", f"the query is not percent-encoded UTF-8: {error}") from error


def _media_type(req: falcon.Request) -> str:
    media_type = preferred(req, SSE, NDJSON)
    if media_type is None:
        raise KvError("not_acceptable", f"the stream comes as {SSE} or as {NDJSON}", offered=[SSE, NDJSON])
    return media_type
