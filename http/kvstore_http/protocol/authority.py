"""``HOST[:PORT]`` by RFC 3986 section 3.2, as in ``Host`` and in an absolute address."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address
from typing import NamedTuple

KEPT = 256
"""How many parsed texts are kept; a service has few names."""

MOST_CHARS = 255 + len(":65535")
"""A DNS name has at most 253 characters (RFC 1035). This also bounds the memory of what is kept."""

_AUTHORITY = re.compile(
    r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+))"
    r"(?::(?P<port>[0-9]{0,5}))?"
)
"""By the RFC a name may hold a comma; here it may not: proxies join two headers with one."""

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
    """The host and port in ``text``; None if it is longer than ``MOST_CHARS`` or has anything else, such as a
    user name."""
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
