"""``GET /v1/history/{key}``, and the same with ``?key=``."""

from __future__ import annotations

from typing import Any

import falcon

from kvstore_http import routes
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.protocol.bodies import send_fresh_json
from kvstore_http.protocol.json_records import reply_json
from kvstore_http.protocol.query_params import BEFORE, CURSOR, INLINE, KEY, LIMIT, VALUES, read_query
from kvstore_http.resources.listing import DEFAULT_LIMIT

_BY_QUERY = {**routes.JUST_KEY, **routes.HISTORY}


class HistoryResource:
    """``/v1/history/{key}``, and ``/v1/history?key=``."""

    def __init__(self, daemon: DaemonClient, page_bytes: int) -> None:
        self._daemon = daemon
        self._page_bytes = page_bytes

    def on_get(self, req: falcon.Request, resp: falcon.Response, key: str | None = None) -> None:
        query = read_query(req.env, _BY_QUERY if key is None else routes.HISTORY)
        key = query.required(KEY) if key is None else key
        limit, inline = query.get(LIMIT) or DEFAULT_LIMIT, query.get(INLINE) or False
        op: dict[str, Any] = {"op": "history", "key": key, "limit": limit, "max_bytes": self._page_bytes}
        chosen = {"before": query.get(BEFORE), "cursor": query.get(CURSOR), "values": query.get(VALUES)}
        op |= {name: choice for name, choice in chosen.items() if choice is not None}
        page = self._daemon.call(op)
        events = [reply_json(event, inline=inline) for event in page["events"]]
        body = {"key": key, "events": events, "cursor": page["cursor"], "truncated": page["truncated"]}
        send_fresh_json(req, resp, body)
