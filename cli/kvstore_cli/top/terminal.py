"""``kvstore top`` on a terminal: the alternate screen, keys, and an end that leaves all as it was."""

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
from kvstore_cli.terminal.signals import end_on_signals
from kvstore_cli.top.sampling import Sampler
from kvstore_cli.top.screen import Screen

_TICK_SECONDS = 0.25
_SHORTEST_SILENCE = 3.0


def show(sampler: Sampler, url: str, interval_ms: int, count: int | None) -> None:
    """Draw what ``sampler`` sees until q or Ctrl-C is pressed, or ``count`` intervals are over."""
    screen = Screen(url, show_duration(interval_ms))
    silence = max(_SHORTEST_SILENCE, 3 * interval_ms / 1000)
    for variable in ("COLUMNS", "LINES"):  # a size that does not change when the terminal's does
        os.environ.pop(variable, None)
    live = Live(screen, console=Console(), screen=True, auto_refresh=False)
    end_on_signals()
    # a process that is stopped could not give the screen back
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    with suppress(KeyboardInterrupt), _keys_at_once(), live:
        _follow(sampler, screen, live, silence, count)


def _follow(sampler: Sampler, screen: Screen, live: Live, silence: float, count: int | None) -> None:
    heard = time.monotonic()
    drawn: object = None
    while count is None or count > 0:
        if _is_end(_ready(sampler.bell)):
            return
        while not sampler.looks.empty():
            look = sampler.looks.get()
            heard = time.monotonic()
            if look.shown is not None:
                screen.note(look.shown)
            elif look.error is not None:
                screen.trouble = f"no figures from the service: {look.error.message}"
            drawn = None
            count = None if count is None else count - 1
        quiet = int(time.monotonic() - heard)
        if quiet >= silence:
            screen.trouble = f"the service has not answered for {quiet} s"
        if drawn != (now := (live.console.size, screen.trouble)):
            drawn = now
            live.refresh()


def _ready(bell: int) -> bytes:
    """The keys that were pressed, after a tick at most or when the bell rang."""
    keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    ready, _, _ = select.select([bell] if keys is None else [bell, keys], [], [], _TICK_SECONDS)
    if bell in ready:
        os.read(bell, 1024)
    return os.read(keys, 1024) if keys is not None and keys in ready else b""


def _is_end(keys: bytes) -> bool:
    return any(key in keys for key in (b"q", b"Q"))


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Keys come one by one and unseen, until this ends."""
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
