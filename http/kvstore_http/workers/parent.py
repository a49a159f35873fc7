"""The parent of several workers: it holds the sockets, starts workers again, and stops them all.

It forks before gevent and ZeroMQ exist in the process, since neither survives a fork, and it imports
neither: the parent of the workers is a small process that only waits.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NoReturn

from kvstore_core.errors import EXIT_ERROR
from kvstore_core.process.linux import end_with_parent
from kvstore_core.process.logging import LEVEL_SIGNALS
from kvstore_core.process.sd_notify import Notice, Notifier
from kvstore_core.process.supervision import Child, Supervisor
from kvstore_http.metrics.counters import SharedCounters
from kvstore_http.server.listen import Shares

Serve = Callable[[int, Notifier], int]
"""Runs worker number N until a signal stops it, says through the notifier that it is ready and then every
``BEAT_SECONDS`` that it works, and returns the exit status."""

log = logging.getLogger("kvstore.http")

STOP_SECONDS = 4.8
"""Workers that are still there this long after SIGTERM are killed."""


class Worker(Child):
    """One worker of ``workers``."""

    def __init__(self, number: int, workers: Workers) -> None:
        super().__init__(f"worker {number}")
        self._number = number
        self._workers = workers

    def spawn(self, notices: int) -> int:
        parent = os.getpid()
        pid = self._workers.signals.fork()
        if not pid:
            self._run(parent, notices)
        self._workers.shared_counters.note_start(self._number, pid)
        return pid

    def _run(self, parent: int, notices: int) -> NoReturn:
        status = EXIT_ERROR
        try:
            if end_with_parent(parent):
                notifier = Notifier(descriptor=os.dup(notices), is_watched=True)
                self._workers.leave()
                status = self._workers.serve(self._number, notifier)
        except BaseException:
            log.critical("the worker failed", exc_info=True)
        finally:
            logging.shutdown()
            os._exit(status)

    def clear_away(self) -> int:
        self._workers.shared_counters.note_end(self._number)
        return super().clear_away()


class Workers(Supervisor[Worker]):
    """``count`` workers, which run ``serve`` until SIGTERM or SIGINT.

    ``shared_counters`` says which of them run, and how often one was started again. ``on_ready`` is called
    once all were ready, and ``report`` with what becomes of one. ``on_level`` is called with the number of a
    signal that is about the log level, which all workers get too. With ``rereads_files`` they get SIGHUP.
    """

    def __init__(
        self,
        count: int,
        serve: Serve,
        report: Callable[[str], None],
        notifier: Notifier,
        on_ready: Callable[[], None],
        on_level: Callable[[int], None],
        shared_counters: SharedCounters | None = None,
        *,
        rereads_files: bool = False,
    ) -> None:
        self.serve = serve
        self.shared_counters = shared_counters or SharedCounters(count)
        self._report = report
        self._on_ready = on_ready
        self._on_level = on_level
        workers = [Worker(number, self) for number in range(count)]
        super().__init__(workers, (signal.SIGTERM, signal.SIGINT), notifier, rereads_files=rereads_files)

    def report(self, news: str) -> None:
        self._report(news)

    def change_level(self, number: int) -> None:
        """Do as the signal says, and pass it on."""
        self._on_level(number)
        for worker in self._running():
            worker.signal(number)

    def heard(self, child: Worker, notices: Sequence[Notice], *, was_late: bool) -> None:  # noqa: ARG002
        """Note who is ready."""
        if any(notice.where is not None for notice in notices):
            # one that came while it started was lost on it; it only looks which level holds
            child.signal(LEVEL_SIGNALS[0])
        if not self.is_ready and all(worker.liveness.is_ready for worker in self.children):
            self.is_ready = True
            self._on_ready()

    def has_ended(self, child: Worker, how: str, status: int | None) -> None:
        """Start another later, or give up where the facade was never ready."""
        what = f"{child.label if status is None else child.who} {how}"
        if self.is_ready or child.liveness.is_ready:
            self.report(f"{what}; starting another in {child.start_later():g} s")
        else:
            self.report(f"{what} before it was ready; giving up")
            self.failure = EXIT_ERROR

    def stop(self) -> None:
        """Stop all at once."""
        running = self._running()
        self.terminate(running, STOP_SECONDS)
        for worker in running:
            self.clear_away(worker)

    def _running(self) -> list[Worker]:
        return [worker for worker in self.children if worker.is_running]


def keep_only(shares: Shares, number: int) -> Sequence[socket.socket]:
    """The sockets of worker ``number``; the others, which are inherited too, are closed.

    A listening socket that stays open in a process that never accepts on it takes its share of the
    connections and lets them wait for ever.
    """
    mine = shares[number]
    for sock in chain.from_iterable(shares):
        if sock not in mine:
            sock.close()
    return mine
