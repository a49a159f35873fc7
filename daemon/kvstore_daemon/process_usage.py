"""What the daemon uses of the machine, as the system counts it."""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress
from typing import Any

KEPT_SECONDS = 1.0
"""How long figures are reused: to count thousands of descriptors takes a while, and many may ask at once."""


class Usage:
    """CPU time, memory and descriptors of this process."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._taken_at = -KEPT_SECONDS

    def fields(self) -> dict[str, Any]:
        """The figures, at most ``KEPT_SECONDS`` old; without those that need ``/proc`` if there is none."""
        now = time.monotonic()
        if now - self._taken_at >= KEPT_SECONDS:
            self._fields, self._taken_at = _measured(), now
        return self._fields


def max_files() -> int:
    """The number of descriptors that this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_files() -> int | None:
    """The number of descriptors that this process has open; None without ``/proc``."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - the one that lists
    except OSError:
        return None


def private_bytes() -> int:
    """The bytes of memory of this process that belong to no file; 0 without ``/proc``."""
    try:
        _, resident, of_files = _memory()
    except OSError:
        return 0
    return resident - of_files


def _memory() -> list[int]:
    """Bytes: virtual, resident, and of the resident those that belong to files."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - Path takes much longer
        return [int(pages) * resource.getpagesize() for pages in file.read().split()[:3]]


def _measured() -> dict[str, Any]:
    times = os.times()
    fields: dict[str, Any] = {"cpu_seconds": round(times.user + times.system, 2)}
    with suppress(OSError):
        fields["virtual_bytes"], fields["resident_bytes"], _ = _memory()
    if (files := open_files()) is not None:
        fields["open_files"] = files
    fields["max_files"] = max_files()
    return fields
