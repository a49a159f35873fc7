"""``kvstore top`` on a terminal: the alternate screen and keys; the terminal is restored at the end."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.live import Live

from kvstore_cli.config.option_values import show_duration
from kvstore_cli.terminal.signals import exit_on_signals
from kvstore_cli.top.sampling import Sampler
from kvstore_cli.top.screen import Screen

_TICK_SECONDS = 0.25
_SHORTEST_SILENCE = 3.0


def show(sampler: Sampler, url: str, interval_ms: int, count: int | None) -> None:
    """Draw what ``sampler`` sees until q or Ctrl-C is pressed, or ``count`` intervals are over."""
    screen = Screen(url, show_duration(interval_ms))
    silence = max(_SHORTEST_SILENCE, 3 * interval_ms / 1000)
    for variable in ("COLUMNS", "LINES"):  # they do not follow the size of the terminal
        os.environ.pop(variable, None)
    live = Live(screen, console=Console(), screen=True, auto_refresh=False)
    exit_on_signals()
    # a stopped process could not restore the screen
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    with suppress(KeyboardInterrupt), _keys_at_once(), live:
        _follow(sampler, screen, live, silence, count)


def _follow(sampler: Sampler, screen: Screen, live: Live, silence: float, count: int | None) -> None:
    heard = time.monotonic()
    drawn: object = None
    while count is None or count > 0:
        if _is_end(_pressed(sampler.wakeup)):
            return
        while not sampler.samples.empty():
            sample = sampler.samples.get()
            heard = time.monotonic()
            if sample.shown is not None:
                screen.note(sample.shown)
            elif sample.error is not None:
                screen.trouble = f"no figures from the service: {sample.error.message}"
            drawn = None
            count = None if count is None else count - 1
        quiet = int(time.monotonic() - heard)
        if quiet >= silence:
            screen.trouble = f"the service has not answered for {quiet} s"
        if drawn != (now := (live.console.size, screen.trouble)):
            drawn = now
            live.refresh()


def _pressed(wakeup: int) -> bytes:
    """The keys that were pressed; returns after a tick at most, or at a wake-up."""
    keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    ready, _, _ = select.select([wakeup] if keys is None else [wakeup, keys], [], [], _TICK_SECONDS)
    if wakeup in ready:
        os.read(wakeup, 1024)
    return os.read(keys, 1024) if keys is not None and keys in ready else b""


def _is_end(keys: bytes) -> bool:
    return any(key in keys for key in (b"q", b"Q"))


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Read keys one by one and without echo, until this ends."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
