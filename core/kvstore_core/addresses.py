"""Where a daemon listens and clients look for it by default, and which hosts only this machine reaches."""

from __future__ import annotations

DEFAULT_PORT = 5555
DEFAULT_REQUESTS = f"tcp://127.0.0.1:{DEFAULT_PORT}"
DEFAULT_CHANGES = f"tcp://127.0.0.1:{DEFAULT_PORT + 1}"


def shown_address(peer: object) -> str:
    """What ``getpeername`` gives as ``HOST:PORT``, with brackets around IPv6; ``ipc`` for a peer on this
    machine that has neither."""
    if not isinstance(peer, tuple):
        return "ipc"
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
