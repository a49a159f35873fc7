"""A body in chunks, read strictly by RFC 9112 section 7.1.

waitress's receiver accepts what other servers refuse or read differently: a size that ends in a line feed
alone, empty lines between chunks, trailers that are no headers. It also keeps lines of any length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from waitress.buffers import OverflowableBuffer
from waitress.utilities import BadRequest

FIELD = re.compile(rb"(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+):(?P<value>[\t\x20-\x7e\x80-\xff]*)")
"""A line of a header or a trailer (section 5, without the obsolete forms), for ``fullmatch``. Takes what
waitress's HEADER_FIELD_RE takes, blanks around the value included, in linear time: that one tries each way to
divide the blanks behind the colon between the two places for them, and takes half a minute for 64 KiB of
blanks."""

MAX_LINE_BYTES = 1024
"""Of a chunk's size with its extensions, and of one trailer."""
MAX_TRAILER_BYTES = 8 * 1024

_CRLF = b"\r\n"
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;%b(?:=(?:%b|%b))?)*" % (_TOKEN, _TOKEN, _QUOTED))
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"host", b"content-type", b"trailer"))
"""Names that a trailer may not have: section 6.5.1 of RFC 9110."""


class ChunkedBody:
    """A receiver, in waitress's words. ``error`` is the fault of the body, ``completed`` says that its end
    was seen. Extensions and trailers are checked and dropped."""

    def __init__(self, overflow_bytes: int) -> None:
        self.error: Any = None
        self.completed = False
        self._buffer = OverflowableBuffer(overflow_bytes)
        self._line = b""
        self._missing = 0
        self._take: Callable[[bytes], None] = self._take_size
        self._trailer_bytes = 0

    def __len__(self) -> int:
        return len(self._buffer)

    def getbuf(self) -> OverflowableBuffer:
        return self._buffer

    def getfile(self) -> Any:
        return self._buffer.getfile()

    def received(self, data: bytes) -> int:
        """Take the bytes that belong to the body; returns how many, all of them once there is an error."""
        at = 0
        while at < len(data) and not self.completed and self.error is None:
            if self._missing:
                piece = data[at : at + self._missing]
                self._buffer.append(piece)
                self._missing -= len(piece)
                at += len(piece)
            else:
                at = self._read_line(data, at)
        return at if self.error is None else len(data)

    def _read_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        self._line += data[at : end or len(data)]
        if len(self._line) > MAX_LINE_BYTES:
            self._refuse("a line of a body in chunks is too long")
        elif self._take == self._take_end and not _CRLF.startswith(self._line):
            self._refuse("a chunk does not end where its size says")
        elif end:
            line, self._line = self._line, b""
            if line.endswith(_CRLF) and b"\r" not in line[:-2]:
                self._take(line[:-2])
            else:
                self._refuse("a line of a body in chunks ends without CR and LF")
        return end or len(data)

    def _take_size(self, line: bytes) -> None:
        found = _SIZE.fullmatch(line)
        if found is None:
            self._refuse("the size of a chunk is malformed")
            return
        self._missing = int(found[1], 16)
        self._take = self._take_end if self._missing else self._take_trailer

    def _take_end(self, _line: bytes) -> None:
        self._take = self._take_size

    def _take_trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if not line:
            self.completed = True
        elif self._trailer_bytes > MAX_TRAILER_BYTES:
            self._refuse("the trailers are too long")
        elif FIELD.fullmatch(line) is None or line.partition(b":")[0].lower() in _FRAMING:
            self._refuse("a trailer is malformed, or may not be one")

    def _refuse(self, reason: str) -> None:
        self.error = BadRequest(reason)
