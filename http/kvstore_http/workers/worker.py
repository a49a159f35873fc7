"""One worker: the daemon's client, the feed, the application and the server, in one hub of gevent."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

import gevent
import zmq
from gevent.event import Event

from kvstore_core.access.login_file import CurveKeys
from kvstore_core.access.principal import UNRESTRICTED
from kvstore_core.errors import EXIT_DONE
from kvstore_core.process.logging import LEVEL_SIGNALS
from kvstore_core.process.sd_notify import Notifier
from kvstore_core.process.signals import Terminal
from kvstore_core.process.startup import raise_descriptor_limit, relax_garbage_collector
from kvstore_core.process.supervision import BEAT_SECONDS
from kvstore_http.access.callers import Callers
from kvstore_http.access.table_follower import TableFollower
from kvstore_http.app import create_app, short_path
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.inspection.inboxes import Inboxes
from kvstore_http.inspection.siblings import Siblings
from kvstore_http.inspection.slow_log import SlowLog
from kvstore_http.inspection.stream_list import StreamList
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.protocol.environ import WHO
from kvstore_http.resources.service.slow import SLOW
from kvstore_http.resources.service.subscribers import KICK, SUBSCRIBERS
from kvstore_http.server.access_log import AccessLog
from kvstore_http.server.certificate import LOOK_SECONDS, Certificate
from kvstore_http.server.server import HttpServer
from kvstore_http.server.short_path import ShortPath
from kvstore_http.settings import HttpSettings
from kvstore_http.streaming.broadcaster import Broadcaster
from kvstore_http.streaming.change_feed import ChangeFeed

log = logging.getLogger("kvstore.http")

GRACE_SECONDS = 4.0
"""How long requests in flight and unsent ends of streams are waited for after SIGTERM."""

POLL_SECONDS = 0.02


def serve(
    settings: HttpSettings,
    sockets: Sequence[socket.socket],
    keys: CurveKeys | None,
    certificate: Certificate | None,
    terminal: Terminal | None,
    counters: WorkerCounters,
    inboxes: Inboxes,
    notifier: Notifier,
    on_ready: Callable[[], None],
    on_level: Callable[[int], None],
) -> int:
    """Serve on bound ``sockets`` until SIGTERM or SIGINT; returns the exit status.

    ``on_ready`` is called when connections are accepted; after that ``notifier`` says that the hub turns, and
    when no more are accepted. The daemon need not be there: requests are answered with 503 until it is. With
    ``keys``, the facade's own, access is on. What happens is counted in ``counters``. The files of the
    ``certificate`` are looked at once a minute and at SIGHUP, unless that is the end of the ``terminal``,
    which stops the process. Other workers ask this one by its place among the ``inboxes``.
    ``on_level`` changes the log level; it is called with the number of a signal that asks for it.
    """
    raise_descriptor_limit()
    stop = Event()
    hub = gevent.get_hub()
    hub.print_exception = _log_failure
    # never closed: a second signal must not end the process while it stops
    _ending = _watch((signal.SIGTERM, signal.SIGINT), lambda _: stop.set())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    daemon = DaemonClient(context, settings.requests, settings.daemon_timeout_ms, counters, keys)
    feed = ChangeFeed(context, daemon, settings.changes, keys)
    broadcaster = Broadcaster(daemon, feed, settings, counters)
    callers = None if keys is None else _callers(daemon, feed, broadcaster, settings, counters, keys)
    siblings = Siblings(inboxes, counters.number, counters.shared_counters)
    streams = StreamList(broadcaster, daemon, counters.number)
    siblings.answer(SUBSCRIBERS, streams.shown)
    siblings.answer(KICK, streams.kick)
    slow_log = SlowLog(settings.slow_log_ms, counters.number)
    siblings.answer(SLOW, slow_log.shown)
    app = create_app(daemon, feed, broadcaster, settings, counters, siblings, callers)
    access_log = AccessLog(
        settings.access_log, settings.slow_request_ms, slow_log, shows_who=callers is not None
    )
    short = short_path(daemon, settings, callers)
    servers = [
        _server(app, short, sock, certificate, counters, access_log, settings, callers) for sock in sockets
    ]

    def change_level(number: int) -> None:
        on_level(number)
        access_log.refresh()

    watchers = _watch(LEVEL_SIGNALS, change_level)
    if certificate is not None:
        watchers += _keep_fresh(certificate, counters, terminal, stop)
    relax_garbage_collector()
    on_ready()
    beats = hub.loop.timer(BEAT_SECONDS, BEAT_SECONDS)
    beats.start(notifier.beat)
    stop.wait()
    notifier.stopping()
    _drain(servers, feed, broadcaster)
    followers = () if callers is None else (callers.follower,)
    for each in (*servers, siblings, broadcaster, feed, *followers, daemon, beats):
        each.close()
    context.term()
    for watcher in watchers:  # at the end: without them such a signal would end the process
        watcher.close()
    return EXIT_DONE


def _log_failure(context: object, kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What gevent would print of an exception that reached the hub."""
    log.error("%s failed", context, exc_info=(kind, error, trace))


def _watch(numbers: Sequence[int], act: Callable[[int], object]) -> list[Any]:
    """Have the hub call ``act`` with each of these signals that comes, until its watcher is closed."""
    watchers = [gevent.get_hub().loop.signal(number) for number in numbers]
    for watcher, number in zip(watchers, numbers, strict=True):
        watcher.start(act, number)
    return watchers


def _keep_fresh(
    certificate: Certificate, counters: WorkerCounters, terminal: Terminal | None, stop: Event
) -> list[Any]:
    """Look at the certificate's files from time to time, and at SIGHUP; returns the watchers."""

    def look() -> None:
        certificate.refresh()
        counters.note_certificate(certificate.ends_at, is_refused=certificate.is_refused)

    look()  # this worker may be one that was started again, days after its parent read the files
    timer = gevent.get_hub().loop.timer(LOOK_SECONDS, LOOK_SECONDS)
    timer.start(look)

    def hang_up(_number: int) -> None:
        if terminal is not None and terminal.has_hung_up:
            stop.set()
        else:
            look()

    return [timer, *_watch((signal.SIGHUP,), hang_up)]


def _callers(
    daemon: DaemonClient,
    feed: ChangeFeed,
    broadcaster: Broadcaster,
    settings: HttpSettings,
    counters: WorkerCounters,
    keys: CurveKeys,
) -> Callers:
    """Who may come in, by the daemon's table; whoever may no longer is told so wherever they wait."""
    follower = TableFollower(daemon, settings.daemon_timeout_ms / 1000)
    callers = Callers(follower, counters, keys.server_key)
    feed.on_access_tag = follower.hear
    broadcaster.judge_by(callers.judged)
    follower.listeners += [broadcaster.review, feed.end_waits_of_refused]
    return callers


def _server(
    app: object,
    short: ShortPath,
    sock: socket.socket,
    certificate: Certificate | None,
    counters: WorkerCounters,
    access_log: AccessLog,
    settings: HttpSettings,
    callers: Callers | None,
) -> HttpServer:
    asks_who: dict[str, Any] = {"environ": {WHO: UNRESTRICTED}}
    if callers is not None:
        asks_who = {"is_stranger": callers.is_stranger}
    return HttpServer(
        app,
        sock,
        counters,
        access_log,
        settings.stream_buffer_bytes,
        settings.max_held_bytes,
        certificate,
        short_path=short,
        max_body_bytes=settings.max_body_bytes,
        max_header_bytes=settings.max_header_bytes,
        max_connections=settings.max_connections,
        **asks_who,
    )


def _drain(servers: Sequence[HttpServer], feed: ChangeFeed, broadcaster: Broadcaster) -> None:
    """Take no more connections, end the streams, and let the requests in flight finish."""
    loop = gevent.get_hub().loop
    for server in servers:
        # in the hub, where requests that have already arrived can be started
        loop.run_callback(server.stop_accepting)
    gevent.sleep(0)
    broadcaster.stop()
    feed.end_waits()
    with gevent.Timeout(GRACE_SECONDS, False):
        while len(broadcaster) or not all(server.is_idle for server in servers):
            gevent.sleep(POLL_SECONDS)
