"""Strangers at both native addresses, and an insider without grants: whatever they send, they get nothing,
change nothing, and the daemon serves those who are let in."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from kvstore_client import Client
from kvstore_core.curve import apply_curve
from support.identities import Identities, KeyPair
from support.lengths import Survived, times
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, StartDaemon, wait_until
from support.wire import PATIENCE_MS, frame, message, pack, put

SECONDS = times(1, full=600)
HALF_OPEN = times(100, full=500)
HELLOS = times(300, full=2_000)

pytestmark = [pytest.mark.torture, pytest.mark.timeout(120 + 2 * SECONDS)]

COMMAND = 4
ROOM_BYTES = 64 * 1024 * 1024
"""What the daemon may have grown by."""


class Protected:
    """A daemon that asks for keys, and clients that have them."""

    def __init__(self, start: StartDaemon, folder: Path) -> None:
        self.identities = Identities(folder / "data")
        self.keys = {
            name: self.identities.add(name, *grants)
            for name, grants in {"root": ["all:*", "monitor"], "alice": ["ro:secret/"], "weak": []}.items()
        }
        self.daemon: Daemon = start(access="required", data=str(folder / "data"))
        login = self.identities.write_login(
            self.identities.keys(self.keys["root"]), self.daemon.requests, folder / "login.json"
        )
        self.client = Client(self.daemon.requests, login=login, timeout=PATIENCE_SECONDS)

    def socket(self, context: zmq.Context[zmq.Socket[bytes]], kind: int, key: KeyPair) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        socket.linger = 0
        apply_curve(socket, self.identities.keys(key))
        return socket


@pytest.fixture
def protected(start_daemon: StartDaemon, tmp_path: Path) -> Iterator[Protected]:
    protected = Protected(start_daemon, tmp_path)
    with protected.client:
        yield protected


def address_of(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def greeting(mechanism: bytes, version: tuple[int, int] = (3, 0), *, as_server: bool = False) -> bytes:
    start = b"\xff" + bytes(8) + b"\x7f" + bytes(version)
    return start + mechanism.ljust(20, b"\0") + bytes((as_server,)) + bytes(31)


def command(name: bytes, body: bytes) -> bytes:
    return frame(bytes((len(name),)) + name + body, COMMAND)


def hello(body: bytes) -> bytes:
    """The HELLO of one who does not know the daemon's key: 192 bytes after its version are 72 of padding, a
    key, a nonce and a box."""
    return command(b"HELLO", b"\x01\x00" + body)


# ── what strangers say ───────────────────────────────────────────────────────────────────────────────


class Stranger:
    """Says something else each time."""

    def __init__(self, seed: int, recorded: bytes) -> None:
        self._random = random.Random(seed)
        self._recorded = recorded

    def says(self) -> tuple[str, bytes]:
        """What kind of thing it is, and its bytes."""
        kinds = (self.noise, self.plainly, self.in_curve, self.of_old, self.again)
        kind = self._random.choice(kinds)
        return kind.__name__, kind()

    def _bytes(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randrange(most))

    def noise(self) -> bytes:
        return self._bytes(2_000)

    def _claims(self) -> bytes:
        claims = {
            b"Socket-Type": self._random.choice(
                [b"DEALER", b"REQ", b"SUB", b"XSUB", b"ROUTER", b"PAIR", b""]
            ),
            b"Identity": self._random.choice([b"", b"\0" + self._bytes(5), self._bytes(250)]),
            b"User-Id": self._random.choice([b"root", b"facade", self._bytes(50)]),
        }
        return b"".join(
            bytes((len(name),)) + name + struct.pack(">I", len(value)) + value
            for name, value in claims.items()
        )

    def _message(self) -> bytes:
        return self._random.choice(
            [
                message(b"", *pack(put("written by a stranger"))),
                message(b"", *pack({"op": "list"})),
                message(b"\x01"),
                message(b"\x01secret/", b"\x01" + self._bytes(1_500)),
                b"\x02" + struct.pack(">Q", self._random.getrandbits(self._random.randrange(1, 64))),
                command(b"SUBSCRIBE", b"secret/"),
            ]
        )

    def plainly(self) -> bytes:
        """In another mechanism, as if it had been let in."""
        mechanism = self._random.choice([b"NULL", b"PLAIN", b"GSSAPI", b"CURVE\0x", self._bytes(20)])
        user = command(b"HELLO", b"\x04root\x04root") + command(b"INITIATE", self._claims())
        version = self._random.choice([(3, 0), (3, 1), (4, 0)])
        said = greeting(mechanism, version, as_server=self._random.random() < 0.2)
        return said + self._random.choice([command(b"READY", self._claims()), user, b""]) + self._message()

    def in_curve(self) -> bytes:
        """CURVE by one who has no keys."""
        steps = [
            hello(bytes(72) + self._random.randbytes(120)),
            hello(self._random.randbytes(192)),
            hello(self._bytes(400)),
            command(b"HELLO", b"\x02\x00" + bytes(192)),
            command(b"INITIATE", self._random.randbytes(self._random.choice([0, 8, 96, 249, 350, 900]))),
            command(b"READY", self._claims()),
            command(b"MESSAGE", self._bytes(200)),
            command(b"ERROR", b"\x03400"),
            command(b"WELCOME", self._random.randbytes(160)),
            command(b"PING", bytes(2)),
            frame(b"\x07MESSAGE" + self._bytes(100)),
            self._message(),
        ]
        chosen = self._random.choices(steps, k=self._random.randrange(1, 5))
        return greeting(b"CURVE", as_server=self._random.random() < 0.2) + b"".join(chosen)

    def of_old(self) -> bytes:
        """ZMTP of before there were mechanisms."""
        return (
            self._random.choice([b"\x01\x00", b"\xff" + bytes(7) + b"\x01\x7f\x01\x03\x00\x00"])
            + self._message()
        )

    def again(self) -> bytes:
        """What one who was let in has sent, as it was, or with some of it changed."""
        said = bytearray(self._recorded)
        for _ in range(self._random.choice([0, 0, 1, 2, 20])):
            said[self._random.randrange(len(said))] ^= 1 << self._random.randrange(8)
        return bytes(said[: self._random.choice([len(said), self._random.randrange(len(said))])])


@contextmanager
def recording(endpoint: str) -> Iterator[tuple[str, bytearray]]:
    """An endpoint that passes one connection on to another, and what the client has sent there."""
    sent = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def passing(source: socket.socket, target: socket.socket, into: bytearray) -> None:
            with suppress(OSError):
                while data := source.recv(65_536):
                    into.extend(data)
                    target.sendall(data)
            for each in (source, target):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

        def accept() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection(address_of(endpoint)) as server:
                back = threading.Thread(target=passing, args=(server, client, bytearray()))
                back.start()
                passing(client, server, sent)
                back.join()

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}", sent
        thread.join()


def recorded(protected: Protected, endpoint: str, kind: int) -> bytes:
    """What a client that was let in has sent."""
    with (
        recording(endpoint) as (place, sent),
        zmq.Context() as context,
        protected.socket(context, kind, protected.keys["root"]) as client,
    ):
        client.rcvtimeo = PATIENCE_MS
        client.connect(place)
        if kind == zmq.SUB:
            client.subscribe(b"")
        else:
            client.send_multipart([b"", *pack(put("written once"))])
        assert client.recv_multipart()
    return bytes(sent)


def knock(endpoint: str, said: bytes) -> bytes:
    """Say something, and return what comes back before the daemon closes, or has nothing more to say."""
    got = b""
    with socket.create_connection(address_of(endpoint), timeout=PATIENCE_SECONDS) as connection:
        connection.settimeout(0.02)
        with suppress(OSError):
            connection.sendall(said)
            while data := connection.recv(65_536):
                got += data
    return got


MAY_HEAR = (b"WELCOME", b"ERROR", b"READY")
"""The commands that a daemon may answer with; READY only to the first recording."""


# ── an insider without grants ────────────────────────────────────────────────────────────────────────


class Insider:
    """One who is let in, is granted nothing, and keeps to no rule."""

    def __init__(self, protected: Protected, seed: int, stack: ExitStack) -> None:
        self._random = random.Random(seed)
        self._protected = protected
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(self._context.destroy, 0)
        self._open()

    def _open(self) -> None:
        weak = self._protected.keys["weak"]
        self.xsubs = [self._protected.socket(self._context, zmq.XSUB, weak) for _ in range(3)]
        for each in self.xsubs:
            each.connect(self._protected.daemon.changes)
        self.dealer = self._protected.socket(self._context, zmq.DEALER, weak)
        self.dealer.connect(self._protected.daemon.requests)

    def step(self) -> None:
        noise = self._random.randbytes(self._random.randrange(40))
        for each in self.xsubs:
            said = self._random.choice(
                [b"\x01", b"\x01secret/", b"\x01\xffsecret/1\0", b"\x00secret/", b"", noise]
            )
            with suppress(zmq.Again):
                each.send(said, zmq.NOBLOCK | self._random.choice([0, 0, zmq.SNDMORE]))
        with suppress(zmq.Again):
            ops = [{"op": "get", "key": "secret/1"}, put("secret/2"), {"op": "list"}]
            self.dealer.send_multipart([b"", *pack(self._random.choice(ops))], zmq.NOBLOCK)

    def check(self) -> None:
        """It has got nothing but heartbeats and refusals."""
        for each in self.xsubs:
            while each.poll(0):
                assert each.recv_multipart()[0].startswith(b"\0")
        while self.dealer.poll(0):
            assert b'"not_allowed"' in self.dealer.recv_multipart()[-1]


def test_strangers_get_and_change_nothing(protected: Protected, survived: Survived) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    daemon, client = protected.daemon, protected.client
    places = [
        (daemon.requests, Stranger(seed, recorded(protected, daemon.requests, zmq.DEALER))),
        (daemon.changes, Stranger(seed + 1, recorded(protected, daemon.changes, zmq.SUB))),
    ]
    client.put("secret/1", "the secret")
    revision = client.put("canary", "alive").revision
    kinds: Counter[str] = Counter()
    before = daemon.anonymous_memory
    with ExitStack() as stack:
        insider = Insider(protected, seed + 2, stack)
        context: zmq.Context[zmq.Socket[bytes]] = stack.enter_context(zmq.Context())
        alice = stack.enter_context(protected.socket(context, zmq.SUB, protected.keys["alice"]))
        alice.connect(daemon.changes)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for _ in range(10):
                for endpoint, stranger in places:
                    kind, said = stranger.says()
                    heard = knock(endpoint, said)
                    kinds[kind] += 1
                    assert b"MESSAGE" not in heard
                    assert b"the secret" not in heard
                insider.step()
                alice.subscribe(b"secret/%d" % kinds.total())
            alice.subscribe(b"secret/")
            revision += 1
            assert client.put("secret/1", "the secret").revision == revision, "somebody else has written"
            insider.check()
        assert client.get("canary").value == b"alive"
        assert client.get("written by a stranger", None) is None
        wait_until(lambda: client.put("secret/1", "") and alice.poll(10), timeout=PATIENCE_SECONDS)
    assert daemon.anonymous_memory < before + ROOM_BYTES
    survived(**{f"strangers_{kind}": count for kind, count in kinds.items()})


# ── floods ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_flood_of_handshakes_keeps_nobody_out_and_ends(protected: Protected, survived: Survived) -> None:
    daemon, client = protected.daemon, protected.client
    before = daemon.anonymous_memory
    false_hello = greeting(b"CURVE") + hello(bytes(72) + random.randbytes(120))
    waits: list[float] = []

    def ask() -> None:
        began = time.monotonic()
        client.put("canary", "alive")
        waits.append(time.monotonic() - began)

    with ExitStack() as stack:
        half_open = [
            stack.enter_context(socket.create_connection(address_of(endpoint), timeout=PATIENCE_SECONDS))
            for _ in range(HALF_OPEN // 2)
            for endpoint in (daemon.requests, daemon.changes)
        ]
        for number, each in enumerate(half_open):
            each.sendall(greeting(b"CURVE")[: random.randrange(64)])
            if not number % 10:
                ask()
        for number in range(HELLOS):
            with socket.create_connection(address_of(daemon.requests), timeout=PATIENCE_SECONDS) as one:
                one.sendall(false_hello)
            if not number % 10:
                ask()
        for each in half_open:  # they are not kept
            with suppress(ConnectionResetError):
                while each.recv(4_096):
                    pass
    ask()
    wait_until(lambda: client.status()["connections"] < 50)
    assert daemon.anonymous_memory < before + ROOM_BYTES
    waits.sort()
    print(f"of {len(waits)} writes meanwhile, 99% took less than {waits[len(waits) * 99 // 100]:.3f} s")
    survived(half_open_handshakes=len(half_open), false_hellos=HELLOS)


@pytest.mark.parametrize("size", [1_100, 3_000])
def test_a_long_topic_ends_its_connection_in_curve_too(protected: Protected, size: int) -> None:
    before = protected.daemon.anonymous_memory
    with zmq.Context() as context:
        for _ in range(5):
            with protected.socket(context, zmq.SUB, protected.keys["alice"]) as sub:
                monitor = sub.get_monitor_socket(zmq.EVENT_DISCONNECTED)
                sub.subscribe(b"a" * size)
                sub.connect(protected.daemon.changes)
                assert monitor.poll(PATIENCE_MS)
                sub.disable_monitor()
                monitor.close(0)
    assert protected.client.put("canary", "alive")
    assert protected.daemon.anonymous_memory < before + ROOM_BYTES


def test_a_frame_that_is_too_large_ends_its_connection_in_curve_too(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    identities = Identities(tmp_path / "data")
    key = identities.add("root", "all:*")
    limits = dict.fromkeys(("max_batch_bytes", "max_atomic_bytes", "max_value_bytes"), 64 * 1024)
    daemon = start_daemon(access="required", data=str(tmp_path / "data"), **limits)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        apply_curve(dealer, identities.keys(key))
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.connect(daemon.requests)
        dealer.send_multipart([b"", b"x" * 5 * 64 * 1024])
        assert monitor.poll(PATIENCE_MS)
        dealer.disable_monitor()
        monitor.close(0)
    assert daemon.is_running
