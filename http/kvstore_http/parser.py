"""What waitress's request parser lets through that this service does not, and how its refusals are shown.

Every refusal that happens before the application sees the request is a row of the error table and
leaves as an RFC 9457 problem document, like all others.
"""

from __future__ import annotations

import re
import time
from typing import Any

from waitress.parser import HTTPRequestParser, ParsingError
from waitress.utilities import Error

from kvstore_client.errors import KvError

# A transfer coding that is not known is a 501 in waitress; the table has no such row, and RFC 9112
# section 6.1 only asks for it with SHOULD.
_CODES = {400: "bad_request", 413: "request_too_large", 431: "headers_too_large", 501: "bad_request"}

_NOT_ASCII = re.compile(rb"[\x80-\xff]")


class RefusalError(Error):  # type: ignore[misc]  # waitress has no types
    """A KvError in the place where waitress keeps what is wrong with a request."""

    def __init__(self, error: KvError) -> None:
        super().__init__(error.message)
        self.error = error


def refusal_of(problem: Error) -> KvError:
    """The row of the error table that stands for what waitress found wrong."""
    if isinstance(problem, RefusalError):
        return problem.error
    return KvError(_CODES.get(problem.code, "internal"), str(problem.body))


class Parser(HTTPRequestParser):  # type: ignore[misc]
    """waitress's parser, stricter where leniency would let two servers read one message differently.

    ``started`` is when the first byte arrived, in seconds of the clock that the server sweeps by.
    """

    error: Any = None

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self.started = time.time()

    def received(self, data: bytes) -> int:
        """As in waitress, but a refused request never asks for its body (``100 Continue``)."""
        consumed: int = super().received(data)
        if self.error is not None:
            self.expect_continue = False
            self._name_the_limit(data)
        return consumed

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
        """As in waitress, then the checks of RFC 9112 that it leaves out."""
        try:
            super().parse_header(header_plus if header_plus.isascii() else _with_ascii_target(header_plus))
        except ValueError as error:  # urlsplit on a target such as http://[
            raise ParsingError("the request target is malformed") from error
        target = self.request_uri
        if not (target.startswith(("/", "http://", "https://")) or target == "*"):
            raise ParsingError("the request target must begin with '/'")
        if self.version == "1.1":
            self._check_http11()
        elif "TRANSFER_ENCODING" in self.headers:
            raise ParsingError("Transfer-Encoding is not part of HTTP/1.0")  # section 6.1

    def _check_http11(self) -> None:
        if "HOST" not in self.headers:
            raise ParsingError("an HTTP/1.1 request needs a Host header")  # section 3.2
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            # Section 6.3 allows to close instead; a message with two lengths is an attempt to smuggle.
            raise ParsingError("a request has either Transfer-Encoding or Content-Length, not both")


def _with_ascii_target(header_plus: bytes) -> bytes:
    """The header with the request line's bytes beyond ASCII percent-encoded, which means the same.

    curl sends what somebody typed as it is; waitress takes it for a malformed address.
    """
    line, crlf, rest = header_plus.partition(b"\r\n")
    return _NOT_ASCII.sub(lambda byte: b"%%%02X" % byte[0][0], line) + crlf + rest


def raw_target(request_uri: str) -> tuple[str, str]:
    """Path and query of a request target exactly as they were sent, one character for each byte.

    Nothing is decoded, collapsed or dropped: ``//``, ``.``, ``..``, ``%2F``, ``#`` and invalid
    escapes reach the application, which alone knows what a key may hold.
    """
    if not request_uri.startswith("/") and "://" in request_uri:  # absolute form, from a proxy
        _, _, rest = request_uri.partition("://")
        slash, question = rest.find("/"), rest.find("?")
        if slash < 0 or 0 <= question < slash:
            return "/", rest[question + 1 :] if question >= 0 else ""
        request_uri = rest[slash:]
    path, _, query = request_uri.partition("?")
    return path, query
