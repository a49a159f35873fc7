"""The daemon with a clock that a test moves: ``python -m kvstore_contrib.testing.daemon [OPTION]...``.

It takes the options of ``kvstore daemon``. Each line on standard input is a whole number of milliseconds by
which all its clocks go forward at once; the line is repeated on standard output once they show the new time.
"""

from __future__ import annotations

import sys
import threading
import time
from functools import partial

from kvstore_cli.command_line.group import run
from kvstore_daemon.main import ENGINES
from kvstore_daemon.storage.clock import StoreClock, boot_id
from kvstore_daemon.storage.lmdb_store.engine import LmdbEngine


class MovableClock:
    """The machine's clocks, and what they were moved by; any thread may read it."""

    def __init__(self) -> None:
        self._moved_ms = 0

    def wall(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000 + self._moved_ms

    def steady(self) -> int:
        """Milliseconds since the machine's boot."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 + self._moved_ms

    def follow(self) -> None:
        """Move by what standard input says, until it ends."""
        for line in sys.stdin:
            self._moved_ms += int(line)
            print(line, end="", flush=True)  # noqa: T201 # the answer


def main() -> int:
    """Run the daemon; returns its exit status."""
    clock = MovableClock()
    ENGINES["lmdb"] = partial(LmdbEngine, clock=StoreClock(clock.wall, clock.steady, boot_id()))
    threading.Thread(target=clock.follow, daemon=True).start()
    sys.argv[1:1] = ["daemon"]
    return run()


if __name__ == "__main__":
    sys.exit(main())
