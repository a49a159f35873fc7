"""``/ui/``: the page to look at the store and change it, and its files.

The page uses the public routes from the visitor's browser; this serves only its files.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import falcon

from kvstore_http import routes
from kvstore_http.protocol.query_params import read_query

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOLDER: Final = Path(__file__).parents[1] / "ui"

# What the page may do even if a stored value were run as script: load and request nothing but this service,
# run no script but these files, be in no frame, and put no text where a browser reads code.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

_HEADERS: Final = {
    "cache-control": "no-cache",  # revalidated each time, so that an upgrade is seen at once
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class File:
    """One file of the page, read once."""

    def __init__(self, name: str) -> None:
        path = _FOLDER / name
        self._data = path.read_bytes()
        self._headers = {
            **_HEADERS,
            "content-type": _TYPES[path.suffix],
            "etag": f'"{hashlib.sha256(self._data).hexdigest()[:32]}"',
        }

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        resp.set_headers(self._headers)
        if self._headers["etag"] in req.env.get("HTTP_IF_NONE_MATCH", ""):
            resp.status = "304 Not Modified"
        else:
            resp.data = self._data


class SlashMissing:
    """``/ui``, which redirects to ``/ui/``."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        redirect_to_page(resp)


def redirect_to_page(resp: falcon.Response) -> None:
    """Redirect from ``/`` or ``/ui`` to the page: by a relative address, as a proxy may have mounted the
    service below some path."""
    resp.status = "303 See Other"
    resp.set_header("location", "ui/")


def parts() -> dict[str, object]:
    """What is mounted beside ``/ui/``, by path: the files that the page loads, and the redirect to it."""
    names = sorted(file.name for file in _FOLDER.iterdir() if file.suffix in _TYPES)
    return {"/ui": SlashMissing(), **{f"/ui/{name}": File(name) for name in names if name != "index.html"}}
