"""A streamed response, with the time at which each part of it arrived."""

from __future__ import annotations

import socket
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from time import monotonic
from typing import Self

from kvstore_cli.http_client.connection import http_client, reason

_READ_BYTES = 64 * 1024


class TimedStream:
    """Reads a response in a thread, and records when data arrives. Use it in a ``with``.

    ``ended`` is None until it ends, and then why: empty if the body ended properly, which only its sender can
    do. ``_changed`` guards everything that the thread writes.
    """

    def __init__(self, connection: http_client.HTTPConnection, sock: socket.socket) -> None:
        self._connection = connection
        self._socket = sock
        self._changed = threading.Condition()
        self._opened = monotonic()
        self.status = 0
        self.headers = http_client.HTTPMessage()
        self.text = b""
        self.received_bytes = 0
        self.arrivals = [self._opened]
        self.ended: str | None = None
        self.ended_after = 0.0
        sock.settimeout(None)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether ``condition`` became true within ``seconds``. Returns at once if the stream has ended."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self.ended is not None, seconds)
            return condition()

    @property
    def arrived(self) -> float:
        """When data arrived last, or the stream was opened."""
        return self.arrivals[-1]

    def longest_gap(self) -> float:
        """The longest silence so far, in seconds."""
        end = self._opened + self.ended_after if self.ended is not None else monotonic()
        return max(later - earlier for earlier, later in pairwise([*self.arrivals, end]))

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()
        self._socket.close()  # http.client does not after Connection: close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── in the thread ───────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        why = ""
        try:
            response = self._connection.getresponse()
            with self._changed:
                self.status, self.headers = response.status, response.headers
                self._changed.notify_all()
            decode = _decoder(response.headers.get("Content-Encoding", ""))
            while data := response.read1(_READ_BYTES):
                now = monotonic()
                with self._changed:
                    self.received_bytes += len(data)
                    self.text += decode(data)
                    self.arrivals.append(now)
                    self._changed.notify_all()
            if getattr(response, "length", None):
                why = "it was cut off in the middle"
        except (OSError, http_client.HTTPException, ValueError, zlib.error) as error:
            why = reason(error)
        with self._changed:
            self.ended, self.ended_after = why, monotonic() - self._opened
            self._changed.notify_all()


def _decoder(encoding: str) -> Callable[[bytes], bytes]:
    if encoding in ("gzip", "deflate"):
        return zlib.decompressobj(wbits=47).decompress  # either format
    return lambda data: data
