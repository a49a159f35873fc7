"""One request after another over a connection, and nothing else of HTTP/1.1 (RFC 9112).

http.client with what it imports takes as long as all the rest of ``kvstore get``; only what comes as a stream
is read with it, see ``kvstore_cli.http_client.whole``.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from kvstore_core.errors import KvError

if TYPE_CHECKING:
    import socket

CUT_OFF = "it was cut off in the middle"

_LONGEST_LINE = 65536
_MOST_HEADERS = 100
_MOST_DIGITS = 15
_PIECE_BYTES = 1 << 20
"""So much is taken at once, whatever an answer says that it has."""
_SENT_AT_ONCE_BYTES = 64 * 1024
"""A body up to this goes out together with its head."""
_WITHOUT_BODY = (204, 304)
_WITH_BODY = ("PATCH", "POST", "PUT")


class ExchangeError(Exception):
    """What came is no whole answer."""


class NotHttpError(ExchangeError):
    """What came does not even begin as an answer."""


class Headers(dict[str, str]):
    """The headers of an answer by lower-case name; of one that comes twice, the first."""

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        """The value of the header, however its name is written."""
        return super().get(name.lower(), default)


class HttpConnection:
    """A connection to ``host``, whose ``port`` is None if it is the scheme's own. It is closed once an answer
    says so, or could not be read; ``is_open`` tells."""

    def __init__(self, sock: socket.socket, host: str, port: int | None) -> None:
        self._sock = sock
        self._file: BinaryIO = sock.makefile("rb")
        name = f"[{host}]" if ":" in host else host if host.isascii() else host.encode("idna").decode()
        self._host = name if port is None else f"{name}:{port}"
        self.is_open = True

    def exchange(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str], seconds: float
    ) -> tuple[int, Headers, bytes]:
        """Status, headers and body of the answer. Raises OSError, and ExchangeError for what is none."""
        try:
            self._sock.settimeout(seconds)
            # A service that refuses a large body answers before it has read it all, and closes: the answer
            # may be here already, and says more than the broken pipe.
            with suppress(ConnectionError):
                self._send(method, target, body, headers)
            return self._read(method)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        self._file.close()
        self._sock.close()

    def _send(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> None:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._host}", "Accept-Encoding: identity"]
        if body is not None or method in _WITH_BODY:
            lines.append(f"Content-Length: {len(body or b'')}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if not all(map(str.isprintable, lines)) or lines[0].count(" ") != 2:
            raise KvError("bad_request", "the address or a header has characters that HTTP does not allow")
        try:
            head = "\r\n".join((*lines, "", "")).encode("ascii")
        except UnicodeEncodeError as error:
            message = "the address or a header has characters that are not ASCII"
            raise KvError("bad_request", message) from error
        if body is None or len(body) <= _SENT_AT_ONCE_BYTES:
            self._sock.sendall(head + (body or b""))
        else:
            self._sock.sendall(head)
            self._sock.sendall(body)

    def _read(self, method: str) -> tuple[int, Headers, bytes]:
        status = 100
        while status < 200 and status != 101:
            version, status = self._status_line()
            headers = self._headers()
        is_kept = "close" not in headers.get("Connection").lower()
        if method == "HEAD" or status < 200 or status in _WITHOUT_BODY:
            body = b""
        elif headers.get("Transfer-Encoding").lower() == "chunked":
            body = b"".join(iter(self._chunk, b""))
            self._headers()  # the trailers
        elif (length := headers.get("Content-Length")) and length.isascii() and length.isdigit():
            body = self._exactly(length, 10)
        else:
            body, is_kept = self._file.read(), False
        if not is_kept or version != b"HTTP/1.1":
            self.close()
        return status, headers, body

    def _status_line(self) -> tuple[bytes, int]:
        line = self._file.readline(_LONGEST_LINE)
        if not line:
            raise ConnectionResetError("it was closed without an answer")
        version, _, rest = line.partition(b" ")
        code, end = rest[:3], rest[3:4]
        is_status = code.isdigit() and len(code) == 3 and code >= b"100" and end in (b" ", b"\r", b"\n")
        if not version.startswith(b"HTTP/1.") or not is_status or not line.endswith(b"\n"):
            raise NotHttpError("what came is not HTTP")
        return version, int(code)

    def _headers(self) -> Headers:
        headers = Headers()
        for _ in range(_MOST_HEADERS + 1):
            line = self._line()
            if not line:
                return headers
            if line[:1] in b" \t":
                raise ExchangeError("the answer has a header folded over several lines")
            name, _, value = line.decode("latin-1").partition(":")
            headers.setdefault(name.strip().lower(), value.strip())
        raise ExchangeError(f"the answer has more than {_MOST_HEADERS} headers")

    def _chunk(self) -> bytes:
        """The next chunk; empty for the last one."""
        size = self._line().partition(b";")[0].strip()
        chunk = self._exactly(size.decode("latin-1"), 16)
        if chunk and self._line():
            raise ExchangeError("a chunk of the answer is longer than it says")
        return chunk

    def _line(self) -> bytes:
        line = self._file.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            is_long = len(line) == _LONGEST_LINE
            raise ExchangeError("the answer has a line that is too long" if is_long else CUT_OFF)
        return line.rstrip(b"\r\n")

    def _exactly(self, said: str, base: int) -> bytes:
        """As many bytes as a number says."""
        try:
            length = int(said, base) if len(said) <= _MOST_DIGITS else -1
        except ValueError:
            length = -1
        if length < 0:
            raise ExchangeError("the answer does not say how long it is")
        pieces: list[bytes] = []
        while length > 0:
            piece = self._file.read(min(length, _PIECE_BYTES))
            if not piece:
                raise ExchangeError(CUT_OFF)
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)
