"""CURVE on a client's sockets (ZeroMQ RFC 26): who it is, and that the daemon is the one it means."""

from __future__ import annotations

import zmq

from kvstore_core.access.login_file import CurveKeys
from kvstore_core.errors import KvError


def apply_curve(socket: zmq.Socket[bytes], keys: CurveKeys | None) -> None:
    """Let a socket that is not connected yet speak CURVE with ``keys``; None leaves it without.

    Raises ``bad_request`` for keys that are none, and where this machine's libzmq has no CURVE.
    """
    if keys is None:
        return
    try:
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server_key.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public_key.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret_key.encode())
    except zmq.ZMQError as error:
        raise KvError("bad_request", _why_not()) from error


def _why_not() -> str:
    if not zmq.has("curve"):
        return "this libzmq was built without CURVE: install pyzmq from its wheel, or a libzmq with libsodium"
    return "a login's server_key, public_key and secret_key must be CURVE keys, 40 characters of Z85 each"
