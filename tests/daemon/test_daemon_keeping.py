"""What a stranger can make the daemon keep is bounded, in bytes, whatever it sends and does not read."""

from __future__ import annotations

import re
import select
import socket
import struct
from contextlib import ExitStack, suppress

import pytest

from support.disk import write_lock_held
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, wait_until
from support.wire import PATIENCE_MS, Connect, Peer, RawPeer, frame, greeting, message, pack, put

MIB = 1024 * 1024


def cut_off(peer: Peer) -> int:
    """How many connections the daemon has closed because of what they made it keep."""
    [status] = peer.ask({"op": "status"})
    counted: int = status["counters"]["peers_cut_off"]
    return counted


def defends_itself(peer: Peer) -> bool:
    """Whether the daemon has no room for one more request, or has closed a connection because of that."""
    reply = peer.reply_to({"op": "status"})
    if "error" in reply:
        return bool(reply["error"]["code"] == "too_busy")
    [status] = reply["results"]
    return bool(status["counters"]["peers_cut_off"])


def is_taken(peer: RawPeer, data: bytes) -> bool:
    """Whether all of ``data`` could be sent before the daemon closed the connection.

    Who only sends may not notice the end for long, where the daemon's buffers were full.
    """
    end = select.poll()
    end.register(peer.socket, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    peer.socket.setblocking(False)
    view = memoryview(data)
    try:
        while view:
            [(_, events)] = end.poll(PATIENCE_MS)
            if events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
                return False
            if events & select.POLLOUT:
                view = view[peer.socket.send(view) :]
            else:
                peer.socket.recv(MIB)
    except OSError:
        return False
    finally:
        peer.socket.settimeout(PATIENCE_SECONDS)
    return True


@pytest.mark.parametrize(
    ("parts", "most"),
    [
        # each 2 bytes on its way, and 64 where it is kept
        pytest.param(frame(b"", 1) * 100_000, 40 * MIB, id="empty"),
        pytest.param(frame(bytes(1_000), 1) * 500, 700 * MIB, id="small"),
        pytest.param(frame(bytes(4 * MIB), 1), 1_000 * MIB, id="large"),
    ],
)
def test_a_request_that_never_ends_ends_its_connection(
    parts: bytes, most: int, daemon: Daemon, client: Peer
) -> None:
    with RawPeer(daemon.requests, b"DEALER") as endless:
        largest = 0
        for _ in range(most // len(parts)):
            if not is_taken(endless, parts):
                break
            largest = max(largest, daemon.anonymous_memory)
        assert endless.is_closed()
    assert largest < 600 * MIB
    wait_until(lambda: "incomplete requests took too much memory" in daemon.stderr)
    wait_until(lambda: cut_off(client))
    wait_until(lambda: daemon.anonymous_memory < 100 * MIB, what="it is given back")
    assert client.ask(put("k"))


def test_parts_of_requests_are_bounded_for_all_together_and_whole_requests_go_on(
    daemon: Daemon, client: Peer
) -> None:
    almost = message(b"", *pack(put("k", bytes(16 * MIB - 4096))))[: -MIB // 2]
    with ExitStack() as stack:
        for _ in range(20):
            half = stack.enter_context(RawPeer(daemon.requests, b"DEALER"))
            assert is_taken(half, almost) or cut_off(client)
            assert client.ask(put("k", bytes(MIB)))
        wait_until(lambda: cut_off(client), what="the incomplete requests are cut off")
        wait_until(lambda: daemon.anonymous_memory < 600 * MIB)


def test_what_peers_say_of_themselves_when_they_connect_is_bounded(daemon: Daemon, client: Peer) -> None:
    properties = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    properties += b"\x01X" + struct.pack(">I", 12 * MIB) + bytes(12 * MIB)
    host, _, port = daemon.requests.removeprefix("tcp://").rpartition(":")
    with ExitStack() as stack:
        for _ in range(24):
            talker = stack.enter_context(
                socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)
            )
            with suppress(OSError):
                talker.sendall(greeting() + frame(properties, 4))
        wait_until(lambda: cut_off(client))
        wait_until(lambda: daemon.anonymous_memory < 500 * MIB)


def test_whole_requests_that_there_is_no_room_for_are_refused_before_they_are_too_much(
    daemon: Daemon, client: Peer
) -> None:
    request = message(b"", *pack(*(put(f"k{number}", bytes(MIB)) for number in range(8))))
    with ExitStack() as stack:
        with write_lock_held(daemon.data):
            senders = [stack.enter_context(RawPeer(daemon.requests, b"DEALER")) for _ in range(5)]
            for _ in range(13):  # also where the system holds a tenth of it in its buffers
                for sender in senders:
                    with suppress(ConnectionError):
                        sender.socket.sendall(request)
            # a daemon that has no time to read what has come cuts its sender off
            wait_until(
                lambda: any(b"too_busy" in said(sender) for sender in senders) or defends_itself(client)
            )
            assert daemon.anonymous_memory < 900 * MIB
        wait_until(lambda: "results" in client.reply_to(put("k")))


def said(peer: RawPeer) -> bytes:
    """What has come from the daemon since the last call; nothing if it closed the connection."""
    peer.socket.setblocking(False)
    try:
        return peer.socket.recv(MIB)
    except (BlockingIOError, ConnectionError):
        return b""
    finally:
        peer.socket.settimeout(PATIENCE_SECONDS)


def test_a_client_that_is_not_heard_makes_the_daemon_keep_no_more_than_others(
    daemon: Daemon, client: Peer
) -> None:
    request = message(b"", *pack(put("k", bytes(8 * MIB))))
    with (
        RawPeer(daemon.requests, b"DEALER", b"mine") as heard,
        RawPeer(daemon.requests, b"DEALER", b"mine") as unheard,
    ):
        heard.send(b"", *pack(put("k")))
        assert not all(is_taken(unheard, request) for _ in range(60))
        assert unheard.is_closed()
    assert cut_off(client)


def test_a_subscriber_that_does_not_read_is_cut_off_and_others_are_told_everything(
    daemon: Daemon, subscriber: Peer, client: Peer
) -> None:
    values = 200
    with ExitStack() as stack:
        silent = [stack.enter_context(RawPeer(daemon.changes, b"SUB")) for _ in range(3)]
        for each in silent:
            each.send(b"\1")
        wait_until(lambda: client.ask({"op": "status"})[0]["connections"] == 5)
        largest = 0
        for number in range(values):
            client.ask(put(f"k{number % 3}", bytes(MIB)))
            subscriber.change()
            largest = max(largest, daemon.anonymous_memory)
        wait_until(lambda: cut_off(client) == len(silent))
    assert largest < values * MIB  # where nobody was cut off, it had them all, and itself
    wait_until(lambda: "the subscriber is more than 67108864 bytes behind" in daemon.stderr)
    assert re.search(r"closed the connection of 127\.0\.0\.1:\d+ to the changes address", daemon.stderr)


def test_requests_that_were_received_count_no_more(shared_daemon: Daemon, connect: Connect) -> None:
    peer = connect(shared_daemon)
    for _ in range(40):
        peer.exchange(bytes(8 * MIB))
    assert cut_off(peer) == 0
