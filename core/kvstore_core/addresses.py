"""Where a daemon listens and clients look for it by default, and which hosts only this machine reaches."""

from __future__ import annotations

DEFAULT_PORT = 5555
DEFAULT_REQUESTS = f"tcp://127.0.0.1:{DEFAULT_PORT}"
DEFAULT_CHANGES = f"tcp://127.0.0.1:{DEFAULT_PORT + 1}"


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
