"""Who is let in at the daemon's own two sockets, and what subscribers may have there."""

from __future__ import annotations

import socket as plain_socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.access.grants import GrantSet
from kvstore_core.curve import apply_curve
from kvstore_daemon.access.authority import FileAuthority
from kvstore_daemon.access.zap import ZapHandler, is_protected
from kvstore_daemon.peer_limits.connections import (
    ConnectionLimit,
    bytes_acknowledged_and_received,
    queued_bytes,
)
from kvstore_daemon.publisher import Publisher
from kvstore_daemon.requests.router_socket import RouterSocket
from kvstore_daemon.storage.interface import LogPosition
from kvstore_daemon.subscriptions import needs_of_topic
from support.identities import Identities, KeyPair, new_key
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, StartDaemon, free_port, wait_until
from support.wire import PATIENCE_MS, Peer, get, put

pytestmark = pytest.mark.slow

CONTEXT = zmq.Context[zmq.Socket[bytes]]
HEARTBEAT = b"\0heartbeat"


class Room:
    """A protected daemon, its identities, and sockets that speak to it."""

    def __init__(self, daemon: Daemon, identities: Identities, root: KeyPair, stack: ExitStack) -> None:
        self.daemon = daemon
        self.identities = identities
        self.context: CONTEXT = zmq.Context()
        stack.callback(self.context.destroy, 0)
        self._sockets: list[zmq.Socket[bytes]] = []
        self.root_key = root
        self.root = self.client(root)

    def socket(self, kind: int, key: KeyPair, **options: Any) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        self._sockets.append(socket)
        socket.rcvtimeo = PATIENCE_MS
        for name, value in options.items():
            setattr(socket, name, value)
        apply_curve(socket, self.identities.keys(key))
        return socket

    def client(self, key: KeyPair, kind: int = zmq.REQ, **options: Any) -> Peer:
        socket = self.socket(kind, key, **options)
        socket.connect(self.daemon.requests)
        return Peer(socket)

    def subscriber(self, key: KeyPair, *topics: bytes) -> zmq.Socket[bytes]:
        """A SUB socket that has been given what it gets, shown by a heartbeat."""
        sub = self.socket(zmq.SUB, key)
        sub.connect(self.daemon.changes)
        for topic in (*topics, HEARTBEAT):
            sub.subscribe(topic)
        assert Peer(sub).heartbeat()
        return sub

    def published(self, sub: zmq.Socket[bytes]) -> list[bytes]:
        """The topics that a subscriber gets up to now."""
        head = self.root.ask({"op": "status"})[0]["revision"]
        topics = []
        while True:
            frames = sub.recv_multipart()
            if frames[0] != HEARTBEAT:
                topics.append(frames[0])
            elif orjson.loads(frames[1])["revision"] >= head:
                return topics


@pytest.fixture(scope="module")
def room(_shared_starter: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """Shared by all tests that keep to identities of their own."""
    data = tmp_path_factory.mktemp("protected") / "data"
    identities = Identities(data)
    root = identities.add("root", "all:*")
    daemon = _shared_starter.start(Daemon, {"access": "required", "data": str(data)}, None)
    with ExitStack() as stack:
        yield Room(daemon, identities, root, stack)


def let_in(room: Room, name: str, *grants: str) -> KeyPair:
    """A new identity that the daemon knows already."""
    key = room.identities.add(name, *grants)

    def is_known() -> bool:
        # where it is refused before it has sent, there is nobody to send to any more
        with closing(room.client(key, linger=0, sndtimeo=500).socket) as socket, suppress(zmq.Again):
            socket.send_multipart([b'{"v":1,"ops":[{"op":"status"}]}'])
            return bool(socket.poll(500))
        return False

    wait_until(is_known, what="the daemon takes the file")
    return key


# ── who is let in ────────────────────────────────────────────────────────────────────────────────────


def test_every_socket_that_is_bound_keeps_strangers_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: dict[str, bool] = {}
    bind = zmq.Socket.bind

    def spy(self: zmq.Socket[bytes], address: str) -> Any:
        bound[address.partition("://")[0]] = is_protected(self)
        return bind(self, address)

    monkeypatch.setattr(zmq.Socket, "bind", spy)
    authority = FileAuthority(tmp_path, None, None)
    ipc = f"ipc://{tmp_path}/socket"
    with ExitStack() as stack:
        context: CONTEXT = stack.enter_context(zmq.Context())
        limit = ConnectionLimit()
        stack.enter_context(closing(ZapHandler(context, authority)))
        for endpoint in (f"tcp://127.0.0.1:{free_port()}", ipc):
            with closing(Publisher(context, endpoint, 10, 10, limit, authority)):
                assert bound.pop(endpoint.partition("://")[0])
            with closing(RouterSocket(context, endpoint, 1000, limit, authority)):
                assert bound.pop(endpoint.partition("://")[0])
        assert bound == {"inproc": False}  # where libzmq itself asks


HANDSHAKES = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
STRANGERS = ["nobody's key", "another server key", "no key", "a password"]


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.SUB])
def test_a_stranger_gets_no_word(room: Room, stranger: str, kind: int) -> None:
    socket = room.context.socket(kind)
    if stranger == "nobody's key":
        apply_curve(socket, room.identities.keys(new_key()))
    elif stranger == "another server key":
        apply_curve(socket, room.identities.keys(room.root_key)._replace(server_key=new_key().public))
    elif stranger == "a password":
        socket.plain_username, socket.plain_password = b"root", b"root"
    monitor = socket.get_monitor_socket(HANDSHAKES)
    socket.connect(room.daemon.requests if kind == zmq.DEALER else room.daemon.changes)
    if kind == zmq.SUB:
        socket.subscribe(b"")
    else:
        socket.send_multipart([b"", b'{"v":1,"ops":[{"op":"status"}]}'])
    assert monitor.poll(PATIENCE_MS)
    event, value = struct.unpack("=HI", monitor.recv_multipart()[0])
    assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert (event, value) == (zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400) or stranger != "nobody's key"
    assert room.root.ask(put("while a stranger knocks"))
    assert not socket.poll(0)
    socket.disable_monitor()
    monitor.close(0)
    socket.close(0)


def test_nobody_is_let_in_once_nobody_decides_it(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    known = identities.add("known", "all:*")
    authority = FileAuthority(tmp_path, None, None)
    with ExitStack() as stack:
        context: CONTEXT = stack.enter_context(zmq.Context())
        zap = ZapHandler(context, authority)
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        router = stack.enter_context(
            closing(RouterSocket(context, endpoint, 1000, ConnectionLimit(), authority))
        )
        clients: CONTEXT = zmq.Context()
        stack.callback(clients.destroy, 0)

        asking: list[zmq.Socket[bytes]] = []

        def ask(key: KeyPair) -> zmq.Socket[bytes]:
            client = clients.socket(zmq.DEALER)
            asking.append(client)
            apply_curve(client, identities.keys(key))
            monitor = client.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            client.connect(endpoint)
            client.send_multipart([b"", b"hello"])
            return monitor

        ask(known)
        wait_until(lambda: zap.answer() or router.has_message())  # type: ignore[func-returns-value]
        assert router.receive()
        zap.close()
        for key in (known, new_key()):
            assert ask(key).poll(PATIENCE_MS)
            assert not router.has_message()


def test_who_takes_the_identity_of_a_connection_that_ended_is_not_its_user(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    alice, bob = identities.add("alice", "all:*"), identities.add("bob")
    authority = FileAuthority(tmp_path, None, None)
    with ExitStack() as stack:
        context: CONTEXT = stack.enter_context(zmq.Context())
        zap = stack.enter_context(closing(ZapHandler(context, authority)))
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        router = stack.enter_context(
            closing(RouterSocket(context, endpoint, 1000, ConnectionLimit(), authority))
        )
        clients: CONTEXT = zmq.Context()
        stack.callback(clients.destroy, 0)

        def user_of_a_message_of(key: KeyPair) -> str:
            while True:  # libzmq refuses the identity until the former connection is gone
                with closing(clients.socket(zmq.DEALER)) as client:
                    client.linger = 0
                    client.routing_id = b"mine"
                    apply_curve(client, identities.keys(key))
                    client.connect(endpoint)
                    client.send_multipart([b"", b"hello"])
                    for _ in range(200):
                        zap.answer()
                        # not through the loop, which would have noted the end of the connection before
                        if message := router.receive():
                            return message.peer.user_id
                        client.poll(5)

        assert user_of_a_message_of(alice) == alice.public
        assert user_of_a_message_of(bob) == bob.public


# ── what subscribers get ─────────────────────────────────────────────────────────────────────────────

KEYS = ["app/config", "app/config2", "app/x", "apple", "other/x"]
EXACT = b"\xffapp/config\0"

TOPICS: list[tuple[list[str], bytes, list[bytes]]] = [
    (["ro:app/"], b"app/", [b"app/config", b"app/config2", b"app/x"]),
    (["ro:app/"], b"app/c", [b"app/config", b"app/config2"]),
    (["ro:app/"], b"app", []),
    (["ro:app/"], b"a", []),
    (["ro:app/"], b"", []),
    (["ro:app/"], b"other/", []),
    (["ro:app/"], EXACT, [EXACT]),
    (["ro:app/"], b"\xffapp/", [EXACT]),
    (["ro:app/"], b"\xff", []),
    (["ro:app*"], b"app", [b"app/config", b"app/config2", b"app/x", b"apple"]),
    (["ro:app/config"], b"app/config", []),
    (["ro:app/config"], EXACT, [EXACT]),
    (["ro:app/config"], EXACT[:-1], []),
    (["ro:app/config"], b"\xffapp/config2\0", []),
    (["ro:app/config"], EXACT + b"\0", []),
    (["read:app/"], b"app/", []),
    (["watch:app/"], b"app/", []),
    (["watch:app/config"], EXACT, []),
    (["read:app/", "watch:*"], b"app/x", [b"app/x"]),
    (["read:app/", "watch:app/x"], b"app/x", []),
    (["rw:other/", "monitor", "admin"], b"app/", []),
    ([], b"", []),
    ([], b"\xff\xff", []),
    (["ro:*"], b"", [*(key.encode() for key in KEYS), EXACT]),
    (["ro:*"], b"\xff", [EXACT]),
]


def test_a_topic_is_had_by_whoever_may_watch_and_read_all_of_it(room: Room) -> None:
    keys = [room.identities.add(f"t{at}", *grants) for at, (grants, _, _) in enumerate(TOPICS)]
    let_in(room, "last")
    subscribers = [room.subscriber(key, topic) for key, (_, topic, _) in zip(keys, TOPICS, strict=True)]
    room.root.ask(*map(put, KEYS))
    for (grants, topic, expected), subscriber in zip(TOPICS, subscribers, strict=True):
        assert sorted(room.published(subscriber)) == sorted(expected), (grants, topic)
        subscriber.close()


SCOPES = st.text("ab/*", max_size=4).filter(bool)
GRANTS = st.builds("{}:{}".format, st.sampled_from(["ro", "read", "watch", "read,watch"]), SCOPES)


@given(st.lists(GRANTS, max_size=4), st.text("ab/", max_size=4), st.booleans(), st.text("ab/", max_size=5))
def test_what_a_topic_may_match_was_granted_key_by_key(
    texts: list[str], begin: str, is_exact: bool, key: str
) -> None:
    grants = GrantSet(texts)
    topic = b"\xff" + begin.encode() + b"\0" if is_exact else begin.encode()
    needs = needs_of_topic(topic)
    if {need.verb for need in needs} == {"watch", "read"} and all(map(grants.allow, needs)):
        for published in (key.encode(), b"\xff" + key.encode() + b"\0"):
            if key and published.startswith(topic):
                for verb in ("watch", "read"):
                    assert grants.allow(needs[0]._replace(verb=verb, on=key))


def test_an_unsubscription_is_the_subscribers_own(room: Room) -> None:
    key = let_in(room, "leaver", "ro:app/")
    leaver, stayer = room.subscriber(key, b"app/"), room.subscriber(key, b"app/")
    leaver.unsubscribe(b"app/")
    leaver.subscribe(b"app/y")
    assert room.subscriber(key)  # asks after those
    room.root.ask(put("app/x"), put("app/y"))
    assert room.published(stayer) == [b"app/x", b"app/y"]
    assert room.published(leaver) == [b"app/y"]


def test_what_is_no_subscription_gives_nobody_what_another_was_granted(tmp_path: Path) -> None:
    """libzmq then takes a publisher to answer a message that it has not received yet."""
    identities = Identities(tmp_path)
    alice, bob = identities.add("alice", "ro:*"), identities.add("bob")
    authority = FileAuthority(tmp_path, None, None)
    with ExitStack() as stack:
        context: CONTEXT = stack.enter_context(zmq.Context())
        zap = stack.enter_context(closing(ZapHandler(context, authority)))
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        limit = ConnectionLimit()
        publisher = stack.enter_context(closing(Publisher(context, endpoint, 10, 10, limit, authority)))
        publisher.begin(LogPosition("epoch", 0, 0, 0))
        clients: CONTEXT = zmq.Context()
        stack.callback(clients.destroy, 0)
        taken: dict[int, int] = {}

        def connected(kind: int, key: KeyPair) -> tuple[zmq.Socket[bytes], int]:
            before = set(publisher._connections.open)
            client = clients.socket(kind)
            apply_curve(client, identities.keys(key))
            client.connect(endpoint)
            monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            wait_until(lambda: zap.answer() or monitor.poll(0))  # type: ignore[func-returns-value]
            client.disable_monitor()
            monitor.close(0)
            # the publisher learns of a connection by itself, perhaps after the client
            (descriptor,) = wait_until(lambda: set(publisher._connections.open) - before)
            return client, descriptor

        def arrived(descriptor: int) -> None:
            def is_there() -> bool:
                counts = bytes_acknowledged_and_received(descriptor)
                assert counts is not None
                return counts[1] > taken[descriptor] and not queued_bytes(descriptor, termios.FIONREAD)

            wait_until(is_there)

        def before_sending(descriptor: int) -> None:
            counts = bytes_acknowledged_and_received(descriptor)
            assert counts is not None
            taken[descriptor] = counts[1]

        for _ in range(5):
            (first, a), (owner, b), (second, c) = (
                connected(kind, key) for kind, key in ((zmq.XSUB, bob), (zmq.SUB, alice), (zmq.XSUB, bob))
            )
            sends: list[tuple[int, Callable[[], object]]] = [
                (a, lambda: first.send(b"no subscription")),  # noqa: B023
                (b, lambda: owner.subscribe(b"secret/")),  # noqa: B023
                (c, lambda: second.send(b"\1zzz")),  # noqa: B023
            ]
            for descriptor, send in sends:
                before_sending(descriptor)
                send()
                arrived(descriptor)
            publisher.take_subscriptions()
            for _ in range(3):
                publisher._send([b"secret/1", b"{}", b"value"])
            wait_until(lambda: not {a, b, c} & publisher._connections.open.keys())  # noqa: B023
            assert not first.poll(0)
            assert not second.poll(0)

            # who was granted it comes back, and has it then
            def is_back() -> bool:
                zap.answer()
                publisher.take_subscriptions()
                publisher._send([b"secret/2", b"{}", b"value"])
                return bool(owner.poll(10))  # noqa: B023

            wait_until(is_back)
            for client in (first, owner, second):
                client.close(0)
            wait_until(lambda: not publisher._connections.open)


def rest_of(subscriber: zmq.Socket[bytes]) -> list[bytes]:
    """The topics of all that has come already."""
    topics = []
    while subscriber.poll(0):
        topics.append(subscriber.recv_multipart()[0])
    return topics


# ── what is taken away ───────────────────────────────────────────────────────────────────────────────


def test_what_is_taken_away_ends_at_once_for_its_owner_alone(room: Room) -> None:
    names = ("removed", "narrowed", "expired", "innocent")
    keys = {name: room.identities.add(name, "ro:app/") for name in names}
    let_in(room, "after-those")
    subscribers = {name: room.subscriber(key, b"app/") for name, key in keys.items()}
    clients = {name: room.client(key) for name, key in keys.items()}
    for client in clients.values():
        assert client.ask(get("app/x"))
    room.root.ask(put("app/before"))
    for subscriber in subscribers.values():
        assert Peer(subscriber).change()[0] == b"app/before"
    room.identities.remove("removed")
    room.identities.grant("narrowed", "ro:app/other/")
    room.identities.end("expired", 1)
    let_in(room, "after-that")
    room.root.ask(put("app/after"))
    assert room.published(subscribers["innocent"]) == [b"app/after"]
    assert room.published(subscribers["narrowed"]) == []
    assert clients["innocent"].ask(get("app/after"))[0]["value"] == b"v"
    for name in ("removed", "expired"):
        assert set(rest_of(subscribers[name])) <= {HEARTBEAT}  # of the moment before
        clients[name].socket.rcvtimeo = clients[name].socket.sndtimeo = 100
        with pytest.raises(zmq.Again):
            clients[name].ask(get("app/after"))


def test_a_key_whose_time_is_over_is_let_in_no_more(room: Room) -> None:
    key = room.identities.add("mayfly", "ro:app/")
    room.identities.end("mayfly", time.time_ns() // 1_000_000 + 2_000)
    let_in(room, "after-the-mayfly")
    subscriber = room.socket(zmq.SUB, key)
    monitor = subscriber.get_monitor_socket(HANDSHAKES)
    subscriber.subscribe(HEARTBEAT)
    subscriber.connect(room.daemon.changes)
    for event in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH):
        assert monitor.poll(PATIENCE_MS)
        assert struct.unpack("=HI", monitor.recv_multipart()[0])[0] == event
    subscriber.disable_monitor()
    monitor.close(0)


def test_what_is_given_is_had_without_connecting_anew(room: Room) -> None:
    key = let_in(room, "given", "ro:app/")
    subscriber = room.subscriber(key, b"new/")
    room.root.ask(put("new/1"))
    assert room.published(subscriber) == []
    room.identities.grant("given", "ro:app/", "ro:new/")
    let_in(room, "after-the-grant")
    published: list[bytes] = []

    def has_it() -> bool:
        room.root.ask(put("new/2"))
        published.extend(room.published(subscriber))
        return b"new/2" in published

    wait_until(has_it)
    assert b"new/1" not in published


def test_heartbeats_say_at_once_that_others_are_let_in(room: Room) -> None:
    subscriber = room.subscriber(let_in(room, "listener"))
    beat = Peer(subscriber).heartbeat()
    before = beat["access"]
    assert "digest" not in beat, "it tells one value from another, and is for those who may read all"
    let_in(room, "one-more")
    wait_until(lambda: Peer(subscriber).heartbeat()["access"] != before)


def test_without_access_heartbeats_are_as_before(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.rcvtimeo = PATIENCE_MS
        sub.connect(daemon.changes)
        sub.subscribe(b"\0")
        assert Peer(sub).heartbeat().keys() == {"v", "epoch", "revision", "floor", "time", "digest"}


def test_old_and_false_greetings_end_nothing_but_themselves(room: Room) -> None:
    signature = b"\xff" + bytes(7) + b"\x01\x7f"
    curve = signature + b"\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
    hello = b"\x04\xc8\x05HELLO\x01\x00" + bytes(192)
    texts = [
        b"\x01\x00\x01\x01\x02\x00x",
        signature + b"\x01\x03\x00\x00\x01\x00\x00\x01x",
        curve + hello,
        curve + b"\x04\x05\x04PONG",
        curve + b"\x00\x01x",
        curve + b"\x06" + struct.pack(">Q", 2**62),
        signature + b"\x03\x00" + b"GSSAPI".ljust(20, b"\0") + bytes(32),
        b"GET / HTTP/1.1\r\n\r\n",
    ]
    for endpoint in (room.daemon.requests, room.daemon.changes):
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        for text in texts:
            with plain_socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
                connection.sendall(text)
                with suppress(ConnectionResetError):
                    while connection.recv(4096):
                        pass
    assert room.root.ask(put("after all those"))
