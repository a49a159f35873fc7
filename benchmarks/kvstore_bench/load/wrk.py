"""HTTP load by wrk: one thread of C, which a server on the same two cores hardly feels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvstore_bench.processes import Process, Usage
from kvstore_bench.results import Load
from kvstore_bench.stage import Stage

SCRIPT = Path(__file__).with_name("replay.lua")


@contextmanager
def replay(stage: Stage, requests: Sequence[bytes]) -> Iterator[Path]:
    """A file that holds ``requests`` in the form that the script reads."""
    with stage.scratch() as folder:
        file = folder / "requests"
        with file.open("wb") as out:
            for request in requests:
                out.write(b"%d\n%s" % (len(request), request))
        yield file


def load(port: int, file: Path, connections: int, seconds: int, *servers: Process) -> Load:
    """Send the requests of ``file`` over so many connections, each with one under way at any time.

    Raises RuntimeError if any was refused or failed: such a figure would mean nothing.
    """
    command = _command(port, file, connections, seconds)
    usage = Usage(*servers)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    server_cpu = usage.seconds()
    found = json.loads(output[output.index('{"requests"') :].splitlines()[0])
    if found["refused"] or found["failed"]:
        raise RuntimeError(f"wrk: {found['refused']} requests refused, {found['failed']} failed")
    return Load(found["requests"], found["microseconds"] / 1e6, server_cpu, used.ru_utime + used.ru_stime)


def _command(port: int, file: Path, connections: int, seconds: int) -> list[str]:
    line = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    return [*line, "--timeout", "30s", "--script", str(SCRIPT), f"http://127.0.0.1:{port}", "--", str(file)]


def warm(port: int, file: Path, connections: int, seconds: float) -> None:
    """The same for a while that is not counted."""
    process = subprocess.Popen(_command(port, file, connections, 60), stdout=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    process.wait()
