"""Why the daemon ends each handshake: libzmq does not say, but what the other side speaks it can be asked.

A key that the daemon does not know is refused in so many words, and libzmq reports that. A server key that
is not the daemon's, and a key on one side only, look alike: the daemon closes the connection.
"""

from __future__ import annotations

import socket as plain_socket
import time
from contextlib import closing
from typing import Any

import zmq

from kvstore_client.transport.wait import IoGenerator, SocketWait
from kvstore_core.connection_monitor import NOBLOCK, POLLIN
from kvstore_core.errors import KvError

HANDSHAKES = 3
"""So many that end without a word, one after the other, are no daemon that is just being stopped."""

_ANSWER_SECONDS = 1.0

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03"
"""As much of ZMTP's greeting as makes the other side send all of its own (RFC 23)."""

_MECHANISM = slice(12, 32)


def refused_key(endpoint: str) -> KvError:
    """The error of a client whose key the daemon does not know."""
    return KvError(
        "unauthenticated",
        f"the daemon at {endpoint} does not know the key of this client's login, or no longer: "
        "have one made with 'kvstore key create'",
    )


def reason(endpoint: str, mechanism: str, *, has_keys: bool) -> KvError | None:
    """The error of a client whose handshakes are ended by a daemon that speaks ``mechanism``; None where that
    is no reason."""
    if mechanism == "CURVE":
        why = (
            "has another key than the login's server_key, or no room for one more connection"
            if has_keys
            else "lets in only clients with a key: have one made with 'kvstore key create', and put it into "
            "the login file"
        )
    elif mechanism == "NULL" and has_keys:
        why = "takes no keys, since access is off there: take it out of the login file"
    else:
        return None
    return KvError("unauthenticated", f"the daemon at {endpoint} {why}")


def mechanism_of(context: zmq.Context[Any], endpoint: str) -> IoGenerator[str]:
    """What the server at ``endpoint`` speaks, ``NULL`` or ``CURVE``; empty if it does not say in a second."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    is_local = endpoint.startswith("ipc://")
    try:
        said = yield from (_ask_local(endpoint, deadline) if is_local else _ask(context, endpoint, deadline))
    except (OSError, zmq.ZMQError):
        return ""
    return said[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")


def _ask(context: zmq.Context[Any], endpoint: str, deadline: float) -> IoGenerator[bytes]:
    said, is_asked = b"", False
    with closing(context.socket(zmq.STREAM)) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        while len(said) < _MECHANISM.stop and time.monotonic() < deadline:
            try:
                connection, data = socket.recv_multipart(NOBLOCK)
            except zmq.Again:
                yield SocketWait(((socket, POLLIN),), deadline - time.monotonic())
                continue
            if not is_asked:  # an empty part says that there is a connection, or no longer one
                socket.send_multipart([connection, _GREETING], NOBLOCK)
                is_asked = True
            elif not data:
                break
            said += data
    return said


def _ask_local(endpoint: str, deadline: float) -> IoGenerator[bytes]:
    """The same over ``ipc://``, which a STREAM socket does not speak."""
    said = b""
    path = endpoint.removeprefix("ipc://")
    with plain_socket.socket(plain_socket.AF_UNIX) as socket:
        socket.setblocking(False)
        socket.connect("\0" + path[1:] if path.startswith("@") else path)
        socket.sendall(_GREETING)
        while len(said) < _MECHANISM.stop and time.monotonic() < deadline:
            try:
                data = socket.recv(64)
            except BlockingIOError:
                yield SocketWait((), 0.005)
                continue
            if not data:
                break
            said += data
    return said
