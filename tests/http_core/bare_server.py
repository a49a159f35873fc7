"""The server alone, with a small application that shows what reaches it; run as a process.

Arguments are names of constants of the server or its connections, with values that make a test short:
NAME=SECONDS; and ``certificate=FILE``, with which it speaks TLS.
The port is the one line on stdout.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import gevent.event

from kvstore_http.server import connection, server
from kvstore_http.server.certificate import Certificate

MAX_BODY = 100_000
MAX_HEADER = 8_192
MAX_CONNECTIONS = 50
BIG_BLOCKS = 3_000
BLOCK = bytes(range(256)) * 64

gone: list[str] = []


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """One route for each thing to look at."""
    path = environ["kvstore.raw_path"]
    if path == "/big":
        start_response("200 OK", [("Content-Length", str(BIG_BLOCKS * len(BLOCK)))])
        return big()
    if path == "/big-at-once":
        start_response("200 OK", [("Content-Length", str(BIG_BLOCKS * len(BLOCK)))])
        return [BLOCK * BIG_BLOCKS]
    if path == "/fail":
        raise RuntimeError("on purpose")
    if path == "/nothing":
        start_response("304 Not Modified", [])
        return []
    if path == "/piecewise":
        start_response("200 OK", [])
        return iter((b"one,", b"two"))
    if path == "/slow":
        gevent.sleep(0.1)
    if path == "/until-gone":
        while not environ["waitress.client_disconnected"]():
            gevent.sleep(0.01)
        gone.append(environ["kvstore.raw_query"])
    body = json.dumps(
        {
            "method": environ["REQUEST_METHOD"],
            "path": path,
            "query": environ["kvstore.raw_query"],
            "body": environ["wsgi.input"].read().decode("latin-1"),
            "gone": gone,
            "pid": os.getpid(),
            "scheme": environ["wsgi.url_scheme"],
        }
    ).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def big() -> Iterator[bytes]:
    """More than any buffer takes."""
    try:
        for _ in range(BIG_BLOCKS):
            yield BLOCK
    except GeneratorExit:
        gone.append("big")
        raise


def main() -> None:
    """Serve until SIGTERM."""
    certificate = None
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        if name == "certificate":
            certificate = Certificate(value, None)
            continue
        for module in (server, connection):
            if hasattr(module, name):
                setattr(module, name, float(value))
    sock = socket.create_server(("127.0.0.1", 0))
    bare = server.HttpServer(
        application,
        sock,
        certificate=certificate,
        max_body_bytes=MAX_BODY,
        max_header_bytes=MAX_HEADER,
        max_connections=MAX_CONNECTIONS,
    )
    stopped = gevent.event.Event()
    gevent.signal_handler(signal.SIGTERM, stopped.set)
    sys.stdout.write(f"{sock.getsockname()[1]}\n")
    sys.stdout.flush()
    stopped.wait()
    bare.close()


if __name__ == "__main__":
    main()
