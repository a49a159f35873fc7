"""Raw ØMQ sockets for the tests of the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import zmq

from support.servers import Daemon
from support.wire import PATIENCE_MS, Connect, Peer


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context whose sockets are all closed when the test is over."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def new_socket(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Callable[[int], zmq.Socket[bytes]]]:
    """``new_socket(zmq.REQ)``: a socket that is closed after the test, however the test ends."""
    sockets: list[zmq.Socket[bytes]] = []

    def new_socket(kind: int) -> zmq.Socket[bytes]:
        sockets.append(context.socket(kind))
        sockets[-1].rcvtimeo = PATIENCE_MS
        return sockets[-1]

    yield new_socket
    for socket in sockets:
        socket.close(linger=0)


@pytest.fixture
def connect(new_socket: Callable[[int], zmq.Socket[bytes]]) -> Connect:
    """``connect(daemon)``: a REQ socket; ``connect(daemon, zmq.DEALER)``: another kind."""

    def connect(daemon: Daemon, kind: int = zmq.REQ, **options: int) -> Peer:
        socket = new_socket(kind)
        for name, value in options.items():
            setattr(socket, name, value)
        socket.connect(daemon.requests)
        return Peer(socket)

    return connect


@pytest.fixture
def subscribe(new_socket: Callable[[int], zmq.Socket[bytes]]) -> Connect:
    """``subscribe(daemon, b"prefix")``: a SUB socket that receives already, shown by a heartbeat."""

    def subscribe(daemon: Daemon, *prefixes: bytes) -> Peer:
        socket = new_socket(zmq.SUB)
        socket.connect(daemon.changes)
        for prefix in prefixes or (b"",):
            socket.subscribe(prefix)
        socket.subscribe(b"\0heartbeat")
        peer = Peer(socket)
        peer.heartbeat()
        return peer

    return subscribe


@pytest.fixture
def peer(shared_daemon: Daemon, connect: Connect) -> Peer:
    """A REQ socket connected to the shared daemon."""
    return connect(shared_daemon)


@pytest.fixture
def client(daemon: Daemon, connect: Connect) -> Peer:
    """A REQ socket connected to the test's own daemon."""
    return connect(daemon)


@pytest.fixture
def subscriber(daemon: Daemon, subscribe: Connect) -> Peer:
    """A SUB socket that receives all changes of the test's own daemon."""
    return subscribe(daemon)


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A prefix for the keys of this test alone."""
    return f"{request.node.name}/"
