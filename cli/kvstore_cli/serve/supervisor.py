"""``kvstore serve`` from the inside: two processes that are watched, restarted and stopped by a third.

The parent runs one loop in one thread. Each child has a socket on which it says that it is ready, at
which addresses, and every second that it works. While one that was ready is silent the service manager
hears no beat; one that stays silent is ended and started again. A child that starts, or waits for its
restart, holds back no beat: a crash loop is not for the manager to end. What children write on standard
error is handed on, line by line. Each child leads a process group: a Ctrl-C in the terminal reaches the
parent alone, which then stops the facade before the daemon, and of a facade that was killed no worker is
left behind.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from kvstore_cli.config.option_values import connectable
from kvstore_cli.serve.logging_setup import hand_on
from kvstore_core.errors import EXIT_ERROR
from kvstore_core.process.liveness import BEAT_SECONDS, LATE_TICKS, Liveness
from kvstore_core.process.logging import LEVEL_SIGNALS, LEVELS, announcer
from kvstore_core.process.sd_notify import NoticeSocket, Notifier

STOP_SECONDS = 10.0
"""How long a child may take to stop; the daemon needs 5 s at most."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
STEADY_SECONDS = 30.0
"""A child that ran for so long is restarted as quickly as at first."""
MOST_FALSE_STARTS = 5
STUCK_TICKS = 25
"""A child that has been silent for so long is ended: later than a facade ends a worker that hangs, which
keeps the facade silent too."""
_REFUSALS = (1, 2)
"""Exit statuses with which a child says that it cannot run like this."""

_ADVICE = {
    signal.SIGBUS: (
        " (a part of its data file could not be read: the disk fails, or the file was cut short; "
        "kvstore check says more)"
    )
}
"""What to look at after a signal that tells of trouble outside of the process."""

_LONGEST_LINE_BYTES = 1024 * 1024
"""A longer one is handed on in pieces."""


class Child:
    """One process, over all its restarts. ``fields`` are the settings of the next start, ``places`` the names
    of the addresses that it says once it is ready."""

    def __init__(self, name: str, label: str, fields: dict[str, Any], places: Collection[str]) -> None:
        self.name = name
        self.label = label
        self.fields = fields
        self.places = places
        self.restart_at: float | None = None
        self.false_starts = 0
        self.was_ever_ready = False
        self.liveness = Liveness(STUCK_TICKS)
        self.notices = NoticeSocket()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._rest = b""
        self._level_signals: list[int] = []
        self._has_signal = False

    def command(self, notices: int) -> list[str]:
        """What is run; it reports on the descriptor ``notices``."""
        # -P: what lies in the working folder must not shadow a module
        program = [sys.executable, "-P", "-m", "kvstore_cli.serve.child"]
        return [*program, self.name, json.dumps(self.fields), str(os.getpid()), str(notices)]

    def start(self) -> None:
        """Start the process, with a socket of its own to report on. Raises OSError where the system has no
        room for one more; it can be called again."""
        self._started_at = monotonic()
        self.notices.close()
        self.notices = NoticeSocket()
        theirs = self.notices.descriptor
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            self.command(theirs),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs,),
            start_new_session=True,
        )
        self.notices.close_theirs()
        self.liveness.started()
        self.restart_at = None

    @property
    def who(self) -> str:
        """The process in the log."""
        assert self._process is not None  # noqa: S101 - callers saw it
        return f"{self.label} (pid {self._process.pid})"

    @property
    def descriptor(self) -> int:
        """What the process' standard error can be read from."""
        assert self._process is not None and self._process.stderr is not None  # noqa: S101, PT018
        os.set_blocking(self._process.stderr.fileno(), False)
        return self._process.stderr.fileno()

    @property
    def is_there(self) -> bool:
        """Whether a process was started and its end was not dealt with yet."""
        return self._process is not None

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended. It is left unreaped until :meth:`clear_away`: that keeps its number,
        which is its group's too, from being given to another."""
        assert self._process is not None  # noqa: S101 - callers saw it
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def relay(self) -> bool:
        """Hand on what the process has written; whether there may be more to come."""
        with suppress(BlockingIOError):
            while said := os.read(self.descriptor, 65536):
                whole, feed, self._rest = (self._rest + said).rpartition(b"\n")
                if len(self._rest) > _LONGEST_LINE_BYTES:
                    whole, feed, self._rest = self._rest, b"\n", b""
                if feed:
                    hand_on(whole + feed)
            self._relay_rest()
            return False
        return True

    def _relay_rest(self) -> None:
        if self._rest:
            hand_on(self._rest + b"\n")
            self._rest = b""

    def note_ready(self) -> None:
        """The process has said that it is ready."""
        self.was_ever_ready = True
        self.false_starts = 0

    def note_work(self) -> None:
        """The process has said that it works, so it has had its last signal."""
        self._has_signal = False
        self._pass_level_on()

    def change_level(self, number: int) -> None:
        """Pass on a signal that changes the log level, once the process is ready: earlier it could end it.
        Of several it gets one at a time, since the system makes one of those that wait."""
        if number == signal.SIGUSR2:
            self._level_signals = [number]
        elif self._level_signals.count(number) < len(LEVELS) - 1:
            self._level_signals.append(number)
        self._pass_level_on()

    def _pass_level_on(self) -> None:
        if self._level_signals and self.is_there and self.liveness.is_ready and not self._has_signal:
            self.signal(self._level_signals.pop(0))
            self._has_signal = True

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        assert self._process is not None  # noqa: S101 - callers saw it
        os.kill(self._process.pid, number)  # not send_signal, which would reap it

    def clear_away(self) -> int:
        """End whatever is left of the process and its group; returns how the process ended."""
        assert self._process is not None  # noqa: S101 - callers saw it
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self.relay()
        self._relay_rest()  # what the process left running may hold the pipe open
        assert self._process.stderr is not None  # noqa: S101
        self._process.stderr.close()
        self._process = None
        self._has_signal = False
        return status

    def restart_later(self) -> float:
        """Set when to restart, longer each time; returns the seconds until then."""
        if monotonic() - self._started_at >= STEADY_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        pause = self._pause
        self.restart_at = monotonic() + pause
        self._pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return pause


class Supervisor:
    """Keeps a daemon and a facade running until a signal ends both. ``on_ready`` is called once both
    are ready, with the daemon's settings and the facade's ``url``. ``notifier`` is told the same, which of
    the two is away, and every second that this loop turns and neither of them is late."""

    def __init__(
        self,
        daemon: dict[str, Any],
        http: dict[str, Any],
        on_ready: Callable[[dict[str, str]], None],
        notifier: Notifier,
    ) -> None:
        self._daemon = Child("daemon", "the daemon", daemon, ("requests", "changes"))
        self._facade = Child("http", "the HTTP facade", http, ("url",))
        self._children = (self._daemon, self._facade)
        self._on_ready = on_ready
        self._notifier = notifier
        self._is_announced = False
        self._tick_at = 0.0
        self._url = ""
        self._signals = 0
        self._failure: int | None = None
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Run until SIGTERM, SIGINT or SIGHUP, or until a child cannot be kept running.

        Returns 0 after a clean stop, else the exit status of the child that could not run.
        """
        with _Wakeups(self._on_signal) as wakeups:
            self._selector.register(wakeups.fileno(), selectors.EVENT_READ, wakeups.drain)
            try:
                self._start(self._daemon)
                self._watch()
            finally:
                self._stop()
        return self._failure or 0

    # ── running ─────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        while not self._is_stopping:
            self._turn(min(self._next_restart(), self._tick_at))
            for child in self._children:
                self._look_after(child)
            if monotonic() >= self._tick_at:
                self._tick()

    @property
    def _is_stopping(self) -> bool:
        return bool(self._signals) or self._failure is not None

    def _turn(self, until: float) -> None:
        """Wait for a child to say something or to end, for a signal, or for the moment ``until``."""
        for key, _ in self._selector.select(max(0.0, until - monotonic())):
            key.data()

    def _next_restart(self) -> float:
        moments = [child.restart_at for child in self._children if child.restart_at is not None]
        return min(moments, default=inf)

    def _start(self, child: Child) -> None:
        try:
            child.start()
        except OSError as error:
            # not counted against a service that has run: it may lack descriptors for a while
            child.false_starts += not child.was_ever_ready
            self._start_later(child, f"could not be started ({error.strerror})", EXIT_ERROR)
            return
        self._selector.register(child.descriptor, selectors.EVENT_READ, lambda: self._relay(child))
        self._selector.register(child.notices, selectors.EVENT_READ, lambda: self._listen(child))

    def _relay(self, child: Child) -> None:
        if not child.relay():
            self._selector.unregister(child.descriptor)

    def _look_after(self, child: Child) -> None:
        if child.is_there and child.has_ended:
            self._has_ended(child, self._clear_away(child))
        elif child.restart_at is not None and monotonic() >= child.restart_at:
            self._start(child)

    def _clear_away(self, child: Child) -> int:
        with suppress(KeyError):  # not there any more if the child closed it
            self._selector.unregister(child.descriptor)
        self._selector.unregister(child.notices)
        return child.clear_away()

    def _has_ended(self, child: Child, status: int) -> None:
        how = _ended(status)
        if not child.liveness.is_ready:
            child.false_starts += 1
        if status in _REFUSALS and not child.was_ever_ready:
            say(f"{child.label} did not start, the reason is above; stopping", logging.ERROR)
            self._failure = status
        else:
            self._start_later(child, how, status if status > 0 else EXIT_ERROR)

    def _start_later(self, child: Child, how: str, status: int) -> None:
        """Try again later, or give up with the exit ``status``."""
        if child.false_starts >= MOST_FALSE_STARTS:
            say(f"{child.label} {how} before it was ready, {child.false_starts} times in a row; stopping")
            self._failure = status
        else:
            news = f"{child.label} {how}; starting it again in {child.restart_later():g} s"
            self._report(news)

    # ── readiness and silence ───────────────────────────────────────────────────────────────────

    def _listen(self, child: Child) -> None:
        heard = list(child.notices.read(child.places))
        if self._is_stopping:
            return  # a daemon that became ready just now must not have a facade started
        for notice in heard:
            if child.liveness.beat():
                say(f"{child.who} works again")
                self._tell_manager()
            if notice.where is not None:
                child.relay()  # what it wrote before it was ready comes first
                child.note_ready()
                if child is self._daemon:
                    self._daemon_is_ready(notice.where)
                else:
                    self._facade_is_ready(notice.where)
            elif notice.status is not None:
                self._report(f"{child.label} says: {notice.status}")
        if heard:
            child.note_work()

    def _tick(self) -> None:
        """Once in ``BEAT_SECONDS``: end a child that hangs, and beat if none is late."""
        self._tick_at = monotonic() + BEAT_SECONDS
        running = [child for child in self._children if child.is_there]
        for child in running:
            ending = child.liveness.tick()
            if child.liveness.has_become_late:
                self._report(f"{child.who} has not said for {LATE_TICKS} s that it works")
            if ending == signal.SIGABRT:
                self._report(f"{child.who} hangs; ending it")
            if ending is not None:
                child.signal(ending)
        if self._is_announced and not any(child.liveness.is_late for child in running):
            self._notifier.beat()

    def _report(self, news: str) -> None:
        say(news)
        self._notifier.status(news)

    def _daemon_is_ready(self, where: dict[str, str]) -> None:
        # where port 0 was asked for, the port that was found is kept over restarts: the facade and
        # everybody else go on knowing it
        found = {name: where[name] for name in ("requests", "changes")}
        self._daemon.fields |= found
        self._facade.fields |= {name: connectable(address) for name, address in found.items()}
        if not self._facade.is_there and self._facade.restart_at is None:
            self._start(self._facade)
        self._tell_manager()

    def _facade_is_ready(self, where: dict[str, str]) -> None:
        self._facade.fields["http"] = urlsplit(where["url"]).netloc
        self._url = where["url"]
        self._tell_manager()
        if not self._is_announced:
            self._is_announced = True
            self._on_ready({**self._daemon.fields, "url": self._url})

    def _tell_manager(self) -> None:
        """Say that the service is ready, at first and whenever it is whole again."""
        if all(child.is_there and child.liveness.is_ready for child in self._children):
            places = {name: self._daemon.fields[name] for name in ("requests", "changes", "data")}
            self._notifier.ready({"url": self._url, **places})

    # ── stopping ────────────────────────────────────────────────────────────────────────────────

    def _on_signal(self, number: int) -> None:
        if number in LEVEL_SIGNALS:
            for child in self._children:
                child.change_level(number)
        elif number != signal.SIGCHLD:
            self._signals += 1

    def _stop(self) -> None:
        """Stop the facade, then the daemon, so that no request meets a daemon that is gone."""
        self._notifier.stopping()
        if self._signals:
            say("stopping", logging.INFO)
        for child in (self._facade, self._daemon):
            if child.is_there:
                self._stop_one(child)

    def _stop_one(self, child: Child) -> None:
        child.signal(signal.SIGTERM)
        deadline = monotonic() + STOP_SECONDS
        while not child.has_ended and monotonic() < deadline and self._signals < 2:
            self._turn(deadline)
        if not child.has_ended:
            reason = "a second signal came" if self._signals > 1 else f"it took more than {STOP_SECONDS:g} s"
            say(f"killing {child.label}: {reason}")
        self._clear_away(child)


class _Wakeups:
    """Signals as something that a selector sees."""

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        self._on_signal = on_signal
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def drain(self) -> None:
        with suppress(BlockingIOError):
            for number in self._reader.recv(4096):
                self._on_signal(number)

    def __enter__(self) -> _Wakeups:
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, *LEVEL_SIGNALS):
            # one that was ignored from the start, as under nohup, stays so
            if number in LEVEL_SIGNALS or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)  # the wake-up descriptor tells
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


def announce(addresses: dict[str, str]) -> None:
    """Say that the service is ready, and where."""
    where = {name: addresses[name] for name in ("url", "requests", "changes", "data")}
    line = "kvstore serve: ready, %(url)s, requests %(requests)s, changes %(changes)s, data %(data)s"
    announcer.info(line, where, extra=where)


def say(line: str, level: int = logging.WARNING) -> None:
    """Say what becomes of the service."""
    announcer.log(level, "kvstore serve: %s", line)


def _ended(status: int) -> str:
    """How a child with this exit status came to its end."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}{_ADVICE.get(signal.Signals(-status), '')}"
