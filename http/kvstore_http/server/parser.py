"""A stricter form of waitress's request parser, whose refusals are errors of the error table.

A request that is refused before the application sees it is answered with an RFC 9457 problem document, like
any other.

Most requests are plain: a short head that arrives whole, with nothing in it that could be read in two ways.
They are parsed here; all others are left to waitress and the checks behind it, so each rule on what to refuse
is in one place.

waitress 3.0.2 is the newest release. Its main branch has since come to refuse two lines of Host,
Content-Length or Content-Type and a repeated ``chunked``; all of it is refused here.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from io import BytesIO
from typing import Any

from waitress.parser import HTTPRequestParser, ParsingError, unquote_bytes_to_wsgi
from waitress.utilities import BadRequest, Error

from kvstore_core.errors import KvError
from kvstore_http.access.callers import MAX_STRANGERS_BODY
from kvstore_http.protocol.origins import parse_authority
from kvstore_http.server.chunked_body import FIELD, ChunkedBody

# A transfer coding that is not known is a 501 in waitress; the table has no such row, and RFC 9112
# section 6.1 only asks for it with SHOULD.
_CODES = {400: "bad_request", 413: "request_too_large", 431: "headers_too_large", 501: "bad_request"}

_NOT_ASCII = re.compile(rb"[\x80-\xff]")

_PLAIN_LINE = re.compile(
    rb"(DELETE|GET|HEAD|PATCH|POST|PUT) "
    rb"((/(?!/)[\x21\x22\x24-\x3e\x40-\x7e]*)(?:\?([\x21\x22\x24-\x7e]*))?) HTTP/1\.1\r\n"
)
"""A request line whose target is a path and perhaps a query: visible ASCII without ``#``, and no ``//`` in
front, which could be read as the name of a host."""

PLAIN_HEAD_BYTES = 2048
"""A longer head is not plain, nor one of more lines. This also bounds the memory of the headers that are
kept."""
_PLAIN_LINES = 32
_KEPT_BLOCKS = 1024
"""How many heads' headers are kept: most clients send the same ones in each request."""

_NOT_PLAIN = frozenset((b"TRANSFER_ENCODING", b"EXPECT", b"UPGRADE"))

_LEAD = re.compile(rb"(?:\r\n)*\r?\Z|(?:\r\n)*\S")
"""Before a request there may be empty lines (RFC 9112 section 2.2), and nothing else."""
_LEAD_BYTES = 8

_LINE = re.compile(rb"[^\s]+ [\x21\x22\x24-\x7e\x80-\xff]+ HTTP/(?P<version>[0-9]\.[0-9])")
"""A request line. Bytes beyond ASCII are not allowed in an address, but curl sends what was typed."""

_ABSOLUTE = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?]*)(?:[/?].*)?", re.IGNORECASE)

_MAX_LENGTH_DIGITS = 19

ONCE = frozenset(
    name.upper().replace("-", "_").encode()
    for name in (
        *("Host", "Content-Length", "Transfer-Encoding", "Content-Type", "Content-Encoding", "Content-Range"),
        *("Authorization", "Proxy-Authorization", "Expect", "Origin", "Sec-Fetch-Site"),
        *("Access-Control-Request-Method", "Idempotency-Key"),
        *("If-Modified-Since", "If-Unmodified-Since", "If-Range", "Range"),
    )
)
"""Headers of which a request may have one line: those that hold one value and decide what is done, so that
servers which take the first, the last or both would do different things. Lists may come in several lines (RFC
9110 section 5.3), as If-Match and Accept do; headers that decide nothing may be repeated."""


class RefusalError(Error):  # type: ignore[misc]  # waitress has no types
    """A KvError, where waitress keeps the fault of a request."""

    def __init__(self, error: KvError) -> None:
        super().__init__(error.message)
        self.error = error


def refusal_of(problem: Error) -> KvError:
    """The error of our table for a fault that waitress found."""
    if isinstance(problem, RefusalError):
        return problem.error
    return KvError(_CODES.get(problem.code, "internal"), str(problem.body))


def _plain_field(line: bytes) -> tuple[str, str] | None:
    """Name and value as waitress keeps them; None for a line that is not plain: folded, malformed, with a
    name that waitress drops, or one that changes how the request is read."""
    found = FIELD.fullmatch(line)
    if found is None:
        return None
    name, value = found.group("name", "value")
    kept_name, value = name.upper().replace(b"-", b"_"), value.strip(b" \t")
    if b"_" in name or kept_name in _NOT_PLAIN:
        return None
    if kept_name == b"CONTENT_LENGTH" and not (value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS):
        return None
    if kept_name == b"HOST" and parse_authority(value.decode("latin-1")) is None:
        return None
    return kept_name.decode("latin-1"), value.decode("latin-1")


@lru_cache(_KEPT_BLOCKS)
def plain_headers(block: bytes) -> dict[str, str] | None:
    """The headers in the lines of a head, as waitress keeps them; None if they are not plain: one is there
    twice, or there is no Host. Not to be changed."""
    fields: dict[str, str] = {}
    lines = block.split(b"\r\n")
    if len(lines) > _PLAIN_LINES:
        return None
    for line in lines:
        field = _plain_field(line)
        if field is None or field[0] in fields:
            return None
        fields[field[0]] = field[1]
    return fields if "HOST" in fields else None


class _Body:
    """A receiver, in waitress's words, for a body of a known length that fits into memory.

    A body that arrives in pieces is copied once, one that arrives with its head not at all; waitress's
    buffers copy it three times.
    """

    error = None

    def __init__(self, length: int, start: bytes) -> None:
        self._missing = length - len(start)
        self._file = BytesIO(start)
        self._file.seek(0, 2)

    @property
    def completed(self) -> bool:
        return not self._missing

    def __len__(self) -> int:
        return self._file.tell()

    def received(self, data: bytes) -> int:
        """Take the bytes that belong to the body; returns how many."""
        taken = self._file.write(data[: self._missing])
        self._missing -= taken
        return taken

    def getfile(self) -> BytesIO:
        return BytesIO(self._file.getvalue())

    def getbuf(self) -> BytesIO:
        return self._file


class Parser(HTTPRequestParser):  # type: ignore[misc]
    """waitress's parser, stricter wherever two servers could read one message differently.

    ``started`` is when the first byte arrived, in seconds of the clock that the server sweeps by;
    ``target`` is what :func:`raw_target` gives.
    """

    error: Any = None
    command = ""
    completed: bool
    body_rcv: Any = None
    is_from_stranger = False
    """Whether the body is large, and is to be read only if the application, asked without it, wants it."""
    target: tuple[str, str]
    # also needed of a request that is refused before its first line is parsed
    path = proxy_scheme = proxy_netloc = fragment = ""

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self.started = time.monotonic()

    def received(self, data: bytes) -> int:
        """As in waitress, but a request that is refused, or has no body, never asks for one
        (``100 Continue``)."""
        if not (self.completed or self.header_plus or self.body_rcv is not None):
            taken = self._take_plain(data)
            if taken:
                return taken
        if self.body_rcv is None and not self._begins_well(data):
            self.error, self.completed = BadRequest("a request begins with its method"), True
            return len(data)
        is_head = self.body_rcv is None
        consumed: int = super().received(data)
        if is_head and self.body_rcv is not None and not self.completed:
            self._note_stranger(self.headers, MAX_STRANGERS_BODY + 1 if self.chunked else self.content_length)
        if self.completed:
            self.expect_continue = False
        if self.error is not None:
            self._name_the_limit(data)
            if isinstance(self.error.body, KvError):
                self.error = RefusalError(self.error.body)
        return consumed

    def _note_stranger(self, headers: dict[str, str], length: int) -> None:
        if length > MAX_STRANGERS_BODY:
            self.is_from_stranger = self.adj.is_stranger(headers)

    def _begins_well(self, data: bytes) -> bool:
        so_far = len(self.header_plus)
        return so_far >= _LEAD_BYTES or _LEAD.match(self.header_plus + data[:_LEAD_BYTES]) is not None

    def _take_plain(self, data: bytes) -> int:
        """Take a plain request at the front of ``data``, its body as far as it is there; returns how many
        bytes that was, 0 if the request is not plain. Sets the same attributes as waitress's parser, in a
        fraction of the time.
        """
        end = data.find(b"\r\n\r\n", 0, PLAIN_HEAD_BYTES)
        line = _PLAIN_LINE.match(data)
        if line is None or end < line.end() or end + 4 >= self.adj.max_request_header_size:
            return 0
        headers = plain_headers(data[line.end() : end])
        if headers is None:
            return 0
        length = int(headers.get("CONTENT_LENGTH", "0"))
        self._note_stranger(headers, length)
        if length and length >= min(self.adj.max_request_body_size, self.adj.inbuf_overflow):
            return 0
        self.header_bytes_received = end + 4
        self._take_head(line, headers)
        if not length:
            self.completed = True
            return end + 4
        return end + 4 + self._take_body(length, data[end + 4 : end + 4 + length])

    def _take_head(self, line: re.Match[bytes], headers: dict[str, str]) -> None:
        command, target, path, query = line.groups(b"")
        raw_path, self.query = path.decode("ascii"), query.decode("ascii")
        self.command, self.version = command.decode("ascii"), "1.1"
        self.first_line = line[0][:-2]
        self.request_uri = target.decode("ascii")
        self.target = raw_path, self.query
        self.path = unquote_bytes_to_wsgi(path) if b"%" in path else raw_path
        self.url_scheme = self.adj.url_scheme
        self.headers = headers
        self.headers_finished = True
        self.connection_close = headers.get("CONNECTION", "").lower() == "close"

    def _take_body(self, length: int, start: bytes) -> int:
        self.content_length = length
        self.body_rcv = _Body(length, start)
        self.body_bytes_received = len(start)
        self.completed = self.body_rcv.completed
        return len(start)

    def _name_the_limit(self, data: bytes) -> None:
        if self.error.code == 431:
            limit = self.adj.max_request_header_size
            if 0 <= (self.header_plus + data).find(b"\r\n") < limit:
                error = KvError("headers_too_large", f"the headers exceed {limit} bytes", limit=limit)
            else:
                error = KvError("uri_too_long", f"the request line exceeds {limit} bytes", limit=limit)
            self.error = RefusalError(error)
        elif self.error.code == 413:
            limit = self.adj.max_request_body_size - 1
            error = KvError(
                "request_too_large", f"the body exceeds {limit} bytes (--max-body-bytes)", limit=limit
            )
            self.error = RefusalError(error)

    def parse_header(self, header_plus: bytes) -> None:
        """As in waitress, then the checks that it leaves out: in this order, so that a refusal has the
        request's headers."""
        line, crlf, block = header_plus.partition(b"\r\n")
        try:
            # curl sends a target as it was typed, which waitress would refuse; percent-encoded it is the same
            in_ascii = line
            if not line.isascii():
                in_ascii = _NOT_ASCII.sub(lambda byte: b"%%%02X" % byte[0][0], line)
            super().parse_header(in_ascii + crlf + _trimmed(block))
        except ValueError as error:  # urlsplit on a target such as http://[, or a number of 5,000 digits
            raise ParsingError("the request is malformed") from error
        self._check_line(line)
        fields = self._checked_fields(block)
        self._check_framing(fields)
        self._check_host(fields)
        self._check_expectation()
        self.target = raw_target(self.request_uri)

    def _check_line(self, line: bytes) -> None:
        if b"#" in line.partition(b" ")[2]:
            # RFC 9112 section 3.2: no form of a target has a fragment
            raise ParsingError("a # in an address must be written as %23")
        found = _LINE.fullmatch(line)
        if found is None:
            raise ParsingError("a request begins with its method, an address and HTTP/1.1, one space apart")
        if found["version"] not in (b"1.0", b"1.1"):
            version = found["version"].decode()
            raise ParsingError(
                KvError("http_version_not_supported", f"HTTP/{version} is not supported; HTTP/1.1 is")
            )

    def _checked_fields(self, block: bytes) -> dict[bytes, bytes]:
        """The lines of ``block`` by their names as waitress keeps them, the last of each."""
        fields: dict[bytes, bytes] = {}
        for line in filter(None, block.split(b"\r\n")):
            if line[:1] in b" \t":
                raise ParsingError("a header may not be folded into several lines")  # section 5.2
            sent, _, value = line.partition(b":")
            name = sent.upper().replace(b"-", b"_")
            if name in ONCE:
                if b"_" in sent:
                    # dropped here, as all names with a _ are; behind CGI it would count
                    raise ParsingError(f"{sent.decode('latin-1')} is written with -")
                if name in fields:
                    raise ParsingError(f"{sent.decode('latin-1')} may be given only once")
            fields[name] = value.strip(b" \t")
        return fields

    def _check_framing(self, fields: dict[bytes, bytes]) -> None:
        if len(self.headers.get("CONTENT_LENGTH", "")) > _MAX_LENGTH_DIGITS:
            raise ParsingError("Content-Length has too many digits")
        if b"TRANSFER_ENCODING" not in fields:
            return
        if self.version == "1.0":
            raise ParsingError("Transfer-Encoding is not part of HTTP/1.0")  # RFC 9112 section 6.1
        if b"CONTENT_LENGTH" in fields:
            # Section 6.3 allows to close instead; a message with two lengths is an attempt to smuggle.
            raise ParsingError("a request has either Transfer-Encoding or Content-Length, not both")
        if fields[b"TRANSFER_ENCODING"].lower() != b"chunked":
            raise ParsingError("the only Transfer-Encoding is chunked, once")
        self.body_rcv = ChunkedBody(self.adj.inbuf_overflow)

    def _check_host(self, fields: dict[bytes, bytes]) -> None:
        """One host, in the header and in the address: RFC 9112 section 3.2."""
        host = None
        if b"HOST" in fields:
            host = parse_authority(self.headers["HOST"])
            if host is None:
                raise ParsingError("Host must be a name or an address, and a port if need be")
        elif self.version == "1.1":
            raise ParsingError("an HTTP/1.1 request needs a Host header")
        target = self.request_uri
        if target.startswith("/") or (target == "*" and self.command == "OPTIONS"):
            return
        found = _ABSOLUTE.fullmatch(target)
        if found is None:
            raise ParsingError("the request target must begin with '/'")
        named = parse_authority(found["authority"])
        if named is None:
            raise ParsingError("an absolute address must name a host, and a port if need be")
        scheme = found["scheme"]
        if host and (host.host, host.port_for(scheme)) != (named.host, named.port_for(scheme)):
            raise ParsingError("Host differs from the host in the address")
        self.headers["HOST"] = found["authority"]  # section 3.2.2: the address wins

    def _check_expectation(self) -> None:
        """RFC 9110 section 10.1.1. HTTP/1.0 has no expectations."""
        expected = self.headers.get("EXPECT", "").lower()
        if self.version == "1.1" and expected not in ("", "100-continue"):
            raise ParsingError(
                KvError("expectation_failed", "the only supported expectation is 100-continue")
            )


def _trimmed(block: bytes) -> bytes:
    """The lines of ``block`` without the blanks around their values, which mean nothing."""
    return b"\r\n".join(map(_trimmed_line, block.split(b"\r\n")))


def _trimmed_line(line: bytes) -> bytes:
    if line[:1] in b" \t":
        # empty, or a folded line, which must stay one to be refused
        return line[:1] + line.strip(b" \t")
    name, colon, value = line.partition(b":")
    return name + colon + value.strip(b" \t")


def raw_target(request_uri: str) -> tuple[str, str]:
    """Path and query of a request target exactly as they were sent, one character for each byte.

    Nothing is decoded, collapsed or dropped: ``//``, ``.``, ``..``, ``%2F`` and invalid
    escapes reach the application, which alone knows what a key may hold.
    """
    if not request_uri.startswith("/") and "://" in request_uri:  # absolute form, as to a proxy
        _, _, rest = request_uri.partition("://")
        slash, question = rest.find("/"), rest.find("?")
        if slash < 0 or 0 <= question < slash:
            return "/", rest[question + 1 :] if question >= 0 else ""
        request_uri = rest[slash:]
    path, _, query = request_uri.partition("?")
    return path, query
