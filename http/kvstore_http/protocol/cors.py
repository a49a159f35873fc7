"""What pages of other origins may do: nothing, unless their origin is listed (CORS)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon

from kvstore_core.errors import KvError

EXPOSED = (
    "ETag, Location, Retry-After, Content-Range, X-Request-Id, X-Kvstore-Revision, "
    "X-Kvstore-Create-Revision, X-Kvstore-Version, X-Kvstore-Expires-At"
)
PREFLIGHT_SECONDS = 600

Responder = Callable[..., None]


class Cors:
    """Middleware that lets pages of the listed origins (``*``: all) use the service."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._origins = frozenset(origins)

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, _resource: object, _succeeded: bool
    ) -> None:
        if "*" in self._origins:
            resp.set_header("access-control-allow-origin", "*")
        else:
            resp.append_header("vary", "origin")
            origin = req.env.get("HTTP_ORIGIN")
            if origin not in self._origins:
                return
            resp.set_header("access-control-allow-origin", origin)
        resp.set_header("access-control-expose-headers", EXPOSED)
        if req.method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in req.env:
            self._allow(req, resp)

    def _allow(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the preflight: all methods of the path are allowed, with any headers."""
        resp.set_header("access-control-allow-methods", resp.get_header("allow") or "")
        asked = req.env.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS")
        if asked:
            resp.set_header("access-control-allow-headers", asked)
        resp.set_header("access-control-max-age", str(PREFLIGHT_SECONDS))


def guarded(responder: Responder, origins: tuple[str, ...]) -> Responder:
    """A POST responder that refuses pages of origins that are not listed.

    Browsers send a POST to any site without a preflight, so any page could increment keys of a service on its
    visitor's machine. The other methods that write are preflighted.
    """
    allowed = frozenset(origins)

    def respond(req: falcon.Request, resp: falcon.Response, **params: Any) -> None:
        origin = req.env.get("HTTP_ORIGIN")
        if origin is not None and not (_is_same(req, origin) or origin in allowed or "*" in allowed):
            raise KvError(
                "not_allowed", f"pages of {origin} may not write here; --cors-origins lists those that may"
            )
        responder(req, resp, **params)

    return respond


def _is_same(req: falcon.Request, origin: str) -> bool:
    # This header holds even behind a proxy that changes the host, and no page can set it
    # (https://www.w3.org/TR/fetch-metadata/). Browsers send it only over https and to this machine. Without
    # it the host decides, and not the scheme, which a proxy that terminates TLS changes.
    if req.env.get("HTTP_SEC_FETCH_SITE") == "same-origin":
        return True
    return origin.partition("://")[2] == req.env.get("HTTP_HOST")
