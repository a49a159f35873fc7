"""The parent of several workers: it holds the sockets, starts workers again, and stops them all.

It forks before gevent and ZeroMQ exist in the process, since neither survives a fork, and it imports
neither: the parent of the workers is a small process that only waits.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import NoReturn

from kvstore_core.errors import EXIT_DONE, EXIT_ERROR
from kvstore_core.process.linux import end_with_parent
from kvstore_core.process.liveness import BEAT_SECONDS, Liveness
from kvstore_core.process.logging import LEVEL_SIGNALS
from kvstore_http.metrics.shared_counters import SharedCounters
from kvstore_http.server.listen import Shares
from kvstore_http.workers.heartbeat import Overseer

Serve = Callable[[int, Overseer], int]
"""Runs worker number N until it is told to stop, tells its overseer once it is ready and then every
``BEAT_SECONDS``, and returns the exit status."""

Say = Callable[[str], None]

log = logging.getLogger("kvstore.http")

FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 10.0
STABLE_SECONDS = 30.0
"""A worker that ran this long has earned a quick restart again."""

STOP_SECONDS = 4.8
"""Workers that are still there this long after SIGTERM are killed."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, *LEVEL_SIGNALS)
"""Those that the parent handles."""


@dataclass(slots=True)
class _Worker:
    number: int
    pid: int = 0
    started_at: float = 0.0
    restart_at: float = 0.0
    delay: float = FIRST_DELAY_SECONDS
    liveness: Liveness = field(default_factory=Liveness)

    @property
    def is_running(self) -> bool:
        return self.pid != 0


class Workers:
    """``count`` workers; one that crashed or hangs is started again with growing delays, and said aloud.

    ``shared_counters`` says which of them run, and how often one was started again.
    ``overseer`` is told once all were ready, and then that every worker that runs has beaten lately.
    ``on_level`` is called with the number of a signal that is about the log level, which all workers get
    too.
    """

    def __init__(
        self,
        count: int,
        serve: Serve,
        say: Say,
        overseer: Overseer,
        on_level: Callable[[int], None],
        shared_counters: SharedCounters | None = None,
    ) -> None:
        self._serve = serve
        self._say = say
        self._overseer = overseer
        self._on_level = on_level
        self._shared_counters = shared_counters or SharedCounters(count)
        self._workers = [_Worker(number) for number in range(count)]
        self._was_ready = False
        self._stop_at: float | None = None
        self._status = EXIT_DONE
        self._tick_at = 0.0

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; returns the exit status. Call it from the main thread."""
        self._wake_in, self._wake_out = _pipe()
        self._beats_in, self._beats_out = _pipe()
        for number in _SIGNALS:
            signal.signal(number, _noticed_by_descriptor)
        signal.set_wakeup_fd(self._wake_out, warn_on_full_buffer=False)
        while self._stop_at is None or any(worker.is_running for worker in self._workers):
            self._start_due()
            self._wait()
        return self._status

    # ── starting ────────────────────────────────────────────────────────────────────────────────

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if self._stop_at is None and not worker.is_running and worker.restart_at <= now:
                worker.started_at = now
                worker.liveness.started()
                try:
                    worker.pid = self._fork(worker.number)
                except OSError as error:
                    self._note_end(worker, f"worker {worker.number} could not be started ({error.strerror})")

    def _fork(self, number: int) -> int:
        parent = os.getpid()
        # held back until the child has its own handlers: with the parent's it would lose them
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_worker(number, parent)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        self._shared_counters.note_start(number, pid)
        return pid

    def _be_worker(self, number: int, parent: int) -> NoReturn:
        status = EXIT_ERROR
        try:
            signal.set_wakeup_fd(-1)
            for each in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(each, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            if not end_with_parent(parent):
                os._exit(EXIT_ERROR)
            for descriptor in (self._wake_in, self._wake_out, self._beats_in):
                os.close(descriptor)
            status = self._serve(number, _Parent(self._beats_out))
        except BaseException:
            log.critical("the worker failed", exc_info=True)
        finally:
            logging.shutdown()
            os._exit(status)

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────

    def _wait(self) -> None:
        readable, _, _ = select.select([self._wake_in, self._beats_in], [], [], self._seconds_to_wait())
        if self._beats_in in readable:
            self._note_beats(os.read(self._beats_in, 4096))
        if self._wake_in in readable:
            self._note_signals(os.read(self._wake_in, 4096))
        self._reap()
        if self._stop_at is None and time.monotonic() >= self._tick_at:
            self._tick()
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self._signal_all(signal.SIGKILL)

    def _seconds_to_wait(self) -> float:
        now = time.monotonic()
        if self._stop_at is not None:
            return max(0.0, self._stop_at - now) or 0.1
        due = [worker.restart_at for worker in self._workers if not worker.is_running]
        return max(0.0, min([self._tick_at, *due]) - now)

    def _note_beats(self, pids: bytes) -> None:
        beating = {int.from_bytes(pids[at : at + 4], "big") for at in range(0, len(pids), 4)}
        for worker in self._workers:
            if worker.pid in beating:
                if not worker.liveness.is_ready:
                    # one that came while it started was lost on it; it only looks which level holds
                    os.kill(worker.pid, LEVEL_SIGNALS[0])
                worker.liveness.beat()
        if not self._was_ready and all(worker.liveness.is_ready for worker in self._workers):
            self._was_ready = True
            self._overseer.ready()

    def _tick(self) -> None:
        """Once in ``BEAT_SECONDS``: end workers that hang, and beat if none is late."""
        self._tick_at = time.monotonic() + BEAT_SECONDS
        running = [worker for worker in self._workers if worker.is_running]
        for worker in running:
            ending = worker.liveness.tick()
            if ending == signal.SIGABRT:
                self._say(f"worker {worker.number} (pid {worker.pid}) hangs; ending it")
            if ending is not None:
                os.kill(worker.pid, ending)
        if self._was_ready and not any(worker.liveness.is_late for worker in running):
            self._overseer.beat()

    def _note_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in LEVEL_SIGNALS:
                self._on_level(number)
                self._signal_all(number)
        if {signal.SIGTERM, signal.SIGINT} & set(numbers):
            self._stop()

    def _stop(self) -> None:
        if self._stop_at is None:
            self._stop_at = time.monotonic() + STOP_SECONDS
            self._overseer.stopping()
            self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: int) -> None:
        for worker in self._workers:
            if worker.is_running:
                os.kill(worker.pid, number)

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.is_running:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    worker.pid = 0
                    self._shared_counters.note_end(worker.number)
                    code = os.waitstatus_to_exitcode(status)
                    how = (
                        f"was ended by {signal.Signals(-code).name}"
                        if code < 0
                        else f"ended with status {code}"
                    )
                    self._note_end(worker, f"worker {worker.number} (pid {pid}) {how}")

    def _note_end(self, worker: _Worker, what: str) -> None:
        """``what`` happened to a worker that ended or could not be started: start another, or give up."""
        if self._stop_at is not None:
            return
        if not self._was_ready and not worker.liveness.is_ready:
            self._say(f"{what} before it was ready; giving up")
            self._status = EXIT_ERROR
            self._stop()
            return
        now = time.monotonic()
        if now - worker.started_at >= STABLE_SECONDS:
            worker.delay = FIRST_DELAY_SECONDS
        worker.restart_at = now + worker.delay
        self._say(f"{what}; starting another in {worker.delay:g} s")
        worker.delay = min(2 * worker.delay, LONGEST_DELAY_SECONDS)


class _Parent:
    """The parent, as a worker sees it. Every message is the worker's process id; the first one says
    that it is ready. A pipe that is full or has no reader is the parent's trouble and not the worker's."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def beat(self) -> None:
        with suppress(OSError):
            os.write(self._pipe, os.getpid().to_bytes(4, "big"))

    ready = beat

    def stopping(self) -> None:
        """The parent said so, or sees the worker end."""


def _pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing


def _noticed_by_descriptor(_number: int, _frame: object) -> None:
    """The wake-up descriptor says which signal came; without a handler it would not."""


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
