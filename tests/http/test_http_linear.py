"""Whatever a stranger writes into a header, a target or a body's framing is read in time that grows with its
length: else one short request would occupy a worker for hours. What tells is the time limit of the
tests."""

from __future__ import annotations

import itertools
import socket
from http.client import HTTPResponse
from urllib.parse import quote, urlsplit

import pytest

from support.servers import Service
from support.session import Session, assert_problem

TIMES = 500
LONG = 60_000
"""A header may have 64 KiB."""

SEPARATORS = (
    *(" ", "\t", ",", ",  ", "; ", "=", ":", ".", "-", "+", "%41", "\\", '"', '\\"', '"1"', '"1" , ', "0"),
    *('W/"1",', ';a="', "a/b,", "1.", "a ", "Mon, ", "00:"),
)
MISFITS = ("x", "\x01", "é", ";", '"')

HEADERS = {
    "If-Match": ("PUT", "/v1/kv/x", ('"1"', "W/", "")),
    "If-None-Match": ("GET", "/v1/kv/x", ('"1"', "W/", "")),
    "If-Modified-Since": ("GET", "/v1/kv/x", ("Mon, 01 Jan 2024 00:00:00 GMT", "Mon, ", "")),
    "If-Range": ("GET", "/v1/kv/x", ('"1"',)),
    "Range": ("GET", "/v1/kv/x", ("bytes=0-1", "bytes=", "")),
    "Accept": ("HEAD", "/v1/subscribe", ("text/event-stream", 'a/b;c="', "")),
    "Accept ": ("GET", "/v1/kv?keys=1", ("application/json", 'a/b;c="', "")),
    "Accept  ": ("GET", "/metrics", ("text/plain", 'a/b;c="', "")),
    "Last-Event-ID": ("HEAD", "/v1/subscribe", ("1", "")),
    "Content-Type": ("PUT", "/v1/kv/x", ("text/plain;", 'a/b;c="', "")),
    "Content-Type ": ("POST", "/v1/batch", ("application/json;", 'a/b;c="', "")),
    "Content-Encoding": ("PUT", "/v1/kv/x", ("gzip",)),
    "Content-Range": ("PUT", "/v1/kv/x", ("bytes ",)),
    "Idempotency-Key": ("PUT", "/v1/kv/x", ("a", "")),
    "X-Request-Id": ("GET", "/v1/kv/x", ("a", "")),
    "Origin": ("POST", "/v1/batch", ("http://", "")),
    "Access-Control-Request-Headers": ("OPTIONS", "/v1/kv/x", ("a",)),
    "Host": ("GET", "/v1/kv/x", ("a", "[", "")),
    "Expect": ("PUT", "/v1/kv/x", ("100-continue", "")),
    "Transfer-Encoding": ("PUT", "/v1/kv/x", ("chunked", "")),
    "Content-Length": ("PUT", "/v1/kv/x", ("1", "")),
    "Connection": ("GET", "/v1/kv/x", ("close", "")),
    "Forwarded": ("GET", "/v1/kv/x", ('for="', "for=")),
    "X-Forwarded-For": ("GET", "/v1/kv/x", ("1.1.1.1",)),
    "Authorization": ("GET", "/v1/kv/x", ("Basic ", "Bearer ")),
    "Cookie": ("GET", "/v1/kv/x", ("a=b", 'a="')),
    "Cache-Control": ("GET", "/v1/kv/x", ("no-cache",)),
    "User-Agent": ("GET", "/v1/kv/x", ("curl/8",)),
}
PARAMETERS = {
    "expires_at": ("PUT", "/v1/kv/x", ("2026-01-31T12:00:00", "2026-01-31T12:00:00.", "")),
    "ttl": ("PUT", "/v1/kv/x", ("1", "1.", "")),
    "wait": ("GET", "/v1/kv/x", ("1", "")),
    "since": ("HEAD", "/v1/subscribe", ("1", "1-", "")),
    "last-event-id": ("HEAD", "/v1/subscribe", ("1", "")),
    "revision": ("GET", "/v1/kv/x", ("1", "")),
    "cursor": ("GET", "/v1/kv", ("1", "")),
    "limit": ("GET", "/v1/kv", ("1", "")),
    "by": ("POST", "/v1/incr/x", ("1", "-", "")),
    "prefix": ("GET", "/v1/kv", ("a", "")),
    "ops": ("HEAD", "/v1/subscribe", ("put,", "")),
    "exclude": ("GET", "/readyz", ("disk,", "")),
}


def texts(fronts: tuple[str, ...]) -> list[str]:
    """Each front with each separator behind it very often, and then what does not fit."""
    ends = itertools.cycle(MISFITS)
    return [
        front + separator * TIMES + next(ends) for front, separator in itertools.product(fronts, SEPARATORS)
    ]


@pytest.mark.parametrize("name", HEADERS)
def test_no_header_takes_long_to_be_read(shared_service: Service, name: str) -> None:
    method, target, fronts = HEADERS[name]
    for text in ("  " + each for each in texts(fronts)):
        header = f"{name.strip()}:{text}".encode()
        assert_answered(shared_service, f"{method} {target} HTTP/1.1".encode(), header)


def test_blanks_in_front_of_a_value_take_no_time(shared_service: Service) -> None:
    for blank, misfit in itertools.product((b" ", b"\t", b" \t"), (b"", b"a", b"\x01")):
        for name in (b"X:", b"X: a", b"X:a\r\n", b" ", b"X"):
            line = name + blank * (LONG // len(blank)) + misfit
            assert_answered(shared_service, b"GET /v1/kv/x HTTP/1.1", line)


def test_an_accept_that_is_too_long_to_be_looked_at_is_refused(session: Session) -> None:
    for target in ("/v1/kv", "/v1/subscribe", "/v1/status", "/", "/readyz"):
        answer = session.get(target, accept='a/b;c="' + ";" * LONG + ", text/html, application/json")
        problem = assert_problem(answer, "headers_too_large")
        assert (problem["header"], problem["limit"]) == ("Accept", 2048)


@pytest.mark.parametrize("name", PARAMETERS)
def test_no_parameter_takes_long_to_be_read(session: Session, name: str) -> None:
    method, target, fronts = PARAMETERS[name]
    for text in texts(fronts):
        answer = session.request(method, f"{target}?{name}={quote(text)}", b"")
        assert answer.status < 500


def assert_answered(service: Service, line: bytes, header: bytes) -> None:
    """Check that a request with ``header`` gets an answer that blames no one but its client."""
    url = urlsplit(service.url)
    with socket.create_connection((url.hostname, url.port)) as connection:
        named = header.partition(b":")[0]
        head = [line, header]
        if named != b"Host":
            head.insert(1, b"Host: localhost")
        if named not in (b"Content-Length", b"Transfer-Encoding"):
            head.insert(1, b"Content-Length: 0")
        connection.sendall(b"\r\n".join((*head, b"Connection: close", b"", b"")))
        response = HTTPResponse(connection, method=line.partition(b" ")[0].decode())
        response.begin()
        assert response.status < 500, header[:80]
