"""Sockets that the service manager opened before it started this process (sd_listen_fds(3)).

A connection that is made while the service is down waits in them until it is up.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from kvstore_cli.config.option_values import is_local
from kvstore_cli.config.resolve import ConfigurationError

FIRST_DESCRIPTOR = 3
_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening TCP sockets meant for this process, none where it was started without.

    The variables that announce them are taken out of the environment. Raises ConfigurationError for
    anything else that was handed over.
    """
    count, pid, *_ = [environ.pop(name, "") for name in _VARIABLES]
    if not count or pid != str(os.getpid()):
        return []
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count) if count.isdecimal() else 0)
    return [_adopted(descriptor) for descriptor in descriptors]


def address_of(sockets: list[socket.socket]) -> str:
    """``HOST:PORT`` of the socket that most machines can reach, by which all are judged."""
    addresses = [_address(sock) for sock in sockets]
    return next((address for address in addresses if not is_local(address)), addresses[0])


def _adopted(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise _unusable(descriptor, "is no socket") from error
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise _unusable(descriptor, "is not a TCP socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise _unusable(descriptor, "does not listen (is it a unit with Accept=yes?)")
    sock.set_inheritable(False)
    return sock


def _unusable(descriptor: int, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"what the service manager handed over as descriptor {descriptor} {why}; "
        "write ListenStream=HOST:PORT into the socket unit"
    )


def _address(sock: socket.socket) -> str:
    host, port, *_ = sock.getsockname()
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"
