"""The facade's own server, workers and router with one route that answers a constant.

    python -m kvstore_bench.constant PORT WORKERS

What it does not do is the facade's work: reading the request, asking the daemon, making the headers.
The response has the length and the headers of that of a real GET.
"""

from __future__ import annotations

import sys
from typing import Any

import falcon

from kvstore_bench.workload import SMALL, value
from kvstore_core.process.sd_notify import Notifier
from kvstore_core.process.startup import relax_garbage_collector
from kvstore_core.process.supervision import BEAT_SECONDS
from kvstore_http.protocol.raw_router import RawPathRouter
from kvstore_http.server.listen import bind
from kvstore_http.workers.parent import Workers, keep_only

HEADERS = {
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "accept-ranges": "bytes",
    "etag": '"123456"',
    "last-modified": "Mon, 01 Jan 2024 00:00:00 GMT",
    "x-kvstore-revision": "123456",
    "x-kvstore-create-revision": "123456",
    "x-kvstore-version": "1",
}
VALUE = value(SMALL)


class Constant:
    """The resource."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response, key: str) -> None:  # noqa: ARG002
        resp.set_headers(HEADERS)
        resp.content_type = "application/octet-stream"
        resp.data = VALUE


def app() -> falcon.App[Any, Any]:
    """The application, mounted as the facade mounts its own."""
    router = RawPathRouter()
    resource = Constant()
    router.mount("/v1/kv/{key}", resource, {"GET": resource.on_get})
    return falcon.App(router=router)


def serve(sock: Any, notifier: Notifier) -> int:
    """One worker; runs until it is killed."""
    from gevent import get_hub
    from gevent.event import Event

    from kvstore_http.server.server import HttpServer

    hub = get_hub()
    server = HttpServer(app(), sock, max_body_bytes=2**20, max_header_bytes=2**16, max_connections=20_000)
    relax_garbage_collector()
    notifier.ready({})
    beats = hub.loop.timer(BEAT_SECONDS, BEAT_SECONDS)
    beats.start(notifier.beat)
    Event().wait()
    server.close()
    return 0


def main() -> int:
    """As many workers as asked for, also if that is one."""
    port, count = map(int, sys.argv[1:])
    shares = bind(f"127.0.0.1:{port}", count)

    def run(number: int, notifier: Notifier) -> int:
        return serve(keep_only(shares, number)[0], notifier)

    def say(message: str) -> None:
        print(message, flush=True)

    return Workers(count, run, say, Notifier(), lambda: say("ready"), lambda _: None).run()


if __name__ == "__main__":
    sys.exit(main())
