"""The daemon's protocol over raw ØMQ sockets, and below them over TCP: no code of ours talks to it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Self

import orjson
import zmq

from support.patience import PATIENCE_SECONDS

PATIENCE_MS = int(1000 * PATIENCE_SECONDS)

ANYTHING = "…"


class Peer:
    """One REQ, DEALER or SUB socket, and what is said over it."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket

    def exchange(self, *frames: bytes) -> list[bytes]:
        """Send frames as they are over a REQ socket and return the reply's."""
        self.socket.send_multipart(frames)
        return self.socket.recv_multipart()

    def ask(self, *ops: dict[str, Any], **header: Any) -> list[dict[str, Any]]:
        """The results of a request. An op's ``value`` is bytes and travels beside the header; so it
        does in the results. Fails if the whole request is refused."""
        reply = self.reply_to(*ops, **header)
        assert "error" not in reply, reply
        results: list[dict[str, Any]] = reply["results"]
        return results

    def reply_to(self, *ops: dict[str, Any], **header: Any) -> dict[str, Any]:
        """The reply's header, with its values put in."""
        return unpack(self.exchange(*pack(*ops, **header)))

    def refusal(self, *ops: dict[str, Any], **header: Any) -> dict[str, Any]:
        """The error with which the whole request is refused."""
        error: dict[str, Any] = self.reply_to(*ops, **header)["error"]
        return error

    def change(self) -> tuple[bytes, dict[str, Any], bytes]:
        """The next event that a SUB socket receives, heartbeats passed over."""
        while True:
            frames = self.socket.recv_multipart()
            if not frames[0].startswith(b"\0"):
                key, header, value = frames
                return key, orjson.loads(header), value

    def heartbeat(self) -> dict[str, Any]:
        """The next heartbeat that a SUB socket receives, events passed over."""
        while True:
            frames = self.socket.recv_multipart()
            if frames[0].startswith(b"\0"):
                topic, header = frames
                assert topic == b"\0heartbeat"
                beat: dict[str, Any] = orjson.loads(header)
                return beat


Connect = Callable[..., Peer]
"""What the fixtures ``connect`` and ``subscribe`` are: they make a peer of the daemon they are given."""


def pack(*ops: dict[str, Any], **header: Any) -> list[bytes]:
    """The frames of a request; every ``value`` goes into the second one."""
    values, plain = [], []
    for op in ops:
        op = dict(op)
        if "value" in op:
            values.append(op.pop("value"))
            op["size"] = len(values[-1])
        plain.append(op)
    first = orjson.dumps({"v": 1, "ops": plain, **header})
    return [first, b"".join(values)] if values else [first]


def unpack(frames: list[bytes]) -> dict[str, Any]:
    """A reply's header, each value put in where its ``size`` stands."""
    header: dict[str, Any] = orjson.loads(frames[0])
    blob, offset = frames[1] if len(frames) > 1 else b"", 0
    for result in header.get("results", ()):
        for holder in _holders(result):
            size = holder.pop("size")
            holder["value"] = blob[offset : offset + size]
            offset += size
    assert offset == len(blob)
    return header


def _holders(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    events = [part for event in result.get("events", ()) for part in (event, event.get("previous", {}))]
    for holder in (result, *result.get("items", ()), *events):
        if "size" in holder:
            yield holder


def is_as_shown(shown: Any, real: Any) -> bool:
    """Whether the JSON is the same, where the ellipsis stands for anything."""
    if shown == ANYTHING:
        return True
    if isinstance(shown, dict) and isinstance(real, dict):
        return shown.keys() == real.keys() and all(is_as_shown(shown[key], real[key]) for key in shown)
    if isinstance(shown, list) and isinstance(real, list):
        return len(shown) == len(real) and all(map(is_as_shown, shown, real))
    return bool(shown == real)


def put(key: str, value: bytes = b"v", **fields: Any) -> dict[str, Any]:
    """A put."""
    return {"op": "put", "key": key, "value": value, **fields}


def get(key: str, **fields: Any) -> dict[str, Any]:
    """A get."""
    return {"op": "get", "key": key, **fields}


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
