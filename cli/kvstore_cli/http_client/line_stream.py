"""A stream of lines over HTTP."""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Self

from kvstore_cli.http_client.connection import http_client, reason
from kvstore_cli.http_client.errors import AttemptError
from kvstore_core.errors import KvError

if TYPE_CHECKING:
    import socket

_CHUNK_BYTES = 64 * 1024


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
            *lines, self._rest = (self._rest + self._read(deadline, output)).split(b"\n")
            yield from lines

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
