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
from kvstore_core.process.address_in_use import patiently
from kvstore_core.process.logging import LogLevel, announcer
from kvstore_http.metrics.shared_counters import SharedCounters
from kvstore_http.server.listen import Shares, bind, shared, url_of
from kvstore_http.settings import HttpSettings
from kvstore_http.workers.heartbeat import Herald, Overseer, ServiceManager
from kvstore_http.workers.parent import Workers, keep_only

PLACES = "%(url)s, requests %(requests)s, changes %(changes)s"


def run(settings: HttpSettings, manager: ServiceManager, inherited: Sequence[socket] = ()) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Call it from the main thread of a process in which gevent and ZeroMQ have not been used, with logging
    set up. One worker runs in this very process, several in children that end when it ends. 0 after a
    clean stop; 1, with one line in the log, where the address cannot be had or no worker could start.
    ``manager`` is told when the facade is ready, that it works, and when it stops. Where listening
    sockets were ``inherited``, all workers accept on them, and nothing is bound.
    """
    # SIGABRT is how a process that hangs is ended: it leaves behind where that was
    faulthandler.enable()
    try:
        shares = shared(inherited, settings.workers) or patiently(
            partial(bind, settings.http, settings.workers)
        )
    except KvError as error:
        announcer.error("kvstore http: %s", error.message)
        return EXIT_ERROR
    where = {"url": url_of(shares[0][0]), "requests": settings.requests, "changes": settings.changes}
    overseer = Herald(manager, where, lambda: _announce(where))
    shared_counters = SharedCounters(settings.workers)
    level = LogLevel("http", settings.log_level)
    if settings.workers == 1:
        shared_counters.note_start(0, os.getpid())
        return _serve(settings, shares[0], 0, shared_counters, overseer, level.change)
    return _run_workers(settings, shares, shared_counters, overseer, level)


def _run_workers(
    settings: HttpSettings,
    shares: Shares,
    shared_counters: SharedCounters,
    overseer: Overseer,
    level: LogLevel,
) -> int:
    def serve(number: int, parent: Overseer) -> int:
        return _serve(
            settings, keep_only(shares, number), number, shared_counters, parent, lambda _: level.follow()
        )

    return Workers(settings.workers, serve, _warn, overseer, level.change, shared_counters).run()


def _serve(
    settings: HttpSettings,
    sockets: Sequence[socket],
    number: int,
    shared_counters: SharedCounters,
    overseer: Overseer,
    on_level: Callable[[int], None],
) -> int:
    _name_worker(number)
    # Not at the top: gevent and ZeroMQ belong to the workers, not to their parent.
    from kvstore_http.app import request_cells
    from kvstore_http.metrics.counters import WorkerCounters
    from kvstore_http.workers.worker import serve

    counters = WorkerCounters(shared_counters, number, request_cells())
    return serve(settings, sockets, counters, overseer, on_level)


def _name_worker(number: int) -> None:
    """Have every line that this process logs from now on say which worker it is from."""
    make = logging.getLogRecordFactory()

    def named(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.worker = number
        return record

    logging.setLogRecordFactory(named)


def _announce(where: dict[str, str]) -> None:
    """Say that requests are taken, and where."""
    announcer.info(f"kvstore http: ready, {PLACES}", where, extra=where)


def _warn(message: str) -> None:
    """Say what became of a worker."""
    announcer.warning("kvstore http: %s", message)
