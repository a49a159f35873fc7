"""Ports that a server can be stopped on and started on again."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

# Below the range from which Linux takes the ports of outgoing connections (32768 on). A client that
# keeps reconnecting to a port inside that range while its server is down is sooner or later given
# that very port to connect from, connects to itself, and the server cannot be started again.
_PORTS = range(15_000, 32_000)

_given: set[int] = set()

# Of this file, byte N is locked by the process that was given port N, for as long as it lives. That nothing
# listens on a port is not enough: it may be that of a server that is about to start, or that a test has
# stopped, and a client of the one would speak to the other.
_claims = os.open(
    Path(tempfile.gettempdir(), f"kvstore-test-ports-{os.getuid()}"),
    os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
    0o600,
)


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens, never the same one twice in a process, nor one that
    another process of tests on this machine was given and may still use."""
    chooser = random.SystemRandom()
    while True:
        port = chooser.choice(_PORTS)
        if port not in _given and _is_claimed(port) and _is_free(port):
            _given.add(port)
            return port


def _is_claimed(port: int) -> bool:
    """Whether the port is this process's from now on."""
    try:
        fcntl.lockf(_claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
