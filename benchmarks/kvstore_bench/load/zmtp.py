"""What a SUB socket sends to be subscribed (ZMTP 3.0, NULL mechanism), for reading without libzmq:
a thousand sockets of it in one process would cost more than the publisher does."""

from __future__ import annotations

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
_PROPERTY = b"\x0bSocket-Type" + len(b"SUB").to_bytes(4, "big") + b"SUB"

OPENED = b"READY"
"""Stands in the publisher's answer to the greeting; what follows must not be sent before it."""


def subscription(prefix: bytes) -> bytes:
    """The rest of the handshake, and the subscription to ``prefix``, which is not answered."""
    command = b"\x05READY" + _PROPERTY
    topic = b"\x01" + prefix
    return b"\x04" + bytes([len(command)]) + command + b"\x00" + bytes([len(topic)]) + topic
