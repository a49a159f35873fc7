"""TLS in the facade: what it speaks and refuses, who may keep it waiting, and certificates that change."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
import gevent.event
import pytest

from kvstore_cli.config.resolve import ConfigurationError, resolve
from kvstore_core.errors import KvError
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.server.certificate import Certificate, not_after
from kvstore_http.server.tls_socket import RECORD_BYTES, TlsSocket
from kvstore_http.workers import worker
from support.command_line import CommandLine, Running
from support.metrics import Scrape
from support.patience import PATIENCE_SECONDS
from support.programs import make_certificate, openssl, require_program
from support.protected import Protected
from support.scripted import Script, scripted
from support.scripted import answer as answer_of
from support.servers import (
    Daemon,
    Facade,
    Serve,
    Service,
    clean_environment,
    flags,
    kvstore_command,
    run_kvstore,
    wait_until,
)

pytestmark = pytest.mark.slow

BARE = Path(__file__).parents[1] / "http_core" / "bare_server.py"
BIG = bytes(range(256)) * 64 * 3_000

Connect = Callable[..., socket.socket]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost with its key, in one file, which ends soon."""
    return make_certificate(tmp_path_factory.mktemp("pair"), days=10)


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


def test_an_answer_ends_with_a_word_of_goodbye(secure: Connect, pair: Path) -> None:
    context = trusting(pair)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    sock = secure(context)
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


# ── certificates ─────────────────────────────────────────────────────────────────────────────────


def split(pair: Path, folder: Path) -> tuple[Path, Path]:
    """The certificate and its key in two files."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    text = pair.read_text()
    begin = text.index("-----BEGIN PRIVATE KEY")
    certificate.write_text(text[:begin])
    key.write_text(text[begin:])
    return certificate, key


@pytest.mark.parametrize("days", [3, 10_000, 20_000])  # from 2050 on times are written in another form
def test_the_end_of_a_certificate_is_what_openssl_says(tmp_path: Path, days: int) -> None:
    pair = make_certificate(tmp_path, days=days)
    said = openssl("x509", "-in", pair, "-noout", "-enddate").strip().removeprefix("notAfter=")
    assert Certificate(str(pair), None).ends_at == ssl.cert_time_to_seconds(said)


def test_what_is_no_certificate_has_no_end() -> None:
    der = ssl.PEM_cert_to_DER_cert(
        "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n"  # a sequence with a number
    )
    for length in range(len(der) + 1):
        with pytest.raises(KvError, match="damaged"):
            not_after(der[:length])


def _no_certificate(certificate: Path, key: Path) -> None:
    certificate.write_text("hello\n")


def _no_key(certificate: Path, key: Path) -> None:
    key.write_bytes(certificate.read_bytes())


def _folder_for_key(certificate: Path, key: Path) -> None:
    key.unlink()
    key.mkdir()


def _other_key(certificate: Path, key: Path) -> None:
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)


def _encrypted_key(certificate: Path, key: Path) -> None:
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", key.with_name("locked"))
    key.with_name("locked").replace(key)


def _half_a_certificate(certificate: Path, key: Path) -> None:
    text = certificate.read_text()
    certificate.write_text(text[: len(text) // 2])


def _certificate_of_junk(certificate: Path, key: Path) -> None:
    certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


SPOILT: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "gone": (lambda certificate, _: certificate.unlink(), r"tls.crt cannot be read: No such file"),
    "key gone": (lambda _, key: key.unlink(), r"tls.key cannot be read: No such file"),
    "a folder": (_folder_for_key, r"tls.key cannot be read: Is a directory"),
    "no certificate": (_no_certificate, r"--tls-cert \S+tls.crt holds no certificate in PEM"),
    "half of it": (_half_a_certificate, r"--tls-cert \S+tls.crt holds no certificate in PEM"),
    "junk": (_certificate_of_junk, r"OpenSSL takes no certificate from \S+tls.crt"),
    "no key": (_no_key, r"--tls-key \S+tls.key holds no private key in PEM"),
    "another key": (_other_key, r"the key in \S+tls.key is not that of the certificate in \S+tls.crt"),
    "an encrypted key": (
        _encrypted_key,
        r"the key of --tls-key is encrypted; write it out without a password",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_a_pair_that_cannot_be_used_is_refused_in_words_and_the_one_in_use_stays(
    tmp_path: Path,
    pair: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path, Path], None],
    said: str,
) -> None:
    files = split(pair, tmp_path)
    used = Certificate(*map(str, files))
    context = used.context
    spoil(*files)
    with pytest.raises(KvError, match=said):
        Certificate(*map(str, files))
    for _ in range(3):  # it is said once
        used.refresh()
        assert used.is_refused
    (line,) = caplog.records
    assert line.levelname == "ERROR"
    assert used.context is context
    (tmp_path / "again").mkdir()
    if files[1].is_dir():
        files[1].rmdir()
    for new, old in zip(split(make_certificate(tmp_path / "again"), tmp_path / "again"), files, strict=True):
        new.replace(old)
    used.refresh()
    assert not used.is_refused
    assert used.context is not context


def test_an_expired_certificate_does_not_replace_one_that_is_valid(tmp_path: Path, pair: Path) -> None:
    (tmp_path / "old").mkdir()
    files = split(pair, tmp_path)
    used = Certificate(*map(str, files))
    ends_at = used.ends_at
    expired = split(make_certificate(tmp_path / "old", days=-1), tmp_path / "old")
    for new, old in zip(expired, files, strict=True):
        new.replace(old)
    used.refresh()
    assert (used.is_refused, used.ends_at) == (True, ends_at)
    assert Certificate(*map(str, files)).ends_at < time.time()  # there is no other to use


def test_a_pair_that_is_put_back_is_no_longer_refused(tmp_path: Path, pair: Path) -> None:
    files = split(pair, tmp_path)
    used = Certificate(*map(str, files))
    files[1].rename(tmp_path / "away")
    used.refresh()
    assert used.is_refused
    (tmp_path / "away").rename(files[1])
    used.refresh()
    assert not used.is_refused


def test_a_service_whose_certificate_cannot_be_used_does_not_start(
    tmp_path: Path, pair: Path, shared_daemon: Daemon
) -> None:
    certificate, key = split(pair, tmp_path)
    _other_key(certificate, key)
    where = [
        "--requests",
        shared_daemon.requests,
        "--changes",
        shared_daemon.changes,
        "--http",
        "127.0.0.1:0",
    ]
    environment = clean_environment(tmp_path, KVSTORE_LOG_FORMAT="text")
    done = run_kvstore("http", *where, "--tls-cert", str(certificate), "--tls-key", str(key), env=environment)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("kvstore http: the key in ")
    done = run_kvstore("http", *where, "--tls-key", str(key), env=environment)
    assert done.returncode == 2
    assert "name it with --tls-cert" in done.stderr.decode()


# ── a whole service ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def service(shared_daemon: Daemon, pair: Path, _shared_starter: Any) -> Facade:
    """A facade with TLS and little room for streams."""
    facade: Facade = _shared_starter.start_facade(
        shared_daemon,
        http="localhost:0",
        tls_cert=str(pair),
        stream_buffer_bytes=65_536,
        stream_heartbeat="1s",
    )
    assert facade.url.startswith("https://127.0.0.1:")
    facade.url = facade.url.replace("127.0.0.1", "localhost")
    return facade


def call(
    url: str, context: ssl.SSLContext, method: str, target: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own."""
    connection = HTTPSConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS, context=context)
    with closing(connection):
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def test_the_addresses_that_it_names_are_https(service: Facade, pair: Path) -> None:
    _, body = call(service.url, trusting(pair), "GET", "/", Accept="application/json")
    assert any(service.url in line for line in json.loads(body)["try"])


def subscribe(service: Facade, pair: Path, query: str, receive_buffer: int | None = None) -> ssl.SSLSocket:
    """An open stream of lines."""
    address = urlsplit(service.url)
    assert address.port is not None
    sock = trusting(pair).wrap_socket(dial(address.port, receive_buffer), server_hostname="localhost")
    head = f"GET /v1/subscribe?{query} HTTP/1.0\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n"
    sock.sendall(head.encode())
    return sock


def lines_of(sock: ssl.SSLSocket) -> Iterator[dict[str, Any]]:
    """What comes on a stream."""
    with sock.makefile("rb") as file:
        while file.readline().strip():
            pass  # the head
        for line in file:
            yield json.loads(line)


def test_a_reader_that_is_too_slow_is_cut_off_and_others_miss_nothing(service: Facade, pair: Path) -> None:
    context = trusting(pair)

    def dropped() -> float:
        scraped = Scrape(call(service.url, context, "GET", "/metrics")[1].decode())
        return scraped.value("kvstore_http_streams_dropped_total", reason="slow")

    assert dropped() == 0
    with closing(subscribe(service, pair, "prefix=slow/", 4096)) as slow:
        with closing(subscribe(service, pair, "prefix=slow/")) as quick:
            lines = lines_of(quick)
            assert next(line for line in lines if line["event"] == "sync")
            written = 0
            while not dropped():
                for _ in range(10):
                    value = random.Random(written).randbytes(30_000).hex().encode()
                    assert call(service.url, context, "PUT", f"/v1/kv/slow/{written}", value)[0] in (200, 201)
                    event = next(line for line in lines if line["event"] == "put")
                    assert (event["key"], event["value"]) == (f"slow/{written}", value.decode())
                    written += 1
                assert written < 1000
        left = read_to_end(slow)
        assert len(left) < written * 60_000


def test_a_stream_whose_reader_left_is_closed(service: Facade, pair: Path) -> None:
    context = trusting(pair)

    def streams() -> float:
        return Scrape(call(service.url, context, "GET", "/metrics")[1].decode()).value("kvstore_http_streams")

    wait_until(lambda: streams() == 0, what="no stream is open")
    politely, rudely = (subscribe(service, pair, "prefix=gone/") for _ in range(2))
    wait_until(lambda: streams() == 2, what="two are open")
    with suppress(OSError):
        politely.setblocking(False)
        politely.unwrap()
    wait_until(lambda: streams() == 1, what="the one that said goodbye is closed")
    os.close(rudely.detach())
    wait_until(lambda: streams() == 0, what="the other is, too")
    politely.close()


def test_failed_handshakes_are_counted(service: Facade, pair: Path) -> None:
    context = trusting(pair)

    def failed() -> float:
        scraped = Scrape(call(service.url, context, "GET", "/metrics")[1].decode())
        return scraped.value("kvstore_http_tls_handshakes_failed_total")

    before = failed()
    with pytest.raises(ssl.SSLCertVerificationError):
        call(service.url, ssl.create_default_context(), "GET", "/")
    wait_until(lambda: failed() > before, what="it is counted")


def ended_days(pair: Path) -> float:
    """When the certificate ends, as the metric has it."""
    return float(int(Certificate(str(pair), None).ends_at))


def test_a_renewed_certificate_is_taken_by_all_workers_and_refuses_nobody(
    start_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    old, new = (make_certificate(folder, days=days) for folder, days in _folders(tmp_path, old=30, new=3))
    certificate, key = split(old, tmp_path)
    serve = start_serve(workers=2, tls_cert=str(certificate), tls_key=str(key))
    advice = "instead of 127.0.0.1 write a name that the certificate is for"
    wait_until(lambda: advice in serve.stderr, what="the guide says which name to ask for")
    url = serve.url.replace("127.0.0.1", "localhost")
    context = trusting(old)
    context.load_verify_locations(new)
    kept = HTTPSConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS, context=context)
    stop, faults, seen = threading.Event(), list[Exception](), collections.Counter[bytes]()

    def come() -> bytes:
        connection = HTTPSConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS, context=context)
        with closing(connection):
            connection.request("GET", "/livez")
            shown = connection.sock.getpeercert(binary_form=True)
            assert connection.getresponse().status == 200
        return bytes(shown)

    def keep_coming() -> None:
        while not stop.is_set():
            try:
                seen[come()] += 1
            except Exception as fault:  # reported by the test
                faults.append(fault)

    def ready() -> tuple[int, dict[str, Any]]:
        status, body = call(url, context, "GET", "/readyz?verbose=1")
        return status, next(each for each in json.loads(body)["checks"] if each["name"] == "certificate")

    def ask(connection: HTTPSConnection) -> int:
        connection.request("GET", "/livez")
        response = connection.getresponse()
        response.read()
        return response.status

    assert ask(kept) == 200
    assert ready()[1]["status"] == "ok"
    thread = threading.Thread(target=keep_coming)
    thread.start()
    try:
        new_files = split(new, new.parent)
        new_files[0].replace(certificate)  # and not yet the key
        serve.signal(signal.SIGHUP)
        wait_until(
            lambda: serve.stderr.count("the certificate in use stays: the key in") == 2, what="both refuse it"
        )
        status, check = ready()
        assert (status, check["status"]) == (200, "warning")
        assert "cannot be used" in check["message"]
        new_files[1].replace(key)
        serve.signal(signal.SIGHUP)
        wait_until(lambda: serve.stderr.count("took the new certificate") == 2, what="both take it")
        shown = {come() for _ in range(40)}
    finally:
        stop.set()
        thread.join()
    assert not faults
    assert shown == {ssl.PEM_cert_to_DER_cert(certificate.read_text())}
    assert len(seen) == 2
    assert ask(kept) == 200  # goes on with the certificate that it began with
    kept.close()
    status, check = ready()
    assert (status, check["status"]) == (200, "warning")
    assert "renew it" in check["message"]
    scraped = Scrape(call(url, context, "GET", "/metrics")[1].decode())
    assert scraped.value("kvstore_tls_certificate_expires_at_seconds") == ended_days(new)


def _folders(folder: Path, **days: int) -> Iterator[tuple[Path, int]]:
    for name, number in days.items():
        (folder / name).mkdir()
        yield folder / name, number


def test_the_files_are_looked_at_without_a_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: Path
) -> None:
    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.01)
    used = Certificate(*map(str, split(pair, tmp_path)))
    counters = WorkerCounters.alone()
    watchers = worker._keep_fresh(used, counters, None, gevent.event.Event())
    try:
        (tmp_path / "tls.key").unlink()
        with gevent.Timeout(20):
            while not used.is_refused:
                gevent.sleep(0.005)
    finally:
        for watcher in watchers:
            watcher.close()
    assert counters.shared_counters.certificate_ends_at == int(used.ends_at)


@pytest.mark.parametrize("is_ignored", [False, True], ids=["terminal", "nohup"])
def test_a_terminal_that_goes_away_ends_the_service_unless_it_was_started_under_nohup(
    tmp_path: Path, pair: Path, shared_daemon: Daemon, is_ignored: bool
) -> None:
    options = {"requests": shared_daemon.requests, "changes": shared_daemon.changes, "http": "127.0.0.1:0"}
    command = kvstore_command("http", *flags({**options, "workers": 1, "tls-cert": pair}))
    log = tmp_path / "log"
    master, slave = os.openpty()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setsid", "--ctty", *(["nohup"] if is_ignored else []), *command],
            stdin=slave,
            stdout=output,
            stderr=output,
            env=clean_environment(tmp_path, KVSTORE_LOG_FORMAT="text"),
        )
    os.close(slave)
    try:
        wait_until(lambda: "ready" in log.read_text(), what="it is ready")
        process.send_signal(signal.SIGHUP)  # there still is a terminal
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "the log level is now" in log.read_text(), what="it has seen both")
        os.close(master)
        if is_ignored:
            process.send_signal(signal.SIGUSR2)
            wait_until(lambda: log.read_text().count("the log level is now") == 2, what="it goes on")
            process.terminate()
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_a_facade_that_stops_waits_for_no_greeting(
    start_facade: Callable[..., Facade], shared_daemon: Daemon, pair: Path
) -> None:
    facade = start_facade(shared_daemon, tls_cert=str(pair))
    port = urlsplit(facade.url).port
    assert port is not None
    with closing(dial(port)) as silent, closing(dial(port)) as begun:
        begun.sendall(hello()[:60])
        with closing(trusting(pair).wrap_socket(dial(port), server_hostname="localhost")) as sock:
            sock.sendall(request("/livez"))
            assert answer(sock)[0] == 200
        facade.stop()
        assert read_to_end(silent) == read_to_end(begun) == b""


def test_with_access_tokens_go_over_tls_and_a_session_is_for_it_alone(
    protected: Protected, start_facade: Callable[..., Facade], tmp_path: Path, pair: Path
) -> None:
    key_file = str(protected.data / "facade.key")
    facade = start_facade(protected.daemon, facade_key_file=key_file, tls_cert=str(pair))
    token, context = protected.token("tls", "rw:tls/"), trusting(pair)
    url = facade.url.replace("127.0.0.1", "localhost")
    assert call(url, context, "GET", "/v1/kv/tls/a")[0] == 401
    shell = CommandLine(tmp_path, url)
    shell.environment |= {"KVSTORE_TOKEN": token, "KVSTORE_CA_FILE": str(pair)}
    shell.out("put", "tls/a", "hello")
    assert shell.out("subscribe", "--prefix", "tls/", "--snapshot", "--count", "1").endswith(b"hello\n")
    connection = HTTPSConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS, context=context)
    with closing(connection):
        headers = {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin", "Origin": url}
        connection.request("POST", "/v1/session", json.dumps({"token": token}), headers)
        response = connection.getresponse()
        assert response.status in (200, 201), response.read()
        cookie = response.headers["Set-Cookie"]
    assert cookie.startswith("__Host-kvstore=")
    assert "; Secure" in cookie


def test_with_a_certificate_tokens_may_cross_a_network(tmp_path: Path) -> None:
    flags = {"data": str(tmp_path), "access": "required", "http": "0.0.0.0:5000"}
    with pytest.raises(ConfigurationError, match="Name a certificate with --tls-cert"):
        resolve(flags, "daemon", "http", environ={}).service_settings()
    _, http = resolve({**flags, "tls-cert": "/etc/tls.crt"}, "daemon", "http", environ={}).service_settings()
    assert (http.tls_cert, http.plain_http) == ("/etc/tls.crt", False)


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def script() -> Iterator[Script]:
    """A service that behaves as the test says."""
    with scripted() as script:
        yield script


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """``start(shell, "subscribe", ...)``: a running command, killed when the test ends."""
    with ExitStack() as running:

        def begin(shell: CommandLine, *arguments: str) -> Running:
            started = shell.start(*arguments)
            running.callback(started.end)
            return started

        yield begin


@pytest.fixture
def shell(tmp_path: Path, service: Facade) -> CommandLine:
    """The command line against the service, without any trust in it."""
    return CommandLine(tmp_path, service.url)


def test_the_authorities_of_the_system_may_be_named_as_for_other_programs(
    shell: CommandLine, pair: Path
) -> None:
    shell.environment["SSL_CERT_FILE"] = str(pair)
    shell.out("ping")


def test_every_command_speaks_tls(shell: CommandLine, pair: Path, start: Callable[..., Running]) -> None:
    shell.environment["KVSTORE_CA_FILE"] = str(pair)
    prefix, key = "tls/", "tls/a"
    watching = start(shell, "subscribe", "--prefix", prefix, "--snapshot", "--count", "1", "--json")
    wait_until(lambda: b"sync" in watching.stdout, what="it watches")
    shell.out("put", key, "hello")
    assert watching.wait() == 0
    assert [line["value"] for line in watching.lines() if line.get("event") == "put"] == ["hello"]
    assert shell.out("get", key) == b"hello\n"
    assert shell.out("wait", key, "--equals", "hello") == b"hello\n"
    assert json.loads(shell.out("export", "--prefix", prefix, "-").splitlines()[1])
    assert json.loads(shell.out("top", "--count", "1", "--json"))
    shell.out("ping")
    done = shell("doctor", "--quick", "--json")
    assert done.returncode == 0, done.stdout
    checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    assert (checks["certificate"]["status"], checks["certificate"]["cause"]) == (
        "warning",
        "certificate_ends",
    )


REFUSALS = {
    "untrusted": ({}, False, 5, "not trusted: self-signed certificate; --ca-file names"),
    "expired": ({"days": -1}, True, 5, "the certificate of localhost has expired; renew it"),
    "of another name": (
        {"names": "DNS:kv.example.org,DNS:b.example"},
        True,
        5,
        "not for that name, but for kv.example.org, b.example; write the address with a name that it is for",
    ),
}


@pytest.mark.parametrize(("kind", "is_trusted", "status", "said"), REFUSALS.values(), ids=REFUSALS)
def test_a_certificate_that_is_refused_is_told_in_one_sentence(
    tmp_path: Path, kind: dict[str, Any], is_trusted: bool, status: int, said: str
) -> None:
    pair = make_certificate(tmp_path, **kind)
    with bare(pair) as port:
        shell = CommandLine(tmp_path, f"https://localhost:{port}")
        trust = ["--ca-file", str(pair)] if is_trusted else []
        for command in (["get", "a"], ["subscribe"], ["export", "-"]):
            done = shell(*command, *trust)
            assert done.returncode == status
            (line,) = done.stderr.decode().splitlines()
            assert said in line
        done = shell("doctor", "--json", *trust)
        (check,) = json.loads(done.stdout)["checks"]
        assert (done.returncode, check["cause"]) == (status, "certificate_refused")
        assert said in check["message"]


def test_http_for_https_and_the_reverse_are_told_in_one_sentence(
    shell: CommandLine, service: Facade, shared_service: Service, pair: Path
) -> None:
    plain = service.url.replace("https://", "http://")
    secure = shared_service.url.replace("http://", "https://")
    for url, said in (
        (plain, "that port speaks TLS; write the address with https://"),
        (secure, "write http://"),
    ):
        for command in (["put", "a", "b"], ["subscribe"], ["export", "-"]):
            done = shell(*command, "--url", url, "--ca-file", str(pair))
            assert done.returncode == 6
            (line,) = done.stderr.decode().splitlines()
            assert said in line
    done = shell("doctor", "--json", "--url", plain)
    (check,) = json.loads(done.stdout)["checks"]
    assert (done.returncode, check["cause"]) == (6, "wants_https")


def test_an_address_that_redirects_to_https_says_so(script: Script, tmp_path: Path) -> None:
    script.plays = [answer_of(b"", 301, Location="https://kv.example.org/v1/kv/a")]
    done = CommandLine(tmp_path, script.url)("get", "a")
    assert done.returncode == 6
    assert "that address redirects to https; write it with https://" in done.stderr.decode()


def test_the_health_check_of_a_container_needs_no_certificate_for_its_address(
    tmp_path: Path, shared_daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    pair = make_certificate(tmp_path, names="DNS:kv.example.org")
    facade = start_facade(shared_daemon, tls_cert=str(pair))
    address = urlsplit(facade.url).netloc
    shell = CommandLine(tmp_path, None)
    shell.environment |= {"KVSTORE_HTTP": address, "KVSTORE_TLS_CERT": str(pair)}
    shell.out("ping")
    for options in (["--ca-file", str(pair)], ["--url", facade.url]):
        assert shell("ping", *options).returncode == 5


def test_the_address_follows_from_the_certificate(tmp_path: Path) -> None:
    file = tmp_path / "kvstore.toml"
    file.write_text('tls-cert = "/etc/tls.crt"\nhttp = "0.0.0.0:5443"\n')
    found = resolve({}, "client", environ={"KVSTORE_CONFIG": str(file)})
    assert found["url"] == "https://127.0.0.1:5443"
    assert resolve({}, "client", environ={"KVSTORE_TLS_CERT": "/a"})["url"] == "https://127.0.0.1:5000"
    assert (
        resolve({}, "client", environ={"KVSTORE_TLS_CERT": "/a", "KVSTORE_HTTP": "[::]:1"})["url"]
        == "https://[::1]:1"
    )
