"""``POST /v1/incr``, ``/v1/touch`` and ``/v1/persist``: one op each, without a body."""

from __future__ import annotations

from typing import Any

import falcon

from kvstore_http import routes
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.protocol.bodies import refuse_body, send_json
from kvstore_http.protocol.json_records import reply_json
from kvstore_http.protocol.preconditions import etag
from kvstore_http.protocol.query_params import BY, TTL, read_query
from kvstore_http.resources.writes import write


class IncrResource:
    """``/v1/incr/{key}``."""

    def __init__(self, daemon: DaemonClient) -> None:
        self._daemon = daemon

    def on_post(self, req: falcon.Request, resp: falcon.Response, key: str) -> None:
        by = read_query(req.env, routes.INCR).get(BY)
        _change(self._daemon, req, resp, {"op": "incr", "key": key, "by": 1 if by is None else by})


class TouchResource:
    """``/v1/touch/{key}``."""

    def __init__(self, daemon: DaemonClient) -> None:
        self._daemon = daemon

    def on_post(self, req: falcon.Request, resp: falcon.Response, key: str) -> None:
        ttl = read_query(req.env, routes.TOUCH).required(TTL)
        _change(self._daemon, req, resp, {"op": "touch", "key": key, "ttl": ttl})


class PersistResource:
    """``/v1/persist/{key}``."""

    def __init__(self, daemon: DaemonClient) -> None:
        self._daemon = daemon

    def on_post(self, req: falcon.Request, resp: falcon.Response, key: str) -> None:
        read_query(req.env, routes.NOTHING)
        _change(self._daemon, req, resp, {"op": "persist", "key": key})


def _change(daemon: DaemonClient, req: falcon.Request, resp: falcon.Response, op: dict[str, Any]) -> None:
    refuse_body(req.env)
    result = write(daemon, req.env, op)
    resp.set_header("etag", etag(result["revision"]))
    send_json(resp, reply_json(result, key=op["key"]))
