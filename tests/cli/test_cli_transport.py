"""What the command line does on a network that is not perfect, against a service with a script."""

from __future__ import annotations

import collections
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from kvstore_cli.http_client.client import ATTEMPTS, ServiceClient, encode_query, key_path, new_backoff
from kvstore_cli.http_client.errors import AttemptError
from kvstore_cli.http_client.whole import http_client
from kvstore_core.errors import ERRORS, KvError
from support.programs import make_certificate
from support.scripted import Play, answer, chunks, problem, scripted
from support.servers import Daemon, Facade, Service, free_port

Kvstore = Any


def drop(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"half")
    handler.close_connection = True


def service(url: str, timeout_ms: int = 20_000) -> ServiceClient:
    """The service at ``url``."""
    return ServiceClient(url, timeout_ms=timeout_ms)


@pytest.mark.parametrize("trouble", [drop, cut_off, problem("unavailable"), problem("too_busy")])
def test_a_write_that_met_trouble_is_repeated_under_the_same_number(script: Any, trouble: Play) -> None:
    script.plays = [trouble, trouble, answer(b'{"revision": 7}')]
    with service(script.url) as kv:
        assert kv.request("PUT", "/v1/kv/a", body=b"v").json() == {"revision": 7}
    assert [seen.body for seen in script.seen] == [b"v"] * 3
    assert len({seen.headers["Idempotency-Key"] for seen in script.seen}) == 1


def test_each_write_has_a_number_of_its_own(script: Any) -> None:
    script.plays = [answer()]
    with service(script.url) as kv:
        kv.request("PUT", "/v1/kv/a", body=b"1")
        kv.request("PUT", "/v1/kv/a", body=b"2")
        kv.request("GET", "/v1/kv/a")
    first, second, read = script.seen
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]
    assert "Idempotency-Key" not in read.headers


def test_trouble_that_stays_is_told_after_the_last_attempt(script: Any) -> None:
    script.plays = [problem("unavailable", detail="the daemon is away")]
    with service(script.url) as kv, pytest.raises(KvError, match="the daemon is away") as caught:
        kv.request("GET", "/v1/kv/a")
    assert caught.value.code == "unavailable"
    assert len(script.seen) == ATTEMPTS


@pytest.mark.parametrize("code", [code for code, row in ERRORS.items() if not row.is_temporary])
def test_an_answer_that_time_does_not_change_is_not_asked_for_again(script: Any, code: str) -> None:
    script.plays = [problem(code, detail="as the service put it", revision=7)]
    with service(script.url) as kv, pytest.raises(KvError, match="as the service put it") as caught:
        kv.request("PUT", "/v1/kv/a", body=b"")
    assert caught.value.code == code
    assert caught.value.details == {"revision": 7}
    assert len(script.seen) == 1


def test_retry_after_is_honoured(script: Any) -> None:
    script.plays = [problem("too_busy", {"Retry-After": "1"}), answer()]
    started = time.monotonic()
    with service(script.url) as kv:
        kv.request("GET", "/")
    assert time.monotonic() - started >= 1


def test_a_retry_after_beyond_the_time_for_an_answer_ends_the_attempts(script: Any) -> None:
    script.plays = [problem("too_busy", {"Retry-After": "3600"})]
    with service(script.url) as kv, pytest.raises(KvError) as caught:
        kv.request("GET", "/")
    assert caught.value.code == "too_busy"
    assert len(script.seen) == 1


def test_silence_is_a_time_out_and_of_a_write_the_outcome_is_unknown(script: Any) -> None:
    over = threading.Event()
    script.plays = [lambda _handler: bool(over.wait())]
    doubt = "may have been made"
    with service(script.url, timeout_ms=200) as kv, pytest.raises(KvError, match=doubt) as caught:
        kv.request("PUT", "/v1/kv/a", body=b"v")
    over.set()
    assert caught.value.code == "timed_out"
    assert caught.value.details == {"outcome": "unknown"}


def test_a_refusal_that_comes_before_the_body_was_read_is_told() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    body = json.dumps({"code": "request_too_large", "detail": "17 MiB is the most"}).encode()

    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            head = (
                f"HTTP/1.1 413 Content Too Large\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    thread = threading.Thread(target=refuse)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with service(url) as kv, pytest.raises(KvError, match="17 MiB"):
        kv.request("PUT", "/v1/kv/a", body=b"x" * 30_000_000)
    thread.join()
    listener.close()


def test_a_connection_is_kept_for_the_next_request_and_replaced_when_it_was_closed(script: Any) -> None:
    script.plays = [answer(), answer(), drop, answer()]
    with service(script.url) as kv:
        for _ in range(3):
            kv.request("GET", "/")
    assert len(script.seen) == 4


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "unauthenticated"),
        (403, "not_allowed"),
        (404, "bad_request"),
        (302, "bad_request"),
        (500, "internal"),
        (502, "unavailable"),
        (503, "unavailable"),
        (504, "timed_out"),
    ],
)
def test_an_answer_of_something_else_is_recognised(script: Any, status: int, code: str) -> None:
    script.plays = [answer(b"<h1>nginx</h1>", status)]
    with service(script.url) as kv, pytest.raises(KvError, match="not kvstore") as caught:
        kv.request("GET", "/v1/kv/a")
    assert caught.value.code == code


def test_a_success_that_is_not_json_is_an_error(script: Any) -> None:
    script.plays = [answer(b"<h1>hello</h1>")]
    with service(script.url) as kv, pytest.raises(KvError, match="not JSON"):
        kv.request("GET", "/").json()


def test_that_nobody_listens_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore_cli.http_client.client.sleep", lambda _: pytest.fail("it waited"))
    url = f"http://127.0.0.1:{free_port()}"
    with service(url) as kv, pytest.raises(KvError, match="connection refused") as caught:
        kv.request("PUT", "/v1/kv/a", body=b"")
    assert caught.value.row.exit == 6
    with service(url) as kv, pytest.raises(KvError, match="refused"):
        kv.open_stream("/v1/subscribe", [], stall_seconds=1)


class Comer:
    """Answers one request each time that it comes, and is away in between."""

    def __init__(self) -> None:
        self.port = free_port()
        self.pauses = 0
        self._threads: list[threading.Thread] = []

    def come(self, _seconds: float = 0) -> None:
        """Listen from now on, until a request is answered; in place of a pause."""
        self.pauses += 1
        listener = socket.create_server(("127.0.0.1", self.port))
        self._threads.append(threading.Thread(target=self._answer_one, args=(listener,)))
        self._threads[-1].start()

    def _answer_one(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        listener.close()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

    def finish(self) -> None:
        """Wait until all was answered."""
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH"])
def test_a_service_that_is_away_is_waited_for_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    comer = Comer()
    monkeypatch.setattr("kvstore_cli.http_client.client.sleep", comer.come)
    with ServiceClient(f"http://127.0.0.1:{comer.port}", timeout_ms=20_000, retry_ms=20_000) as kv:
        assert kv.request(method, "/v1/kv/a", body=b"").json() == {}
    comer.finish()
    assert comer.pauses == 1


def test_a_service_that_was_there_a_moment_ago_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    comer = Comer()
    monkeypatch.setattr("kvstore_cli.http_client.client.sleep", comer.come)
    comer.come()
    with service(f"http://127.0.0.1:{comer.port}") as kv:
        kv.request("GET", "/")
        comer.finish()
        kv.request("GET", "/")
    comer.finish()
    assert comer.pauses == 2


def test_a_patch_whose_answer_was_lost_is_not_made_again(script: Any) -> None:
    script.plays = [drop]
    patient = ServiceClient(script.url, timeout_ms=20_000, retry_ms=20_000)
    with patient as kv, pytest.raises(KvError, match="may have been made anyway"):
        kv.request("PATCH", "/v1/kv/a", body=b"{}")
    (seen,) = script.seen
    assert "Idempotency-Key" not in seen.headers


def test_an_address_with_a_path_is_put_before_every_target(script: Any) -> None:
    script.plays = [answer()]
    with service(f"{script.url}/stores/a") as kv:
        kv.request("GET", "/v1/kv/x", [("format", "json")])
    assert script.seen[0].target == "/stores/a/v1/kv/x?format=json"


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a", "a"),
        ("a/b", "a%2Fb"),
        ("//", "%2F%2F"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("a..b", "a..b"),
        ("%2F", "%252F"),
        ("?#+ &", "%3F%23%2B%20%26"),
        ("é", "%C3%A9"),
        ("🔑", "%F0%9F%94%91"),
        ("\n", "%0A"),
        ("../..", "..%2F.."),
    ],
)
def test_a_key_in_a_path_is_encoded_so_that_nothing_mistakes_it(key: str, path: str) -> None:
    assert key_path("kv", key) == f"/v1/kv/{path}"


@pytest.mark.parametrize("key", ["", "\udc80"])
def test_a_key_that_no_path_can_hold_is_refused(key: str) -> None:
    with pytest.raises(KvError) as caught:
        key_path("kv", key)
    assert caught.value.code == "invalid_key"


def test_a_query_is_encoded() -> None:
    assert encode_query([("prefix", "a&b=c +"), ("key", "é")]) == "?prefix=a%26b%3Dc%20%2B&key=%C3%A9"
    assert encode_query([]) == ""


def test_pauses_grow_and_differ() -> None:
    pauses = [[backoff.next() for _ in range(12)] for backoff in (new_backoff(), new_backoff())]
    assert pauses[0] != pauses[1]
    assert pauses[0][0] <= 0.1
    assert 2.5 <= pauses[0][-1] <= 5
    assert new_backoff().next(3.0) >= 3


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


def test_lines_are_whole_however_they_were_cut_on_the_way(script: Any) -> None:
    script.plays = [chunks(b'{"a', b'":1}\n{"b":2}\n\n', b"{", b'"c":3}', b"\n", b'{"cut')]
    got: list[bytes] = []
    with service(script.url).open_stream("/s", [], stall_seconds=20) as stream, pytest.raises(AttemptError):
        collections.deque(map(got.append, stream.lines()))
    assert got == [b'{"a":1}', b'{"b":2}', b"", b'{"c":3}']


def test_a_stream_that_ends_is_as_broken_as_one_that_is_cut_off(script: Any) -> None:
    script.plays = [chunks(b"x\n", end=True)]
    with service(script.url).open_stream("/s", [], stall_seconds=20) as stream:
        lines = stream.lines()
        assert next(lines) == b"x"
        with pytest.raises(AttemptError, match="closed"):
            next(lines)


def test_a_stream_that_is_silent_for_too_long_is_broken(script: Any) -> None:
    over = threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> None:
        chunks(b"x\n")(handler)
        over.wait()

    script.plays = [stall]
    with service(script.url).open_stream("/s", [], stall_seconds=0.2) as stream:
        lines = stream.lines()
        assert next(lines) == b"x"
        with pytest.raises(AttemptError, match=r"silent for 0\.2 s"):
            next(lines)
    over.set()


def test_a_deadline_ends_a_stream_that_is_not_silent(script: Any) -> None:
    def beat(handler: BaseHTTPRequestHandler) -> None:
        chunks()(handler)
        while True:
            handler.wfile.write(b"2\r\nx\n\r\n")
            time.sleep(0.01)

    script.plays = [beat]
    stream = service(script.url).open_stream("/s", [], stall_seconds=20)
    with stream, pytest.raises(KvError) as caught:
        for _ in stream.lines(time.monotonic() + 0.3):
            pass
    assert caught.value.code == "timed_out"


# ── https ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost with its key, in one file."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure_url(certificate: Path) -> Iterator[str]:
    """A service behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with scripted(context) as script:
        script.plays = [answer(b'{"secure": true}')]
        yield script.url


def test_https_is_spoken_to_a_service_whose_certificate_is_trusted(
    secure_url: str, certificate: Path
) -> None:
    with ServiceClient(secure_url, timeout_ms=20_000, ca_file=str(certificate)) as kv:
        assert kv.request("GET", "/").json() == {"secure": True}


def test_a_certificate_that_is_not_trusted_is_refused_at_once(secure_url: str) -> None:
    with service(secure_url) as kv, pytest.raises(KvError, match="--ca-file") as caught:
        kv.request("GET", "/")
    assert caught.value.row.exit == 5


def test_http_client_is_the_whole_of_it_even_if_ssl_was_hidden_from_it() -> None:
    assert http_client.HTTPConnection


def test_http_to_a_port_with_tls_says_so(secure_url: str) -> None:
    url = secure_url.replace("https://", "http://")
    with service(url) as kv, pytest.raises(KvError, match=f"speaks TLS; write {secure_url}") as caught:
        kv.request("PUT", "/v1/kv/a", body=b"")
    assert caught.value.row.exit == 6
    with service(url) as kv, pytest.raises(KvError, match="speaks TLS"):
        kv.open_stream("/v1/subscribe", [], stall_seconds=1)


@pytest.mark.parametrize(
    "said",
    [
        b"<center>The plain HTTP request was sent to HTTPS port</center>",
        b"You're speaking plain HTTP to an SSL-enabled server port.<br />",
        b"Client sent an HTTP request to an HTTPS server.",
    ],
)
def test_http_to_a_proxy_with_tls_says_so(script: Any, said: bytes) -> None:
    script.plays = [answer(said, 400)]
    with service(script.url) as kv, pytest.raises(KvError, match=r"speaks TLS; write .* https://"):
        kv.request("GET", "/")


def test_https_to_a_port_without_tls_says_so(script: Any, shared_service: Any) -> None:
    script.plays = [answer()]
    for url in (script.url, shared_service.url):  # one answers the greeting, the other waits for more
        secure = url.replace("http://", "https://")
        with service(secure) as kv, pytest.raises(KvError, match="HTTP without TLS; write http://") as caught:
            kv.request("GET", "/")
        assert caught.value.row.exit == 6


def test_what_speaks_no_http_is_recognised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            for _ in range(2):  # the request, and the look whether it speaks TLS
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with service(url) as kv, pytest.raises(KvError, match="does not speak HTTP"):
            kv.request("GET", "/")
        thread.join()


# ── kvstore ping ─────────────────────────────────────────────────────────────────────────────────


def test_a_service_that_answers_is_ready(kvstore: Kvstore, service: Service) -> None:
    assert kvstore.out("ping", "--url", service.url) == f"{service.url} is ready\n".encode()


def test_the_facade_is_not_ready_without_the_daemon(kvstore: Kvstore, service: Service) -> None:
    service.daemon.stop()
    done = kvstore("ping", "--url", service.url)
    # unavailable, or still waiting for the daemon when the time is over
    assert done.returncode in (6, 124)
    assert done.stdout == b""


def test_where_nobody_listens_nothing_is_ready(kvstore: Kvstore) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = kvstore("ping", "--url", url)
    assert (done.returncode, done.stdout) == (6, b"")
    assert f"cannot reach the service at {url}" in done.stderr.decode()


def test_the_daemon_answers_for_itself(kvstore: Kvstore, daemon: Daemon) -> None:
    done = kvstore("ping", "--daemon", env={"KVSTORE_REQUESTS": daemon.requests})
    assert done.stdout.decode() == f"{daemon.requests} is ready\n", done.stderr


@pytest.mark.parametrize("anywhere", ["0.0.0.0", "*"])
def test_a_daemon_that_listens_everywhere_is_asked_on_this_machine(
    kvstore: Kvstore, daemon: Daemon, anywhere: str
) -> None:
    everywhere = daemon.requests.replace("127.0.0.1", anywhere)
    assert kvstore("ping", "--daemon", env={"KVSTORE_REQUESTS": everywhere}).returncode == 0


def test_a_facade_is_no_daemon(kvstore: Kvstore, facade: Facade) -> None:
    requests = facade.url.replace("http", "tcp")
    done = kvstore("ping", "--daemon", "--request-timeout", "500ms", env={"KVSTORE_REQUESTS": requests})
    assert (done.returncode, done.stdout) == (6, b"")
