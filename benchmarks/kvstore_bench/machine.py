"""What machine this is, and what else runs on it."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from kvstore_bench.processes import cpu_seconds

LIBRARIES = ("pyzmq", "gevent", "falcon", "waitress", "lmdb", "orjson", "redis", "hiredis", "aetcd", "grpcio")

_TICKS = os.sysconf("SC_CLK_TCK")


def description(folder: Path) -> dict[str, Any]:
    """The machine in words; ``folder`` is where the stores are."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "disk": f"{_file_system(folder)}, an appended and synced 4 KiB block in {_sync_us(folder):.0f} µs",
        "system": f"{_distribution()}, Linux {platform.release()}",
        "Python": platform.python_version(),
    }


def library_versions() -> dict[str, str]:
    """Of the libraries that take part."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return "unknown distribution"


def _file_system(folder: Path) -> str:
    line = ["stat", "--file-system", "--format", "%T", str(folder)]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _sync_us(folder: Path) -> float:
    """Median microseconds of write and fdatasync, which no durable put can beat."""
    taken = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(200):
            before = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())
            taken.append(1e6 * (time.perf_counter() - before))
    return median(taken)


class Conditions(NamedTuple):
    """How the machine was while a row was measured: how many cores other programs used, how many the
    host of a virtual machine gave to others, and the most microseconds that a loop of pure arithmetic
    took, which tells what neither of the two does: a shared core or a slower clock."""

    foreign_cores: float
    stolen_cores: float
    loop_us: float


class Observer:
    """Watches the machine from when it is made.

    What others used is what the whole machine spent in user and system mode less what this process
    and its children, servers and generators, did: right once they have been waited for, or are ``running``.
    """

    def __init__(self, *running: int) -> None:
        self._running = running
        self._machine, self._stolen = _machine_seconds()
        self._ours, self._clock, self._loop_us = self._own_seconds(), time.monotonic(), 0.0

    def _own_seconds(self) -> float:
        return _own_seconds() + sum(map(cpu_seconds, self._running))

    def look(self) -> None:
        """Time the loop, which takes a few milliseconds; best called between figures."""
        self._loop_us = max(self._loop_us, min(_loop_us() for _ in range(3)))

    def conditions(self) -> Conditions:
        """Since this was made."""
        machine, stolen = _machine_seconds()
        seconds = time.monotonic() - self._clock
        foreign = (machine - self._machine) - (self._own_seconds() - self._ours)
        return Conditions(
            round(max(0.0, foreign / seconds), 3),
            round((stolen - self._stolen) / seconds, 3),
            round(self._loop_us),
        )


def _machine_seconds() -> tuple[float, float]:
    """Spent in user and system mode, and taken by the host."""
    fields = list(map(int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:]))
    return sum(fields[:3]) / _TICKS, fields[7] / _TICKS


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _loop_us() -> float:
    before = time.perf_counter()
    sum(range(100_000))
    return 1e6 * (time.perf_counter() - before)
