"""``POST /v1/incr``, ``/v1/touch`` and ``/v1/persist``: one op each, without a body."""

from __future__ import annotations

from typing import Any

import falcon

from kvstore_http import contract
from kvstore_http.bodies import refuse_body, send_json
from kvstore_http.collaborators import Link
from kvstore_http.conditions import etag, write
from kvstore_http.query import BY, TTL, read_query
from kvstore_http.records import reply_json


class IncrResource:
    """``/v1/incr/{key}``."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def on_post(self, req: falcon.Request, resp: falcon.Response, key: str) -> None:
        by = read_query(req.env, contract.INCR).get(BY)
        _change(self._link, req, resp, {"op": "incr", "key": key, "by": 1 if by is None else by})


class TouchResource:
    """``/v1/touch/{key}``."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def on_post(self, req: falcon.Request, resp: falcon.Response, key: str) -> None:
        ttl = read_query(req.env, contract.TOUCH).required(TTL)
        _change(self._link, req, resp, {"op": "touch", "key": key, "ttl": ttl})


class PersistResource:
    """``/v1/persist/{key}``."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def on_post(self, req: falcon.Request, resp: falcon.Response, key: str) -> None:
        read_query(req.env, contract.NOTHING)
        _change(self._link, req, resp, {"op": "persist", "key": key})


def _change(link: Link, req: falcon.Request, resp: falcon.Response, op: dict[str, Any]) -> None:
    refuse_body(req.env)
    result = write(link, req.env, op)
    resp.set_header("etag", etag(result["revision"]))
    send_json(resp, reply_json(result, key=op["key"]))
