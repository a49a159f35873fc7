"""``kvstore http``: the facade as a process, or as several under one parent."""

from __future__ import annotations

import faulthandler
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from socket import socket
from typing import Any

from kvstore_core.errors import EXIT_ERROR, KvError
from kvstore_core.process.logging import LogLevel, announcer
from kvstore_core.process.sd_notify import Notifier
from kvstore_core.process.startup import patiently
from kvstore_http.metrics.counters import SharedCounters, WorkerCounters
from kvstore_http.server.listen import bind, shared, url_of
from kvstore_http.settings import HttpSettings
from kvstore_http.workers.parent import Workers, keep_only


def run(settings: HttpSettings, notifier: Notifier, inherited: Sequence[socket] = ()) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Call it from the main thread of a process in which gevent and ZeroMQ have not been used, with logging
    set up. One worker runs in this very process, several in children that end when it ends. 0 after a
    clean stop; 1, with one line in the log, where the address cannot be had or no worker could start.
    ``notifier`` says when the facade is ready, that it works, and when it stops. Where listening sockets were
    ``inherited``, all workers accept on them, and nothing is bound.
    """
    # a process that hangs is ended with SIGABRT: it then logs where it hangs
    faulthandler.enable()
    try:
        shares = shared(inherited, settings.workers) or patiently(
            partial(bind, settings.http, settings.workers)
        )
    except KvError as error:
        announcer.error("kvstore http: %s", error.message)
        return EXIT_ERROR
    where = {"url": url_of(shares[0][0]), "requests": settings.requests, "changes": settings.changes}
    announce = partial(_announce, notifier, where)
    counters = SharedCounters(settings.workers)
    level = LogLevel("http", settings.log_level)
    if settings.workers == 1:
        counters.note_start(0, os.getpid())
        return _serve(settings, shares[0], 0, counters, notifier, announce, level.change)

    def serve(number: int, parent: Notifier) -> int:
        sockets, is_ready = keep_only(shares, number), partial(parent.ready, {})
        return _serve(settings, sockets, number, counters, parent, is_ready, lambda _: level.follow())

    warn = partial(announcer.warning, "kvstore http: %s")
    return Workers(settings.workers, serve, warn, notifier, announce, level.change, counters).run()


def _serve(
    settings: HttpSettings,
    sockets: Sequence[socket],
    number: int,
    counters: SharedCounters,
    notifier: Notifier,
    on_ready: Callable[[], None],
    on_level: Callable[[int], None],
) -> int:
    _name_worker(number)
    # Not at the top: gevent and ZeroMQ belong to the workers, not to their parent.
    from kvstore_http.app import request_cells
    from kvstore_http.workers.worker import serve

    worker_counters = WorkerCounters(counters, number, request_cells())
    return serve(settings, sockets, worker_counters, notifier, on_ready, on_level)


def _name_worker(number: int) -> None:
    """Have every line that this process logs from now on say which worker it is from."""
    make = logging.getLogRecordFactory()

    def with_worker(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.worker = number
        return record

    logging.setLogRecordFactory(with_worker)


def _announce(notifier: Notifier, where: dict[str, str]) -> None:
    """Say that requests are taken, and where."""
    line = "kvstore http: ready, %(url)s, requests %(requests)s, changes %(changes)s"
    announcer.info(line, where, extra=where)
    notifier.ready(where)
