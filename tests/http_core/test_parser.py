"""The quick way through plain requests agrees with waitress's parser wherever it says yes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kvstore_http.server.parser import Parser
from kvstore_http.server.server import make_adjustments
from support.lengths import examples

ADJUSTMENTS = make_adjustments(max_body_bytes=1000, max_header_bytes=1500, max_connections=1)

OUTCOME = (
    "body_bytes_received", "chunked", "command", "completed", "connection_close", "content_length", "empty",
    "error", "expect_continue", "first_line", "fragment", "header_bytes_received", "headers",
    "headers_finished", "path", "proxy_netloc", "proxy_scheme", "query", "request_uri", "target",
    "url_scheme", "version",
)  # fmt: skip
"""All that waitress and the server read of a parsed request, without its body."""


class Careful(Parser):
    """The parser without its quick way."""

    def _take_plain(self, data: bytes) -> int:  # noqa: ARG002
        return 0


def parsed(kind: type[Parser], message: bytes) -> dict[str, Any]:
    """What ``kind`` makes of ``message``, fed as the server feeds it."""
    parser = kind(ADJUSTMENTS)
    rest = message
    while rest and not parser.completed:
        rest = rest[parser.received(rest) :]
    outcome = {name: getattr(parser, name, None) for name in OUTCOME}
    if parser.error is not None:
        outcome["error"] = type(parser.error), parser.error.body
    return {**outcome, "body": parser.get_body_stream().read(), "rest": rest}


def takes(message: bytes) -> bool:
    """Whether the quick way takes the message."""
    return Parser(ADJUSTMENTS)._take_plain(message) > 0


PLAIN = (
    b"GET /v1/kv/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/kv/a%2Fb%20c//d?ttl=5&x=%41?/ HTTP/1.1\r\nhost: x\r\nAccept:*/*\r\nX-Empty:\r\n\r\n",
    b"DELETE /?# HTTP/1.1\r\nHost: x\r\n\r\n".replace(b"#", b"q"),
    b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd",
    b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcdGET / HTTP/1.1\r\n",
    b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabcd",
    b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nX: \t \xe4 \x80 \t\r\n\r\n",
)

NOT_PLAIN = (
    b"GET /a HTTP/1.0\r\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.1\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\n",
    b"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET //a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a\x7f HTTP/1.1\r\nHost: x\r\n\r\n",
    b"get /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET  /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.1 \r\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.1\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\n\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\ry\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nContent_Length: 4\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\ncontent-length: 4\r\n\r\nabcd",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\nabcd",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n\r\nabcd",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: \xb2\r\n\r\nabcd",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\nabcd",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d:\r\n" % number for number in range(40)) + b"\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 1500 + b"\r\n\r\n",
)


@pytest.mark.parametrize("message", PLAIN)
def test_a_plain_request_is_taken_as_waitress_takes_it(message: bytes) -> None:
    assert takes(message)
    assert parsed(Parser, message) == parsed(Careful, message)


@pytest.mark.parametrize("message", NOT_PLAIN)
def test_whatever_is_in_doubt_is_left_to_waitress(message: bytes) -> None:
    assert not takes(message)
    assert parsed(Parser, message) == parsed(Careful, message)


def test_a_request_in_pieces_is_the_same_request_wherever_it_is_cut() -> None:
    message = b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabcdefghi"
    whole = parsed(Careful, message)
    for cut in range(1, len(message)):
        parser = Parser(ADJUSTMENTS)
        for piece in (message[:cut], message[cut:]):
            while piece:
                piece = piece[parser.received(piece) :]
        assert parser.completed
        assert parser.headers == whole["headers"]
        assert parser.get_body_stream().read() == b"abcdefghi"


PIECES = (
    *(b" ", b"\t", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\x00", b"\x0b", b"\x1f", b"\x7f", b"\x80", b"\x85"),
    *(b"\xa0", b"\xff", b"/", b"//", b"?", b"#", b"%", b"%2f", b"%zz", b":", b"://", b"[", b"]", b"@", b"_"),
    *(b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"GET", b"get", b"Host: y\r\n", b"Content-Length: 3\r\n", b","),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"4", b"-"),
    *(b"Content-Length : 3\r\n", b"Content_Length: 3\r\n", b"X:y\r\n", b" folded\r\n", b"9" * 30, b"", b""),
)


def mutated(message: bytes, luck: random.Random) -> bytes:
    """The message with a few of its bytes replaced, dropped, or moved apart by something nasty."""
    for _ in range(luck.randint(0, 3)):
        at = luck.randint(0, len(message))
        piece = luck.choice(PIECES) if luck.random() < 0.8 else bytes([luck.randrange(256)])
        message = message[:at] + piece + message[at + luck.choice((0, 0, 1, 2, 8)) :]
    return message


def test_the_two_ways_agree_on_random_messages() -> None:
    seed = random.randrange(2**32)
    luck = random.Random(seed)
    taken = 0
    number = examples(5_000)
    for _ in range(number):
        message = mutated(luck.choice(PLAIN + NOT_PLAIN[:-1]), luck)
        taken += takes(message)
        assert parsed(Parser, message) == parsed(Careful, message), (seed, message)
    assert taken > number / 20  # or nothing was compared
