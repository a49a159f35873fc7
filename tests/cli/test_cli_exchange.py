"""Reading one answer after another from a connection (RFC 9112), over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from kvstore_cli.http_client.exchange import ExchangeError, HttpConnection, NotHttpError
from kvstore_core.errors import KvError

SECONDS = 20.0
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def ends() -> Iterator[tuple[HttpConnection, socket.socket]]:
    """A connection, and the other end of it."""
    mine, other = socket.socketpair()
    with other:
        connection = HttpConnection(mine, "::1", 5000)
        yield connection, other
        connection.close()


def get(connection: HttpConnection, method: str = "GET") -> tuple[int, str, bytes]:
    status, headers, body = connection.exchange(method, "/v1/kv/a", None, {"Accept": "*/*"}, SECONDS)
    return status, headers.get("X-Here"), body


KEPT = {
    "a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Here: a\r\n\r\nhi", (200, "a", b"hi")),
    "chunks": (
        CHUNKED + b"1;x=y\r\nh\r\nA\r\n0123456789\r\n0\r\nX-Here: t\r\n\r\n",
        (200, "", b"h0123456789"),
    ),
    "bare newlines": (b"HTTP/1.1 200 OK\nx-here:  a  \ncontent-length: 0\n\n", (200, "a", b"")),
    "a header twice": (
        b"HTTP/1.1 404 No\r\nX-Here: a\r\nX-HERE: b\r\nContent-Length: 0\r\n\r\n",
        (404, "a", b""),
    ),
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX-Here: no\r\n\r\nHTTP/1.1 204 OK\r\n\r\n",
        (204, "", b""),
    ),
    "a status without words": (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nv", (200, "", b"v")),
    "a length beside chunks": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        (200, "", b"hi"),
    ),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", (304, "", b"")),
}


@pytest.mark.parametrize("name", KEPT)
def test_an_answer_is_read_and_the_next_one_after_it(
    name: str, ends: tuple[HttpConnection, socket.socket]
) -> None:
    (connection, other), (answer, expected) = ends, KEPT[name]
    other.sendall(answer * 2)
    assert [get(connection), get(connection)] == [expected, expected]
    assert connection.is_open


CLOSED = {
    "what ends with the connection": b"HTTP/1.1 200 OK\r\n\r\nhi",
    "what says that it ends": b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nhi",
    "an older version": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_connection_is_closed_after(name: str, ends: tuple[HttpConnection, socket.socket]) -> None:
    connection, other = ends
    other.sendall(CLOSED[name])
    other.shutdown(socket.SHUT_WR)
    assert get(connection) == (200, "", b"hi")
    assert not connection.is_open


BROKEN = {
    "nothing": (b"", ConnectionResetError, "without an answer"),
    "something else": (b"SSH-2.0-OpenSSH\r\n", NotHttpError, "not HTTP"),
    "no status": (b"HTTP/1.1 OK\r\n\r\n", NotHttpError, "not HTTP"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", ExchangeError, "cut off"),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", ExchangeError, "cut off"),
    "half a chunk": (
        CHUNKED + b"9\r\nhal",
        ExchangeError,
        "cut off",
    ),
    "no last chunk": (
        CHUNKED + b"1\r\nh\r\n",
        ExchangeError,
        "cut off",
    ),
    "a chunk without a length": (
        CHUNKED + b"x\r\n",
        ExchangeError,
        "how long",
    ),
    "a negative chunk": (
        CHUNKED + b"-2\r\nhi\r\n0\r\n\r\n",
        ExchangeError,
        "how long",
    ),
    "a chunk that is longer than it says": (
        CHUNKED + b"2\r\nokXX\r\n0\r\n\r\n",
        ExchangeError,
        "longer",
    ),
    "a length of very many digits": (
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        ExchangeError,
        "how long",
    ),
    "a length that nobody has room for": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 17592186044416\r\n\r\nhi",
        ExchangeError,
        "cut off",
    ),
    "a header over two lines": (
        b"HTTP/1.1 200 OK\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n",
        ExchangeError,
        "several lines",
    ),
    "a status of four digits": (b"HTTP/1.1 2000 OK\r\n\r\n", NotHttpError, "not HTTP"),
    "a status line without end": (b"HTTP/1.1 200 " + b"a" * 70_000, NotHttpError, "not HTTP"),
    "a line without end": (
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        ExchangeError,
        "too long",
    ),
    "headers without end": (
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n",
        ExchangeError,
        "more than 100",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_whole_answer_is_an_error_and_closes(
    name: str, ends: tuple[HttpConnection, socket.socket]
) -> None:
    (connection, other), (answer, kind, said) = ends, BROKEN[name]
    other.sendall(answer)
    other.shutdown(socket.SHUT_WR)
    with pytest.raises(kind, match=said):
        get(connection)
    assert not connection.is_open


def test_silence_is_a_time_out_and_closes(ends: tuple[HttpConnection, socket.socket]) -> None:
    connection, _ = ends
    with pytest.raises(TimeoutError):
        connection.exchange("GET", "/", None, {}, 0.01)
    assert not connection.is_open


@pytest.mark.parametrize(
    ("method", "body", "lengths"),
    [
        ("GET", None, []),
        ("DELETE", None, []),
        ("PUT", b"", [b"Content-Length: 0"]),
        ("POST", None, [b"Content-Length: 0"]),
        ("PATCH", b"body", [b"Content-Length: 4"]),
        ("PUT", b"x" * 100_000, [b"Content-Length: 100000"]),
    ],
)
def test_a_request_is_written_whole(
    method: str, body: bytes | None, lengths: list[bytes], ends: tuple[HttpConnection, socket.socket]
) -> None:
    connection, other = ends
    other.sendall(b"HTTP/1.1 204 OK\r\n\r\n")
    connection.exchange(method, "/v1/kv/a?x=y", body, {"X-One": "1"}, SECONDS)
    connection.close()
    with other.makefile("rb") as sent:
        head, _, rest = sent.read().partition(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    assert first == f"{method} /v1/kv/a?x=y HTTP/1.1".encode()
    assert sorted(headers) == sorted(
        [b"Host: [::1]:5000", b"Accept-Encoding: identity", b"X-One: 1", *lengths]
    )
    assert rest == (body or b"")


@pytest.mark.parametrize(
    ("target", "headers"),
    [("/a b", {}), ("/a\r\nX: y", {}), ("/ä", {}), ("/", {"X": "a\r\nY: b"}), ("/", {"X": "\0"})],
)
def test_what_would_be_another_request_is_not_sent(
    target: str, headers: dict[str, str], ends: tuple[HttpConnection, socket.socket]
) -> None:
    connection, other = ends
    with pytest.raises(KvError, match="characters that"):
        connection.exchange("GET", target, None, headers, SECONDS)
    assert other.recv(100) == b""


def test_a_name_in_other_letters_goes_out_as_dns_has_it() -> None:
    mine, other = socket.socketpair()
    with other:
        connection = HttpConnection(mine, "münchen.example", None)
        other.sendall(b"HTTP/1.1 204 OK\r\n\r\n")
        get(connection)
        assert b"\r\nHost: xn--mnchen-3ya.example\r\n" in other.recv(1000)
        connection.close()
