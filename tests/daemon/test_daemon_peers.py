"""What one peer does hurts no other: peers are not trusted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import zmq

from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, StartDaemon, wait_until
from support.wire import Connect, Peer, RawPeer, get, message, pack, put, unpack

UNSEEDED = 1804289383
"""The first number of glibc's ``rand`` if it is not seeded."""


def automatic_identity(number: int) -> bytes:
    """The identity that libzmq's ROUTER gives a peer that has not chosen one."""
    return b"\0" + number.to_bytes(4, "big")


def test_the_identities_of_the_next_peers_cannot_be_claimed(daemon: Daemon, connect: Connect) -> None:
    with ExitStack() as stack:
        for number in range(UNSEEDED + 1, UNSEEDED + 60):
            stack.enter_context(RawPeer(daemon.requests, b"DEALER", automatic_identity(number)))
        for _ in range(80):
            assert connect(daemon).ask({"op": "status"})
    assert daemon.is_running


def test_a_peer_that_claims_anothers_identity_gets_none_of_its_replies(
    daemon: Daemon, connect: Connect
) -> None:
    owner = connect(daemon, zmq.DEALER, routing_id=b"mine").socket
    owner.send_multipart([b"", *pack(put("k"))])
    owner.recv_multipart()
    with RawPeer(daemon.requests, b"DEALER", b"mine"):
        for _ in range(20):
            assert connect(daemon).ask({"op": "status"})
        owner.send_multipart([b"", *pack(get("k"))])
        assert unpack(owner.recv_multipart()[1:])["results"][0]["value"] == b"v"


def test_an_identity_is_free_again_once_its_connection_is_closed(daemon: Daemon, connect: Connect) -> None:
    def is_answered() -> bool:
        client = connect(daemon, zmq.DEALER, routing_id=b"mine", linger=0).socket
        client.send_multipart([b"", *pack({"op": "status"})])
        found = bool(client.poll(1_000)) and b'"results"' in client.recv_multipart()[-1]
        client.close()
        return found

    # a connection that comes before the daemon has seen the end of the last one gets no reply
    for _ in range(5):
        wait_until(is_answered)


def test_a_request_without_the_empty_frame_is_answered_and_logged(daemon: Daemon, connect: Connect) -> None:
    dealer = connect(daemon, zmq.DEALER).socket
    for frames in (pack({"op": "status"}), [b""], [b"id", b""], [b"i"] * 9 + [b"", *pack({"op": "status"})]):
        dealer.send_multipart(frames)
        delimiter, reply = dealer.recv_multipart()
        error = unpack([reply])["error"]
        assert (delimiter, error["code"]) == (b"", "bad_request")
        assert "empty frame" in error["message"]
    assert daemon.stderr.count("empty frame") == 1


def test_the_frames_before_the_empty_one_have_a_limit_together(daemon: Daemon, connect: Connect) -> None:
    dealer = connect(daemon, zmq.DEALER).socket
    for size, is_taken in ((4096, True), (4097, False)):
        dealer.send_multipart([b"x" * (size - 7), *[b"y"] * 7, b"", *pack({"op": "status"})])
        *_, reply = dealer.recv_multipart()
        assert ("results" in unpack([reply])) == is_taken


SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"
REQ = b"\x03"

# What peers send that speak ZMTP older than 3.0, of which libzmq reports less: the greeting of their version,
# without an identity, and a request.
PUT = orjson.dumps({"v": 1, "ops": [{"op": "put", "key": "by an old peer", "size": 0}]})
ZMTP_1 = b"\x01\x00" + b"\x01\x01" + bytes((len(PUT) + 1, 0)) + PUT
ZMTP_2 = SIGNATURE + b"\x01" + REQ + b"\x00\x00" + b"\x01\x00" + bytes((0, len(PUT))) + PUT


@pytest.mark.parametrize("message", [ZMTP_1, ZMTP_2], ids=["1.0", "2.0"])
def test_a_peer_of_an_older_zmtp_is_told_of_in_the_log_and_harms_nobody(
    message: bytes, daemon: Daemon, connect: Connect
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


# ── peers that do not take replies ───────────────────────────────────────────────────────────────────

MIB = 1024 * 1024
PAGE = 4 * MIB
WINDOW = 8 * MIB


@pytest.fixture
def filled(start_daemon: StartDaemon, connect: Connect) -> StartDaemon:
    """``filled()``: a daemon whose keys ``b0`` to ``b3`` have 1 MiB each."""

    def filled(**options: int) -> Daemon:
        daemon = start_daemon(**options)
        connect(daemon).ask(*(put(f"b{number}", bytes(MIB)) for number in range(4)))
        return daemon

    return filled


ASK_FOR_A_PAGE = [b"", *pack(*(get(f"b{number}") for number in range(4)))]


def status_of(peer: Peer) -> dict[str, Any]:
    return peer.ask({"op": "status"})[0]


def test_nothing_is_read_for_a_peer_that_does_not_take_its_replies(
    filled: StartDaemon, connect: Connect
) -> None:
    daemon = filled()
    peer = connect(daemon)
    asked = 25
    with RawPeer(daemon.requests, b"DEALER") as silent:
        for _ in range(asked):
            silent.send(*ASK_FOR_A_PAGE)
        wait_until(lambda: status_of(peer)["pending"] > 1 and status_of(peer)["untaken_bytes"] >= WINDOW)
        for _ in range(50):
            status = status_of(peer)
            assert status["untaken_bytes"] <= WINDOW + 2 * PAGE
            assert peer.ask(get("b0"))[0]["value"] == bytes(MIB)
        assert status["counters"]["bytes_replied"] < (asked + 50) * PAGE
        # once it reads, it gets the rest
        received = 0
        while received < asked * PAGE:
            received += len(silent.socket.recv(MIB))
        wait_until(lambda: status_of(peer)["untaken_bytes"] == 0)
    assert status_of(peer)["counters"]["peers_cut_off"] == 0


def test_what_a_peer_that_has_gone_wanted_to_read_is_dropped_and_its_writes_are_done(
    filled: StartDaemon, connect: Connect
) -> None:
    daemon = filled()
    peer = connect(daemon)
    with RawPeer(daemon.requests, b"DEALER") as silent:
        for _ in range(100):
            silent.send(*ASK_FOR_A_PAGE)
        silent.send(b"", *pack(put("last words")))
        wait_until(lambda: status_of(peer)["pending"] > 50)
    wait_until(lambda: "value" in peer.ask(get("last words"))[0])
    status = wait_until(lambda: (found := status_of(peer))["pending"] == 1 and found)
    assert status["counters"]["requests_dropped"] > 50
    assert status["untaken_bytes"] == 0


def test_who_fills_the_room_for_requests_and_takes_nothing_stops_nobody(
    filled: StartDaemon, connect: Connect
) -> None:
    daemon = filled(max_pending_requests=40)
    peer = connect(daemon)
    with ExitStack() as stack:
        for _ in range(8):
            silent = stack.enter_context(RawPeer(daemon.requests, b"DEALER"))
            for _ in range(30):
                silent.send(*ASK_FOR_A_PAGE)
            assert peer.ask(get("b0"))
        wait_until(lambda: status_of(peer)["counters"]["peers_cut_off"])


def test_replies_that_nobody_takes_are_bounded_in_all(filled: StartDaemon, connect: Connect) -> None:
    daemon = filled()
    peer = connect(daemon)
    with ExitStack() as stack:
        for _ in range(40):
            silent = stack.enter_context(RawPeer(daemon.requests, b"DEALER"))
            for _ in range(6):
                silent.send(*ASK_FOR_A_PAGE)
            assert status_of(peer)["untaken_bytes"] <= 256 * MIB
        wait_until(lambda: status_of(peer)["counters"]["peers_cut_off"])
    assert "does not read its replies" in daemon.stderr


def test_one_peers_reads_are_done_in_turns_with_anothers(daemon: Daemon, client: Peer) -> None:
    for number in range(20):
        client.ask(*(put(f"{number}/{index}", b"") for index in range(50)))
    read_log = message(b"", *pack({"op": "events", "since": 0, "prefixes": ["none/"]}))
    asked, done, ahead = 0, 0, 0
    overtaken: list[float] = []
    with RawPeer(daemon.requests, b"DEALER") as greedy:
        while done < asked or not overtaken:
            if done == asked:
                greedy.socket.sendall(read_log * 500)
                asked += 500
            status = status_of(client)
            before, done = done, status["counters"]["operations_by_name"].get("events", 0)
            # of those that waited when the last status was answered, how many went before this one
            if ahead > 100:
                overtaken.append((done - before) / ahead)
            ahead = status["pending"]
    assert min(overtaken) < 0.5


def test_one_peers_writes_are_committed_in_turns_with_anothers(daemon: Daemon, connect: Connect) -> None:
    greedy, late = (connect(daemon, zmq.DEALER).socket for _ in range(2))
    peer = connect(daemon)
    batch = [b"", *pack(*(put(f"k{number}", b"") for number in range(1_000)))]

    def begun() -> int:
        found: int = status_of(peer)["counters"]["operations_by_name"].get("put", 0)
        return found

    def comes_before_some() -> bool:
        """Whether the put of one that comes last is committed before the last of many batches."""
        sent, before = 30, begun()
        for _ in range(sent):
            greedy.send_multipart(batch)
        wait_until(lambda: begun() == before + sent * 1_000)
        late.send_multipart([b"", *pack(put("mine"))])
        [mine] = unpack(late.recv_multipart()[1:])["results"]
        replies = [unpack(greedy.recv_multipart()[1:])["results"] for _ in range(sent)]
        last: int = replies[-1][-1]["revision"]
        return mine["revision"] < last

    # a daemon may be done with all of them before it sees the put, but not each time
    assert any(comes_before_some() for _ in range(20))


# ── peers that subscribe to too much ─────────────────────────────────────────────────────────────────


def test_a_topic_that_no_key_can_match_ends_its_connection(daemon: Daemon, connect: Connect) -> None:
    with RawPeer(daemon.changes, b"SUB") as subscriber:
        with suppress(OSError):
            subscriber.send(b"\1" + bytes(2_000_000))
        assert subscriber.is_closed()
    assert daemon.anonymous_memory < 100 * MIB
    assert connect(daemon).ask({"op": "status"})


def test_a_flood_of_topics_ends_its_connection_and_delays_nobody_for_long(
    daemon: Daemon, connect: Connect, subscribe: Connect
) -> None:
    topics = (f"{number:08}".ljust(511, "x").encode() for number in range(20_000))
    flood = b"".join(message(b"\1" + topic) for topic in topics)
    with RawPeer(daemon.changes, b"SUB") as subscriber:
        with suppress(OSError):
            for _ in range(10):
                subscriber.socket.sendall(flood)
        assert subscriber.is_closed()
    assert daemon.anonymous_memory < 250 * MIB
    listener = subscribe(daemon, b"k")
    connect(daemon).ask(put("k"))
    assert listener.change()[0] == b"k"
    wait_until(lambda: "with the most subscriptions" in daemon.stderr)


def test_of_many_that_subscribe_to_much_those_with_most_are_cut_off(
    daemon: Daemon, connect: Connect, subscribe: Connect
) -> None:
    listener = subscribe(daemon, b"k")
    topics = b"".join(message(b"\1" + f"{number:03}".ljust(200, "x").encode()) for number in range(500))
    with ExitStack() as stack:
        for _ in range(15):
            peer = stack.enter_context(RawPeer(daemon.changes, b"SUB"))
            with suppress(OSError):
                peer.socket.sendall(topics)
        asker = connect(daemon)
        wait_until(lambda: status_of(asker)["counters"]["peers_cut_off"] >= 5, every=0.1)
    asker.ask(put("k"))
    assert listener.change()[0] == b"k"


def test_a_thousand_of_the_longest_topics_are_taken(
    daemon: Daemon, connect: Connect, new_socket: Callable[[int], zmq.Socket[bytes]]
) -> None:
    subscriber = new_socket(zmq.SUB)
    subscriber.sndhwm = 0
    subscriber.connect(daemon.changes)
    for number in range(1_000):
        subscriber.subscribe(f"{number:04}".ljust(511, "x").encode())
    peer = connect(daemon)
    wait_until(lambda: status_of(peer)["subscriptions"] == 1_000)
    peer.ask(put("0999".ljust(511, "x")))
    assert Peer(subscriber).change()[0].startswith(b"0999")


# ── more of them than there are descriptors ──────────────────────────────────────────────────────


@pytest.mark.parametrize(("address", "kind"), [("requests", b"DEALER"), ("changes", b"SUB")])
def test_connections_leave_the_daemon_the_descriptors_it_needs(
    address: str, kind: bytes, start_daemon: StartDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Daemon, "wrapper", ("prlimit", "--nofile=100:100"))
    daemon = start_daemon()
    peer = connect(daemon)
    most = status_of(peer)["max_connections"]
    assert most < 100
    with ExitStack() as stack:
        for _ in range(210):
            with suppress(OSError):  # it may be closed before the handshake is done
                stack.enter_context(RawPeer(getattr(daemon, address), kind))
            assert status_of(peer)["connections"] <= most
        wait_until(lambda: status_of(peer)["connections"] == most)
        assert len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())) < 100
        # it can still open files
        assert status_of(peer)["process"]["open_files"] < 100
        assert peer.ask(put("k", b"v"))[0]["revision"]
    assert daemon.stderr.count("raise that limit (ulimit -n, LimitNOFILE=)") >= 1
    wait_until(lambda: status_of(peer)["connections"] == 1)
    assert connect(daemon).ask(get("k"))[0]["value"] == b"v"
