"""The parent of several workers: it holds the sockets, starts workers again, and stops them all.

It forks before gevent and ZeroMQ exist in the process, since neither survives a fork, and it imports
neither: the parent of the workers is a small process that only waits.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from kvstore_client.errors import EXIT_DONE, EXIT_ERROR

Serve = Callable[[int, Callable[[], None]], int]
"""Runs worker number N until it is told to stop, calls the function once it is ready, and returns
the exit status."""

Say = Callable[[str], None]

log = logging.getLogger("kvstore.http")

FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 10.0
STABLE_SECONDS = 30.0
"""A worker that ran this long has earned a quick restart again."""

STOP_SECONDS = 4.8
"""Workers that are still there this long after SIGTERM are killed."""

_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Worker:
    number: int
    pid: int = 0
    started_at: float = 0.0
    restart_at: float = 0.0
    delay: float = FIRST_DELAY_SECONDS
    is_ready: bool = field(default=False)

    @property
    def is_running(self) -> bool:
        return self.pid != 0


class Workers:
    """``count`` workers; a crashed one is started again with growing delays, and said aloud."""

    def __init__(self, count: int, serve: Serve, say: Say, on_ready: Callable[[], None]) -> None:
        self._serve = serve
        self._say = say
        self._on_ready = on_ready
        self._workers = [_Worker(number) for number in range(count)]
        self._was_ready = False
        self._stop_at: float | None = None
        self._status = EXIT_DONE

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; returns the exit status. Call it from the main thread."""
        self._wake_in, self._wake_out = _pipe()
        self._ready_in, self._ready_out = _pipe()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
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
                worker.started_at, worker.is_ready = now, False
                worker.pid = self._fork(worker.number)

    def _fork(self, number: int) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._be_worker(number, parent)
        return pid

    def _be_worker(self, number: int, parent: int) -> NoReturn:
        status = EXIT_ERROR
        try:
            signal.set_wakeup_fd(-1)
            for each in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(each, signal.SIG_DFL)
            _die_with(parent)
            for descriptor in (self._wake_in, self._wake_out, self._ready_in):
                os.close(descriptor)
            status = self._serve(number, self._tell_ready)
        except BaseException:
            log.critical("the worker failed", exc_info=True)
        finally:
            logging.shutdown()
            os._exit(status)

    def _tell_ready(self) -> None:
        os.write(self._ready_out, os.getpid().to_bytes(4, "big"))

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────

    def _wait(self) -> None:
        readable, _, _ = select.select([self._wake_in, self._ready_in], [], [], self._seconds_to_wait())
        if self._ready_in in readable:
            self._note_ready(os.read(self._ready_in, 4096))
        if self._wake_in in readable:
            self._note_signals(os.read(self._wake_in, 4096))
        self._reap()
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self._signal_all(signal.SIGKILL)

    def _seconds_to_wait(self) -> float | None:
        now = time.monotonic()
        if self._stop_at is not None:
            return max(0.0, self._stop_at - now) or 0.1
        due = [worker.restart_at for worker in self._workers if not worker.is_running]
        return max(0.0, min(due) - now) if due else None

    def _note_ready(self, pids: bytes) -> None:
        ready = {int.from_bytes(pids[at : at + 4], "big") for at in range(0, len(pids), 4)}
        for worker in self._workers:
            worker.is_ready = worker.is_ready or worker.pid in ready
        if not self._was_ready and all(worker.is_ready for worker in self._workers):
            self._was_ready = True
            self._on_ready()

    def _note_signals(self, numbers: bytes) -> None:
        if {signal.SIGTERM, signal.SIGINT} & set(numbers):
            self._stop()

    def _stop(self) -> None:
        if self._stop_at is None:
            self._stop_at = time.monotonic() + STOP_SECONDS
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
                    self._note_end(worker, pid, os.waitstatus_to_exitcode(status))

    def _note_end(self, worker: _Worker, pid: int, code: int) -> None:
        if self._stop_at is not None:
            return
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        if not self._was_ready and not worker.is_ready:
            self._say(f"worker {worker.number} (pid {pid}) {how} before it was ready; giving up")
            self._status = EXIT_ERROR
            self._stop()
            return
        now = time.monotonic()
        if now - worker.started_at >= STABLE_SECONDS:
            worker.delay = FIRST_DELAY_SECONDS
        worker.restart_at = now + worker.delay
        self._say(f"worker {worker.number} (pid {pid}) {how}; starting another in {worker.delay:g} s")
        worker.delay = min(2 * worker.delay, LONGEST_DELAY_SECONDS)


def _pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing


def _noticed_by_descriptor(_number: int, _frame: object) -> None:
    """The wake-up descriptor says which signal came; without a handler it would not."""


def _die_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(EXIT_ERROR)


def keep_only(sockets: Sequence[socket.socket], number: int) -> list[socket.socket]:
    """The socket of worker ``number``; the others, which are inherited too, are closed.

    A listening socket that stays open in a process that never accepts on it takes its share of the
    connections and lets them wait for ever.
    """
    mine = sockets[number]
    for sock in sockets:
        if sock is not mine:
            sock.close()
    return [mine]
