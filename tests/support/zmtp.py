"""A ZMTP 3.0 peer over TCP, with the NULL mechanism, that says whatever a test wants it to: no libzmq that
would keep it from doing so."""

from __future__ import annotations

import socket
import struct
from typing import Self

PATIENCE_SECONDS = 20

_MORE, _LONG, _COMMAND = 1, 2, 4


class RawPeer:
    """A connection to ``endpoint`` (``tcp://…``) that names itself a socket of the given ``kind``."""

    def __init__(self, endpoint: str, kind: bytes, identity: bytes = b"") -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)
        try:
            self.socket.sendall(greeting())
            self._read(64)
            properties = _property(b"Socket-Type", kind) + _property(b"Identity", identity)
            self.socket.sendall(frame(b"\x05READY" + properties, _COMMAND))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        """Send one message; raises OSError once the other side has closed the connection."""
        self.socket.sendall(message(*frames))

    def send_frame(self, body: bytes, *, more: bool) -> None:
        """Send one frame, of a message that need not end."""
        self.socket.sendall(frame(body, _MORE if more else 0))

    def is_closed(self) -> bool:
        """Whether the other side closed the connection; waits until it did."""
        try:
            while self.socket.recv(65_536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def _read(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            more = self.socket.recv(size - len(got))
            if not more:
                raise ConnectionError("closed during the greeting")
            got += more
        return got


def greeting() -> bytes:
    """What a connection begins with."""
    return b"\xff" + b"\0" * 8 + b"\x7f" + bytes((3, 0)) + b"NULL".ljust(20, b"\0") + b"\0" * 32


def message(*frames: bytes) -> bytes:
    """The bytes of one message."""
    *firsts, last = frames
    return b"".join(frame(first, _MORE) for first in firsts) + frame(last)


def frame(body: bytes, flags: int = 0) -> bytes:
    """The bytes of one frame."""
    if len(body) > 255:
        return bytes((flags | _LONG,)) + struct.pack(">Q", len(body)) + body
    return bytes((flags, len(body))) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + struct.pack(">I", len(value)) + value
