"""``HOST[:PORT]`` as RFC 3986 section 3.2 has it: what stands in ``Host``, and in an absolute address."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address
from typing import NamedTuple

KEPT = 256
"""How many texts are kept with what they say; a service goes by few names."""

MOST_CHARS = 255 + len(":65535")
"""A name of the DNS has at most 253 characters (RFC 1035); what is kept is bounded in bytes by it."""

_AUTHORITY = re.compile(
    r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+))"
    r"(?::(?P<port>[0-9]{0,5}))?"
)
"""A name may hold a comma by the RFC; here that is two names in one, which proxies make of two headers."""

_MAX_PORT = 65535


class Authority(NamedTuple):
    """A host in lower case, without the brackets of an IPv6 address or a final dot, and a port if one is
    given."""

    host: str
    port: int | None

    def port_for(self, scheme: str) -> int:
        """The port, that of the scheme where none is given."""
        if self.port is not None:
            return self.port
        return 443 if scheme.lower() == "https" else 80


def parse_authority(text: str) -> Authority | None:
    """What ``text`` names; None if it is no host with perhaps a port, is longer than ``MOST_CHARS``, or
    holds anything else, as the name of a user."""
    return _parsed(text) if len(text) <= MOST_CHARS else None


@lru_cache(KEPT)
def _parsed(text: str) -> Authority | None:
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    port = int(found["port"]) if found["port"] else None
    if port is not None and port > _MAX_PORT:
        return None
    if found["address"] is None:
        host = found["name"].rstrip(".").lower()
        return Authority(host, port) if host else None
    try:
        IPv6Address(found["address"])
    except ValueError:
        return None
    return Authority(found["address"].lower(), port)
