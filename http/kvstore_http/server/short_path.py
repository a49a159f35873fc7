"""The short path: a GET, HEAD or PUT of one key with nothing unusual about it, from its bytes to its answer
without an object of waitress's, an environ, falcon or a greenlet.

Nearly all requests are such. What is not recognised here goes the long way, through the parser and the
application, and what is gets the answer that it would have had there, byte for byte: errors and headers are
made by the same functions, and a test sends every request both ways. So nothing is refused here. Whatever
would be refused before the daemon is asked, or needs somebody to wait, is left to the long way.
"""

from __future__ import annotations

import logging
import re
from time import monotonic, perf_counter_ns
from types import SimpleNamespace
from typing import Any, NamedTuple

from kvstore_core.access.principal import UNRESTRICTED, Principal
from kvstore_core.errors import KvError
from kvstore_core.operations import OPERATIONS
from kvstore_http.access.callers import Callers, make_private, may_hold_token
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.backend.request_queue import QueuedRequest
from kvstore_http.protocol.bodies import value_type
from kvstore_http.protocol.environ import new_id, sent_id
from kvstore_http.protocol.key_answers import record_headers, written
from kvstore_http.protocol.origins import Cors, HostCheck
from kvstore_http.protocol.problems import failure, rendered
from kvstore_http.protocol.raw_router import decoded_key
from kvstore_http.server.connection import Channel
from kvstore_http.server.parser import PLAIN_HEAD_BYTES, plain_headers
from kvstore_http.server.response import response_head

ROUTE = "/v1/kv/{key}"

MAX_KEPT = 1024
"""How many heads are kept judged: only good ones, none of them longer than what the parser keeps."""

_LINE = re.compile(
    rb"(GET|HEAD|PUT) (%b[\x21\x22\x24-\x3e\x40-\x7e]+) HTTP/1\.1\r\n"
    % re.escape(ROUTE.removesuffix("{key}").encode())
)
_KEY_AT = len(ROUTE.removesuffix("{key}"))

_HARMLESS = frozenset(
    name.upper().replace("-", "_")
    for name in (
        # looked at here
        *("Host", "Connection", "Content-Length", "Content-Type", "Authorization", "Origin", "X-Request-Id"),
        *("User-Agent", "Accept", "Accept-Encoding", "Accept-Language", "Cache-Control", "Pragma", "Referer"),
        *("DNT", "Priority", "Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site", "Traceparent"),
        *("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via"),
    )
)
"""Headers that change nothing about a read or a put of one key, but for those that are looked at here."""

_NEVER_AGAIN = frozenset(("X_REQUEST_ID", "TRACEPARENT"))
"""Headers that are different in each request, so that it is of no use to keep a head with one."""

_GET, _PUT = OPERATIONS["get"], OPERATIONS["put"]

log = logging.getLogger("kvstore.http")


class _JudgedHead(NamedTuple):
    """What the lines of a head behind the first one say: the ``size`` of the body, the media type of a value,
    and who asks."""

    headers: dict[str, str]
    size: int
    media_type: str
    who: Principal


class ShortPath:
    """What all short requests of a worker share. ``callers``, ``hosts`` and ``cors`` are those of the
    application, None where it has none."""

    def __init__(
        self, daemon: DaemonClient, callers: Callers | None, hosts: HostCheck | None, cors: Cors | None
    ) -> None:
        self.callers = callers
        self.cors = cors
        self._daemon = daemon
        self._hosts = hosts
        self._heads: dict[bytes, _JudgedHead] = {}
        if callers is not None:
            callers.follower.listeners.append(self._heads.clear)

    def begin(self, channel: Channel, data: bytes) -> _ShortRequest | None:
        """Begin the request that ``data`` is, from its first byte to its last; None, and nothing done, if it
        has to go the long way. Its answer is given to ``channel``, in the hub."""
        line = _LINE.match(data)
        if line is None:
            return None
        body_at = data.find(b"\r\n\r\n", line.end(), PLAIN_HEAD_BYTES) + 4
        adj = channel.adj
        if not line.end() < body_at < adj.max_request_header_size:
            return None
        lines = data[line.end() : body_at - 4]
        head = self._heads.get(lines) or self._judged(lines)
        if head is None or len(data) - body_at != head.size or head.size >= adj.max_request_body_size:
            return None
        callers = self.callers
        if callers is not None and monotonic() >= callers.follower.good_until:
            return None
        method, target = line[1].decode(), line[2].decode()
        try:
            request = self._allowed(channel, method, target, head, data[body_at:])
        except KvError:
            return None
        if request is None or not self._daemon.begin(request):
            return None
        channel.server.counters.request_begun()
        return request

    def _judged(self, lines: bytes) -> _JudgedHead | None:
        """What the ``lines`` say, if they are harmless; kept, if they may come again."""
        headers = plain_headers(lines)
        if headers is None or not headers.keys() <= _HARMLESS:
            return None
        if headers.get("CONNECTION", "keep-alive").lower() != "keep-alive":
            return None
        if self._hosts is not None and not self._hosts.takes(headers["HOST"]):
            return None
        who = UNRESTRICTED if self.callers is None else self.callers.kept(headers)
        if who is None:
            return None
        try:
            media_type = value_type(headers)
        except KvError:
            return None
        head = _JudgedHead(headers, int(headers.get("CONTENT_LENGTH", "0")), media_type, who)
        if _NEVER_AGAIN.isdisjoint(headers):
            if len(self._heads) >= MAX_KEPT:
                self._heads.clear()
            self._heads[lines] = head
        return head

    def _allowed(
        self, channel: Channel, method: str, target: str, head: _JudgedHead, value: bytes
    ) -> _ShortRequest | None:
        """The request, unless it is another one than it seems; raises the KvError with which it would be
        refused."""
        key, who = decoded_key(target[_KEY_AT:]), head.who
        if self.callers is not None and may_hold_token(key):
            return None
        op: dict[str, Any]
        if method == "PUT":
            op = {"op": "put", "key": key, "content_type": head.media_type, "size": len(value)}
            who.check_op(op, _PUT.needs)
            return _ShortRequest(self, channel, method, target, head, op, (value,))
        op = {"op": "get", "key": key}
        who.check_op(op, _GET.needs)
        return None if value else _ShortRequest(self, channel, method, target, head, op, ())


class _ShortRequest(QueuedRequest):
    """A request on the short path, under way to the daemon."""

    __slots__ = ("_begun_at", "_channel", "_head", "_id", "_method", "_path", "_target")

    def __init__(
        self,
        path: ShortPath,
        channel: Channel,
        method: str,
        target: str,
        head: _JudgedHead,
        op: dict[str, Any],
        values: tuple[bytes, ...],
    ) -> None:
        self._begun_at = perf_counter_ns()
        sent = sent_id(head.headers)
        self._id = sent or new_id()
        # as of current_request_id: the daemon hears of it where somebody may look for it
        told = self._id if sent is not None or channel.server.access_log.is_on else None
        super().__init__((op,), values, 0.0, author=head.who.name, request_id=told)
        self._path = path
        self._channel = channel
        self._method = method
        self._target = target
        self._head = head

    def finish(self, outcome: Any) -> None:
        """Answer the request, count it, and let the connection go on."""
        channel = self._channel
        try:
            try:
                status, head, body = self._response(outcome)
            except Exception as error:
                status, head, body = self._response(failure(error, self._method, self._target, self._id))
            channel.send_short(head, body)
            self._count(status, len(body))
            channel.end_short()
        except Exception:
            log.exception("a connection failed while it was answered")
            channel.handle_close()

    def _response(self, outcome: Any) -> tuple[str, bytes, bytes]:
        """Status line, head and body, for HEAD without the body."""
        status, headers, body = self._answer(outcome)
        own = [f"Content-Length: {len(body)}", f"X-Request-Id: {self._id}"]
        if self._channel.server.stopping:
            own.append("Connection: close")
        head = response_head(f"HTTP/1.1 {status}", headers.items(), own, self._channel.adj.ident)
        return status, head, b"" if self._method == "HEAD" else body

    def _answer(self, outcome: Any) -> tuple[str, dict[str, str], bytes]:
        """Status line, headers and body."""
        if isinstance(outcome, KvError):
            return self._refusal(outcome)
        if self.values:
            status, headers, body = written(self.ops[0]["key"], outcome)
        else:
            status, headers, body = "200 OK", record_headers(outcome), outcome["value"]
            headers["content-type"] = outcome["content_type"]
        if self._path.callers is not None:
            make_private(headers)
        self._mark(headers)
        return status, headers, body

    def _refusal(self, error: KvError) -> tuple[str, dict[str, str], bytes]:
        if self._path.callers is not None:
            self._path.callers.count(error)
        error.details.pop("op", None)  # an index in a request that the caller never saw
        status, headers, body = rendered(error, self._id)
        self._mark(headers)
        return status, headers, body

    def _mark(self, headers: dict[str, str]) -> None:
        if self._path.cors is not None:
            self._path.cors.mark(headers, self._head.headers.get("ORIGIN"))

    def _count(self, status: str, size: int) -> None:
        server, elapsed = self._channel.server, perf_counter_ns() - self._begun_at
        server.counters.request_ended(ROUTE, self._method, status, elapsed)
        access_log = server.access_log
        if elapsed >= access_log.slow_ns or access_log.is_noting:
            access_log.request_ended(self._as_task(status, size, elapsed), elapsed, is_ours=True)

    def _as_task(self, status: str, size: int, elapsed: int) -> Any:
        """What the access log looks at. Such a request does nothing but wait for the daemon."""
        head = self._head
        request = SimpleNamespace(command=self._method, target=(self._target, ""), headers=head.headers)
        return SimpleNamespace(
            request=request,
            channel=self._channel,
            route=ROUTE,
            request_id=self._id,
            who=head.who,
            status=status,
            wrote_header=True,
            content_bytes_written=size,
            hand_over=None,
            daemon_ns=elapsed,
            client_ns=0,
        )
