"""Ports that a server can be stopped on and started on again."""

from __future__ import annotations

import random
import socket

# Below the range from which Linux takes the ports of outgoing connections (32768 on). A client that
# keeps reconnecting to a port inside that range while its server is down is sooner or later given
# that very port to connect from, connects to itself, and the server cannot be started again.
_PORTS = range(15_000, 32_000)

_given: set[int] = set()


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens, never the same one twice in a process."""
    chooser = random.SystemRandom()
    while True:
        port = chooser.choice(_PORTS)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
