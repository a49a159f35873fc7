"""TLS in the facade: what it speaks and refuses, who may keep it waiting, and certificates that change."""

from __future__ import annotations

import collections
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from http.client import HTTPResponse
from pathlib import Path

import pytest

from kvstore_http.server.certificate import Certificate
from kvstore_http.server.tls_socket import RECORD_BYTES, TlsSocket
from support.programs import make_certificate, require_program
from support.servers import wait_until

pytestmark = pytest.mark.slow

BARE = Path(__file__).parents[1] / "http_core" / "bare_server.py"
BIG = bytes(range(256)) * 64 * 3_000

Connect = Callable[..., socket.socket]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost with its key, in one file."""
    return make_certificate(tmp_path_factory.mktemp("pair"))


def trusting(pair: Path) -> ssl.SSLContext:
    """What a client needs to trust the certificate."""
    return ssl.create_default_context(cafile=pair)


@contextmanager
def bare(pair: Path, **constants: float) -> Iterator[int]:
    """The server alone, with TLS; its port."""
    arguments = [f"certificate={pair}", *(f"{name}={value}" for name, value in constants.items())]
    process = subprocess.Popen([sys.executable, str(BARE), *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()


@pytest.fixture(scope="module")
def port(pair: Path) -> Iterator[int]:
    """The port of a server that all tests share."""
    with bare(pair) as port:
        yield port


def dial(port: int, receive_buffer: int | None = None) -> socket.socket:
    """A connection without TLS."""
    sock = socket.socket()
    sock.settimeout(30)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@pytest.fixture
def secure(port: int, pair: Path) -> Iterator[Connect]:
    """A function that connects with TLS to the shared server."""
    with ExitStack() as opened:

        def connect(
            context: ssl.SSLContext | None = None, receive_buffer: int | None = None
        ) -> ssl.SSLSocket:
            sock = (context or trusting(pair)).wrap_socket(
                dial(port, receive_buffer), server_hostname="localhost"
            )
            opened.enter_context(closing(sock))
            return sock

        yield connect


def request(target: str = "/", body: bytes = b"", method: str = "GET") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode() + body


def answer(sock: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next answer on ``sock``."""
    response = HTTPResponse(sock)
    response.begin()
    return response.status, response.read()


def read_to_end(sock: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while data := sock.recv(65536):
            received += data
    return received


@cache
def hello() -> bytes:
    """What a TLS client sends first."""
    outgoing = ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="localhost"
    )
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


# ── what it speaks ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_it_speaks_tls_and_the_application_knows(
    secure: Connect, pair: Path, version: ssl.TLSVersion
) -> None:
    context = trusting(pair)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    sock = secure(context)
    assert isinstance(sock, ssl.SSLSocket)
    assert sock.selected_alpn_protocol() == "http/1.1"
    sock.sendall(request())
    status, body = answer(sock)
    assert (status, json.loads(body)["scheme"]) == (200, "https")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_older_versions_are_refused(secure: Connect, pair: Path, version: ssl.TLSVersion) -> None:
    context = trusting(pair)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        secure(context)


@pytest.mark.parametrize(
    "sent", [request("/v1/kv/a"), b"\r\n" + request(), b"SSH-2.0-x\r\n", b"\x80", b"\0" * 300_000]
)
def test_what_is_not_tls_is_answered_in_words(port: int, sent: bytes) -> None:
    with closing(dial(port)) as sock:
        sock.sendall(sent)
        received = read_to_end(sock)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["detail"] == "this port speaks HTTPS; write the address with https://"


def test_clients_cannot_negotiate_anew(port: int, pair: Path) -> None:
    command = [
        require_program("openssl"),
        "s_client",
        "-tls1_2",
        "-CAfile",
        pair,
        "-connect",
        f"localhost:{port}",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as client:
        said, _ = client.communicate(b"R\n", timeout=60)
    assert b"Verify return code: 0" in said
    assert b"no renegotiation" in said


def test_new_keys_in_the_middle_are_taken(port: int, pair: Path) -> None:
    command = [require_program("openssl"), "s_client", "-tls1_3", "-crlf", "-CAfile", pair]
    with subprocess.Popen(
        [*command, "-connect", f"localhost:{port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        said = b""
        # K: new keys for both directions
        for line, reply in (
            (b"GET /first", b'"/first"'),
            (b"K", b"KEYUPDATE"),
            (b"GET /second", b'"/second"'),
        ):
            client.stdin.write(line + (b"\n" if line == b"K" else b" HTTP/1.1\nHost: localhost\n\n"))
            client.stdin.flush()
            while reply not in said:
                said += (read := os.read(client.stdout.fileno(), 65536))
                assert read, said
        client.stdin.close()


# ── records, pieces and ends ─────────────────────────────────────────────────────────────────────


def test_a_request_in_records_of_one_byte_is_one_request(secure: Connect) -> None:
    sock = secure()
    for byte in request("/echo?a", b"body", "PUT"):
        sock.send(bytes([byte]))
    status, body = answer(sock)
    assert (status, json.loads(body)["body"]) == (200, "body")


def test_many_requests_in_one_record_are_all_answered(secure: Connect) -> None:
    sock = secure()
    sock.sendall(b"".join(request(f"/{number}") for number in range(100)))
    for number in range(100):
        status, body = answer(sock)
        assert (status, json.loads(body)["path"]) == (200, f"/{number}")


@pytest.mark.parametrize("size", [RECORD_BYTES - 200, RECORD_BYTES, RECORD_BYTES + 1, 95_000])
def test_bodies_about_the_size_of_records_arrive_whole(secure: Connect, size: int) -> None:
    sent = random.Random(size).randbytes(size)
    sock = secure()
    sock.sendall(request("/echo", sent, "PUT"))
    status, body = answer(sock)
    assert status == 200
    assert json.loads(body)["body"].encode("latin-1") == sent


@pytest.mark.parametrize("target", ["/big", "/big-at-once"])
def test_a_client_that_reads_little_at_a_time_gets_all_of_an_answer(secure: Connect, target: str) -> None:
    sock = secure(receive_buffer=4096)
    sock.sendall(request(target))
    status, body = answer(sock)
    assert status == 200
    assert body == BIG


def test_a_client_that_leaves_without_a_word_is_gone(secure: Connect) -> None:
    sock, other = secure(), secure()
    sock.sendall(request("/until-gone?tls"))
    os.close(sock.detach())

    def gone() -> bool:
        other.sendall(request())
        return "tls" in json.loads(answer(other)[1])["gone"]

    wait_until(gone, what="the application is told")


def test_an_answer_ends_with_a_word_of_goodbye(secure: Connect) -> None:
    sock = secure()
    assert isinstance(sock, ssl.SSLSocket)
    sock.suppress_ragged_eofs = False
    sock.sendall(request().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert b"200 OK" in sock.recv(65536)
    while sock.recv(65536):  # an end without close_notify would raise SSLEOFError
        pass


def test_a_refusal_reaches_a_client_that_still_sends(secure: Connect) -> None:
    sock = secure()
    with suppress(OSError):
        sock.sendall(request("/echo", b"x" * 3_000_000, "PUT"))
    assert answer(sock)[0] == 413


# ── who may keep it waiting ──────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def impatient_port(pair: Path) -> Iterator[int]:
    """That of a server which waits for 0.3 s."""
    with bare(pair, SWEEP_SECONDS=0.05, HEADER_SECONDS=0.3, LINGER_SECONDS=0.1) as port:
        yield port


@pytest.mark.parametrize(
    "begun", [b"", hello()[:1], hello()[:60], hello()[:-1]], ids=["none", "one", "half", "most"]
)
def test_half_a_greeting_ends(impatient_port: int, begun: bytes) -> None:
    with closing(dial(impatient_port)) as sock:
        sock.sendall(begun)
        assert read_to_end(sock) == b""


def test_a_greeting_that_comes_byte_by_byte_has_no_more_time(impatient_port: int) -> None:
    def drip(sock: socket.socket) -> None:
        for byte in hello() * 1000:
            sock.sendall(bytes([byte]))
            time.sleep(0.01)

    with closing(dial(impatient_port)) as sock, pytest.raises(ConnectionError):
        drip(sock)


def test_a_client_that_greets_and_says_no_more_ends(impatient_port: int) -> None:
    with closing(dial(impatient_port)) as sock:
        sock.sendall(hello())
        assert read_to_end(sock)[0] == 0x16  # the server's greeting, and then the end


def test_greetings_are_connections_too(pair: Path) -> None:
    with bare(pair, HEADER_SECONDS=300, LINGER_SECONDS=300) as port, ExitStack() as opened:
        for _ in range(60):  # the server takes 50
            opened.enter_context(closing(dial(port))).sendall(hello()[:60])
        with closing(trusting(pair).wrap_socket(dial(port), server_hostname="localhost")) as sock:
            sock.sendall(request())
            assert answer(sock)[0] == 503


def test_no_greeting_holds_up_others(impatient_port: int, pair: Path) -> None:
    with ExitStack() as opened:
        for _ in range(40):
            opened.enter_context(closing(dial(impatient_port))).sendall(hello()[:60])
        with closing(trusting(pair).wrap_socket(dial(impatient_port), server_hostname="localhost")) as sock:
            sock.sendall(request())
            assert answer(sock)[0] == 200


# ── the socket by itself ─────────────────────────────────────────────────────────────────────────


@contextmanager
def ends(pair: Path) -> Iterator[tuple[TlsSocket, ssl.SSLSocket]]:
    """The server's end of a connection with little room, and the client's."""
    left, right = socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    left.setblocking(False)
    right.settimeout(30)
    server = Certificate(str(pair), None).context.wrap_socket(
        left, server_side=True, do_handshake_on_connect=False
    )
    assert isinstance(server, TlsSocket)
    client = trusting(pair).wrap_socket(right, server_hostname="localhost", do_handshake_on_connect=False)
    thread = threading.Thread(target=client.do_handshake)
    thread.start()
    while True:
        try:
            server.do_handshake()
            break
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            time.sleep(0.001)
    thread.join()
    with closing(server), closing(client):
        yield server, client


@pytest.mark.parametrize("seed", range(6))
def test_what_is_sent_arrives_however_it_is_offered_again(pair: Path, seed: int) -> None:
    chance = random.Random(seed)
    whole = chance.randbytes(400_000)
    received = bytearray()
    with ends(pair) as (server, client):

        def read() -> None:
            while len(received) < len(whole):
                received.extend(client.recv(chance.choice((1, 100, 5000, 70_000))))

        thread = threading.Thread(target=read)
        thread.start()
        sent = refused = 0
        while sent < len(whole):
            length = chance.choice((1, 10, 1000, 5000, RECORD_BYTES, 20_000, 100_000))
            offered = memoryview(whole)[sent : sent + length]
            try:
                if chance.random() < 0.5:
                    sent += server.send(offered)
                else:
                    half = len(offered) // 2
                    sent += server.sendmsg([offered[:half], offered[half:]])
            except BlockingIOError:
                refused += 1
                time.sleep(0.0005)
        thread.join(30)
    print(f"seed {seed}: refused {refused} times")  # noqa: T201 - shown where the test fails
    assert refused
    assert received == whole


def test_what_cannot_go_on_is_as_with_a_plain_socket(pair: Path) -> None:
    with ends(pair) as (server, client):
        with pytest.raises(BlockingIOError):
            server.recv(1)
        with pytest.raises(BlockingIOError):
            collections.deque(iter(lambda: server.send(b"x" * 5000), 0))
        os.close(client.detach())
        with pytest.raises(ConnectionError):
            server.send(b"x" * 5000)


def test_garbage_in_place_of_a_record_is_a_broken_connection(pair: Path) -> None:
    with ends(pair) as (server, client):
        os.write(client.fileno(), b"\x17\x03\x03\x00\x20" + b"\0" * 32)
        with pytest.raises(ConnectionResetError, match="TLS failed"):
            server.recv(1)
