"""The daemon's protocol over raw ØMQ sockets: no code of ours is used to talk to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import zmq

PATIENCE_MS = 20_000


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


def put(key: str, value: bytes = b"v", **fields: Any) -> dict[str, Any]:
    """A put."""
    return {"op": "put", "key": key, "value": value, **fields}


def get(key: str) -> dict[str, Any]:
    """A get."""
    return {"op": "get", "key": key}
