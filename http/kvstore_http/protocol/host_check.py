"""Which names of this service a request may come under.

A page whose owner points its name at 127.0.0.1 (DNS rebinding) is of the same origin as the service on
its visitor's machine, so neither CORS nor the check of ``Origin`` stops it from reading and writing
everything. What the page cannot change is the ``Host`` that its requests carry: its own name.
"""

from __future__ import annotations

from functools import lru_cache

import falcon

from kvstore_core.errors import KvError
from kvstore_core.loopback import is_loopback
from kvstore_http.protocol.authority import parse_authority

KEPT_NAMES = 256
"""How many values of ``Host`` are kept with their verdicts, so that few requests pay for the check."""

SHOWN_CHARACTERS = 260
"""A name and a port are never longer."""


def allowed_hosts(listens_on: str, named: tuple[str, ...]) -> frozenset[str] | None:
    """The names other than this machine's own that requests may carry; None if any may.

    ``listens_on`` is ``HOST:PORT`` and ``named`` what the operator listed. Beyond loopback nobody but
    the operator knows the service's names, so without a list all are taken.
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
    """Middleware that refuses requests under a name that is neither ``allowed`` nor the machine's own.

    One without a ``Host`` is taken: HTTP/1.0 has none, and browsers always send it.
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
