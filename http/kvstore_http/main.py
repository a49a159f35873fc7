"""``kvstore http``: the facade as a process, or as several under one parent."""

from __future__ import annotations

import faulthandler
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from socket import socket
from typing import TYPE_CHECKING, Any

from kvstore_core.access.login_file import CurveKeys, login_for
from kvstore_core.errors import EXIT_ERROR, KvError
from kvstore_core.process.logging import LogLevel, announcer
from kvstore_core.process.sd_notify import Notifier
from kvstore_core.process.signals import Terminal
from kvstore_core.process.startup import patiently
from kvstore_http.inspection.inboxes import Inboxes
from kvstore_http.metrics.counters import SharedCounters, WorkerCounters
from kvstore_http.server.listen import bind, shared, url_of
from kvstore_http.settings import HttpSettings
from kvstore_http.workers.parent import Workers, keep_only

if TYPE_CHECKING:
    from kvstore_http.server.certificate import Certificate


def run(settings: HttpSettings, notifier: Notifier, inherited: Sequence[socket] = ()) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Call it from the main thread of a process in which gevent and ZeroMQ have not been used, with logging
    set up. One worker runs in this very process, several in children that end when it ends. 0 after a
    clean stop; 1, with one line in the log, where the address cannot be had, the facade's keys or the
    certificate cannot be used, or no worker could start.
    ``notifier`` says when the facade is ready, that it works, and when it stops. Where listening sockets were
    ``inherited``, all workers accept on them, and nothing is bound.
    """
    # a process that hangs is ended with SIGABRT: it then logs where it hangs
    faulthandler.enable()
    try:
        keys, certificate = _own_keys(settings), _certificate(settings)
        shares = shared(inherited, settings.workers) or patiently(
            partial(bind, settings.http, settings.workers)
        )
    except KvError as error:
        announcer.error("kvstore http: %s", error.message)
        return EXIT_ERROR
    scheme = "http" if certificate is None else "https"
    where = {"url": url_of(shares[0][0], scheme), "requests": settings.requests, "changes": settings.changes}
    announce = partial(_announce, notifier, where)
    counters, inboxes = SharedCounters(settings.workers), Inboxes(settings.workers)
    level = LogLevel("http", settings.log_level)
    if settings.workers == 1:
        counters.note_start(0, os.getpid())
        terminal, on_level = Terminal(), level.change
        secrets = keys, certificate
        of_all = counters, inboxes
        return _serve(settings, shares[0], secrets, terminal, 0, of_all, notifier, announce, on_level)

    def serve(number: int, parent: Notifier) -> int:
        sockets, is_ready = keep_only(shares, number), partial(parent.ready, {})
        on_level = lambda _: level.follow()  # noqa: E731
        secrets, of_all = (keys, certificate), (counters, inboxes)
        return _serve(settings, sockets, secrets, None, number, of_all, parent, is_ready, on_level)

    warn = partial(announcer.warning, "kvstore http: %s")
    workers = Workers(
        settings.workers,
        serve,
        warn,
        notifier,
        announce,
        level.change,
        counters,
        rereads_files=certificate is not None,
    )
    return workers.run()


def _certificate(settings: HttpSettings) -> Certificate | None:
    """What ``--tls-cert`` and ``--tls-key`` name; None without TLS. Raises KvError if it cannot be used."""
    if settings.tls_cert is None:
        return None
    # not at the top: ssl is a good part of the memory of a process that only waits
    from kvstore_http.server.certificate import Certificate

    return Certificate(settings.tls_cert, settings.tls_key)


def _own_keys(settings: HttpSettings) -> CurveKeys | None:
    """What the facade shows the daemon; None while access is off. Raises KvError where it has no keys."""
    if settings.facade_key_file is None:
        return None
    keys = login_for(settings.facade_key_file, settings.requests).keys
    if keys is None:
        raise KvError(
            "not_allowed",
            f"--facade-key-file {settings.facade_key_file} has no keys for {settings.requests}: it must be "
            "facade.key of the daemon's data folder, or a copy of it",
        )
    return keys


def _serve(
    settings: HttpSettings,
    sockets: Sequence[socket],
    secrets: tuple[CurveKeys | None, Certificate | None],
    terminal: Terminal | None,
    number: int,
    of_all: tuple[SharedCounters, Inboxes],
    notifier: Notifier,
    on_ready: Callable[[], None],
    on_level: Callable[[int], None],
) -> int:
    _name_worker(number)
    # Not at the top: gevent and ZeroMQ belong to the workers, not to their parent.
    from kvstore_http.app import request_cells
    from kvstore_http.workers.worker import serve

    shared_counters, inboxes = of_all
    counters = WorkerCounters(shared_counters, number, request_cells())
    return serve(settings, sockets, *secrets, terminal, counters, inboxes, notifier, on_ready, on_level)


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
