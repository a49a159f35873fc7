"""``kvstore serve`` from the inside: two processes that are watched, restarted and stopped by a third.

The parent runs one loop in one thread. It reads what its children say, which is how it learns that
they are ready and on which addresses, and hands it on, line by line, to its own standard error. Each
child leads a process group: a Ctrl-C in the terminal reaches the parent alone, which then stops the
facade before the daemon, and of a facade that was killed no worker is left behind.
"""

from __future__ import annotations

import json
import logging
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from kvstore_cli.logs import hand_on
from kvstore_cli.notify import Notifier
from kvstore_cli.units import connectable
from kvstore_client.logs import LEVEL_SIGNALS, announcer

STOP_SECONDS = 10.0
"""How long a child may take to stop; the daemon needs 5 s at most."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
STEADY_SECONDS = 30.0
"""A child that ran for so long is restarted as quickly as at first."""
MOST_FALSE_STARTS = 5
BEAT_SECONDS = 1.0
"""How often the service manager is told that the loop turns."""
_REFUSALS = (1, 2)
"""Exit statuses with which a child says that it cannot run like this."""

Ready = Callable[[dict[str, str]], None]

_LONGEST_LINE_BYTES = 1024 * 1024
"""A longer one is handed on in pieces."""


class Child:
    """One process, over all its restarts. ``fields`` are the settings of the next start."""

    def __init__(
        self, name: str, label: str, fields: dict[str, Any], ready_line: str, on_ready: Ready
    ) -> None:
        self.name = name
        self.label = label
        self.fields = fields
        self.restart_at: float | None = None
        self.false_starts = 0
        self.was_ever_ready = False
        self.is_ready = False
        self._ready_line = re.compile(ready_line)
        self._on_ready = on_ready
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._rest = b""

    def start(self) -> int:
        """Start the process; returns the descriptor on which it talks."""
        # -P: what lies in the working folder must not shadow a module
        program = [sys.executable, "-P", "-m", "kvstore_cli.child"]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [*program, self.name, json.dumps(self.fields), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.restart_at, self.is_ready, self._rest = None, False, b""
        self._started_at = monotonic()
        return self.descriptor

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

    def status(self) -> int | None:
        """How the process ended, as in subprocess; None while it runs."""
        return None if self._process is None else self._process.poll()

    def relay(self) -> bool:
        """Hand on what the process has said, and look for the ready line in it; whether there may
        be more to come."""
        with suppress(BlockingIOError):
            while said := os.read(self.descriptor, 65536):
                whole, feed, self._rest = (self._rest + said).rpartition(b"\n")
                if len(self._rest) > _LONGEST_LINE_BYTES:
                    whole, feed, self._rest = self._rest, b"\n", b""
                if feed:
                    hand_on(whole + feed)
                if not self.is_ready:
                    self._look_at(whole.split(b"\n"))
            if self._rest:
                hand_on(self._rest + b"\n")
                self._rest = b""
            return False
        return True

    def _look_at(self, lines: list[bytes]) -> None:
        for line in lines:
            match = self._ready_line.match(_message(line))
            if match is not None:
                self.is_ready = self.was_ever_ready = True
                self.false_starts = 0
                self._on_ready(match.groupdict())
                return

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        if self._process is not None:
            self._process.send_signal(number)

    def clear_away(self) -> int:
        """End whatever is left of the process and its group; returns how the process ended."""
        assert self._process is not None  # noqa: S101 - callers saw it
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self.relay()
        assert self._process.stderr is not None  # noqa: S101
        self._process.stderr.close()
        self._process = None
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
    are ready, with the daemon's settings and the facade's ``url``. ``notifier`` is told the same, that
    the loop turns, and which of the two is away."""

    def __init__(
        self,
        daemon: dict[str, Any],
        http: dict[str, Any],
        on_ready: Callable[[dict[str, str]], None],
        notifier: Notifier,
    ) -> None:
        self._daemon = Child(
            "daemon",
            "the daemon",
            daemon,
            r"kvstore daemon: ready, requests (?P<requests>\S+), changes (?P<changes>\S+), data ",
            self._daemon_is_ready,
        )
        self._facade = Child(
            "http",
            "the HTTP facade",
            http,
            r"kvstore http: ready, (?P<url>https?://(?P<address>[^\s,/]+))",
            self._facade_is_ready,
        )
        self._on_ready = on_ready
        self._notifier = notifier
        self._is_announced = False
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
        while not self._signals and self._failure is None:
            self._turn(min(self._next_restart(), monotonic() + BEAT_SECONDS))
            self._look_after(self._daemon)
            self._look_after(self._facade)
            if self._is_announced:
                self._notifier.beat()

    def _turn(self, until: float) -> None:
        """Wait for a child to say something or to end, for a signal, or for the moment ``until``."""
        for key, _ in self._selector.select(max(0.0, until - monotonic())):
            key.data()

    def _next_restart(self) -> float:
        moments = [child.restart_at for child in (self._daemon, self._facade) if child.restart_at is not None]
        return min(moments, default=inf)

    def _start(self, child: Child) -> None:
        descriptor = child.start()
        self._selector.register(descriptor, selectors.EVENT_READ, lambda: self._relay(child))

    def _relay(self, child: Child) -> None:
        if not child.relay():
            self._selector.unregister(child.descriptor)

    def _look_after(self, child: Child) -> None:
        if child.is_there and child.status() is not None:
            self._has_ended(child, self._clear_away(child))
        elif child.restart_at is not None and monotonic() >= child.restart_at:
            self._start(child)

    def _clear_away(self, child: Child) -> int:
        with suppress(KeyError):  # not there any more if the child closed it
            self._selector.unregister(child.descriptor)
        return child.clear_away()

    def _has_ended(self, child: Child, status: int) -> None:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        if not child.is_ready:
            child.false_starts += 1
        if status in _REFUSALS and not child.was_ever_ready:
            say(f"{child.label} did not start, the reason is above; stopping", logging.ERROR)
            self._failure = status
        elif child.false_starts >= MOST_FALSE_STARTS:
            say(f"{child.label} {how} before it was ready, {child.false_starts} times in a row; stopping")
            self._failure = status if status > 0 else 1
        else:
            news = f"{child.label} {how}; starting it again in {child.restart_later():g} s"
            say(news)
            self._notifier.status(news)

    # ── readiness ───────────────────────────────────────────────────────────────────────────────

    def _daemon_is_ready(self, where: dict[str, str]) -> None:
        # where port 0 was asked for, the port that was found is kept over restarts: the facade and
        # everybody else go on knowing it
        self._daemon.fields |= where
        self._facade.fields |= {name: connectable(address) for name, address in where.items()}
        if not self._facade.is_there and self._facade.restart_at is None:
            self._start(self._facade)
        self._tell_manager()

    def _facade_is_ready(self, where: dict[str, str]) -> None:
        self._facade.fields["http"] = where["address"]
        self._tell_manager()
        if not self._is_announced:
            self._is_announced = True
            self._on_ready({**self._daemon.fields, "url": where["url"]})

    def _tell_manager(self) -> None:
        """Say that the service is ready, at first and whenever it is whole again."""
        if all(child.is_there and child.is_ready for child in (self._daemon, self._facade)):
            daemon = "requests {requests}, changes {changes}, data {data}".format_map(self._daemon.fields)
            self._notifier.ready(f"HTTP {self._facade.fields['http']}, {daemon}")

    # ── stopping ────────────────────────────────────────────────────────────────────────────────

    def _on_signal(self, number: int) -> None:
        if number in LEVEL_SIGNALS:
            for child in (self._daemon, self._facade):
                if child.is_ready:
                    child.signal(number)
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
        while child.status() is None and monotonic() < deadline and self._signals < 2:
            self._turn(deadline)
        if child.status() is None:
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


def _message(line: bytes) -> str:
    """What a line of a child's log says, whether it is text or JSON."""
    if line.startswith(b"{"):
        with suppress(ValueError):
            return str(json.loads(line).get("message", ""))
    return line.decode(errors="replace")
