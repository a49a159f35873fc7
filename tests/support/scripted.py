"""A service that answers as a script says, and what it can answer."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kvstore_core.errors import ERRORS

Play = Callable[[BaseHTTPRequestHandler], None]


def answer(body: bytes = b"{}", status: int = 200, **headers: str) -> Play:
    """A complete answer; ``Retry_After`` is the header ``Retry-After``."""

    def play(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return play


def problem(code: str, headers: dict[str, str] | None = None, **members: Any) -> Play:
    """An error as the service reports it."""
    row = ERRORS[code]
    document = {"type": f"urn:kvstore:error:{code}", "title": row.title, "status": row.status, "code": code}
    return answer(json.dumps({**document, **members}).encode(), row.status, **(headers or {}))


def chunks(*parts: bytes, end: bool = False) -> Play:
    """A chunked answer, cut off unless ``end``."""

    def play(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in [*parts, b""] if end else parts:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.close_connection = True

    return play


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Script:
    """A service that answers the first request as the first entry says, and so on; the last entry
    answers all that follow."""

    url: str
    plays: list[Play] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def on_request(self, handler: BaseHTTPRequestHandler) -> None:
        """Note the request and play the next entry. Each connection has a thread of its own."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.seen.append(Seen(handler.command, handler.path, dict(handler.headers), body))
        self.plays[min(len(self.seen), len(self.plays)) - 1](handler)


@contextmanager
def scripted(tls: ssl.SSLContext | None = None) -> Iterator[Script]:
    """A service that behaves as the test says, and speaks TLS with ``tls``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client has gone, or does not speak TLS
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            playing.on_request(self)

        do_PUT = do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
    playing = Script(f"{scheme}://{host}:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield playing
    server.shutdown()
    thread.join()
    server.server_close()
