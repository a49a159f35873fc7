"""The names in ``Host`` that requests may have.

A page whose owner points its name at 127.0.0.1 (DNS rebinding) has the same origin as the service on its
visitor's machine, so neither CORS nor the check of ``Origin`` keeps it from reading and writing everything.
But its requests carry its own name in ``Host``, which it cannot change.
"""

from __future__ import annotations

from functools import lru_cache

import falcon

from kvstore_core.addresses import is_loopback
from kvstore_core.errors import KvError
from kvstore_http.protocol.authority import parse_authority

KEPT_NAMES = 256
"""How many checked values of ``Host`` are kept, so that few requests pay for the check."""

SHOWN_CHARACTERS = 260
"""A name with a port is never longer."""


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

    A request without ``Host`` is taken: HTTP/1.0 has none, and browsers always send it.
    """

    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = allowed
        self._takes = lru_cache(KEPT_NAMES)(self._judge)

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        authority = req.env.get("HTTP_HOST")
        if authority and not self._takes(authority):
            raise KvError(
                "not_allowed",
                f"this service does not accept the host name {authority[:SHOWN_CHARACTERS]!r}; "
                "--allowed-hosts lists those that it does",
            )

    def _judge(self, authority: str) -> bool:
        host = host_of(authority)
        return host in self._allowed or is_loopback(host)
