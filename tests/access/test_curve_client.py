"""What a client's socket learns of a refused handshake, at real sockets."""

from __future__ import annotations

import pytest
import zmq

from kvstore_core.access.login_file import CurveKeys
from kvstore_core.curve import apply_curve
from kvstore_core.errors import BadRequest


@pytest.mark.parametrize("bad", ["", "x" * 39, "x" * 41, "ü" * 20, '"' * 40])
def test_keys_that_are_none_are_refused_in_words(bad: str) -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        for at in range(3):
            keys = [public, public, secret]
            keys[at] = bad
            with pytest.raises(BadRequest, match="40 characters of Z85"):
                apply_curve(socket, CurveKeys(*keys))


def test_keys_become_those_of_the_socket() -> None:
    server, _ = zmq.curve_keypair()
    public, secret = zmq.curve_keypair()
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        apply_curve(socket, None)
        assert socket.mechanism == zmq.NULL
        apply_curve(socket, CurveKeys(server.decode(), public.decode(), secret.decode()))
        assert socket.mechanism == zmq.CURVE
