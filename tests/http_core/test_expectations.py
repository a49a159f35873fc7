"""Who says ``Expect: 100-continue`` learns from the head what can be known from it."""

# ruff: noqa: E501 - the rows of a table are read side by side

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.servers import Service
from support.session import Session, connect

JSON = "Content-Type: application/json"
PATCH = "Content-Type: application/merge-patch+json"


@contextmanager
def asked(service: Service, line: str, *headers: str) -> Iterator[socket.socket]:
    """A connection on which a head was sent that waits to hear whether to send the body."""
    with connect(service.url) as sock:
        head = [f"{line} HTTP/1.1", "Host: localhost", "Expect: 100-continue", *headers]
        sock.sendall("\r\n".join([*head, "", ""]).encode())
        yield sock


def status(sock: socket.socket) -> int:
    return int(sock.recv(65536).split(b" ")[1])


@pytest.mark.parametrize(
    ("expected", "line", "headers"),
    [
        (404, "PUT /nowhere", ["Content-Length: 3"]),
        (405, "POST /v1/status", ["Content-Length: 3"]),
        (400, "PUT /v1/kv/%ff", ["Content-Length: 3"]),
        (400, "PUT /v1/kv/", ["Content-Length: 3"]),
        (400, "PUT /v1/kv/a?tll=5", ["Content-Length: 3"]),
        (400, "PUT /v1/kv/a?ttl=soon", ["Content-Length: 3"]),
        (400, "PUT /v1/kv/a", ["Content-Length: 3", "If-Match: 7"]),
        (400, "PATCH /v1/kv/a", ["Content-Length: 3", PATCH, "If-Match: 7"]),
        (400, "PUT /v1/kv/a", ["Content-Length: 3", "Idempotency-Key: " + "x" * 101]),
        (400, "PUT /v1/kv/a", ["Content-Length: 3", "Content-Range: bytes 0-2/3"]),
        (415, "PUT /v1/kv/a", ["Content-Length: 3", "Content-Encoding: gzip"]),
        (415, "PATCH /v1/kv/a", ["Content-Length: 3", JSON]),
        (415, "POST /v1/batch", ["Content-Length: 3"]),
        (400, "PUT /v1/kv/a?guard=b", ["Content-Length: 3"]),
        (400, "POST /v1/kv/a?guard=b", ["Content-Length: 3"]),
        (400, "PATCH /v1/kv/a?guard=b", ["Content-Length: 3", PATCH]),
        (400, "PATCH /v1/kv/a?ttl=soon", ["Content-Length: 3", PATCH]),
        (400, "PUT /v1/kv/a?ttl=1h&keep_ttl=1", ["Content-Length: 3"]),
        (400, "PUT /v1/kv/a?if_value=x", ["Content-Length: 3", 'If-Match: "7"']),
        (400, "POST /v1/kv/a", ["Content-Length: 3", 'If-Match: "7"']),
        (403, "POST /v1/kv/a", ["Content-Length: 3", "Origin: http://evil.example"]),
        (413, "PUT /v1/kv/a", ["Content-Length: 1048577"]),
        (413, "POST /v1/kv/a", ["Content-Length: 1048577"]),
        (413, "PUT /v1/kv?key=a", ["Content-Length: 1048577"]),
        (413, "POST /v1/batch", ["Content-Length: 999999999999", JSON]),
        (403, "POST /v1/batch", ["Content-Length: 3", JSON, "Origin: http://evil.example"]),
        (400, "POST /v1/incr/a", ["Content-Length: 3"]),
        (400, "POST /v1/incr/a", ["Transfer-Encoding: chunked"]),
        (400, "DELETE /v1/kv/a", ["Transfer-Encoding: chunked"]),
    ],
)
def test_a_head_that_is_enough_is_refused_before_the_body(
    shared_service: Service, expected: int, line: str, headers: list[str]
) -> None:
    with asked(shared_service, line, *headers) as sock:
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 %d " % expected)
    assert answer.count(b"\r\nServer: ") == 1


@pytest.mark.parametrize(
    "framing", ["Content-Length: 5", "Content-Length: 1048576", "Transfer-Encoding: chunked"]
)
def test_a_head_with_nothing_against_it_is_told_to_go_on(shared_service: Service, framing: str) -> None:
    with asked(shared_service, "PUT /v1/kv/expected", framing) as sock:
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        body = b"5\r\nvalue\r\n0\r\n\r\n" if "chunked" in framing else b"v" * int(framing.split()[1])
        sock.sendall(body)
        assert status(sock) in (200, 201)


def test_nothing_is_written_for_a_head_that_is_refused(shared_service: Service) -> None:
    session = Session(shared_service.url)
    for line in (
        "POST /v1/incr/unwritten",
        "POST /v1/touch/unwritten?ttl=5",
        "DELETE /v1/kv?prefix=unwritten",
    ):
        with asked(shared_service, line, "Transfer-Encoding: chunked") as sock:
            assert status(sock) == 400
    assert session.get("/v1/kv/unwritten").status == 404
    session.close()


def test_a_body_that_comes_unasked_is_taken(shared_service: Service) -> None:
    with asked(shared_service, "PUT /v1/kv/expected", "Content-Length: 3") as sock:
        sock.sendall(b"abc")
        answer = sock.recv(65536)
        if answer.startswith(b"HTTP/1.1 100 "):
            answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n") or sock.recv(65536)
        assert int(answer.split(b" ")[1]) in (200, 201)


def test_an_expectation_behind_another_request_keeps_its_place(shared_service: Service) -> None:
    with connect(shared_service.url) as sock:
        first = b"PUT /v1/kv/first HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\na"
        second = b"PUT /v1/kv/second HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
        sock.sendall(first + second)
        received = b""
        while not received.endswith(b"100 Continue\r\n\r\n"):
            received += sock.recv(65536)
        assert received.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 201 "))
        sock.sendall(b"b")
        assert status(sock) in (200, 201)


@pytest.mark.parametrize("first", ["GET /v1/kv/none HTTP/1.1\r\nConnection: close", "GET /none HTTP/1.0"])
def test_nothing_follows_the_last_response_of_a_connection(shared_service: Service, first: str) -> None:
    second = "PUT /v1/kv/{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
    for key in ("fine", "%ff"):
        with connect(shared_service.url) as sock:
            sock.sendall(f"{first}\r\nHost: localhost\r\n\r\n{second.format(key)}".encode())
            received = b"".join(iter(lambda: sock.recv(65536), b""))
        assert received.startswith((b"HTTP/1.1 404 ", b"HTTP/1.0 404 "))
        assert received.count(b"HTTP/1.") == 1


def test_nothing_but_events_follows_the_head_of_a_stream(shared_service: Service) -> None:
    with connect(shared_service.url) as sock:
        first = b"GET /v1/subscribe?prefix=stream/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
        second = (
            b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
        )
        sock.sendall(first + second)
        received = sock.recv(65536)
        session = Session(shared_service.url)
        while b"event: put" not in received:
            session.request("PUT", "/v1/kv/stream/a", b"v")
            received += sock.recv(65536)
        session.close()
    assert received.count(b"HTTP/1.1 ") == 1
