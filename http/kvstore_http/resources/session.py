"""``/v1/session``: the page logs in with a token, and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon

from kvstore_core.errors import KvError
from kvstore_core.media_types import JSON
from kvstore_core.wall_clock import now_ms
from kvstore_http import routes
from kvstore_http.access import sessions
from kvstore_http.protocol.bodies import read_json, require_type, send_json
from kvstore_http.protocol.json_records import timestamp
from kvstore_http.protocol.origins import refuse_other_origins
from kvstore_http.protocol.query_params import read_query


class SessionResource:
    """``/v1/session``. ``begin`` begins one for a token; None while access is off."""

    def __init__(self, begin: Callable[[str], sessions.NewSession] | None) -> None:
        self._begin = begin

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Give a page of this service both halves of a session for its token."""
        read_query(req.env, routes.NOTHING)
        refuse_other_origins(req.env)
        place = sessions.place_of(req.env)
        sessions.refuse_open_network(place)
        require_type(req.env, JSON)
        token, page = _login(read_json(req.env))
        if self._begin is None:
            raise KvError("not_allowed", "access is off here: there is nothing to log in to")
        session = self._begin(token)
        assert session.who.expires_at is not None  # noqa: S101 - of a session
        seconds = max(1, (session.who.expires_at - now_ms()) // 1000)
        line = sessions.set_cookie(place, session.cookie, seconds, is_root=page == "/")
        resp.append_header("set-cookie", line)
        resp.set_header("cache-control", "no-store")
        send_json(
            resp,
            {
                "half": session.half,
                "name": session.who.name,
                "grants": session.who.grants.texts,
                "expires_at": timestamp(session.who.expires_at),
            },
        )

    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Take the cookie away; the page forgets its half."""
        read_query(req.env, routes.NOTHING)
        refuse_other_origins(req.env)
        for line in sessions.drop_cookies(sessions.place_of(req.env)):
            resp.append_header("set-cookie", line)
        resp.set_header("cache-control", "no-store")
        resp.status = "204 No Content"


def _login(body: Any) -> tuple[str, str]:
    if type(body) is not dict or not {"token"} <= body.keys() <= {"token", "page"}:
        raise KvError("bad_request", 'the body must be {"token": "kv_…"}, with "page" below a path')
    token, page = body["token"], body.get("page", "/")
    if type(token) is not str or type(page) is not str:
        raise KvError("bad_request", "'token' and 'page' must be texts")
    return token, page
