"""What the system says of a process, from ``/proc/PID`` alone: a confined service sees no more of ``/proc``
(``ProcSubset=pid``), and there prometheus_client's collector has nothing."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import suppress

_TICKS = os.sysconf("SC_CLK_TCK")


def usage(pid: int) -> dict[str, float]:
    """What a process uses, named as in the daemon's status, and when it started, in seconds since 1970;
    without what cannot be read, as when the process has just ended."""
    found: dict[str, float] = {}
    with suppress(OSError):
        found.update(_of(pid))
    return found


def _of(pid: int) -> Iterator[tuple[str, float]]:
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - a third of the time that Path takes
        fields = file.read().rpartition(b")")[2].split()  # proc(5) counts from 1; the first here is number 3
    user, system, started, virtual, resident = (int(fields[number - 3]) for number in (14, 15, 22, 23, 24))
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / _TICKS
    yield "cpu_seconds", (user + system) / _TICKS
    yield "started_at", round(time.time() - age, 2)
    yield "virtual_bytes", virtual
    yield "resident_bytes", resident * resource.getpagesize()
    yield "open_files", len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    yield "max_files", resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
