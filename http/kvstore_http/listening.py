"""The sockets that the facade accepts on."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from kvstore_client.errors import KvError

UNIX = "unix:"
UNIX_MODE = 0o660


def bind(address: str, count: int) -> list[socket.socket]:
    """``count`` sockets bound to ``HOST:PORT`` (``[HOST]:PORT`` for IPv6) or ``unix:PATH``.

    With port 0 all have the one free port that the first was given. TCP sockets are one for each
    worker, among which the kernel spreads connections (SO_REUSEPORT); they are bound by the parent
    and outlive a worker that crashes, so connections wait for the next one instead of being refused.
    A Unix socket is one and the same for all. Raises KvError where it cannot be bound.
    """
    try:
        if address.startswith(UNIX):
            return [_bind_unix(address.removeprefix(UNIX))] * count
        host, _, port = address.rpartition(":")
        return _bind_tcp(host.strip("[]"), int(port), count)
    except (OSError, ValueError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise KvError("unavailable", f"cannot listen on {address}: {reason}") from error


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


def _bind_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode) and not _is_served(path):  # noqa: PTH116
            os.unlink(path)  # noqa: PTH108  # left by a process that was killed
    sock.bind(path)
    os.chmod(path, UNIX_MODE)  # noqa: PTH101
    return sock


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def url_of(sock: socket.socket) -> str:
    """The address to give to a client."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"{UNIX}{name}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"
