"""Decides whom libzmq lets in (ZeroMQ RFC 27, ZAP).

libzmq asks at ``inproc://zeromq.zap.01`` in the middle of each CURVE handshake, and waits for the answer. The
loop answers, so nothing is shared between threads. ``zmq.auth`` is not used: its authenticator is a thread
that takes keys from a folder of files, and lets peers without a mechanism in until told otherwise.
"""

from __future__ import annotations

import logging

import zmq
from zmq.utils import z85

from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog
from kvstore_daemon.access.authority import Authority

log = logging.getLogger("kvstore.daemon")

ENDPOINT = "inproc://zeromq.zap.01"

DOMAIN = b"kvstore"
"""Of the sockets that :func:`protect` makes."""

_VERSION = b"1.0"
_KEY_BYTES = 32
_FIELDS = 7
"""Of a request: version, id, domain, address, identity, mechanism, and of CURVE one credential, the key."""


def protect(socket: zmq.Socket[bytes], secret_key: str) -> None:
    """Let nobody in at a socket, not bound yet, who has not shown a key that the :class:`ZapHandler` takes.

    Raises ``internal`` if libzmq does not say so as well. Without a domain, or without enforcing it, libzmq
    would let every stranger in while no handler is there to ask.
    """
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret_key.encode())
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    if not is_protected(socket):
        raise KvError("internal", "libzmq did not take the options that keep strangers out")


def is_protected(socket: zmq.Socket[bytes]) -> bool:
    """Whether strangers are kept out of a socket, as it says itself."""
    said = [
        socket.getsockopt(option)
        for option in (zmq.MECHANISM, zmq.CURVE_SERVER, zmq.ZAP_DOMAIN, zmq.ZAP_ENFORCE_DOMAIN)
    ]
    return said == [zmq.CURVE, 1, DOMAIN, 1]


class ZapHandler:
    """Lets in whoever has a key that is good now; used by the loop's thread only.

    To be made before the sockets that it decides for are bound, and closed after them. Without it nobody is
    let in. A peer's User-Id is its public key, in Z85: whose that is, is asked again with each request.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], authority: Authority) -> None:
        self._authority = authority
        self._refused = RateLimitedLog(log)
        self._socket = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(ENDPOINT)
        self.answer()  # the descriptor signals nothing before the socket was found empty once

    def fileno(self) -> int:
        """The descriptor to watch for :meth:`answer`; edge-triggered, and consumed by any call."""
        return self._socket.fileno()

    def answer(self) -> None:
        """Answer all that is asked now."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            at = frames.index(b"") + 1
            self._socket.send_multipart([*frames[:at], *self._verdict(frames[at:])], zmq.NOBLOCK)

    def _verdict(self, request: list[bytes]) -> list[bytes]:
        """The frames of the answer."""
        number = request[1] if len(request) > 1 else b""
        user_id = self._user_id(request)
        if user_id is None:
            return [_VERSION, number, b"400", b"this key is not known here", b"", b""]
        return [_VERSION, number, b"200", b"OK", user_id.encode(), b""]

    def _user_id(self, request: list[bytes]) -> str | None:
        """The public key of one who is let in."""
        if len(request) != _FIELDS:
            return None
        version, _, domain, address, _, mechanism, key = request
        if (version, domain, mechanism, len(key)) != (_VERSION, DOMAIN, b"CURVE", _KEY_BYTES):
            return None
        public = z85.encode(key).decode()
        try:
            self._authority.principal_of(public)
        except KvError as error:
            # a public key is no secret, and tells the operator which of many clients to look at
            self._refused.warning(
                "refused a client at %s with the key %s: %s", address.decode(), public, error.message
            )
            return None
        return public

    def close(self) -> None:
        """Let nobody in any more."""
        self._socket.close()
