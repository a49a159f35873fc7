"""Server processes, and how much of the machine they use."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

READY_SECONDS = 600.0
"""A store of ten million keys takes its time to start."""
STOP_SECONDS = 60.0
POLL_SECONDS = 0.002

_TICKS = os.sysconf("SC_CLK_TCK")

# Below the range of outgoing connections, so that no client of an earlier server is on the port.
_PORTS = range(15_000, 32_000)


class Process:
    """A server that dies with this process, whatever happens to it; its output goes to ``log``."""

    def __init__(self, command: Sequence[str], folder: Path, name: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                _dies_with_us(command),
                cwd=folder,
                env=environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """The process at the top of the tree."""
        return self._process.pid

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Return once ``is_ready``; raises RuntimeError, with the log, if the server ends before."""
        deadline = time.monotonic() + READY_SECONDS
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.name} did not start:\n{self.output()[-2000:]}")
            time.sleep(POLL_SECONDS)

    def output(self) -> str:
        """What the server wrote so far."""
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is still there after a minute."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def running(command: Sequence[str], folder: Path, name: str) -> Iterator[Process]:
    """The process while the block runs."""
    process = Process(command, folder, name)
    try:
        yield process
    finally:
        process.stop()


def _dies_with_us(command: Sequence[str]) -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else list(command)


def environment(home: Path) -> dict[str, str]:
    """For a contender: no configuration of this machine's user reaches it, but KVSTORE_* do, to try a
    setting."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "PYTHON"))}
    return {**kept, "HOME": str(home), "XDG_CONFIG_HOME": str(home)}


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def answers(port: int) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ── usage ────────────────────────────────────────────────────────────────────────────────────────


def _stat(pid: int) -> list[str]:
    # the name in parentheses may hold spaces; what follows it does not
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def tree(pid: int) -> list[int]:
    """``pid`` and all processes below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree, its threads and the children that have ended included: Redis
    rewrites its file in a child."""
    ticks = 0
    for each in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks += sum(map(int, _stat(each)[11:15]))
    return ticks / _TICKS


class Usage:
    """CPU seconds of some servers since this was made."""

    def __init__(self, *processes: Process) -> None:
        self._pids = [process.pid for process in processes]
        self._before = self._now()

    def _now(self) -> float:
        return sum(map(cpu_seconds, self._pids))

    def seconds(self) -> float:
        """So far."""
        return self._now() - self._before


def memory_bytes(*processes: Process, anonymous: bool = False) -> int:
    """Proportional set size of the trees: shared pages count once, mapped files as far as they are in
    memory. ``anonymous`` counts only what is not backed by a file, which the system cannot drop."""
    field = "Pss_Anon:" if anonymous else "Pss:"
    total = 0
    for process in processes:
        for pid in tree(process.pid):
            with suppress(FileNotFoundError, ProcessLookupError):
                total += _kib(Path(f"/proc/{pid}/smaps_rollup").read_text(), field) * 1024
    return total


def _kib(text: str, field: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(field)), 0)
