"""Binds the daemon's two sockets and watches their connections; removes the files of ``ipc://`` endpoints."""

from __future__ import annotations

import errno
import os
import socket as plain_socket
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path

import zmq

from kvstore_core.errors import KvError
from kvstore_core.process.startup import patiently
from kvstore_daemon.access.authority import Authority
from kvstore_daemon.access.zap import protect
from kvstore_daemon.peer_limits.connections import ConnectionLimit, Connections

Context = zmq.Context[zmq.Socket[bytes]]

FLUSH_MS = 1_000
"""How long a closing socket may take to send what it still holds."""

HANDSHAKE_MS = 5_000
"""The longest that a handshake may take (libzmq's default is 30 s)."""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 15, 5, 3
"""Two times in seconds, and a count: a peer that vanished is noticed after half a minute, and the identity
that it chose is free again."""

UNTAKEN_MS = 30_000
"""The same while something is on its way to the peer, which TCP would repeat for a quarter of an hour; and
for a peer that is there but has read nothing from its full buffers for so long."""


def bind(
    context: Context,
    socket: zmq.Socket[bytes],
    name: str,
    endpoint: str,
    limit: ConnectionLimit,
    authority: Authority,
) -> tuple[str, Connections]:
    """Bind ``socket``, whose endpoint is given by the option called ``name``. Returns the endpoint it got,
    with the real port if 0 was asked for, and its connections.

    While access is on, the socket speaks nothing but CURVE, and the handler that decides whom it lets in must
    be there.

    Waits a few seconds for an address that is in use. Closes the socket and raises ``unavailable``, which
    names the option, if the endpoint cannot be used.
    """
    # Only for an address written with brackets: with IPv6 on, a plain 127.0.0.1 becomes ::ffff:127.0.0.1
    # in everything that is reported.
    socket.ipv6 = "[" in endpoint
    socket.linger = FLUSH_MS
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT)
    socket.setsockopt(zmq.TCP_MAXRT, UNTAKEN_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    if authority.keys is not None:
        protect(socket, authority.keys.secret_key)
    connections = Connections(context, socket, name, limit)
    try:
        patiently(partial(_bind, socket, endpoint, f"--{name}"))
    except KvError:
        socket.close(0)
        connections.close()
        raise
    bound: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
    return bound.decode(), connections


def remove_socket_file(endpoint: str) -> None:
    """Remove the file of an ``ipc://`` endpoint that :func:`bind` made; libzmq leaves it there."""
    path = _socket_path(endpoint)
    if path is not None:
        with suppress(OSError):
            Path(path).unlink()


def _bind(socket: zmq.Socket[bytes], endpoint: str, option: str) -> None:
    _check_socket_file(endpoint, option)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise _cannot_listen(endpoint, _reason(error), option) from error


def _socket_path(endpoint: str) -> str | None:
    """The path of an ``ipc://`` endpoint; None if it has no file (abstract names begin with @)."""
    scheme, _, path = endpoint.partition("://")
    return path if scheme == "ipc" and not path.startswith(("@", "*")) else None


def _cannot_listen(endpoint: str, reason: str, option: str) -> KvError:
    return KvError(
        "unavailable", f"cannot listen on {endpoint}: {reason}; choose another address with {option}"
    )


def _reason(error: zmq.ZMQError) -> str:
    # not the error's own text, in which pyzmq may name the endpoint once more
    reason = zmq.strerror(error.errno or 0).lower()
    return f"{reason}, perhaps by another kvstore" if error.errno == zmq.EADDRINUSE else reason


def _check_socket_file(endpoint: str, option: str) -> None:
    """Raise ``unavailable`` if the ``ipc://`` path is in use. libzmq removes any file there before it
    binds: a running daemon's socket, and a file that is no socket. A socket left by a crash may go."""
    path = _socket_path(endpoint)
    if path is None:
        return
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise _cannot_listen(endpoint, "there is a file that is not a socket", option)
        if _accepts_connections(path):
            raise OSError(errno.EADDRINUSE, "address in use, perhaps by another daemon: stop that one")
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_listen(endpoint, str(error.strerror).lower(), option) from error


def _accepts_connections(path: str) -> bool:
    """Whether a process listens on the socket at ``path``."""
    with plain_socket.socket(plain_socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # its backlog is full
            return True
    return True
