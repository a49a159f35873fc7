"""The sockets that the facade accepts on."""

from __future__ import annotations

import socket

from kvstore_client.errors import KvError


def bind(address: str, count: int) -> list[socket.socket]:
    """``count`` sockets bound to ``HOST:PORT`` (``[HOST]:PORT`` for IPv6), one for each worker.

    With port 0 all have the one free port that the first was given. Raises KvError where the address
    cannot be had.

    The kernel spreads connections over the sockets (SO_REUSEPORT): of 32 connections to two workers
    the busier one had 16 to 23 in ten runs, and 21 to 31 when both accepted on one socket. They are
    bound by the parent and outlive a worker that crashes, so its connections wait for the next one
    instead of being refused.
    """
    host, _, port = address.rpartition(":")
    try:
        return _bind_tcp(host.strip("[]"), int(port), count)
    except OSError as error:
        raise KvError("unavailable", f"cannot listen on {address}: {error.strerror}") from error


def _bind_tcp(host: str, port: int, count: int) -> list[socket.socket]:
    family, kind, protocol, _, where = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sockets: list[socket.socket] = []
    for _ in range(count):
        sock = socket.socket(family, kind, protocol)
        sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if count > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        where = (where[0], sock.getsockname()[1], *where[2:])
    return sockets


def url_of(sock: socket.socket) -> str:
    """The address to give to a client."""
    name = sock.getsockname()
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"
