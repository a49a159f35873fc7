"""Messages that two servers could read in two ways, over a real socket: each is refused, and what is not
in doubt is taken."""

# ruff: noqa: E501 - the rows of a table are read side by side

from __future__ import annotations

import json
import socket
from http.client import HTTPResponse

import pytest

from support.servers import Service
from support.session import connect

GET = b"GET /livez HTTP/1.1\r\n"
PUT = b"PUT /v1/kv/strict HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = PUT + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED = {
    "two hosts": GET + b"Host: localhost\r\nHost: localhost\r\n\r\n",
    "two hosts in two spellings": GET + b"Host: localhost\r\nhOST: evil.example\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET /livez HTTP/1.0\r\nHost: localhost\r\nHost: a\r\n\r\n",
    "no host": GET + b"\r\n",
    "an empty host": GET + b"Host:\r\n\r\n",
    "a host and a path": GET + b"Host: localhost/x\r\n\r\n",
    "a host and a user": GET + b"Host: a@localhost\r\n\r\n",
    "two hosts in one": GET + b"Host: localhost, localhost\r\n\r\n",
    "two hosts in one without a space": GET + b"Host: localhost,localhost\r\n\r\n",
    "a host with a space": GET + b"Host: local host\r\n\r\n",
    "a host beyond ASCII": GET + b"Host: l\xc3\xb6cal\r\n\r\n",
    "a port that is none": GET + b"Host: localhost:80a\r\n\r\n",
    "a port too high": GET + b"Host: localhost:65536\r\n\r\n",
    "a host longer than a name can be": GET + b"Host: " + b"a" * 300 + b"\r\n\r\n",
    "port 0, which is no default": b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost:0\r\n\r\n",
    "an address that is none": GET + b"Host: [::zz]\r\n\r\n",
    "an absolute address of another host": b"GET http://evil.example/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an absolute address with a user": b"GET http://u@localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an absolute address on another port": b"GET http://localhost:1/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an absolute address without a host": b"GET http:///livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an absolute address that is cut off": b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an absolute address of a file": b"GET file:///etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target without a slash": b"GET livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an asterisk": b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a tunnel": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n",
    "a fragment": b"GET /livez#x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a fragment in the query": b"GET /livez?#x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a space in the target": b"GET /li vez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a tab in the target": b"GET /li\tvez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a NUL in the target": b"GET /li\x00vez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a DEL in the target": b"GET /li\x7fvez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two spaces": b"GET  /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a tab for a space": b"GET\t/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a space behind the version": b"GET /livez HTTP/1.1 \r\nHost: localhost\r\n\r\n",
    "a space in front": b" GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a form feed in front": b"\x0cGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a line feed in front": b"\nGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /livez\r\nHost: localhost\r\n\r\n",
    "no version, beyond ASCII": b"GET /\xff\r\n\r\n",
    "a version in lower case": b"GET /livez http/1.1\r\nHost: localhost\r\n\r\n",
    "a method in lower case": b"get /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a bare line feed in a header": GET + b"Host: localhost\r\nX: a\nY: b\r\n\r\n",
    "a bare carriage return in a header": GET + b"Host: localhost\r\nX: a\rY: b\r\n\r\n",
    "a NUL in a header": GET + b"Host: localhost\r\nX: a\x00b\r\n\r\n",
    "a folded header": GET + b"Host: localhost\r\nX: a\r\n b\r\n\r\n",
    "a folded first header": GET + b" X: a\r\nHost: localhost\r\n\r\n",
    "a space before a colon": GET + b"Host : localhost\r\n\r\n",
    "a header without a name": GET + b"Host: localhost\r\n: x\r\n\r\n",
    "a header without a colon": GET + b"Host: localhost\r\nX\r\n\r\n",
    "a name with a parenthesis": GET + b"Host: localhost\r\nX(: y\r\n\r\n",
    "a name with a space": GET + b"Host: localhost\r\nBad Name: y\r\n\r\n",
    "a name beyond ASCII": GET + b"Host: localhost\r\nX\xe4: y\r\n\r\n",
    "a length with an underscore": PUT + b"Content_Length: 3\r\n\r\n",
    "two lengths": PUT + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "two lengths in one": PUT + b"Content-Length: 3, 3\r\n\r\nabc",
    "a negative length": PUT + b"Content-Length: -3\r\n\r\nabc",
    "a length with a plus": PUT + b"Content-Length: +3\r\n\r\nabc",
    "a hexadecimal length": PUT + b"Content-Length: 0x3\r\n\r\nabc",
    "a length with a separator": PUT + b"Content-Length: 1_0\r\n\r\n0123456789",
    "a superscript length": PUT + b"Content-Length: \xb3\r\n\r\nabc",
    "an empty length": PUT + b"Content-Length:\r\n\r\nabc",
    "a length of many digits": PUT + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\nabc",
    "a length with many zeros": PUT + b"Content-Length: " + b"0" * 5000 + b"3\r\n\r\nabc",
    "chunked twice": PUT + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in two lines": PUT
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and an empty line": PUT + b"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
    "chunked with an empty member": PUT + b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
    "chunked with a parameter": PUT + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "chunked with a vertical tab": PUT + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "another coding": PUT + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": PUT + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc",
    "an empty coding": PUT + b"Transfer-Encoding:\r\n\r\n",
    "an empty coding beside a length": PUT + b"Transfer-Encoding:\r\nContent-Length: 3\r\n\r\nabc",
    "a coding beside a length": PUT + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": b"PUT /v1/kv/strict HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an empty coding in HTTP/1.0": b"PUT /v1/kv/strict HTTP/1.0\r\nTransfer-Encoding:\r\n\r\n",
    "a chunk with 0x": CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
    "a chunk with a plus": CHUNKED + b"+1\r\na\r\n0\r\n\r\n",
    "a chunk with a separator": CHUNKED + b"0_1\r\na\r\n0\r\n\r\n",
    "a chunk with a space": CHUNKED + b"1 \r\na\r\n0\r\n\r\n",
    "a chunk of many digits": CHUNKED + b"0" * 16 + b"1\r\na\r\n0\r\n\r\n",
    "a chunk without a size": CHUNKED + b"\r\na\r\n0\r\n\r\n",
    "an empty line between chunks": CHUNKED + b"1\r\na\r\n\r\n0\r\n\r\n",
    "a size with a bare line feed": CHUNKED + b"1\na\r\n0\r\n\r\n",
    "a size with a bare line feed before its end": CHUNKED + b"1\n\r\na\r\n0\r\n\r\n",
    "a size with a carriage return too many": CHUNKED + b"1\r\r\na\r\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    "a chunk with a bare line feed": CHUNKED + b"1\r\na\n0\r\n\r\n",
    "an extension without a name": CHUNKED + b"1;\r\na\r\n0\r\n\r\n",
    "an extension that is junk": CHUNKED + b"1;a=b c\r\na\r\n0\r\n\r\n",
    "an extension with a line feed": CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n",
    "a long extension": CHUNKED + b"1;" + b"a" * 5000 + b"\r\na\r\n0\r\n\r\n",
    "a trailer that is junk": CHUNKED + b"0\r\njunk\r\n\r\n",
    "a trailer of a length": CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n",
    "a folded trailer": CHUNKED + b"0\r\nX: a\r\n b\r\n\r\n",
    "long trailers": CHUNKED + b"0\r\n" + b"X: a\r\n" * 5000 + b"\r\n",
    "two types": PUT + b"Content-Type: a/b\r\nContent-Type: c/d\r\nContent-Length: 0\r\n\r\n",
    "two keys": PUT + b"Idempotency-Key: a\r\nIdempotency-Key: a\r\nContent-Length: 0\r\n\r\n",
    "two origins": GET + b"Host: localhost\r\nOrigin: http://a\r\nOrigin: http://localhost\r\n\r\n",
    "two credentials": GET + b"Host: localhost\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
    "two expectations": PUT + b"Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
}

OTHER_REFUSALS = {
    "HTTP/2.0": (b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
    "HTTP/1.2": (b"GET /livez HTTP/1.2\r\nHost: localhost\r\n\r\n", 505),
    "HTTP/0.9 by name": (b"GET /livez HTTP/0.9\r\nHost: localhost\r\n\r\n", 505),
    "HTTP/2 with knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "an unknown expectation": (PUT + b"Expect: wonders\r\nContent-Length: 3\r\n\r\n", 417),
    "another host by address": (b"GET http://evil.example/livez HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    "another host by address only": (b"GET http://evil.example/livez HTTP/1.0\r\n\r\n", 403),
    "another host": (GET + b"Host: evil.example\r\n\r\n", 403),
}

TAKEN = {
    "a plain request": GET + b"Host: localhost\r\n\r\n",
    "an address and a port": GET + b"Host: [::1]:8080\r\n\r\n",
    "a port without digits": GET + b"Host: localhost:\r\n\r\n",
    "an empty line in front": b"\r\n" + GET + b"Host: localhost\r\n\r\n",
    "HTTP/1.0 without a host": b"GET /livez HTTP/1.0\r\n\r\n",
    "an absolute address": b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "its standard port": b"GET HTTP://LOCALHOST:80/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "lists in several lines": GET + b'Host: localhost\r\nAccept: */*\r\nAccept: a/b\r\nIf-None-Match: "1"\r\n'
    b'If-None-Match: "2"\r\nCookie: a\r\nCookie: b\r\n\r\n',
    "a name of odd characters": GET + b"Host: localhost\r\n!#$%&'*+-.^_`|~9: x\r\n\r\n",
    "a value beyond ASCII": GET + b"Host: localhost\r\nX: \xff\t \xe4\r\n\r\n",
    "an empty expectation": GET + b"Host: localhost\r\nExpect:\r\n\r\n",
    "an expectation without a body": PUT + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n",
    "an expectation in HTTP/1.0": b"GET /livez HTTP/1.0\r\nExpect: wonders\r\n\r\n",
    "chunks": PUT
    + b'Transfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0A;x="\\"y"\r\n0123456789\r\n000\r\nX: y\r\n\r\n',
    "a type with a list": PUT + b"Content-Type: a/b; c=d\r\nContent-Length: 3\r\n\r\nabc",
}


def statuses(service: Service, message: bytes) -> list[int]:
    """The statuses of all answers to ``message``, one of 100 left out."""
    with connect(service.url) as sock:
        sock.sendall(message)
        sock.shutdown(socket.SHUT_WR)
        found = []
        with sock.makefile("rb") as answers:
            while answers.peek(1):
                response = HTTPResponse(sock)
                response.fp.close()
                response.fp = answers
                response.begin()
                response.length = int(response.headers.get("Content-Length", 0))
                answers.read(response.length)
                found.append(response.status)
    return found


@pytest.mark.parametrize("message", REFUSED.values(), ids=REFUSED)
def test_a_message_in_doubt_is_refused(shared_service: Service, message: bytes) -> None:
    assert statuses(shared_service, message) == [400]


@pytest.mark.parametrize("message", REFUSED.values(), ids=REFUSED)
def test_a_message_in_doubt_is_refused_in_pieces_too(shared_service: Service, message: bytes) -> None:
    """However it is cut, with a problem document, and with a request behind it, which is not served."""
    for cut in (1, len(message) // 2):
        with connect(shared_service.url) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in (message[:cut], message[cut:] + GET + b"Host: localhost\r\n\r\n"):
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as answers:
                everything = answers.read()
        head, _, body = everything.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), everything[:100]
        assert b"\r\nConnection: close" in head
        assert json.loads(body)["code"] == "bad_request"


@pytest.mark.parametrize(("message", "status"), OTHER_REFUSALS.values(), ids=OTHER_REFUSALS)
def test_a_message_that_is_clear_is_refused_by_its_own_name(
    shared_service: Service, message: bytes, status: int
) -> None:
    assert statuses(shared_service, message) == [status]


@pytest.mark.parametrize("message", TAKEN.values(), ids=TAKEN)
def test_a_message_that_is_not_in_doubt_is_taken(shared_service: Service, message: bytes) -> None:
    (status,) = statuses(shared_service, message)
    assert status in (200, 201)
