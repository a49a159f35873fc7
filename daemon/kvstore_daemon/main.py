"""``kvstore daemon``: the process that owns the store."""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from kvstore_core.distribution import how_to_install
from kvstore_core.errors import EXIT_DONE, EXIT_ERROR, KvError
from kvstore_core.process.logging import LEVEL_SIGNALS, LogLevel, announcer
from kvstore_core.process.sd_notify import Notifier
from kvstore_core.process.signals import Signals
from kvstore_core.process.startup import raise_descriptor_limit, relax_garbage_collector
from kvstore_daemon.access.authority import open_authority
from kvstore_daemon.access.zap import ZapHandler
from kvstore_daemon.backups import Backups, OnBegun
from kvstore_daemon.bind import Context
from kvstore_daemon.event_loop import Loop
from kvstore_daemon.peer_limits.connections import ConnectionLimit
from kvstore_daemon.publisher import Publisher
from kvstore_daemon.requests.router_socket import RouterSocket, make_identities_unpredictable
from kvstore_daemon.server import Server
from kvstore_daemon.settings import DaemonSettings
from kvstore_daemon.storage.interface import Engine, EngineSettings, EvictionLimit, Retention
from kvstore_daemon.storage.lmdb_store.engine import LmdbEngine
from kvstore_daemon.storage.offline.backup import back_up

log = logging.getLogger("kvstore.daemon")


def _etcd_engine(settings: EngineSettings) -> Engine:
    try:
        from kvstore_daemon.storage.etcd_store.engine import EtcdEngine
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("grpc", "google"):
            raise
        message = f"--engine etcd: needs grpcio and protobuf; install them: {how_to_install('etcd')}"
        raise KvError("bad_request", message) from error
    return EtcdEngine(settings)


ENGINES: dict[str, Callable[[EngineSettings], Engine]] = {"lmdb": LmdbEngine, "etcd": _etcd_engine}
"""By the scheme of ``--engine``. No other module above the engines names one."""

FRAME_FACTOR = 4
"""A frame this many times over the limit ends its sender's connection; up to there it gets an error."""

SWITCH_SECONDS = 0.0005
"""How long another thread may hold the interpreter while the loop has a request to answer."""


def run(settings: DaemonSettings, notifier: Notifier) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Call it from the main thread, with logging set up. 0 after a clean stop; 1, with one line in the log,
    where the daemon could not start or the engine failed. ``notifier`` says when the daemon is ready, that it
    works, and when it stops.
    """
    # a process that hangs is ended with SIGABRT: it then logs where it hangs
    faulthandler.enable()
    try:
        with ExitStack() as stack:
            _serve(settings, notifier, stack)
    except KvError as error:
        announcer.error("kvstore daemon: %s", error.message)
        return EXIT_ERROR
    except Exception:
        log.critical("the daemon failed", exc_info=True)
        return EXIT_ERROR
    return EXIT_DONE


def _serve(settings: DaemonSettings, notifier: Notifier, stack: ExitStack) -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    raise_descriptor_limit()
    make_identities_unpredictable()
    loop = stack.enter_context(closing(Loop()))
    level = LogLevel("daemon", settings.log_level)
    stopped_by: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if number in LEVEL_SIGNALS:
            level.change(number)
        else:
            stopped_by.append(number)

    signals = stack.enter_context(Signals((signal.SIGTERM, signal.SIGINT), LEVEL_SIGNALS, on_signal))
    loop.watch(signals.fileno(), signals.drain)
    # at the end it waits until the sockets' linger is over
    context: Context = stack.enter_context(zmq.Context())
    context.max_sockets = 16_384

    def is_over() -> bool:
        signals.drain()
        return bool(stopped_by)

    try:
        engine = stack.enter_context(closing(open_engine(settings, is_over)))
    except KvError:
        if stopped_by:
            return
        raise
    authority = open_authority(settings)  # the engine has made the folder, and keeps other daemons out
    limit = ConnectionLimit()
    if authority.is_on:
        zap = stack.enter_context(closing(ZapHandler(context, authority)))
        loop.watch(zap.fileno(), zap.answer)
    publisher = Publisher(
        context, settings.changes, settings.subscriber_queue, settings.max_value_bytes, limit, authority
    )
    stack.callback(publisher.close)
    largest = FRAME_FACTOR * settings.max_batch_bytes
    requests = RouterSocket(context, settings.requests, largest, limit, authority)
    stack.callback(requests.close)
    backups = stack.enter_context(closing(Backups(engine, settings.data, partial(_back_up, settings.data))))
    server = Server(loop, settings, engine, publisher, requests, limit, notifier, authority, backups)
    server.start()
    if settings.sync != "always":
        log.warning("--sync %s: a crash of the machine may lose writes that were acknowledged", settings.sync)
    relax_garbage_collector()
    _announce(notifier, requests=requests.endpoint, changes=publisher.endpoint, data=settings.data)
    while not stopped_by:
        server.turn()
    log.info("stopping after %s", stopped_by[0].name)
    notifier.stopping()
    server.stop()


def open_engine(settings: DaemonSettings, is_over: Callable[[], bool]) -> Engine:
    """Open the engine that ``settings.engine`` names; raises KvError saying why it cannot be used, or once
    ``is_over`` says that it need not be opened any more."""
    scheme, colon, _ = settings.engine.partition(":")
    make = ENGINES.get(scheme)
    if make is None or not colon:
        known = ", ".join(f"{name}:" for name in ENGINES)
        raise KvError("bad_request", f"--engine {settings.engine!r} is not known; there is: {known}")
    retention = Retention(settings.retain_events, settings.retain_bytes, settings.retain_age_ms)
    engine = make(
        EngineSettings(
            settings.engine,
            settings.data,
            settings.sync,
            settings.sync_interval_ms,
            settings.max_store_bytes,
            retention,
            settings.max_value_bytes,
            settings.max_atomic_ops,
            settings.max_atomic_bytes,
            _eviction(settings),
        )
    )
    engine.open(is_over)
    return engine


def _eviction(settings: DaemonSettings) -> EvictionLimit | None:
    """What is to be evicted, below prefixes none of which begins with another; None for nothing."""
    if settings.evict_bytes is None:
        return None
    prefixes: list[str] = []
    for prefix in sorted(settings.evict_prefix):
        if not prefixes or not prefix.startswith(prefixes[-1]):
            prefixes.append(prefix)
    return EvictionLimit(tuple(prefix.encode() for prefix in prefixes), settings.evict_bytes)


def _back_up(
    folder: str, write: Callable[[bytes], Any], created_at: int, on_begun: OnBegun
) -> dict[str, Any]:
    return back_up(Path(folder), write, created_at, on_begun=on_begun)._asdict()


def _announce(notifier: Notifier, **where: str) -> None:
    """Say that requests are taken, and where."""
    places = ", ".join(f"{name} {place}" for name, place in where.items())
    announcer.info("kvstore daemon: ready, %s", places, extra=where)
    notifier.ready(where)
