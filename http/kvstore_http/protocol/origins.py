"""Hosts and origins: how they are written, and which of them may use the service from a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any, NamedTuple

import falcon

from kvstore_core.addresses import is_loopback
from kvstore_core.errors import KvError

KEPT = 256
"""How many texts are kept parsed, and how many values of ``Host`` checked; a service has few names."""

MOST_CHARS = 255 + len(":65535")
"""A DNS name has at most 253 characters (RFC 1035). This also bounds the memory of what is kept."""

_AUTHORITY = re.compile(
    r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+))"
    r"(?::(?P<port>[0-9]{0,5}))?"
)
"""By the RFC a name may hold a comma; here it may not: proxies join two headers with one."""

_MAX_PORT = 65535

EXPOSED = (
    "ETag, Location, Retry-After, Content-Range, X-Request-Id, X-Kvstore-Revision, "
    "X-Kvstore-Create-Revision, X-Kvstore-Version, X-Kvstore-Expires-At, "
    "X-Kvstore-Author, X-Kvstore-Message, X-Kvstore-Age"
)
PREFLIGHT_SECONDS = 600

Responder = Callable[..., None]


class HostPort(NamedTuple):
    """``HOST[:PORT]`` by RFC 3986 section 3.2, as in ``Host`` and in an absolute address: a host in lower
    case, without the brackets of an IPv6 address or a final dot, and a port if one is given."""

    host: str
    port: int | None

    def port_for(self, scheme: str) -> int:
        """The port, that of the scheme where none is given."""
        if self.port is not None:
            return self.port
        return 443 if scheme.lower() == "https" else 80


def parse_authority(text: str) -> HostPort | None:
    """The host and port in ``text``; None if it is longer than ``MOST_CHARS`` or has anything else, such as a
    user name."""
    return _parsed(text) if len(text) <= MOST_CHARS else None


@lru_cache(KEPT)
def _parsed(text: str) -> HostPort | None:
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    port = int(found["port"]) if found["port"] else None
    if port is not None and port > _MAX_PORT:
        return None
    if found["address"] is None:
        host = found["name"].rstrip(".").lower()
        return HostPort(host, port) if host else None
    try:
        IPv6Address(found["address"])
    except ValueError:
        return None
    return HostPort(found["address"].lower(), port)


def allowed_hosts(listens_on: str, named: tuple[str, ...]) -> frozenset[str] | None:
    """The allowed names besides those of loopback; None if any name is allowed.

    ``listens_on`` is ``HOST:PORT`` and ``named`` the operator's list. Beyond loopback only the operator knows
    the service's names, so without a list all are allowed.
    """
    if "*" in named or (not named and not is_loopback(host_of(listens_on))):
        return None
    return frozenset(name.lower() for name in named)


def host_of(authority: str) -> str:
    """``HOST`` of ``HOST[:PORT]``, in lower case and without the brackets of an IPv6 address; empty for
    anything else."""
    found = parse_authority(authority)
    return "" if found is None else found.host


class HostCheck:
    """Middleware that refuses requests whose ``Host`` is neither ``allowed`` nor loopback.

    A page whose owner points its name at 127.0.0.1 (DNS rebinding) has the same origin as the service on its
    visitor's machine, so neither CORS nor the check of ``Origin`` keeps it from reading and writing all.
    But its requests carry its own name in ``Host``, which it cannot change. A request without ``Host`` is
    taken: HTTP/1.0 has none, and browsers always send it.
    """

    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = allowed
        self.takes = lru_cache(KEPT)(self._judge)

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        authority = req.env.get("HTTP_HOST")
        if authority and not self.takes(authority):
            raise KvError(
                "not_allowed",
                f"this service does not accept the host name {authority[:MOST_CHARS]!r}; "
                "--allowed-hosts lists those that it does",
            )

    def _judge(self, authority: str) -> bool:
        host = host_of(authority)
        return host in self._allowed or is_loopback(host)


class Cors:
    """Middleware that lets pages of the listed origins (``*``: all) use the service."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._origins = frozenset(origins)

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, _resource: object, _succeeded: bool
    ) -> None:
        if not self.mark(resp._headers, req.env.get("HTTP_ORIGIN")):  # noqa: SLF001 - their names are ours
            return
        if req.method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in req.env:
            # the preflight: all methods of the path are allowed, with any headers
            resp.set_header("access-control-allow-methods", resp.get_header("allow") or "")
            asked = req.env.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS")
            if asked:
                resp.set_header("access-control-allow-headers", asked)
            resp.set_header("access-control-max-age", str(PREFLIGHT_SECONDS))

    def mark(self, headers: dict[str, str], origin: str | None) -> bool:
        """Say in the ``headers`` of an answer whether a page of ``origin`` may read it; the same is
        returned."""
        if "*" in self._origins:
            headers["access-control-allow-origin"] = "*"
        else:
            headers["vary"] = f"{headers['vary']}, origin" if "vary" in headers else "origin"
            if origin is None or origin not in self._origins:
                return False
            headers["access-control-allow-origin"] = origin
        headers["access-control-expose-headers"] = EXPOSED
        return True


def guarded(responder: Responder, origins: tuple[str, ...]) -> Responder:
    """A POST responder that refuses pages of origins that are not listed.

    Browsers send a POST to any site without a preflight, so any page could increment keys of a service on its
    visitor's machine. The other methods that write are preflighted, and so is QUERY.
    """
    allowed = frozenset(origins)

    def respond(req: falcon.Request, resp: falcon.Response, **params: Any) -> None:
        origin = req.env.get("HTTP_ORIGIN")
        if origin is not None and not (_is_same(req.env, origin) or origin in allowed or "*" in allowed):
            raise KvError(
                "not_allowed", f"pages of {origin} may not POST here; --cors-origins lists those that may"
            )
        responder(req, resp, **params)

    return respond


def refuse_other_origins(environ: dict[str, Any]) -> None:
    """Raise ``not_allowed`` for a page of another origin, listed or not, and for a browser that was led
    here from elsewhere."""
    origin = environ.get("HTTP_ORIGIN")
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("same-origin", "none") or (
        origin is not None and not _is_same(environ, origin)
    ):
        raise KvError("not_allowed", "only the page of this service may do this, and no other page")


def _is_same(environ: dict[str, Any], origin: str) -> bool:
    # This header holds even behind a proxy that changes the host, and no page can set it
    # (https://www.w3.org/TR/fetch-metadata/). Browsers send it only over https and to this machine. Without
    # it the host decides, and not the scheme, which a proxy that terminates TLS changes.
    if environ.get("HTTP_SEC_FETCH_SITE") == "same-origin":
        return True
    return origin.partition("://")[2] == environ.get("HTTP_HOST")
