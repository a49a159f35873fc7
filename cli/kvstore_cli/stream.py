"""A stream of lines over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Self

from kvstore_cli.connection import http_client, reason
from kvstore_cli.problems import Trouble
from kvstore_client.errors import KvError

if TYPE_CHECKING:
    import socket

_CHUNK_BYTES = 64 * 1024


class LineStream:
    """An answer that goes on: whole lines as they come. Close it, or use it in a ``with``."""

    def __init__(
        self,
        connection: http_client.HTTPConnection,
        opened: socket.socket,
        response: http_client.HTTPResponse,
        stall_seconds: float,
    ) -> None:
        self._connection = connection
        self._socket = opened
        self._response = response
        self._stall_seconds = stall_seconds
        self._rest = b""

    def lines(self, deadline: float | None = None) -> Iterator[bytes]:
        """The lines, without their ends.

        Raises Trouble when the stream ends, breaks or is silent for too long, and ``timed_out`` when
        ``deadline`` (of the monotonic clock) has come. A line that was cut off is not given out.
        """
        while True:
            *lines, self._rest = (self._rest + self._read(deadline)).split(b"\n")
            yield from lines

    def _read(self, deadline: float | None) -> bytes:
        patience = self._stall_seconds
        if deadline is not None:
            patience = min(patience, max(0.001, deadline - monotonic()))
        self._socket.settimeout(patience)
        try:
            read = self._response.read1(_CHUNK_BYTES)
        except TimeoutError as error:
            if deadline is not None and monotonic() >= deadline:
                raise KvError("timed_out", "the time is over") from error
            raise _broken(f"it was silent for {self._stall_seconds:g} s") from error
        except (OSError, http_client.HTTPException) as error:
            raise _broken(reason(error)) from error
        if not read:
            raise _broken("the service closed it")
        return read

    def close(self) -> None:
        """Let go of the connection."""
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _broken(reason: str) -> Trouble:
    return Trouble(KvError("unavailable", f"the stream broke: {reason}"))
