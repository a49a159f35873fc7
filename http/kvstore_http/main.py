"""``kvstore http``: the facade as a process, or as several under one parent."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from socket import socket

from kvstore_client.errors import EXIT_ERROR, KvError
from kvstore_http.listening import bind, url_of
from kvstore_http.settings import HttpSettings
from kvstore_http.workers import Workers, keep_only


def run(settings: HttpSettings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Call it from the main thread of a process in which gevent and ZeroMQ have not been used. One
    worker runs in this very process, several in children that end when it ends. 0 after a clean
    stop; 1, with one line on stderr, where the address cannot be had or no worker could start.
    """
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        stream=sys.stderr,
    )
    try:
        sockets = bind(settings.http, settings.workers)
    except KvError as error:
        _say(error.message)
        return EXIT_ERROR
    endpoints = f"requests {settings.requests}, changes {settings.changes}"
    ready = f"ready, {url_of(sockets[0])}, {endpoints}"
    if settings.workers == 1:
        return _serve(settings, sockets, lambda: _say(ready))
    return _run_workers(settings, sockets, lambda: _say(ready))


def _run_workers(settings: HttpSettings, sockets: Sequence[socket], on_ready: Callable[[], None]) -> int:
    def serve(number: int, tell_ready: Callable[[], None]) -> int:
        return _serve(settings, keep_only(sockets, number), tell_ready)

    return Workers(settings.workers, serve, _say, on_ready).run()


def _serve(settings: HttpSettings, sockets: Sequence[socket], on_ready: Callable[[], None]) -> int:
    # Not at the top: gevent and ZeroMQ belong to the workers, not to their parent.
    from kvstore_http.worker import serve

    return serve(settings, sockets, on_ready)


def _say(message: str) -> None:
    """A line for whoever started the service, and for scripts that wait for it."""
    sys.stderr.write(f"kvstore http: {message}\n")
    sys.stderr.flush()
