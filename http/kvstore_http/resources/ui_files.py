"""``/ui/``: the page to look at the store and change it, and its files.

The page uses the public routes from the visitor's browser; this serves only its files.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path
from typing import Final

import falcon

from kvstore_core import media_types
from kvstore_http import routes
from kvstore_http.protocol.query_params import read_query

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": media_types.JSON,
    ".svg": "image/svg+xml",
    ".txt": media_types.TEXT_CONTENT_TYPE,
}
_FOLDER: Final = Path(__file__).parents[1] / "ui"
_REFUSED: Final = re.compile(r"\s*q=0(\.0*)?\s*")

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
    """One file of the page, read once, and compressed once for those who take gzip."""

    def __init__(self, name: str) -> None:
        path = _FOLDER / name
        data = path.read_bytes()
        tag = hashlib.sha256(data).hexdigest()[:32]
        self._headers = {**_HEADERS, "content-type": _TYPES[path.suffix], "vary": "Accept-Encoding"}
        self._plain = data, {"etag": f'"{tag}"'}
        self._packed = gzip.compress(data, 9, mtime=0), {"etag": f'"{tag}-gzip"', "content-encoding": "gzip"}

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        data, headers = self._packed if _takes_gzip(req.env.get("HTTP_ACCEPT_ENCODING", "")) else self._plain
        resp.set_headers({**self._headers, **headers})
        if headers["etag"] in req.env.get("HTTP_IF_NONE_MATCH", ""):
            resp.status = "304 Not Modified"
        else:
            resp.data = data


def _takes_gzip(accepted: str) -> bool:
    """Whether ``Accept-Encoding`` names gzip, other than to refuse it (RFC 9110, 12.5.3)."""
    codings = (part.strip().lower().partition(";") for part in accepted.split(","))
    return any(name.strip() == "gzip" and not _REFUSED.fullmatch(weight) for name, _, weight in codings)


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
    files = (file for file in _FOLDER.rglob("*") if file.suffix in _TYPES)
    names = sorted(str(file.relative_to(_FOLDER)) for file in files)
    return {"/ui": SlashMissing(), **{f"/ui/{name}": File(name) for name in names if name != "index.html"}}
