"""A stream of lines over HTTP."""

from __future__ import annotations

import errno
import json
import select
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple, Self

from kvstore_cli.http_client.connection import reason
from kvstore_cli.http_client.errors import AttemptError
from kvstore_cli.http_client.whole import http_client
from kvstore_core.errors import KvError

_CHUNK_BYTES = 64 * 1024
_BURST_BYTES = 1024 * 1024


_LONGEST_QUERY = 4000
"""What every proxy takes in an address; a longer query is sent in a body."""

_LISTS = {"prefix": "prefixes", "key": "keys"}
_FLAGS = ("snapshot", "values", "prev", "json")


class StreamRequest(NamedTuple):
    """A stream as it is asked for: ``path`` and ``encoded``, which is ``query`` in an address."""

    path: str
    encoded: str
    query: Sequence[tuple[str, str]]
    stall_seconds: float
    receive_bytes: int | None

    def sent(self) -> tuple[str, str, str | None]:
        """Method, target and body: a long query is in a body."""
        if len(self.encoded) <= _LONGEST_QUERY:
            return "GET", self.path + self.encoded, None
        body: dict[str, Any] = {}
        for name, text in self.query:
            if name in _LISTS:
                body.setdefault(_LISTS[name], []).append(text)
            elif name == "ops":
                body[name] = text.split(",")
            else:
                body[name] = text == "1" if name in _FLAGS else text
        return "POST", self.path, json.dumps(body)

    def prepare(self, connected: socket.socket) -> None:
        """Set how much the system keeps unread."""
        if self.receive_bytes is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_bytes)


@dataclass(eq=False)
class LineStream:
    """A response without end: whole lines as they come. Close it, or use it in a ``with``."""

    _connection: http_client.HTTPConnection
    _socket: socket.socket
    _response: http_client.HTTPResponse
    _stall_seconds: float
    _rest: bytes = b""

    def lines(self, deadline: float | None = None, output: int | None = None) -> Iterator[bytes]:
        """The lines, without their ends.

        ``output`` is the file descriptor that they are written to: BrokenPipeError is raised as soon as
        its reader is gone, and not only when the next line is written.

        Raises AttemptError when the stream ends, breaks or is silent for too long, and ``timed_out`` at
        ``deadline`` (of the monotonic clock). A line that was cut off is left out.
        """
        while True:
            yield from self._read_lines(deadline, output)

    def bursts(self, deadline: float | None = None, output: int | None = None) -> Iterator[list[bytes]]:
        """The same, together with all further lines that have come by then, up to about 1 MiB."""
        while True:
            lines = self._read_lines(deadline, output)
            size = sum(map(len, lines))
            while size < _BURST_BYTES and self._is_ready():
                more = self._read_lines(deadline, output)
                lines += more
                size += sum(map(len, more))
            yield lines

    def _read_lines(self, deadline: float | None, output: int | None) -> list[bytes]:
        *lines, self._rest = (self._rest + self._read(deadline, output)).split(b"\n")
        return lines

    def _is_ready(self) -> bool:
        """Whether there is something to read at once."""
        if self._has_buffered():
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def _read(self, deadline: float | None, output: int | None) -> bytes:
        timeout = self._stall_seconds
        if deadline is not None:
            timeout = min(timeout, max(0.001, deadline - monotonic()))
        if output is not None:
            self._await_bytes(timeout, output)
        self._socket.settimeout(timeout)
        try:
            read = self._response.read1(_CHUNK_BYTES)
        except TimeoutError as error:
            if deadline is not None and monotonic() >= deadline:
                raise KvError("timed_out", "timed out") from error
            raise _broken(f"it was silent for {self._stall_seconds:g} s") from error
        except (OSError, http_client.HTTPException) as error:
            raise _broken(reason(error)) from error
        if not read:
            raise _broken("the service closed it")
        return read

    def _await_bytes(self, timeout: float, output: int) -> None:
        """Return when there is something to read, or after ``timeout`` seconds."""
        if self._has_buffered():
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(output, 0)  # POLLERR and POLLHUP come unasked
        if any(ready == output for ready, _ in poll.poll(timeout * 1000)):
            raise BrokenPipeError(errno.EPIPE, "the reader of standard output is gone")

    def _has_buffered(self) -> bool:
        # poll does not see bytes that were read ahead, also by TLS
        self._socket.settimeout(0)
        try:
            ahead = self._response.fp.peek(1)
        except OSError:  # TLS has nothing yet; a broken connection shows when it is read
            return False
        # the end of a chunk is left unread until the next one begins
        return len(ahead) > (2 if getattr(self._response, "chunk_left", None) == 0 else 0)

    def close(self) -> None:
        """Close the connection."""
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _broken(reason: str) -> AttemptError:
    return AttemptError(KvError("unavailable", f"the stream broke: {reason}"))
