"""What one peer does hurts no other: whoever can connect is not trusted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import zmq

from support import Daemon
from support.wire import Peer, get, pack, put, unpack
from support.zmtp import RawPeer

UNSEEDED = 1804289383
"""What glibc's ``rand`` gives first where nobody has seeded it."""


def automatic_identity(number: int) -> bytes:
    """What libzmq's ROUTER calls a peer that has not said what it is called."""
    return b"\0" + number.to_bytes(4, "big")


def test_nobody_can_claim_what_the_next_peers_will_be_called(
    daemon: Daemon, connect: Callable[..., Peer]
) -> None:
    with ExitStack() as stack:
        for number in range(UNSEEDED + 1, UNSEEDED + 60):
            stack.enter_context(RawPeer(daemon.requests, b"DEALER", automatic_identity(number)))
        for _ in range(80):
            assert connect(daemon).ask({"op": "status"})
    assert daemon.is_running


def test_who_claims_anothers_identity_gets_none_of_its_replies(
    daemon: Daemon, connect: Callable[..., Peer]
) -> None:
    owner = connect(daemon, zmq.DEALER, routing_id=b"mine").socket
    owner.send_multipart([b"", *pack(put("k"))])
    owner.recv_multipart()
    with RawPeer(daemon.requests, b"DEALER", b"mine"):
        for _ in range(20):
            assert connect(daemon).ask({"op": "status"})
        owner.send_multipart([b"", *pack(get("k"))])
        assert unpack(owner.recv_multipart()[1:])["results"][0]["value"] == b"v"


def test_an_identity_is_free_again_once_its_connection_is_closed(
    daemon: Daemon, connect: Callable[..., Peer]
) -> None:
    for _ in range(20):
        client = connect(daemon, zmq.DEALER, routing_id=b"mine", linger=0).socket
        client.send_multipart([b"", *pack({"op": "status"})])
        assert b'"results"' in client.recv_multipart()[1]
        client.close()
        # the daemon sees the end of that connection before it sees this one
        assert connect(daemon).ask({"op": "status"})


def test_a_request_without_the_empty_frame_is_answered_and_logged(
    daemon: Daemon, connect: Callable[..., Peer]
) -> None:
    dealer = connect(daemon, zmq.DEALER).socket
    for frames in (pack({"op": "status"}), [b""], [b"id", b""], [b"i"] * 9 + [b"", *pack({"op": "status"})]):
        dealer.send_multipart(frames)
        delimiter, reply = dealer.recv_multipart()
        error = unpack([reply])["error"]
        assert (delimiter, error["code"]) == (b"", "bad_request")
        assert "empty frame" in error["message"]
    assert daemon.stderr.count("empty frame") == 1


def test_the_frames_before_the_empty_one_have_a_limit_together(
    daemon: Daemon, connect: Callable[..., Peer]
) -> None:
    dealer = connect(daemon, zmq.DEALER).socket
    for size, is_taken in ((4096, True), (4097, False)):
        dealer.send_multipart([b"x" * (size - 7), *[b"y"] * 7, b"", *pack({"op": "status"})])
        *_, reply = dealer.recv_multipart()
        assert ("results" in unpack([reply])) == is_taken
