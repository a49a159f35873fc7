"""``kvstore daemon``: the process that owns the store."""

from __future__ import annotations

import faulthandler
import gc
import logging
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import zmq

from kvstore_core.errors import EXIT_DONE, EXIT_ERROR, KvError
from kvstore_core.process.logging import LEVEL_SIGNALS, LogLevel, announcer
from kvstore_daemon.event_loop import Loop, Signals
from kvstore_daemon.peer_limits.connections import ConnectionLimit
from kvstore_daemon.publisher import Publisher
from kvstore_daemon.requests.router_socket import RouterSocket, make_identities_unpredictable
from kvstore_daemon.server import Server
from kvstore_daemon.settings import DaemonSettings
from kvstore_daemon.storage.interface import Engine
from kvstore_daemon.storage.open import open_engine
from kvstore_daemon.watchdog import ServiceManager

log = logging.getLogger("kvstore.daemon")

FRAME_FACTOR = 4
"""A frame this many times over the limit ends its sender's connection; up to there it gets an error."""

COLLECT_AFTER = (20_000, 20, 50)
"""New objects before the collector looks for cycles among them (Python's default is 700, 10, 10). A request
of 10,000 puts has more objects alive than that at any time, and collecting them took a fifth of its time."""

SWITCH_SECONDS = 0.0005
"""How long the engine's writer may hold the interpreter while the loop has a request to answer."""


def run(settings: DaemonSettings, manager: ServiceManager) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Call it from the main thread, with logging set up. 0 after a clean stop; 1, with one line in the log,
    where the daemon could not start or the engine failed. ``manager`` is told when the daemon is ready,
    that it works, and when it stops.
    """
    # SIGABRT is how a service manager ends a process that hangs: it leaves behind where that was
    faulthandler.enable()
    try:
        with ExitStack() as stack:
            _serve(settings, manager, stack)
    except KvError as error:
        announcer.error("kvstore daemon: %s", error.message)
        return EXIT_ERROR
    except Exception:
        log.critical("the daemon failed", exc_info=True)
        return EXIT_ERROR
    return EXIT_DONE


def _serve(settings: DaemonSettings, manager: ServiceManager, stack: ExitStack) -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    _allow_many_descriptors()
    make_identities_unpredictable()
    loop = stack.enter_context(closing(Loop()))
    change_level = partial(_change_level, LogLevel(settings.log_level))
    others: dict[int, Callable[[int], None]] = dict.fromkeys(LEVEL_SIGNALS, change_level)
    signals = stack.enter_context(Signals((signal.SIGTERM, signal.SIGINT), others))
    loop.watch(signals.fileno(), signals.drain)
    context = stack.enter_context(_context())
    engine: Engine = stack.enter_context(closing(open_engine(settings)))
    room = ConnectionLimit()
    publisher = Publisher(
        context, settings.changes, settings.subscriber_queue, settings.max_value_bytes, room
    )
    stack.callback(publisher.close)
    requests = RouterSocket(context, settings.requests, FRAME_FACTOR * settings.max_batch_bytes, room)
    stack.callback(requests.close)
    server = Server(loop, settings, engine, publisher, requests, room, manager)
    server.start()
    if settings.sync != "always":
        log.warning("--sync %s: a crash of the machine may lose writes that were acknowledged", settings.sync)
    _settle_memory()
    _announce(manager, requests=requests.endpoint, changes=publisher.endpoint, data=settings.data)
    while signals.received is None:
        server.turn()
    log.info("stopping after %s", signals.received.name)
    manager.stopping()
    server.stop()


def _change_level(level: LogLevel, number: int) -> None:
    announcer.info("kvstore daemon: the log level is now %s", level.change(number))


@contextmanager
def _context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context that is ended, once the sockets' linger is over, when the block is."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.max_sockets = 16_384
    try:
        yield context
    finally:
        context.term()


def _allow_many_descriptors() -> None:
    """Raise the soft limit to the hard one: each connection takes a descriptor, and the usual soft limit is
    1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _settle_memory() -> None:
    """Keep what lives as long as the daemon out of the collector's sight, and let it look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _announce(manager: ServiceManager, **where: str) -> None:
    """Say that requests are taken, and where."""
    places = ", ".join(f"{name} {place}" for name, place in where.items())
    announcer.info("kvstore daemon: ready, %s", places, extra=where)
    manager.ready(where)
