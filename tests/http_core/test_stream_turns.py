"""Streams that come at once do not keep the loop from other requests, however many they are."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing
from typing import Any

import gevent
import pytest

from kvstore_http.routes import SUBSCRIBE_PATH
from kvstore_http.server import server

pytestmark = pytest.mark.slow

STREAMS = 20


def test_requests_are_served_before_the_streams_that_came_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STREAMS_TURN_SECONDS", 0)
    served: list[str] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        served.append(environ["kvstore.raw_path"])
        start_response("200 OK", [("Content-Length", "0")])
        return []

    limits = {"max_body_bytes": 1000, "max_header_bytes": 1000, "max_connections": 50}
    listening = socket.create_server(("127.0.0.1", 0))
    with ExitStack() as open_ones:
        open_ones.enter_context(closing(server.HttpServer(application, listening, **limits)))
        # the loop, which is this thread's, has not seen any of them before all are there
        for path in ["/first", *[SUBSCRIBE_PATH] * STREAMS, "/last"]:
            client = socket.create_connection(listening.getsockname())
            open_ones.enter_context(closing(client))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        with gevent.Timeout(30):
            while len(served) < STREAMS + 2:
                gevent.sleep(0.001)
        assert served.count(SUBSCRIBE_PATH) == STREAMS
        assert {"/first", "/last"} <= set(served[: STREAMS // 4]), "they waited for the streams"
