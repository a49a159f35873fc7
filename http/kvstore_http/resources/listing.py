"""``/v1/kv``: pages, counts and whole listings; and the same address with ``?key=`` for one key."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import falcon
import orjson

from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_PAGE
from kvstore_core.media_types import JSON, NDJSON
from kvstore_http import routes
from kvstore_http.access.callers import Refreshed
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.backend.stale_reads import Reads, reads_of, say_age
from kvstore_http.protocol.bodies import choose_type, joined, refuse_body, send_json, used_up
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import reply_json
from kvstore_http.protocol.preconditions import idempotency_key_of, refuse_conditions
from kvstore_http.protocol.problems import problem
from kvstore_http.protocol.query_params import (
    COUNT,
    COUNTS,
    CURSOR,
    DEFAULT_LIMIT,
    DELETED_PREFIX,
    DELIMITER,
    END,
    INLINE,
    KEY,
    KEYS,
    LIMIT,
    MIN_REVISION,
    PREFIX,
    REVERSE,
    START,
    TOTAL,
    Parameter,
    Query,
    read_query,
)
from kvstore_http.resources.keys import KeyResource
from kvstore_http.resources.writes import say_why, write_op
from kvstore_http.settings import HttpSettings

_MEMBERS = ("items", "prefixes", "counts", "revision", "cursor")
_OF_OP: tuple[Parameter[Any], ...] = (
    PREFIX,
    START,
    END,
    CURSOR,
    DELIMITER,
    REVERSE,
    COUNTS,
    MIN_REVISION,
)
"""The parameters that are fields of the op."""
_NO_CONDITION = (
    "a delete by prefix is done in several revisions, over which no condition holds: list the keys, and "
    "delete them in an atomic batch that has a check"
)


class CollectionResource:
    """``/v1/kv``: many keys, or ``one`` with ``?key=``, for proxies that rewrite paths."""

    def __init__(
        self, daemon: DaemonClient, one: KeyResource, settings: HttpSettings, refreshed: Refreshed
    ) -> None:
        self._daemon = daemon
        self._refreshed = refreshed
        self._one = one
        self.on_put, self.on_post, self.on_patch = one.on_put, one.on_post, one.on_patch
        self._page_bytes = settings.page_bytes
        self._part_bytes = settings.part_bytes

    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        query = read_query(req.env)
        if KEY in query:
            self._one.on_delete(req, resp)
        else:
            for parameter in routes.CONDITIONS.values():
                if parameter in query:
                    raise KvError("bad_request", _NO_CONDITION, parameter=parameter.name)
            self._delete_prefix(req, resp, query.expect(routes.DELETE_PREFIX).required(DELETED_PREFIX))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        query = read_query(req.env)
        if KEY in query:
            self._one.on_get(req, resp)
        else:
            self._list(req, resp, query.expect(routes.LIST))

    def _delete_prefix(self, req: falcon.Request, resp: falcon.Response, prefix: str) -> None:
        """Delete page after page, each in its own revision: it is not atomic, and an error says how much was
        deleted before it. A repeat under the same idempotency key gets the answers of the pages that were
        done, and continues behind them."""
        refuse_body(req.env)
        refuse_conditions(req.env, "a prefix has no revision, only ?key= has")
        idempotency_key = idempotency_key_of(req.env)
        who = req.env[WHO]
        op, deleted, revision = {"op": "delete_prefix", "prefix": prefix}, 0, None
        say_why(req.env, op)
        for step in itertools.count():
            try:
                page = write_op(self._daemon, op, None, idempotency_key, self._refreshed(who), step)
            except KvError as error:
                raise KvError(error.code, error.message, **error.details, deleted=deleted) from error
            deleted += page["deleted"]
            revision = page.get("revision", revision)  # absent where the page was empty
            if not page["more"]:
                break
        send_json(resp, {"prefix": prefix, "deleted": deleted, "revision": revision})

    def _list(self, req: falcon.Request, resp: falcon.Response, query: Query) -> None:
        media_type = choose_type(req, JSON, NDJSON)
        resp.set_header("cache-control", "no-store")
        resp.set_header("vary", "accept")
        op, inline, who = _list_op(query), query.get(INLINE) or False, req.env[WHO]
        reads = reads_of(self._daemon, query, req.env)
        if query.get(COUNT):
            send_json(resp, self._count(reads, op, who))
        elif media_type == NDJSON:
            limit = query.get(TOTAL)
            op["max_bytes"] = self._part_bytes
            first = reads.call({**op, "limit": _page_limit(limit)}, who=who)
            resp.content_type = NDJSON
            resp.stream = self._lines(reads, op, first, limit, who, inline=inline)
        else:
            limit = query.get(LIMIT) or DEFAULT_LIMIT
            op |= {"limit": limit, "max_bytes": self._page_bytes}
            page, revision = reads.read(op, who=who)
            items = [reply_json(item, inline=inline) for item in page["items"]]
            page |= {"items": items, "revision": revision}
            send_json(resp, {name: page[name] for name in _MEMBERS if name in page})
        say_age(req.env, resp)

    def _count(self, reads: Reads, op: dict[str, Any], who: Principal) -> dict[str, Any]:
        """The count of all pages; each has its own snapshot, ``revision`` is that of the first."""
        op = {**op, "count": True}
        page, revision = reads.read(op, who=who)
        total = page["count"]
        while page["cursor"] is not None:
            page = reads.call({**op, "cursor": page["cursor"]}, who=self._refreshed(who))
            total += page["count"]
        return {"count": total, "revision": revision}

    def _lines(
        self,
        reads: Reads,
        op: dict[str, Any],
        page: dict[str, Any],
        limit: int | None,
        who: Principal,
        *,
        inline: bool,
    ) -> Iterator[bytes]:
        """A record a line, or a prefix, in the order of the keys. After an error midway, the last line is
        ``{"error": …}`` and the response is cut off, so that HTTP shows it as incomplete.

        Each page is asked for anew: ``who`` may have lost the right to it. The next one is read once the
        server has taken this one, and nothing of this one is kept while the server waits for a slow reader.
        """
        while True:
            entries, cursor = _entries(page, reverse=op.get("reverse", False)), page["cursor"]
            limit = None if limit is None else limit - len(entries)
            del page
            yield from joined(map(partial(_line, inline), used_up(entries)))
            if cursor is None or limit == 0:
                return
            try:
                op = {**op, "cursor": cursor, "limit": _page_limit(limit)}
                page = reads.call(op, who=self._refreshed(who))
            except KvError as error:
                yield orjson.dumps({"error": problem(error)}) + b"\n"
                raise


def _line(inline: bool, item: dict[str, Any]) -> bytes:
    return orjson.dumps(reply_json(item, inline=inline), option=orjson.OPT_APPEND_NEWLINE)


def _entries(page: dict[str, Any], *, reverse: bool) -> list[dict[str, Any]]:
    """All that a page shows, in one order."""
    if not page.get("prefixes"):
        items: list[dict[str, Any]] = page["items"]
        return items
    folders: list[dict[str, Any]] = [{"prefix": prefix} for prefix in page["prefixes"]]
    for folder, count in zip(folders, page.get("counts", ()), strict=False):
        folder["count"] = count
    return sorted(page["items"] + folders, key=_name, reverse=reverse)


def _name(entry: dict[str, Any]) -> bytes:
    name: str = entry.get("prefix") or entry["key"]
    return name.encode()


def _page_limit(limit: int | None) -> int:
    return MAX_PAGE if limit is None else min(limit, MAX_PAGE)


def _list_op(query: Query) -> dict[str, Any]:
    op: dict[str, Any] = {"op": "list"}
    for parameter in _OF_OP:
        choice = query.get(parameter)
        if choice:
            op[parameter.name] = choice
    if query.get(KEYS):
        op["keys_only"] = True
    if "counts" in op and "delimiter" not in op:
        raise KvError("bad_request", "counts goes with delimiter, which is missing", parameter="counts")
    for shape in ("delimiter", "reverse"):
        if shape in op and query.get(COUNT):
            raise KvError("bad_request", f"count and {shape} exclude each other", parameter=shape)
    return op
