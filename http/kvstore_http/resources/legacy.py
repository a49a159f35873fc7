"""``GET /?key=``, ``GET /all`` and ``PUT /``: the routes of the service that this one replaces.

They stay as they were so that its clients go on working; ``/v1`` can do all that they do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import falcon
import orjson

from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE, HTML, JSON, TEXT_CONTENT_TYPE
from kvstore_core.model import check_key
from kvstore_http import routes
from kvstore_http.access.callers import Refreshed
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.backend.stale_reads import Reads, reads_of, say_age
from kvstore_http.protocol.bodies import joined, preferred, read_json, used_up
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import value_member
from kvstore_http.protocol.query_params import KEY, read_query
from kvstore_http.resources import ui_files
from kvstore_http.resources.writes import write

_LINKS = {row.link[0]: row.path + row.link[1] for row in routes.ENDPOINTS if row.link is not None}
_TRY = (
    "curl -X PUT -d hello {here}/v1/kv/greeting",
    "curl {here}/v1/kv/greeting",
    "curl -N {here}/v1/subscribe",
)


class RootResource:
    """``/``."""

    def __init__(self, daemon: DaemonClient) -> None:
        self._daemon = daemon

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The key's value as text; without ``key``, the index, or for a browser the page."""
        query = read_query(req.env, routes.ROOT)
        key = query.get(KEY)
        resp.set_header("cache-control", "no-store")
        if key is None:
            resp.set_header("vary", "Accept")
            if _prefers_html(req):
                ui_files.redirect_to_page(resp)
                return
            here = f"{req.scheme}://{req.netloc}"
            index = {"service": "kvstore", "links": _LINKS, "try": [line.format(here=here) for line in _TRY]}
            resp.data = orjson.dumps(index, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            resp.content_type = JSON
            return
        reads = reads_of(self._daemon, query, req.env)
        resp.data = reads.call({"op": "get", "key": key}, who=req.env[WHO])["value"]
        say_age(req.env, resp)
        resp.content_type = TEXT_CONTENT_TYPE if "value" in value_member(resp.data) else DEFAULT_CONTENT_TYPE
        resp.set_header("x-content-type-options", "nosniff")

    def on_put(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Store ``{"key", "value"}``, both texts; the Content-Type does not matter."""
        read_query(req.env, routes.NOTHING)
        key, value = _pair(read_json(req.env))
        op = {"op": "put", "key": key, "content_type": TEXT_CONTENT_TYPE}
        result = write(self._daemon, req.env, op, value)
        resp.text = f"stored at revision {result['revision']}\n"
        resp.content_type = TEXT_CONTENT_TYPE


class AllResource:
    """``/all``."""

    def __init__(self, daemon: DaemonClient, part_bytes: int, refreshed: Refreshed) -> None:
        self._daemon = daemon
        self._refreshed = refreshed
        self._op = {"op": "list", "max_bytes": part_bytes}

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        reads, who = reads_of(self._daemon, read_query(req.env, routes.ALL), req.env), req.env[WHO]
        first = reads.call(self._op, who=who)
        say_age(req.env, resp)
        resp.set_header("cache-control", "no-store")
        resp.content_type = JSON
        resp.stream = self._object(reads, first, who)

    def _object(self, reads: Reads, page: dict[str, Any], who: Principal) -> Iterator[bytes]:
        """One JSON object, a page at a time; after an error midway it lacks its closing brace."""
        separators = itertools.chain((b"{",), itertools.repeat(b","))
        is_empty = True
        while True:
            items, cursor = page["items"], page["cursor"]
            is_empty = is_empty and not items
            del page
            yield from joined(map(_separated, map(_member, used_up(items)), separators))
            if cursor is None:
                break
            page = reads.call({**self._op, "cursor": cursor}, who=self._refreshed(who))
        yield b"{}\n" if is_empty else b"}\n"


def _prefers_html(req: falcon.Request) -> bool:
    # a client that takes both alike, as curl does, is no browser
    return HTML in req.env.get("HTTP_ACCEPT", "") and preferred(req, JSON, HTML) == HTML


def _pair(body: Any) -> tuple[str, bytes]:
    if type(body) is not dict or body.keys() != {"key", "value"}:
        raise KvError("bad_request", 'the body must be {"key": …, "value": …}')
    key, value = body["key"], body["value"]
    if type(key) is not str or type(value) is not str:
        raise KvError("bad_request", "key and value must be texts; PUT /v1/kv/{key} takes any bytes")
    check_key(key)
    return key, value.encode()


def _member(item: dict[str, Any]) -> bytes:
    """``"key":"value"``. Bytes that are no text become ``{"value_b64": …}``: the old service had no such
    values, so its clients have stored none."""
    member = value_member(item["value"])
    return orjson.dumps(item["key"]) + b":" + orjson.dumps(member.get("value", member))


def _separated(member: bytes, separator: bytes) -> bytes:
    # in this order: map reads its first argument first, so no separator is lost at the end of a page
    return separator + member
