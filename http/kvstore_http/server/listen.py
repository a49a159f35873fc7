"""The sockets that the facade accepts on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

from kvstore_core.errors import KvError

BACKLOG = 4096
"""How many connections wait to be accepted; the kernel's net.core.somaxconn may be less."""


Shares = Sequence[Sequence[socket.socket]]
"""The sockets that each worker accepts on, by its number."""


def shared(sockets: Sequence[socket.socket], count: int) -> Shares:
    """All of ``sockets`` for each of ``count`` workers; nothing if there are none.

    The kernel gives a connection to the first worker that accepts it, so connections are spread less evenly
    than over the sockets that :func:`bind` makes.
    """
    return [sockets] * count if sockets else []


def bind(address: str, count: int) -> Shares:
    """A socket for each of ``count`` workers, bound to ``HOST:PORT`` (``[HOST]:PORT`` for IPv6); the
    first listens already.

    With port 0 all get the same free port. Raises KvError if the address is not available, as when another
    facade listens on it; connections that a stopped facade left behind do not matter.

    The kernel spreads connections over the sockets (SO_REUSEPORT), more evenly than workers that accept on
    one socket would. The parent binds the sockets and they outlive a worker that crashes, so its connections
    wait for the next worker instead of being refused.
    """
    host, _, port = address.rpartition(":")
    try:
        return [[sock] for sock in _bind_tcp(host.strip("[]"), int(port), count)]
    except OSError as error:
        raise KvError("unavailable", f"cannot listen on {address}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "address in use, perhaps by another kvstore; stop that, or choose another address with --http"
    return f"{str(error.strerror).lower()}; choose another address with --http"


def _bind_tcp(host: str, port: int, count: int) -> list[socket.socket]:
    family, kind, protocol, _, where = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    first = _new_socket(family, kind, protocol)
    sockets = [first]
    try:
        _claim(first, where)
        for _ in range(count - 1):
            sockets.append(_new_socket(family, kind, protocol))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sockets[-1].bind(first.getsockname())
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _new_socket(family: int, kind: int, protocol: int) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _claim(sock: socket.socket, where: tuple[Any, ...]) -> None:
    """Listen on an address that no other process has, and let the sockets of this process join.

    Sockets that share a port from the start would also share it with another facade of the same user, and
    requests would go to either store. Until the option is set, the kernel lets only one listen, even of two
    facades that start at once.
    """
    sock.bind(where)
    sock.listen(BACKLOG)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    """The address to give to a client."""
    name = sock.getsockname()
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"{scheme}://{host}:{name[1]}"
