"""A parent and its processes, which it starts, ends where they hang, and starts again where they end.

The parent runs one loop in one thread. Each child has a socket on which it says that it is ready and then,
every second, that it works. While one that was ready is silent the service manager hears no beat; one that
stays silent is ended and started again. A child that starts, or waits for its restart, holds back no beat:
a crash loop is not for the manager to end.
"""

from __future__ import annotations

import os
import selectors
import signal
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from math import inf
from time import monotonic
from typing import Generic, TypeVar

from kvstore_core.backoff import Backoff
from kvstore_core.errors import EXIT_DONE
from kvstore_core.process.logging import LEVEL_SIGNALS
from kvstore_core.process.sd_notify import Notice, NoticeSocket, Notifier
from kvstore_core.process.signals import Signals, Terminal, signal_name

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
STEADY_SECONDS = 30.0
"""A child that ran for so long is restarted as quickly as at first."""

BEAT_SECONDS = 1.0
"""How often a process beats, and how often its parent ticks."""

LATE_TICKS = 5
"""A process that is silent for longer is late: its parent no longer vouches for it."""

STUCK_TICKS = 20
"""A process that is silent for so long hangs."""

START_TICKS = 90
"""How long a process may take until it is ready; systemd's default is the same."""

KILL_TICKS = 2
"""How long after SIGABRT, which lets a process log where it hangs, SIGKILL follows."""


class Liveness:
    """The silence of one process, counted by its parent's ticks.

    Ticks are counted and not seconds: a parent that the system stopped together with its children must not
    take that for their silence.
    """

    def __init__(self, stuck_ticks: int = STUCK_TICKS) -> None:
        self._stuck_ticks = stuck_ticks
        self.started()

    def started(self) -> None:
        """A new process was started, and is not ready yet."""
        self.is_ready = False
        self._silent_ticks = 0

    def beat(self) -> bool:
        """The process has said that it works, or, at first, that it is ready. Returns whether it was late."""
        was_late = self.is_late
        self.is_ready = True
        self._silent_ticks = 0
        return was_late

    @property
    def is_late(self) -> bool:
        """Whether a process that was ready has been silent for more than ``LATE_TICKS``."""
        return self.is_ready and self._silent_ticks > LATE_TICKS

    @property
    def has_become_late(self) -> bool:
        """Whether the last tick made it late."""
        return self.is_ready and self._silent_ticks == LATE_TICKS + 1

    def tick(self) -> signal.Signals | None:
        """One ``BEAT_SECONDS`` has passed; returns the signal that should end the process, if one should:
        SIGABRT once, later SIGKILL."""
        self._silent_ticks += 1
        over = self._silent_ticks - (self._stuck_ticks if self.is_ready else START_TICKS)
        if over == 0:
            return signal.SIGABRT
        return signal.SIGKILL if over >= KILL_TICKS else None


class Child(ABC):
    """One process, over all its restarts.

    ``label`` names it in the log, ``places`` are the names of the addresses that it says once it is ready,
    and ``stuck_ticks`` is the silence after which it is ended (:class:`Liveness`).
    """

    def __init__(self, label: str, places: Collection[str] = (), stuck_ticks: int = STUCK_TICKS) -> None:
        self.label = label
        self.places = places
        self.liveness = Liveness(stuck_ticks)
        self.notices = NoticeSocket()
        self.is_running = False
        """Whether a process was started and not cleared away yet."""
        self.start_at: float | None = 0.0
        """When to start it: at once, to begin with. None while it runs, or is not to be started."""
        self._pid = 0
        self._started_at = 0.0
        self._backoff = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)

    @abstractmethod
    def spawn(self, notices: int) -> int:
        """Start the process, which is to report on the descriptor ``notices``; returns its id. Raises OSError
        where the system has no room for one more."""

    def start(self) -> None:
        """Start the process, with a socket of its own to report on. Raises OSError as :meth:`spawn` does; it
        can be called again."""
        self._started_at = monotonic()
        self.start_at = None
        self.liveness.started()
        self.notices.close()
        self.notices = NoticeSocket()
        self._pid = self.spawn(self.notices.descriptor)
        self.notices.close_theirs()
        self.is_running = True

    @property
    def who(self) -> str:
        """The process that was started last, in the log."""
        return f"{self.label} (pid {self._pid})"

    @property
    def has_ended(self) -> bool:
        """Whether the running process has ended. It is left unreaped until :meth:`clear_away`, which keeps
        its number from being given to another."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._pid, options) is not None

    def signal(self, number: int) -> None:
        """Send a signal to the running process, which may have ended already."""
        os.kill(self._pid, number)

    def clear_away(self) -> int:
        """Kill the process if it has not ended; returns how it ended, as ``Popen.returncode``."""
        os.kill(self._pid, signal.SIGKILL)
        self.is_running = False
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def start_later(self) -> float:
        """Set when to start it again, later each time; returns the seconds until then."""
        now = monotonic()
        if now - self._started_at >= STEADY_SECONDS:
            self._backoff.reset()
        pause = self._backoff.next()
        self.start_at = now + pause
        return pause


AnyChild = TypeVar("AnyChild", bound=Child)


class Supervisor(ABC, Generic[AnyChild]):
    """Keeps ``children`` running until one of the ``ending`` signals comes, or :attr:`failure` is set.

    ``notifier`` says every second that this loop turns and that no child is late, once :attr:`is_ready` is
    set; it also says when all are about to be stopped. With ``rereads_files`` a SIGHUP is passed on to the
    children that :meth:`readers` names, which read their files again; that of a terminal which has gone away
    ends them all, as it does what knows no SIGHUP.
    """

    def __init__(
        self,
        children: Sequence[AnyChild],
        ending: Iterable[int],
        notifier: Notifier,
        *,
        rereads_files: bool = False,
    ) -> None:
        self.children = children
        self.notifier = notifier
        self.is_ready = False
        self.failure: int | None = None
        self.ending_signals = 0
        # not poll, which fails where the limit of open files was lowered below what is waited for
        self.selector = selectors.EpollSelector()
        self._terminal = Terminal()
        self._rereads_files = rereads_files
        others = {signal.SIGCHLD, *LEVEL_SIGNALS, *((signal.SIGHUP,) if rereads_files else ())}
        self.signals = Signals([each for each in ending if each not in others], others, self._on_signal)
        self._tick_at = 0.0

    def run(self) -> int:
        """Run in the main thread until a signal ends it, or until a child cannot be kept running. Returns 0
        after a clean stop, else the exit status of the child that could not run."""
        with self.signals:
            self.selector.register(self.signals, selectors.EVENT_READ, self.signals.drain)
            try:
                while not self.is_stopping:
                    self._turn(min(self._next_start(), self._tick_at))
                    self._look_after_all()
            finally:
                self.notifier.stopping()
                self.stop()
        return self.failure or EXIT_DONE

    @property
    def is_stopping(self) -> bool:
        return bool(self.ending_signals) or self.failure is not None

    def leave(self) -> None:
        """In a forked child: close what is the parent's."""
        self.selector.close()
        for child in self.children:
            child.notices.close()

    @property
    def is_in_a_hurry(self) -> bool:
        """Whether children that are to end have had long enough."""
        return False

    # ── what a subclass decides ─────────────────────────────────────────────────────────────────

    @abstractmethod
    def stop(self) -> None:
        """Stop all children (:meth:`terminate`, :meth:`clear_away`)."""

    @abstractmethod
    def change_level(self, number: int) -> None:
        """One of ``LEVEL_SIGNALS`` came."""

    def readers(self) -> Sequence[AnyChild]:
        """The children that a SIGHUP is for."""
        return self.children

    @abstractmethod
    def has_ended(self, child: AnyChild, how: str, status: int | None) -> None:
        """The child ended with ``status`` (as ``Popen.returncode``), or could not be started (None); ``how``
        says so. Set :attr:`failure`, or have it started again (:meth:`Child.start_later`)."""

    @abstractmethod
    def heard(self, child: AnyChild, notices: Sequence[Notice], *, was_late: bool) -> None:
        """The child spoke. ``was_late``: it had been silent for long."""

    @abstractmethod
    def report(self, news: str) -> None:
        """Say what becomes of a child."""

    def has_become_late(self, child: AnyChild) -> None:
        """The child has been silent for long, though not for so long that it is ended."""

    # ── the loop ────────────────────────────────────────────────────────────────────────────────

    def start(self, child: AnyChild) -> None:
        """Start a child that is not running."""
        try:
            child.start()
        except OSError as error:
            self.has_ended(child, f"could not be started ({error.strerror})", None)
        else:
            self.selector.register(child.notices, selectors.EVENT_READ, partial(self._listen, child))

    def clear_away(self, child: AnyChild) -> int:
        """Kill a running child if it has not ended; returns how it ended, as ``Popen.returncode``."""
        self.selector.unregister(child.notices)
        return child.clear_away()

    def terminate(self, children: Sequence[AnyChild], seconds: float) -> list[AnyChild]:
        """Ask running children to end, and wait for that, but not for longer than ``seconds``; returns those
        that still run."""
        for child in children:
            child.signal(signal.SIGTERM)
        deadline = monotonic() + seconds
        while (left := [each for each in children if not each.has_ended]) and monotonic() < deadline:
            if self.is_in_a_hurry:
                break
            self._turn(deadline)
        return left

    def _turn(self, until: float) -> None:
        """Wait for a child to say something or to end, for a signal, or for the time ``until``."""
        for key, _ in self.selector.select(max(0.0, until - monotonic())):
            key.data()

    def _next_start(self) -> float:
        return min((child.start_at for child in self.children if child.start_at is not None), default=inf)

    def _look_after_all(self) -> None:
        for child in self.children:
            if not self.is_stopping:
                self._look_after(child)
        if monotonic() >= self._tick_at and not self.is_stopping:
            self._tick()

    def _look_after(self, child: AnyChild) -> None:
        if child.is_running and child.has_ended:
            status = self.clear_away(child)
            self.has_ended(child, describe_exit(status), status)
        elif child.start_at is not None and monotonic() >= child.start_at:
            self.start(child)

    def _listen(self, child: AnyChild) -> None:
        notices = list(child.notices.read(child.places))
        if notices and not self.is_stopping:
            self.heard(child, notices, was_late=child.liveness.beat())

    def _tick(self) -> None:
        """Once in ``BEAT_SECONDS``: end a child that hangs, and beat if none is late."""
        self._tick_at = monotonic() + BEAT_SECONDS
        running = [child for child in self.children if child.is_running]
        for child in running:
            ending = child.liveness.tick()
            if child.liveness.has_become_late:
                self.has_become_late(child)
            if ending == signal.SIGABRT:
                self.report(f"{child.who} hangs; ending it")
            if ending is not None:
                child.signal(ending)
        if self.is_ready and not any(child.liveness.is_late for child in running):
            self.notifier.beat()

    def _on_signal(self, number: signal.Signals) -> None:
        if number in LEVEL_SIGNALS:
            self.change_level(number)
        elif number == signal.SIGHUP and self._rereads_files and not self._terminal.has_hung_up:
            self._have_files_read()
        elif number != signal.SIGCHLD:  # which wakes the loop, and that is all
            self.ending_signals += 1

    def _have_files_read(self) -> None:
        for child in self.readers():
            # one that starts reads them anyway, and a signal might end it
            if child.is_running and child.liveness.is_ready:
                child.signal(signal.SIGHUP)


def describe_exit(status: int) -> str:
    """How a process with this ``Popen.returncode`` ended, as ``was ended by SIGKILL``."""
    return f"ended with status {status}" if status >= 0 else f"was ended by {signal_name(-status)}"
