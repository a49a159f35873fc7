"""``/v1/whoami``: who asks; and ``/v1/narrow``: a token derived from that of who asks."""

from __future__ import annotations

from typing import Any

import falcon

from kvstore_core.access.changes import NO_END
from kvstore_core.access.derived import MAX_SECONDS
from kvstore_core.access.principal import ANONYMOUS, Principal
from kvstore_core.errors import KvError
from kvstore_core.media_types import JSON
from kvstore_core.wall_clock import now_ms
from kvstore_http import routes
from kvstore_http.access.callers import Callers
from kvstore_http.protocol.bodies import read_json, require_type, send_fresh_json, send_json
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import timestamp
from kvstore_http.protocol.query_params import read_query
from kvstore_http.resources.identities import end_of, members, texts

KINDS = ("none", "token", "derived", "session")
"""What somebody comes in by."""

NARROWED_SECONDS = 3600
"""How long a derived token is good if nothing else is said."""


class WhoamiResource:
    """``/v1/whoami``."""

    def __init__(self, callers: Callers | None) -> None:
        self._callers = callers

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        who: Principal = req.env[WHO] if self._callers is None else self._callers.confirmed(req.env)
        answer: dict[str, Any] = {
            "access": self._callers is not None,
            "name": who.name,
            "kind": _kind(who),
            "credential": who.credential,
            "grants": who.grants.texts,
        }
        if who.expires_at is not None:
            answer["expires_at"] = timestamp(who.expires_at)
        send_fresh_json(req, resp, answer)


class NarrowResource:
    """``/v1/narrow``. Whoever has a token may hand on a part of what it is good for, without an admin."""

    def __init__(self, callers: Callers | None) -> None:
        self._callers = callers

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        require_type(req.env, JSON)
        body = members(read_json(req.env), "grants", "for", "expires_at")
        if self._callers is None:
            raise KvError("not_allowed", "access is off here: there is nothing to derive a token from")
        now = now_ms()
        grants = tuple(texts(body, "grants")) if "grants" in body else None
        end = end_of(body, now)
        if end == NO_END:
            raise KvError(
                "bad_request",
                f"a derived token has an end: give one within {MAX_SECONDS // 3600} hours, or leave it out",
            )
        milliseconds = NARROWED_SECONDS * 1000 if end is None else end - now
        table = self._callers.follower.wait()
        text = table.derive(req.env[WHO], now, milliseconds, grants)
        who = table.of_credential(text, now)
        assert who.expires_at is not None  # noqa: S101 - of what is derived
        resp.status = "201 Created"
        resp.set_header("cache-control", "no-store")
        ends = timestamp(who.expires_at)
        send_json(resp, {"token": text, "name": who.name, "grants": who.grants.texts, "expires_at": ends})


def _kind(who: Principal) -> str:
    if who.name in ("", ANONYMOUS):
        return "none"
    if who.is_session:
        return "session"
    return "derived" if who.is_derived else "token"
