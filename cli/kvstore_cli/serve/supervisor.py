"""``kvstore serve`` from the inside: daemon and facade as two processes under a third.

Beyond what every :class:`Supervisor` does, the parent starts the facade once the daemon is ready, and hands
on, line by line, what the two write on standard error. Each leads a process group: a Ctrl-C in the terminal
reaches the parent alone, which then stops the facade before the daemon, and of a facade that was killed no
worker is left behind.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from kvstore_cli.config.option_values import connectable
from kvstore_cli.serve.logging_setup import write_through
from kvstore_core.errors import EXIT_ERROR
from kvstore_core.process.logging import LEVELS, announcer
from kvstore_core.process.sd_notify import Notice, Notifier
from kvstore_core.process.supervision import LATE_TICKS, Child, Supervisor

STOP_SECONDS = 10.0
"""How long a part may take to stop; the daemon needs 5 s at most."""
MOST_FALSE_STARTS = 5
STUCK_TICKS = 25
"""A part that has been silent for so long is ended: later than a facade ends a worker that hangs, which
keeps the facade silent too."""
_REFUSALS = (1, 2)
"""Exit statuses with which a part says that it cannot run like this."""

_ADVICE = {
    -signal.SIGBUS: (
        " (a part of its data file could not be read: the disk fails, or the file was cut short; "
        "kvstore check says more)"
    )
}
"""What to look at after an end whose cause is outside of the process."""

_LONGEST_LINE_BYTES = 1024 * 1024
"""A longer one is handed on in pieces."""


class Part(Child):
    """The daemon or the facade. ``fields`` are the settings of the next start."""

    def __init__(self, name: str, label: str, fields: dict[str, Any], places: Collection[str]) -> None:
        super().__init__(label, places, STUCK_TICKS)
        self.name = name
        self.fields = fields
        self.false_starts = 0
        self.was_ever_ready = False
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._level_signals: list[int] = []
        self._has_signal = False

    def command(self, notices: int) -> list[str]:
        """What is run; it reports on the descriptor ``notices``."""
        # -P: what lies in the working folder must not shadow a module
        program = [sys.executable, "-P", "-m", "kvstore_cli.serve.child"]
        return [*program, self.name, json.dumps(self.fields), str(os.getpid()), str(notices)]

    def spawn(self, notices: int) -> int:
        """Start the process as the leader of a group."""
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            self.command(notices),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(notices,),
            start_new_session=True,
        )
        os.set_blocking(self.stderr, False)
        return self._process.pid

    @property
    def stderr(self) -> int:
        """What the process' standard error can be read from."""
        assert self._process is not None and self._process.stderr is not None  # noqa: S101, PT018
        return self._process.stderr.fileno()

    def relay(self) -> bool:
        """Hand on what the process has written; whether there may be more to come."""
        with suppress(BlockingIOError):
            while written := os.read(self.stderr, 65536):
                whole, feed, self._rest = (self._rest + written).rpartition(b"\n")
                if len(self._rest) > _LONGEST_LINE_BYTES:
                    whole, feed, self._rest = self._rest, b"\n", b""
                if feed:
                    write_through(whole + feed)
            self._relay_rest()
            return False
        return True

    def _relay_rest(self) -> None:
        if self._rest:
            write_through(self._rest + b"\n")
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
        if self._level_signals and self.is_running and self.liveness.is_ready and not self._has_signal:
            self.signal(self._level_signals.pop(0))
            self._has_signal = True

    def clear_away(self) -> int:
        """End whatever is left of the process and its group; returns how the process ended."""
        assert self._process is not None and self._process.stderr is not None  # noqa: S101, PT018
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self.relay()
        self._relay_rest()  # what the process left running may hold the pipe open
        self._process.stderr.close()
        self.is_running = self._has_signal = False
        return status


class ServiceSupervisor(Supervisor[Part]):
    """Keeps a daemon and a facade running until a signal ends both. ``on_ready`` is called once both
    are ready, with the daemon's settings and the facade's ``url``. ``notifier`` says the same, and which of
    the two is away."""

    def __init__(
        self,
        daemon: dict[str, Any],
        http: dict[str, Any],
        on_ready: Callable[[dict[str, str]], None],
        notifier: Notifier,
    ) -> None:
        self._daemon = Part("daemon", "the daemon", daemon, ("requests", "changes"))
        self._facade = Part("http", "the HTTP facade", http, ("url",))
        self._facade.start_at = None  # until the daemon is ready
        self._on_ready = on_ready
        self._url = ""
        ending = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
        # one that was ignored from the start, as under nohup, stays so
        ending = [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]
        rereads_files = http["tls_cert"] is not None
        super().__init__((self._daemon, self._facade), ending, notifier, rereads_files=rereads_files)

    def start(self, child: Part) -> None:
        """Start one that is not running, and listen to its standard error too."""
        super().start(child)
        if child.is_running:
            self.selector.register(child.stderr, selectors.EVENT_READ, partial(self._relay, child))

    def _relay(self, part: Part) -> None:
        if not part.relay():
            self.selector.unregister(part.stderr)

    def clear_away(self, child: Part) -> int:
        """Kill a running part, if it has not ended, and its group; returns how it ended."""
        with suppress(KeyError):  # not there any more if the part closed it
            self.selector.unregister(child.stderr)
        return super().clear_away(child)

    def change_level(self, number: int) -> None:
        """Pass the signal on to both."""
        for part in self.children:
            part.change_level(number)

    def readers(self) -> Sequence[Part]:
        return [self._facade]

    def report(self, news: str) -> None:
        """Say it in the log and to the service manager."""
        say(news)
        self.notifier.status(news)

    # ── an end ──────────────────────────────────────────────────────────────────────────────────

    def has_ended(self, child: Part, how: str, status: int | None) -> None:
        """Start it again later, unless it cannot run like this, or was never ready in several attempts."""
        # where the system has no room, that is not counted against a part that has run
        was_ready = child.was_ever_ready if status is None else child.liveness.is_ready
        child.false_starts += not was_ready
        how += _ADVICE.get(status or 0, "")
        if status in _REFUSALS and not child.was_ever_ready:
            say(f"{child.label} did not start, the reason is above; stopping", logging.ERROR)
            self.failure = status
        elif child.false_starts >= MOST_FALSE_STARTS:
            say(f"{child.label} {how} before it was ready, {child.false_starts} times in a row; stopping")
            self.failure = max(status or 0, 0) or EXIT_ERROR
        else:
            self.report(f"{child.label} {how}; starting it again in {child.start_later():g} s")

    # ── readiness and silence ───────────────────────────────────────────────────────────────────

    def heard(self, child: Part, notices: Sequence[Notice], *, was_late: bool) -> None:
        """Take note of where it is ready, and report what it says of itself."""
        if was_late:
            say(f"{child.who} works again")
            self._tell_manager()
        for notice in notices:
            if notice.where is not None:
                child.relay()  # what it wrote before it was ready comes first
                child.note_ready()
                if child is self._daemon:
                    self._daemon_is_ready(notice.where)
                else:
                    self._facade_is_ready(notice.where)
            elif notice.status is not None:
                self.report(f"{child.label} says: {notice.status}")
        child.note_work()

    def has_become_late(self, child: Part) -> None:
        """Say so."""
        self.report(f"{child.who} has not said for {LATE_TICKS} s that it works")

    def _daemon_is_ready(self, where: dict[str, str]) -> None:
        # where port 0 was asked for, the port that was found is kept over restarts: the facade and
        # everybody else go on knowing it
        found = {name: where[name] for name in ("requests", "changes")}
        self._daemon.fields |= found
        self._facade.fields |= {name: connectable(address) for name, address in found.items()}
        if not self._facade.is_running and self._facade.start_at is None:
            self._facade.start_at = 0.0
        self._tell_manager()

    def _facade_is_ready(self, where: dict[str, str]) -> None:
        self._facade.fields["http"] = urlsplit(where["url"]).netloc
        self._url = where["url"]
        self._tell_manager()
        if not self.is_ready:
            self.is_ready = True
            self._on_ready({**self._daemon.fields, "url": self._url})

    def _tell_manager(self) -> None:
        """Say that the service is ready, at first and whenever it is whole again."""
        if all(part.is_running and part.liveness.is_ready for part in self.children):
            places = {name: self._daemon.fields[name] for name in ("requests", "changes", "data")}
            self.notifier.ready({"url": self._url, **places})

    # ── stopping ────────────────────────────────────────────────────────────────────────────────

    @property
    def is_in_a_hurry(self) -> bool:
        """After a second signal nothing is waited for."""
        return self.ending_signals > 1

    def stop(self) -> None:
        """Stop the facade, then the daemon, so that no request meets a daemon that is gone."""
        if self.ending_signals:
            say("stopping", logging.INFO)
        for part in (self._facade, self._daemon):
            if part.is_running:
                if self.terminate([part], STOP_SECONDS):
                    late = f"it took more than {STOP_SECONDS:g} s"
                    say(f"killing {part.label}: {'a second signal came' if self.is_in_a_hurry else late}")
                self.clear_away(part)


def announce(addresses: dict[str, str]) -> None:
    """Say that the service is ready, and where."""
    where = {name: addresses[name] for name in ("url", "requests", "changes", "data")}
    line = "kvstore serve: ready, %(url)s, requests %(requests)s, changes %(changes)s, data %(data)s"
    announcer.info(line, where, extra=where)


def say(line: str, level: int = logging.WARNING) -> None:
    """Say what becomes of the service."""
    announcer.log(level, "kvstore serve: %s", line)
