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
from typing import Any

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


class Neighbours:
    """How many cores other programs used since this was made.

    What the whole machine spent in user and system mode less what this process and its children,
    servers and generators, did: so it is right once they have been waited for.
    """

    def __init__(self) -> None:
        self._machine, self._ours, self._clock = _machine_seconds(), _own_seconds(), time.monotonic()

    def cores(self) -> float:
        """On average, so far."""
        foreign = (_machine_seconds() - self._machine) - (_own_seconds() - self._ours)
        return max(0.0, foreign / (time.monotonic() - self._clock))


def _machine_seconds() -> float:
    user, nice, system = map(int, Path("/proc/stat").read_text().split(maxsplit=4)[1:4])
    return (user + nice + system) / _TICKS


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
