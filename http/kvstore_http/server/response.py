"""Requests and their responses: waitress's tasks, with a response head of our own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from socket import socket
from time import perf_counter_ns
from typing import Any

from waitress.channel import ClientDisconnected
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import Error, build_http_date

from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.media_types import SSE
from kvstore_http.access.callers import strangers_body
from kvstore_http.backend.request_queue import waited_ns
from kvstore_http.metrics.counters import OTHER
from kvstore_http.protocol.environ import (
    BODY_AWAITED,
    HAND_OVER,
    RAW_PATH,
    RAW_QUERY,
    REQUEST_ID,
    ROUTE,
    STRANGERS_BODY,
    WAITS,
    WHO,
    current_request_id,
    new_id,
    sent_id,
)
from kvstore_http.protocol.problems import rendered
from kvstore_http.routes import SUBSCRIBE_PATH
from kvstore_http.server.parser import RefusalError, refusal_of

HandOver = Callable[[socket, bytes, bool], Any]
"""Takes over a connection: its socket, bytes still to be sent first, and whether the rest of the body is
framed as chunks (HTTP/1.1) or ends with the connection (HTTP/1.0). Returns an object with an attribute
``on_end``, the function to call when the stream has ended."""

_OURS = frozenset(("content-length", "connection", "date", "server", "x-request-id"))
"""Headers that the server writes; those of the application are dropped."""

JOINED_BYTES = 64 * 1024
"""A head is joined with a body of up to this size; a larger body is sent behind it without being copied."""

_PLAIN_HEADERS = frozenset(("CONTENT_LENGTH", "CONTENT_TYPE"))
"""Headers that have no HTTP_ before their names in the environ (PEP 3333)."""

_LENGTH_NAME_SIZE = len("content-length")
"""Few other headers have a name of this size, so few are compared."""

_BODILESS = ("1", "204", "304")
"""The beginnings of statuses whose responses have no body."""

_SPELLED = {"etag": "ETag", "www-authenticate": "WWW-Authenticate"}


class _Prefixes(dict[str, str]):
    """What is written before a header's value, by its name; empty for a header that is dropped.

    The application uses few names, so entries are never removed.
    """

    def __missing__(self, name: str) -> str:
        self[name] = prefix = "" if name.lower() in _OURS else f"{_spelled(name)}: "
        return prefix


_PREFIXES = _Prefixes()


def _spelled(name: str) -> str:
    """The header's name in the usual case, which has no meaning."""
    return _SPELLED.get(name.lower()) or "-".join(word.capitalize() for word in name.split("-"))


@lru_cache(maxsize=2)
def _tail(ident: str, second: int) -> str:
    """The end of every head that is written within ``second``."""
    return f"\r\nServer: {ident}\r\nDate: {build_http_date(second)}\r\n\r\n"


def response_head(line: str, headers: Iterable[tuple[str, str]], own: list[str], ident: str) -> bytes:
    """A response up to its body: the status line, the application's headers, those of the server's ``own``
    that are about this response, and those that all have. Raises ValueError for a line feed in one."""
    lines = [line]
    lines += [prefix + value for name, value in headers if (prefix := _PREFIXES[name])]
    lines += own
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1:
        raise ValueError("a header of the response holds a line feed")
    return (head + _tail(ident, int(time.time()))).encode("latin-1")


class _ResponseHead:
    """Writes the head of a response, and counts the request.

    waitress normalizes and sorts every header, which takes long, and ends the connection after each response
    without a Content-Length, even after 204, 304 and chunked ones, whose end the client sees.
    """

    channel: Any
    request: Any
    status = ""  # none yet; waitress's is a success from the start
    version: str
    has_body = True
    content_length: int | None
    wrote_header: bool
    response_headers: list[tuple[str, str]]
    close_on_finish: bool
    hand_over: HandOver | None = None
    chunked_response = False
    request_id = "-"
    route = OTHER
    who: Principal | None = None
    is_long_poll = False
    daemon_ns = 0
    """How much of its time the request waited for the daemon, and, in ``client_ns``, for its client to take
    the answer."""
    client_ns = 0

    def service(self) -> None:
        """Answer and count; also how long it took, unless the client could influence that."""
        server = self.channel.server
        counters, access_log = server.counters, server.access_log
        waited, kept_waiting = waited_ns(), self.channel.kept_waiting_ns
        started = perf_counter_ns()
        counters.request_begun()
        try:
            self.execute()  # type: ignore[attr-defined]  # the next class is waitress's
            self.finish()  # type: ignore[attr-defined]
        except OSError:
            self.close_on_finish = True
            raise
        finally:
            elapsed = perf_counter_ns() - started
            is_open_ended = self.has_body and self.content_length is None
            took = None if is_open_ended or self.is_long_poll else elapsed
            counters.request_ended(self.route, self.request.command, self.status, took)
            if self.is_long_poll and self.status.startswith("504"):
                counters.wait_timed_out()
            if elapsed >= access_log.slow_ns or access_log.is_noting:
                self.daemon_ns = waited_ns() - waited
                self.client_ns = self.channel.kept_waiting_ns - kept_waiting
                access_log.request_ended(self, elapsed, is_ours=took is not None)

    def build_response_header(self) -> bytes:
        """The status line and the headers. Decides how the body is framed, and whether the connection is
        kept."""
        has_body = self.has_body
        has_length = has_body and self.content_length is not None
        is_open_ended = has_body and not has_length
        self.chunked_response = is_open_ended and self.version == "1.1"
        own: list[str] = []
        if has_length:
            own.append(f"Content-Length: {self.content_length}")
        elif self.chunked_response:
            own.append("Transfer-Encoding: chunked")
        own.append(f"X-Request-Id: {self.request_id}")
        own += self._connection(is_open_ended)
        line = f"HTTP/{self.version} {self.status}"
        return response_head(line, self.response_headers, own, self.channel.server.adj.ident)

    def _connection(self, is_open_ended: bool) -> list[str]:
        wish = self.request.headers.get("CONNECTION", "").lower()
        asks_to_keep = wish == "keep-alive" if self.version == "1.0" else wish != "close"
        has_end = not is_open_ended or self.chunked_response
        is_last = self.channel.server.stopping or self.channel.no_room is not None
        if self.close_on_finish or self.hand_over is not None or is_last or not asks_to_keep or not has_end:
            self.close_on_finish = True
            return ["Connection: close"]
        return ["Connection: keep-alive"] if self.version == "1.0" else []


class Task(_ResponseHead, WSGITask):  # type: ignore[misc]  # waitress has no types
    """One request for the application.

    Adds to the environ what :mod:`kvstore_http.protocol.environ` lists. An application that hands the
    connection over returns a stream without content.
    """

    def execute(self) -> None:
        """Call the application and write what it answers."""
        sent = sent_id(self.request.headers)
        if sent is None and not self.channel.server.access_log.is_on:
            self.request_id = new_id()
            self._answer()
            return
        self.request_id = sent or new_id()
        token = current_request_id.set(self.request_id)
        try:
            self._answer()
        finally:
            current_request_id.reset(token)

    def _answer(self) -> None:
        environ = self.get_environment()
        body = self.channel.server.application(environ, self._start_response)
        self.route, self.who = environ.get(ROUTE, OTHER), environ.get(WHO)
        self.is_long_poll = WAITS in environ
        del environ  # it refers to this task
        try:
            for chunk in body:
                if chunk:
                    self.write(chunk)
                del chunk  # or it would be kept while the next is made
        except KvError as error:
            if error.row.status >= 500:
                raise
            raise ClientDisconnected from error  # it may have no more: cut off, and nothing to log
        finally:
            if hasattr(body, "close"):
                body.close()
        expected = self.content_length
        if expected is not None and self.content_bytes_written != expected and self.request.command != "HEAD":
            # the client would wait for the rest, or take the next response for it
            self.close_on_finish = True

    def _start_response(self, status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
        self.complete = True
        self.status = status
        self.has_body = not status.startswith(_BODILESS)
        self.response_headers = headers
        for name, value in headers:
            if len(name) == _LENGTH_NAME_SIZE and name.lower() == "content-length":
                self.content_length = int(value)

    def get_environment(self) -> dict[str, Any]:
        """The WSGI environ: a copy of the connection's part, and that of this request. waitress makes all of
        it anew for each request."""
        request = self.request
        environ: dict[str, Any] = self.channel.environ.copy()
        environ["REQUEST_METHOD"] = request.command
        environ["SERVER_PROTOCOL"] = f"HTTP/{self.version}"
        environ["PATH_INFO"] = request.path
        environ["QUERY_STRING"] = request.query
        environ["REQUEST_URI"] = request.request_uri
        environ["wsgi.input"] = request.get_body_stream()
        for name, value in request.headers.items():
            environ[name if name in _PLAIN_HEADERS else "HTTP_" + name] = value
        environ[REQUEST_ID] = self.request_id
        environ[RAW_PATH], environ[RAW_QUERY] = request.target
        environ[HAND_OVER] = self._take_hand_over
        return environ

    def write(self, data: bytes) -> None:
        """Write a piece of the body, the first one behind the head."""
        head = b""
        if not self.wrote_header:
            head = self.build_response_header()
            self.wrote_header = True
        if not self.has_body:
            data = b""
        self.content_bytes_written += len(data)
        if len(data) > JOINED_BYTES:
            pieces: tuple[bytes, ...] = (head, data)
            if self.chunked_response:
                pieces = (b"%b%X\r\n" % (head, len(data)), data, b"\r\n")
            del data
            self.channel.write_soon(*pieces)
            return
        if self.chunked_response and data:
            data = b"%X\r\n%b\r\n" % (len(data), data)
        self.channel.write_soon(head + data)

    def _take_hand_over(self, hand_over: HandOver) -> None:
        self.hand_over = hand_over

    def finish(self) -> None:
        """End the response, or hand the connection over with the response still open."""
        if self.hand_over is not None and self.status.startswith("200"):
            self.write(b"")
            self.channel.hand_over = (self.hand_over, self.chunked_response)
            self.channel.on_stream_end = self.channel.server.access_log.stream_opened(self)
            return
        if self.request.command == "HEAD":
            self.write(b"")
            self.chunked_response = False  # a HEAD response has no body, so no last chunk either
        super().finish()


class _BodyWantedError(BaseException):
    """The application reads the body. No Exception, so that no error handler answers it."""


def wants_stream(request: Any) -> bool:
    """Whether a request is that of an EventSource, which comes back only after a 200 that ends."""
    is_its_route = request.command == "GET" and request.path == SUBSCRIBE_PATH
    return is_its_route and SSE in request.headers.get("ACCEPT", "").lower()


class _NotYetSent:
    """The body of a request that has only a head so far."""

    def read(self, _size: int = -1) -> bytes:
        raise _BodyWantedError


class AnsweredError(Error):  # type: ignore[misc]
    """The application's answer to the head of a request, where waitress keeps the fault of a request."""

    def __init__(self, status: str, headers: dict[str, str], body: bytes, environ: dict[str, Any]) -> None:
        super().__init__(status)
        self.answer = status, headers, body
        self.request_id: str = environ[REQUEST_ID]
        self.route, self.who = environ.get(ROUTE, OTHER), environ.get(WHO)


def refused_by_head(channel: Any, request: Any) -> Error | None:
    """The application's refusal of a request whose body has not been sent; None if it wants the body.

    The application is called as usual, with a body that cannot be read. So all that it checks before it reads
    is checked, without a second list of checks. Nothing is changed by that: a resource that writes without a
    body refuses one first. Methods without a body are not tried, since they would do their work; a stranger's
    large body is refused with them.
    """
    if request.command not in ("DELETE", "PATCH", "POST", "PUT", "QUERY"):
        return RefusalError(strangers_body()) if request.is_from_stranger else None
    task = Task(channel, request)
    task.request_id = sent_id(request.headers) or new_id()
    environ = task.get_environment()
    environ["wsgi.input"], environ[BODY_AWAITED] = _NotYetSent(), True
    if request.is_from_stranger:
        environ[STRANGERS_BODY] = True
    environ.setdefault("CONTENT_LENGTH", "1")  # in chunks, so the length is not known yet
    answer: list[Any] = []
    token = current_request_id.set(task.request_id)
    try:
        body = b"".join(channel.server.application(environ, lambda *given: answer.extend(given)))
    except _BodyWantedError:
        return None
    finally:
        current_request_id.reset(token)
    status, headers = answer[:2]
    return AnsweredError(status, dict(headers), body, environ)


class RefusalTask(_ResponseHead, ErrorTask):  # type: ignore[misc]
    """The answer to a request that did not reach the application."""

    def execute(self) -> None:
        """Write the problem document; the connection ends after it."""
        error = self.request.error
        if isinstance(error, AnsweredError):
            self.request_id, self.route, self.who = error.request_id, error.route, error.who
            self.status, headers, body = error.answer
        else:
            self.request_id = sent_id(self.request.headers) or new_id()
            self.status, headers, body = rendered(refusal_of(error), self.request_id)
        self.response_headers.extend(headers.items())
        self.close_on_finish = True
        self.content_length = len(body)
        self.channel.lingers = True
        is_head = getattr(self.request, "command", None) == "HEAD"
        self.write(b"" if is_head else body)
