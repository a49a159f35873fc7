"""The doctor's own HTTP client: every response is data, also one from a proxy."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kvstore_cli.doctor.timed_stream import TimedStream
from kvstore_cli.http_client.client import encode_query, key_path
from kvstore_cli.http_client.connection import connect, http_client, reason
from kvstore_core.errors import KvError
from kvstore_core.media_types import JSON, PROBLEM

SCRATCH = "kvstore-doctor/"
"""The prefix of all keys of the doctor; a random part follows."""

PROMPT_SECONDS = 3.0
"""How long something that should be immediate may take."""

_TTL_SECONDS = 900
_LARGEST_HEAD_BYTES = 64 * 1024


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


class ExpectResponse(NamedTuple):
    """The response to ``Expect: 100-continue``: status 100 if the body may be sent, 0 if there was none.
    ``is_ours``: it is an error of kvstore, not of a proxy."""

    status: int
    is_ours: bool


class NotStoredError(Exception):
    """A put of ``size`` bytes, which the service accepts, was refused."""

    def __init__(self, reply: ProbeResponse, size: int) -> None:
        super().__init__(reply.shown)
        self.reply = reply
        self.size = size


@dataclass
class Probe:
    """A client for the service at one address, and keys of its own there. Not thread-safe.

    ``timeout`` is the time for a response and ``idle`` that for idle connections, both in seconds. No request
    starts or waits after ``deadline``, of the monotonic clock. What one check learns is kept for later ones.
    """

    url: str
    timeout: float
    idle: float
    ca_file: str | None = None
    scratch: str = field(default_factory=lambda: f"{SCRATCH}{os.urandom(8).hex()}/")
    status: dict[str, Any] = field(default_factory=dict)
    server: str = ""
    round_trip: float = 0.0
    are_streams_live: bool = True
    deadline: float = inf

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.secure else 80)
        self.base = parts.path
        self.has_written = False
        self._connection: http_client.HTTPConnection | None = None

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
        timeout: float | None = None,
    ) -> ProbeResponse:
        """The response, within ``timeout`` seconds if given. The connection is kept, and replaced if the
        other side closed it. Raises ``unavailable`` and ``timed_out``."""
        kept, self._connection = self._connection, None
        if kept is not None:
            try:
                return self._exchange(kept, method, target, body, headers, timeout)
            except (ConnectionError, http_client.BadStatusLine):
                kept.close()
            except (OSError, http_client.HTTPException) as error:
                kept.close()
                raise _no_answer(method, error) from error
        try:
            return self._exchange(self.connect(), method, target, body, headers, timeout)
        except (OSError, http_client.HTTPException) as error:
            raise _no_answer(method, error) from error

    def _exchange(
        self,
        connection: http_client.HTTPConnection,
        method: str,
        target: str,
        body: bytes | None,
        headers: dict[str, str] | None,
        timeout: float | None,
    ) -> ProbeResponse:
        connection.sock.settimeout(self._left(timeout or self.timeout))
        begin = monotonic()
        try:
            connection.request(method, self.base + target, body, headers or {})
        except ConnectionError:
            # a large body may be refused, and the connection closed, before it was read: read the response
            if body is None:
                raise
        response = connection.getresponse()
        reply = ProbeResponse(response.status, response.headers, response.read(), monotonic() - begin)
        if connection.sock is not None:  # None after Connection: close
            self._connection = connection
        return reply

    def watch(self, target: str, headers: dict[str, str]) -> TimedStream:
        """A response that takes long, read in a thread. Raises like :meth:`ask`."""
        try:
            connection = self.connect()
            sock = connection.sock
            connection.request("GET", self.base + target, headers=headers)
        except (OSError, http_client.HTTPException) as error:
            raise _no_answer("GET", error) from error
        return TimedStream(connection, sock)

    def expect_continue(self, method: str, target: str, size: int) -> ExpectResponse:
        """The response to a request with ``Expect: 100-continue`` and a body of ``size`` bytes, which is
        never sent. Raises like :meth:`ask`."""
        try:
            connection = self.connect()
            try:
                connection.putrequest(method, self.base + target)
                for name, value in (
                    ("Content-Length", str(size)),
                    ("Content-Type", JSON),
                    ("Expect", "100-continue"),
                ):
                    connection.putheader(name, value)
                connection.endheaders()
                connection.sock.settimeout(PROMPT_SECONDS)
                return _read_response(connection)
            finally:
                connection.close()
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
        key."""
        self.has_written = True
        return self.ask("PUT", by_query(key, ttl=f"{_TTL_SECONDS}s"), value, headers)

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


def _read_response(connection: http_client.HTTPConnection) -> ExpectResponse:
    head = b""
    try:
        while b"\r\n\r\n" not in head and len(head) < _LARGEST_HEAD_BYTES:
            read = connection.sock.recv(4096)
            if not read:
                break
            head += read
    except TimeoutError:
        return ExpectResponse(0, is_ours=False)
    found = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    is_ours = PROBLEM.encode() in head.lower()
    return ExpectResponse(int(found[1]) if found else 0, is_ours)


def _no_answer(method: str, error: Exception) -> KvError:
    if isinstance(error, TimeoutError):
        return KvError("timed_out", f"{method} was not answered in time")
    return KvError("unavailable", f"{method} was not answered: {reason(error)}")
