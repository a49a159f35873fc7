"""What comes on a connection by CURVE is counted as what it is: longer on the wire than what it carries."""

from __future__ import annotations

import termios
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path

import pytest
import zmq

from kvstore_core.curve import apply_curve
from kvstore_daemon.access.authority import Authority, FileAuthority
from kvstore_daemon.access.zap import ZapHandler
from kvstore_daemon.peer_limits.connections import (
    ConnectionLimit,
    bytes_acknowledged_and_received,
    heartbeat_rate,
    queued_bytes,
)
from kvstore_daemon.requests.router_socket import RouterSocket
from support.identities import Identities
from support.servers import free_port, wait_until

PING_MS = 20


class Connected:
    """A client and the socket that it is connected to, in this process."""

    def __init__(self, folder: Path, stack: ExitStack, *, is_curve: bool, ping_ms: int) -> None:
        identities = Identities(folder)
        key = identities.add("one", "all:*")
        authority = FileAuthority(folder, None, None) if is_curve else Authority()
        context: zmq.Context[zmq.Socket[bytes]] = stack.enter_context(zmq.Context())
        zap = stack.enter_context(closing(ZapHandler(context, authority)))
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.router = RouterSocket(context, endpoint, 1_000_000, ConnectionLimit(), authority)
        stack.enter_context(closing(self.router))
        self.client = stack.enter_context(context.socket(zmq.DEALER))
        self.client.linger = 0
        self.client.heartbeat_ivl = ping_ms
        apply_curve(self.client, identities.keys(key) if is_curve else None)
        self.client.connect(endpoint)
        self.client.send_multipart([b"", b"hello"])
        message = wait_until(lambda: (zap.answer(), self.router.receive())[1])
        self.peer = message.peer

    def received(self) -> int:
        counts = bytes_acknowledged_and_received(self.peer.descriptor)
        assert counts is not None
        return counts[1] - queued_bytes(self.peer.descriptor, termios.FIONREAD)


@pytest.fixture(params=[False, True], ids=["null", "curve"])
def is_curve(request: pytest.FixtureRequest) -> bool:
    chosen: bool = request.param
    return chosen


def test_a_heartbeat_is_no_longer_than_what_is_excused_for_a_second(is_curve: bool, tmp_path: Path) -> None:
    with ExitStack() as stack:
        connected = Connected(tmp_path, stack, is_curve=is_curve, ping_ms=PING_MS)
        seen = {connected.received()}
        wait_until(lambda: seen.add(connected.received()) or len(seen) > 5)  # type: ignore[func-returns-value]
    shortest = min(later - earlier for earlier, later in pairwise(sorted(seen)))
    assert 0 < shortest <= heartbeat_rate(is_curve=is_curve)


def test_what_was_handed_over_is_no_less_than_what_has_come(is_curve: bool, tmp_path: Path) -> None:
    with ExitStack() as stack:
        connected = Connected(tmp_path, stack, is_curve=is_curve, ping_ms=0)
        for size in (0, 1, 200, 255, 256, 300, 100_000):
            before, handed = connected.received(), connected.peer.handed_over
            connected.client.send_multipart([b"", b"x" * size, b"y" * size])
            assert wait_until(connected.router.receive)
            assert connected.received() - before <= connected.peer.handed_over - handed, size
