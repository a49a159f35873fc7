"""The HTTP server by itself: what it takes, what it refuses and how, and who may keep it waiting."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import gevent
import pytest

from kvstore_http.routes import SUBSCRIBE_PATH
from kvstore_http.server import server
from support.patience import PATIENCE_SECONDS
from support.servers import wait_until

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("bare_server.py")
MAX_BODY, MAX_HEADER, MAX_CONNECTIONS = 100_000, 8_192, 50
BIG_BYTES = 3_000 * 64 * 256

Connect = Callable[[], socket.socket]


@contextmanager
def starter() -> Iterator[Callable[..., Connect]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(**constants: float) -> Connect:
        arguments = [f"{name}={value}" for name, value in constants.items()]
        process = subprocess.Popen([sys.executable, str(PROGRAM), *arguments], stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout is not None
        port = int(process.stdout.readline())
        return lambda: socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)

    yield start
    for process in processes:
        process.terminate()
        assert process.wait(20) == 0
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def start_bare() -> Iterator[Callable[..., Connect]]:
    """Start a server, with constants changed, and get a function that connects to it."""
    with starter() as start:
        yield start


@pytest.fixture(scope="module")
def connect() -> Iterator[Connect]:
    """A function that connects to a server with its usual constants, which all tests share."""
    with starter() as start:
        yield start()


def read_response(sock: socket.socket, method: str = "GET") -> tuple[HTTPResponse, bytes]:
    """The next response on ``sock``; for connections that end after it."""
    response = HTTPResponse(sock, method=method)
    response.begin()
    body = response.read()
    response.close()
    return response, body


def exchange(connect: Connect, request: bytes, method: str = "GET") -> tuple[HTTPResponse, bytes]:
    with closing(connect()) as sock:
        sock.sendall(request)
        return read_response(sock, method)


def request(target: str, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: test", *lines]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def seen(connect: Connect, request: bytes) -> dict[str, Any]:
    response, body = exchange(connect, request)
    assert response.status == 200, body
    decoded: dict[str, Any] = json.loads(body)
    return decoded


def assert_problem(response: HTTPResponse, body: bytes, status: int, code: str) -> dict[str, Any]:
    assert response.status == status, body
    assert response.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(body)
    assert (document["status"], document["code"]) == (status, code)
    assert document["detail"]
    return document


# ── what reaches the application ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        "/v1/kv/a",
        "/v1/kv//a//b/",
        "//v1/kv/a",
        "///",
        "/v1/kv/./../..",
        "/v1/kv/a%2Fb%2fc",
        "/v1/kv/%25%00%20+",
        "/v1/kv/%",
        "/v1/kv/%zz%c3%28%ff",
        "/v1/kv/a;b=c&d:e@f",
        "/v1/kv/http://x/y",
    ],
)
def test_the_path_reaches_the_application_as_it_was_sent(connect: Connect, path: str) -> None:
    found = seen(connect, request(f"{path}?q=%2F&&+?%"))
    assert (found["path"], found["query"]) == (path, "q=%2F&&+?%")


def test_bytes_beyond_ascii_reach_the_application_percent_encoded(connect: Connect) -> None:
    found = seen(connect, request("/v1/kv/caf\xc3\xa9\xff?q=\xe2\x82\xac"))
    assert (found["path"], found["query"]) == ("/v1/kv/caf%C3%A9%FF", "q=%E2%82%AC")


@pytest.mark.parametrize(
    ("method", "target", "path", "query"),
    [
        ("GET", "http://test/v1//kv/%2F?a", "/v1//kv/%2F", "a"),
        ("GET", "http://test", "/", ""),
        ("GET", "https://test?a=/b", "/", "a=/b"),
        ("OPTIONS", "*", "*", ""),
    ],
)
def test_the_other_forms_of_a_target_are_understood(
    connect: Connect, method: str, target: str, path: str, query: str
) -> None:
    found = seen(connect, request(target, method=method))
    assert (found["path"], found["query"]) == (path, query)


def test_pipelined_requests_are_answered_in_their_order(connect: Connect) -> None:
    targets = ["/slow?1", "/fast?2", "/slow?3", "/fast?4", "/fast?5"]
    last = request("/fast?6", "Connection: close")
    with closing(connect()) as sock:
        sock.sendall(b"".join(map(request, targets)) + last)
        received = read_to_end(sock)
    assert [chunk[:1] for chunk in received.split(b'"query": "')[1:]] == [b"1", b"2", b"3", b"4", b"5", b"6"]


def read_to_end(sock: socket.socket) -> bytes:
    received = b""
    while data := sock.recv(65536):
        received += data
    return received


def test_a_body_may_come_in_pieces_and_in_chunks(connect: Connect) -> None:
    with closing(connect()) as sock:
        head = request("/", "Transfer-Encoding: chunked", method="PUT")
        for piece in (head, b"3\r\nab", b"c\r\n", b"2;x=y\r\nde\r\n0\r\n", b"\r\n"):
            sock.sendall(piece)
        _, body = read_response(sock)
    assert json.loads(body)["body"] == "abcde"


def test_an_http_1_0_connection_ends_after_its_response_unless_kept(connect: Connect) -> None:
    with closing(connect()) as sock:
        sock.sendall(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert read_response(sock)[0].status == 200
        sock.sendall(b"GET /b HTTP/1.0\r\n\r\n")
        assert read_response(sock)[0].status == 200
        assert sock.recv(1) == b""


def test_a_head_response_has_no_body_and_the_connection_goes_on(connect: Connect) -> None:
    with closing(connect()) as sock:
        for _ in range(2):
            sock.sendall(request("/a", method="HEAD"))
            response, body = read_response(sock, "HEAD")
            assert (response.status, body) == (200, b"")
            assert int(response.headers["Content-Length"]) > 0


def test_a_connection_goes_on_after_every_response_that_has_an_end(connect: Connect) -> None:
    with closing(connect()) as sock:
        for target, status, body in (("/nothing", 304, b""), ("/piecewise", 200, b"one,two")) * 2:
            sock.sendall(request(target))
            response, read = read_response(sock)
            assert (response.status, read) == (status, body)
            assert response.headers["Connection"] is None
        sock.sendall(b"GET /piecewise HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        response, read = read_response(sock)
        assert (response.headers["Connection"], read) == ("close", b"one,two")
        assert sock.recv(1) == b""


def test_who_expects_100_continue_is_told_to_go_on(connect: Connect) -> None:
    with closing(connect()) as sock:
        sock.sendall(request("/", "Expect: 100-continue", "Content-Length: 3", method="PUT"))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert json.loads(read_response(sock)[1])["body"] == "abc"


def test_a_client_that_closes_its_sending_side_still_gets_its_answer(connect: Connect) -> None:
    with closing(connect()) as sock:
        sock.sendall(request("/slow"))
        sock.shutdown(socket.SHUT_WR)
        assert read_response(sock)[0].status == 200


def test_a_request_learns_that_its_client_is_gone(connect: Connect) -> None:
    with closing(connect()) as sock:
        sock.sendall(request("/until-gone?me"))
    wait_until(lambda: "me" in seen(connect, request("/"))["gone"], what="the request ends")


@pytest.mark.parametrize("target", ["/big", "/big-at-once"])
def test_a_response_far_larger_than_the_buffers_arrives_whole_at_a_slow_reader(
    connect: Connect, target: str
) -> None:
    with closing(connect()) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072)
        slow.sendall(request(target, "Connection: close"))
        assert seen(connect, request("/while-the-other-waits"))["path"] == "/while-the-other-waits"
        _, body = read_response(slow)
    assert body == bytes(range(256)) * (BIG_BYTES // 256)


@pytest.mark.parametrize("target", ["/big", "/big-at-once"])
def test_a_reader_that_goes_away_in_the_middle_disturbs_nobody(connect: Connect, target: str) -> None:
    for _ in range(5):
        with closing(connect()) as sock:
            sock.sendall(request(target))
            assert sock.recv(1000)
    assert seen(connect, request("/still-here"))["path"] == "/still-here"


def test_requests_are_served_before_the_streams_that_came_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TURN_SECONDS", 0)
    streams = 20
    served: list[str] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        served.append(environ["kvstore.raw_path"])
        start_response("200 OK", [("Content-Length", "0")])
        return []

    limits = {"max_body_bytes": 1000, "max_header_bytes": 1000, "max_connections": 50}
    listening = socket.create_server(("127.0.0.1", 0))
    with ExitStack() as open_ones:
        open_ones.enter_context(closing(server.HttpServer(application, listening, **limits)))
        # the loop, which is this thread's, has not seen any of them before all are there
        for path in ["/first", *[SUBSCRIBE_PATH] * streams, "/last"]:
            client = socket.create_connection(listening.getsockname())
            open_ones.enter_context(closing(client))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        with gevent.Timeout(30):
            while len(served) < streams + 2:
                gevent.sleep(0.001)
        assert served.count(SUBSCRIBE_PATH) == streams
        assert {"/first", "/last"} <= set(served[: streams // 4]), "they waited for the streams"


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_a_body_of_the_largest_size_is_taken_and_one_byte_more_is_not(connect: Connect) -> None:
    for size, status in ((MAX_BODY, 200), (MAX_BODY + 1, 413)):
        message = request("/", f"Content-Length: {size}", method="PUT", body=b"x" * size)
        assert exchange(connect, message)[0].status == status


def test_a_refused_upload_gets_its_problem_however_much_is_still_coming(connect: Connect) -> None:
    with closing(connect()) as sock:
        sock.sendall(request("/", "Content-Length: 30000000", method="PUT"))
        for _ in range(300):
            sock.sendall(b"x" * 100_000)
        problem = assert_problem(*read_response(sock), 413, "request_too_large")
    assert problem["limit"] == MAX_BODY


def test_a_body_in_chunks_is_refused_once_it_is_too_large(connect: Connect) -> None:
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    message = request("/", "Transfer-Encoding: chunked", method="PUT") + chunk * 10
    assert_problem(*exchange(connect, message), 413, "request_too_large")


def test_a_body_that_would_be_refused_is_not_asked_for(connect: Connect) -> None:
    message = request("/", "Expect: 100-continue", f"Content-Length: {MAX_BODY + 1}", method="PUT")
    assert_problem(*exchange(connect, message), 413, "request_too_large")


def test_headers_over_the_limit_are_refused(connect: Connect) -> None:
    message = request("/", "X-Long: " + "x" * MAX_HEADER)
    problem = assert_problem(*exchange(connect, message), 431, "headers_too_large")
    assert problem["limit"] == MAX_HEADER


def test_a_request_line_over_the_limit_is_refused_as_such(connect: Connect) -> None:
    assert_problem(*exchange(connect, request("/" + "x" * MAX_HEADER)), 414, "uri_too_long")


def test_a_failing_application_gives_a_problem_without_its_traceback(connect: Connect) -> None:
    response, body = exchange(connect, request("/fail"))
    assert_problem(response, body, 500, "internal")
    assert b"on purpose" not in body
    assert b"Traceback" not in body


def test_a_connection_too_many_is_told_so_whatever_it_says(start_bare: Callable[..., Connect]) -> None:
    connect = start_bare()
    kept = [connect() for _ in range(MAX_CONNECTIONS)]
    for sock in kept:
        sock.sendall(request("/"))
        assert read_response(sock)[0].status == 200
    # as soon as its head is there; one that sends less is refused a little later
    unfinished = b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"
    for said in (request("/"), unfinished, b"", b"GET / HT"):
        with closing(connect()) as sock:
            sock.sendall(said)
            response, body = read_response(sock)
            assert_problem(response, body, 503, "too_busy")
            assert response.headers["Retry-After"]
            assert response.headers["Connection"] == "close"
    kept.pop().close()

    def there_is_room() -> bool:
        with closing(connect()) as sock:
            sock.sendall(request("/"))
            return read_response(sock)[0].status == 200

    wait_until(there_is_room)
    for sock in kept:
        sock.close()


def test_running_out_of_descriptors_is_said_as_well(start_bare: Callable[..., Connect]) -> None:
    connect = start_bare(SPARE_DESCRIPTORS=resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    assert_problem(*exchange(connect, request("/")), 503, "too_busy")


# ── who is not waited for ────────────────────────────────────────────────────────────────────────


def test_headers_that_do_not_arrive_are_not_waited_for(start_bare: Callable[..., Connect]) -> None:
    connect = start_bare(SWEEP_SECONDS=0.05, HEADER_SECONDS=0.2)
    with closing(connect()) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert_problem(*read_response(sock), 408, "request_timeout")
        assert sock.recv(1) == b""


def test_a_body_that_stops_arriving_is_not_waited_for(start_bare: Callable[..., Connect]) -> None:
    connect = start_bare(SWEEP_SECONDS=0.05, STALL_SECONDS=0.2)
    with closing(connect()) as sock:
        sock.sendall(request("/", "Content-Length: 10", method="PUT", body=b"abc"))
        assert_problem(*read_response(sock), 408, "request_timeout")


def test_a_pause_of_the_server_is_not_the_clients_fault(start_bare: Callable[..., Connect]) -> None:
    """As when a laptop sleeps, or a machine is moved: what was sent meanwhile is there, unread."""
    connect = start_bare(SWEEP_SECONDS=0.05, STALL_SECONDS=3)
    pid = seen(connect, request("/"))["pid"]
    upload = request("/", "Content-Length: 4", method="PUT", body=b"last")
    for _ in range(2):  # which the loop looks at first, the clock or the connections, is not certain
        with closing(connect()) as sock:
            sock.sendall(upload[:-1])
            seen(connect, request("/"))  # and what came before is read
            os.kill(pid, signal.SIGSTOP)
            try:
                sock.sendall(upload[-1:])
                time.sleep(4)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert read_response(sock)[0].status == 200


def test_an_idle_connection_is_closed_without_a_word(start_bare: Callable[..., Connect]) -> None:
    connect = start_bare(SWEEP_SECONDS=0.05, IDLE_SECONDS=0.2)
    with closing(connect()) as sock:
        sock.sendall(request("/"))
        assert read_response(sock)[0].status == 200
        assert sock.recv(1) == b""


def test_a_reader_that_stops_reading_is_not_waited_for(start_bare: Callable[..., Connect]) -> None:
    connect = start_bare(SWEEP_SECONDS=0.05, STALL_SECONDS=0.3)
    with closing(connect()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        sock.sendall(request("/big"))
        wait_until(lambda: seen(connect, request("/"))["gone"] == ["big"], what="the response is given up")


# ── what is kept for all connections ─────────────────────────────────────────────────────────────


def test_all_connections_together_hold_a_bounded_number_of_bytes(start_bare: Callable[..., Connect]) -> None:
    """Whoever moved least recently is closed; those who read and send go on."""
    connect = start_bare(HELD_BYTES=300_000)
    body = b"x" * 90_000
    with ExitStack() as stack:
        uploads = [stack.enter_context(closing(connect())) for _ in range(6)]
        for sock in uploads:
            sock.sendall(request("/", f"Content-Length: {MAX_BODY}", method="PUT") + body)
            assert seen(connect, request("/"))["path"] == "/"  # it has been read
        for sock in uploads[-2:]:
            sock.sendall(b"x" * (MAX_BODY - len(body)))
            assert read_response(sock)[0].status == 200
        closed = uploads[0]
        wait_until(lambda: has_ended(closed), what="the oldest upload is closed")


def test_answers_that_are_not_read_are_bounded_for_all(start_bare: Callable[..., Connect]) -> None:
    connect = start_bare(HELD_BYTES=100_000_000)
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(connect())) for _ in range(4)]
        for sock in readers:
            sock.sendall(request("/big-at-once"))
            sock.recv(1)
            assert seen(connect, request("/"))["path"] == "/"
        *_, last = readers
        assert len(read_to_end_of(last)) > BIG_BYTES
        assert len(read_to_end_of(readers[0])) < BIG_BYTES


def has_ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(65536) == b""
    except ConnectionResetError:
        return True


def read_to_end_of(sock: socket.socket) -> bytes:
    """What comes until the whole of a big answer is there, or the connection ends."""
    received = bytearray()
    while len(received) <= BIG_BYTES:
        try:
            data = sock.recv(1 << 20)
        except ConnectionResetError:
            break
        if not data:
            break
        received += data
    return bytes(received)
