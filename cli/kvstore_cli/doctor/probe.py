"""The doctor's own HTTP client: every response is data, also one from a proxy, and so is when it arrives."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from time import monotonic
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from kvstore_cli.config.token_source import TokenSource
from kvstore_cli.http_client.client import encode_query, key_path
from kvstore_cli.http_client.connection import reason
from kvstore_cli.http_client.whole import connect, http_client
from kvstore_core.errors import KvError
from kvstore_core.media_types import JSON, PROBLEM

SCRATCH = "kvstore-doctor/"
"""The prefix of all keys of the doctor; a random part follows."""

PROMPT_SECONDS = 3.0
"""How long something that should be immediate may take."""

_TTL_SECONDS = 900
_LARGEST_HEAD_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024


class ProbeResponse(NamedTuple):
    """A response from kvstore or a proxy, read to its end. ``seconds`` is how long it took."""

    status: int
    headers: http_client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def code(self) -> str | None:
        """The error code of kvstore; None for a success or a response of a proxy."""
        if not self.headers.get("Content-Type", "").startswith(PROBLEM):
            return None
        code = self.json().get("code")
        return code if isinstance(code, str) else None

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty if it is not one."""
        try:
            parsed = json.loads(self.body)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}

    @property
    def shown(self) -> str:
        """The response in a few words."""
        return f"{self.status} {self.code}" if self.code else f"{self.status}"


OWN_FAILURES = ("unavailable", "store_full")
"""Codes with which the service says that it cannot write now: that is no fault of the way to it."""


class NotStoredError(Exception):
    """A put of ``size`` bytes, which the service accepts, was refused."""

    def __init__(self, reply: ProbeResponse, size: int) -> None:
        super().__init__(reply.shown)
        self.reply = reply
        self.size = size


@dataclass
class Probe:
    """A client for the service at one address, and keys of its own there. Not thread-safe.

    ``timeout`` is the time for a response and ``idle`` that for idle connections, both in seconds. The daemon
    may listen on ``native_ports`` of the same host. No request
    starts or waits after ``deadline``, of the monotonic clock. What one check learns is kept for later ones.
    """

    url: str
    timeout: float
    idle: float
    ca_file: str | None = None
    tokens: TokenSource | None = None
    native_ports: Sequence[int] = ()
    scratch: str = field(default_factory=lambda: f"{SCRATCH}{os.urandom(8).hex()}/")
    status: dict[str, Any] = field(default_factory=dict)
    server: str = ""
    round_trip: float = 0.0
    are_streams_live: bool = True
    shortcoming: str = ""
    """What one's token lacks for checks that use keys, empty if nothing."""
    is_refused: bool = False
    """Whether the service has refused a write for a reason of its own; nothing more is written then."""
    deadline: float = inf

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.secure else 80)
        self.base = parts.path
        self.has_written = False
        self._connection: http_client.HTTPConnection | None = None

    @property
    def has_token(self) -> bool:
        """Whether requests carry a token."""
        return bool(self._authorization())

    def _authorization(self) -> dict[str, str]:
        token = None if self.tokens is None else self.tokens.token()
        return {} if token is None else {"Authorization": f"Bearer {token.text}"}

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def connect(self) -> http_client.HTTPConnection:
        """A new connection. Raises OSError, and ``not_allowed`` for a certificate that is not trusted."""
        seconds = self._left(self.timeout)
        return connect(self.host, self.port, seconds=seconds, secure=self.secure, ca_file=self.ca_file)

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        anonymously: bool = False,
    ) -> ProbeResponse:
        """The response. The connection is kept, and replaced if the other side closed it. Raises
        ``unavailable`` and ``timed_out``."""
        headers = {**(headers or {}), **({} if anonymously else self._authorization())}
        kept, self._connection = self._connection, None
        try:
            if kept is not None:
                with suppress(ConnectionError, http_client.BadStatusLine):
                    return self._exchange(kept, method, target, body, headers)
            return self._exchange(self.connect(), method, target, body, headers)
        except (OSError, http_client.HTTPException) as error:
            raise _no_answer(method, error) from error

    def _exchange(
        self,
        connection: http_client.HTTPConnection,
        method: str,
        target: str,
        body: bytes | None,
        headers: dict[str, str],
    ) -> ProbeResponse:
        try:
            connection.sock.settimeout(self._left(self.timeout))
            begin = monotonic()
            # a large body may be refused, and the connection closed, before it was read: read the response
            with suppress(ConnectionError):
                connection.request(method, self.base + target, body, headers)
            response = connection.getresponse()
            reply = ProbeResponse(response.status, response.headers, response.read(), monotonic() - begin)
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:  # None after Connection: close
            self._connection = connection
        return reply

    def watch(self, target: str, headers: dict[str, str]) -> TimedStream:
        """A response that takes long, read in a thread. Raises like :meth:`ask`."""
        try:
            connection = self.connect()
            sock = connection.sock
            connection.request("GET", self.base + target, headers={**headers, **self._authorization()})
        except (OSError, http_client.HTTPException) as error:
            raise _no_answer("GET", error) from error
        return TimedStream(connection, sock)

    def expect_continue(self, method: str, target: str, size: int) -> int:
        """The status of the response to a request with ``Expect: 100-continue`` and a body of ``size``
        bytes, which is never sent: 100 if it may be, or if the request has reached kvstore and was refused
        there; 0 if there was no response. Raises like :meth:`ask`."""
        expecting = {"Content-Length": str(size), "Content-Type": JSON, "Expect": "100-continue"}
        headers = {**expecting, **self._authorization()}
        try:
            with closing(self.connect()) as connection:
                connection.request(method, self.base + target, headers=headers)
                connection.sock.settimeout(PROMPT_SECONDS)
                return _interim_status(connection.sock)
        except (OSError, http_client.HTTPException) as error:
            raise _no_answer(method, error) from error

    def _left(self, seconds: float) -> float:
        left = self.deadline - monotonic()
        if left <= 0:
            raise KvError("timed_out", "the time for all checks is over")
        return min(seconds, left)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ── keys ────────────────────────────────────────────────────────────────────────────────────

    def key(self, name: str) -> str:
        """A key of the doctor."""
        return self.scratch + name

    def put(self, key: str, value: bytes, headers: dict[str, str] | None = None) -> ProbeResponse:
        """Store a scratch value, with a TTL, by ``?key=``: a path that a proxy rewrites could name another
        key. Raises NotStoredError if the service itself cannot write now."""
        self.has_written = True
        reply = self.ask("PUT", by_query(key, ttl=f"{_TTL_SECONDS}s"), value, headers)
        if reply.code in OWN_FAILURES:
            self.is_refused = True
            raise NotStoredError(reply, len(value))
        return reply

    def store(self, key: str, value: bytes, headers: dict[str, str] | None = None) -> ProbeResponse:
        """Like :meth:`put`; raises NotStoredError if it was refused."""
        reply = self.put(key, value, headers)
        if reply.status not in (200, 201):
            raise NotStoredError(reply, len(value))
        return reply

    def clean(self) -> None:
        """Delete everything that was written; if that fails, the TTL does it."""
        if self.has_written:
            self.deadline = inf
            self.close()
            self.ask("DELETE", f"/v1/kv{encode_query([('prefix', self.scratch)])}")
            self.has_written = False


class TimedStream:
    """Reads a response in a thread, and records when data arrives. Use it in a ``with``.

    ``ended`` is None until it ends, and then why: empty if the body ended properly, which only its sender can
    do. ``arrivals`` begins with the time of opening. ``_changed`` guards everything that the thread writes.
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

    def longest_gap(self) -> float:
        """The longest silence so far, in seconds."""
        end = self._opened + self.ended_after if self.ended is not None else monotonic()
        return max(later - earlier for earlier, later in pairwise([*self.arrivals, end]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()
        self._socket.close()  # http.client does not after Connection: close

    def _read(self) -> None:
        """Run in the thread."""
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


def by_query(key: str, **parameters: str) -> str:
    """The target of ``key``, as a query parameter."""
    return f"/v1/kv{encode_query([('key', key), *parameters.items()])}"


def by_path(key: str) -> str:
    """The target of ``key``, as a path, encoded as the commands do it."""
    return key_path("kv", key)


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile, in milliseconds."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return round(ordered[last // 2] * 1000, 2), round(ordered[round(last * 0.99)] * 1000, 2)


def _interim_status(sock: socket.socket) -> int:
    # http.client skips a 100
    head = b""
    try:
        while b"\r\n\r\n" not in head and len(head) < _LARGEST_HEAD_BYTES and (read := sock.recv(4096)):
            head += read
    except TimeoutError:
        return 0
    if PROBLEM.encode() in head.lower():
        return 100
    found = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    return int(found[1]) if found else 0


def _no_answer(method: str, error: Exception) -> KvError:
    if isinstance(error, TimeoutError):
        return KvError("timed_out", f"{method} was not answered in time")
    return KvError("unavailable", f"{method} was not answered: {reason(error)}")


def _decoder(encoding: str) -> Callable[[bytes], bytes]:
    if encoding in ("gzip", "deflate"):
        return zlib.decompressobj(wbits=47).decompress  # either format
    return lambda data: data
