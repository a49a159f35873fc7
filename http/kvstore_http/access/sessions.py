"""The session of a page at ``/ui/``, in two halves (``docs/access.md``, Browsers).

One half is a cookie: a credential derived from the token with which the page logged in. It holds the digest
of the other half, which only the page has, and which it sends as a header. A browser gives the cookies of a
host to all its ports, where another user's program may listen; so the cookie alone is worth nothing. And only
a page of this very origin can send the header.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Any, NamedTuple

from kvstore_core.access.derived import half_digest
from kvstore_core.access.identities import AccessTable
from kvstore_core.access.principal import Principal
from kvstore_core.addresses import is_loopback
from kvstore_core.errors import KvError
from kvstore_http.protocol.origins import parse_authority

HALF = "X-Kvstore-Page"
"""The header with the page's half."""

MAX_SESSION_SECONDS = 12 * 3600

HALF_VARIABLE = "HTTP_X_KVSTORE_PAGE"
"""That header in the environ."""

_AT_ROOT, _BELOW_PATH = "__Host-kvstore", "__Secure-kvstore"
_NAME = re.compile(r"__Host-kvstore|__Secure-kvstore|kvstore_[0-9]{1,5}", re.ASCII)
_MAX_TRIED = 16
"""Cookies of one request that are looked at: services on other ports of the host have theirs."""

_MAX_COOKIE_BYTES = 4000
"""Browsers drop those of more than 4096, name and attributes included."""


class Place(NamedTuple):
    """Where a page is: whether it was loaded over TLS, its host, and its port."""

    is_secure: bool
    host: str
    port: int


class NewSession(NamedTuple):
    """The two halves of a session just begun, and who has it."""

    cookie: str
    half: str
    who: Principal


def begin(table: AccessTable, token: str, now: int) -> NewSession:
    """A session for whoever has ``token``, which may be a derived one. Raises ``unauthenticated`` where it is
    no good, and for the cookie of another session."""
    parent = table.of_credential(token, now)
    if parent.is_session:
        raise not_a_token()
    half = secrets.token_urlsafe(32)
    cookie = table.derive(parent, now, MAX_SESSION_SECONDS * 1000, half=half)
    if len(cookie) > _MAX_COOKIE_BYTES:
        raise KvError(
            "bad_request", "the grants of this token are too long for a cookie: derive it with fewer"
        )
    return NewSession(cookie, half, table.of_credential(cookie, now))


def not_a_token() -> KvError:
    """The error for a session's cookie where a token is asked for."""
    return KvError("unauthenticated", "this is half of a page's session, and no token; send a token")


def session_of(
    environ: dict[str, Any], table: AccessTable, now: int, *, is_public: bool = False
) -> Principal | None:
    """Who sends a request by a session; None for a request without one.

    Raises ``unauthenticated`` for a half that fits none of the request's cookies or comes from a page of
    elsewhere, and for a cookie of this service without the other half. That one is no fault where nothing
    depends on who asks (``is_public``): the browser itself sends it with the page's own files.
    """
    half = environ.get(HALF_VARIABLE)
    if half is None:
        if not is_public and "HTTP_COOKIE" in environ and _is_named_for(environ):
            raise KvError("unauthenticated", f"a session's cookie is only good with the page's {HALF}")
        return None
    if not is_of_this_site(environ):
        raise KvError(
            "unauthenticated", "a session is only good for the page that began it", reason="cross_site"
        )
    digest = half_digest(half)
    for cookie in cookies_of(environ):
        if hmac.compare_digest(table.half_of(cookie), digest):
            return table.of_credential(cookie, now)
    raise KvError("unauthenticated", "this session is not known here; log in again")


def is_of_this_site(environ: dict[str, Any]) -> bool:
    """Whether a request may be of a session by where it comes from; browsers say it, others need not."""
    return environ.get("HTTP_SEC_FETCH_SITE", "none") in ("same-origin", "none")


def place_of(environ: dict[str, Any]) -> Place:
    """Where the page that asks is: by ``Origin``, as a proxy may have taken TLS away; else by the request."""
    scheme, _, authority = environ.get("HTTP_ORIGIN", "").partition("://")
    if not authority:
        scheme, authority = environ["wsgi.url_scheme"], environ.get("HTTP_HOST", "")
    found = parse_authority(authority)
    if found is None:
        return Place(scheme == "https", "", 0)
    return Place(scheme == "https", found.host, found.port_for(scheme))


def refuse_open_network(place: Place) -> None:
    """Raise ``not_allowed`` where a token would go over a network that anybody may read."""
    if not place.is_secure and not is_loopback(place.host):
        raise KvError(
            "not_allowed",
            "nobody logs in over plain http beyond this machine: others could read the token. Open this page "
            "by https, or by http://localhost through a tunnel",
        )


def set_cookie(place: Place, cookie: str, seconds: int, *, is_root: bool) -> str:
    """The ``Set-Cookie`` that gives the browser its half. ``is_root`` says that the service is at the root of
    its host; below a path, the path of the login's own address is the cookie's (RFC 6265 section 5.1.4)."""
    if not place.is_secure:
        # without Secure, which not every browser takes over http from this machine
        return _attributes(_of_port(place.port), cookie, seconds)
    return _attributes(_AT_ROOT if is_root else _BELOW_PATH, cookie, seconds)


def drop_cookies(place: Place) -> list[str]:
    """The ``Set-Cookie`` lines that take every cookie away that :func:`set_cookie` may have given."""
    names = (_AT_ROOT, _BELOW_PATH) if place.is_secure else (_of_port(place.port),)
    return [_attributes(name, "", 0) for name in names]


def _of_port(port: int) -> str:
    return f"kvstore_{port}"


def _attributes(name: str, value: str, seconds: int) -> str:
    where = {_AT_ROOT: "; Secure; Path=/", _BELOW_PATH: "; Secure"}.get(name, "")
    return f"{name}={value}; Max-Age={seconds}; HttpOnly; SameSite=Strict{where}"


def _pairs(environ: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = (pair.partition("=") for pair in environ.get("HTTP_COOKIE", "").split(";"))
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def cookies_of(environ: dict[str, Any]) -> list[str]:
    """The values of the request's cookies that may be of a session, as many as are looked at."""
    return [value for name, value in _pairs(environ) if _NAME.fullmatch(name)][:_MAX_TRIED]


def _is_named_for(environ: dict[str, Any]) -> bool:
    """Whether a cookie of the request is of a session here. One of another port is none of ours."""
    found = parse_authority(environ.get("HTTP_HOST", ""))
    here = "" if found is None else _of_port(found.port_for("http"))
    return any(name in (_AT_ROOT, _BELOW_PATH, here) for name, _ in _pairs(environ))
