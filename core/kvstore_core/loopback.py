"""Which hosts only this machine can reach."""

from __future__ import annotations


def is_loopback(host: str) -> bool:
    """Whether ``host``, without brackets, is ``localhost`` or a loopback address.

    Another name is not looked up: what it resolves to may change later.
    """
    if host == "localhost":
        return True
    from ipaddress import ip_address  # slow to import, and commands that only ask the service do without

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
