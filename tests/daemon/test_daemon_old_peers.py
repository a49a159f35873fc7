"""Peers that speak ZMTP older than 3.0, of which libzmq reports less, harm no others."""

from __future__ import annotations

import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import orjson
import pytest

from support.servers import Daemon, wait_until
from support.wire import Peer, get, put

SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"
REQ = b"\x03"
PATIENCE_SECONDS = 30

# each begins with the greeting of its version, and names no identity
PUT = orjson.dumps({"v": 1, "ops": [{"op": "put", "key": "by an old peer", "size": 0}]})
ZMTP_1 = b"\x01\x00" + b"\x01\x01" + bytes((len(PUT) + 1, 0)) + PUT
ZMTP_2 = SIGNATURE + b"\x01" + REQ + b"\x00\x00" + b"\x01\x00" + bytes((0, len(PUT))) + PUT


@pytest.mark.parametrize("message", [ZMTP_1, ZMTP_2], ids=["1.0", "2.0"])
def test_a_peer_of_an_older_zmtp_is_told_of_in_the_log_and_harms_nobody(
    message: bytes, daemon: Daemon, connect: Callable[..., Peer]
) -> None:
    address = urlsplit(daemon.requests)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(message)
        wait_until(
            lambda: "ZMTP before 3.0" in daemon.stderr or not daemon.is_running, what="a line in the log"
        )
        assert daemon.is_running
        peer = connect(daemon)
        assert "revision" in peer.ask(put("k"))[0]
        assert peer.ask(get("by an old peer"))[0]["error"]["code"] == "not_found"
