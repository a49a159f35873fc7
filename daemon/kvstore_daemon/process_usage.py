"""What the daemon takes of the machine, from the system's own books."""

from __future__ import annotations

import os
import resource
import time
from typing import Any

KEPT_SECONDS = 1.0
"""How long the figures are given out again: to count thousands of descriptors takes milliseconds, and many
may ask at once."""


class Usage:
    """CPU time, memory and descriptors of this process."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._taken_at = -KEPT_SECONDS

    def fields(self) -> dict[str, Any]:
        """The figures, at most ``KEPT_SECONDS`` old. What the system does not tell (no ``/proc``) is left
        out."""
        now = time.monotonic()
        if now - self._taken_at >= KEPT_SECONDS:
            self._fields, self._taken_at = _measured(), now
        return self._fields


def max_files() -> int:
    """How many descriptors this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_files() -> int | None:
    """How many it has open; None if the system does not tell."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - the one that lists
    except OSError:
        return None


def private_bytes() -> int:
    """What this process has of memory that is no file's; 0 if the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - a third of the time that Path takes
            _, resident, of_files = file.read().split()[:3]
    except OSError:
        return 0
    return (int(resident) - int(of_files)) * resource.getpagesize()


def _measured() -> dict[str, Any]:
    times = os.times()
    fields: dict[str, Any] = {"cpu_seconds": round(times.user + times.system, 2)}
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - a third of the time that Path takes
            virtual, resident = file.read().split()[:2]
        fields["virtual_bytes"] = int(virtual) * resource.getpagesize()
        fields["resident_bytes"] = int(resident) * resource.getpagesize()
    except OSError:
        pass
    if (files := open_files()) is not None:
        fields["open_files"] = files
    fields["max_files"] = max_files()
    return fields
