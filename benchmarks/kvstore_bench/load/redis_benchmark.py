"""Redis's own load generator."""

from __future__ import annotations

import csv
import os
import subprocess
import time

from kvstore_bench.processes import Process, Usage
from kvstore_bench.results import Load


def load(
    server: Process,
    port: int,
    command: str,
    *,
    operations: int,
    clients: int,
    pipeline: int,
    size: int,
    keys: int,
) -> Load:
    """So many operations of ``command`` (get or set) on keys chosen at random out of ``keys``."""
    line = ["redis-benchmark", "-p", str(port), "-t", command, "-n", str(operations), "-c", str(clients)]
    line += ["-P", str(pipeline), "-d", str(size), "-r", str(keys), "--csv"]
    usage, before = Usage(server), time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    rows = list(csv.reader(process.stdout))
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or len(rows) < 2:
        raise RuntimeError(f"redis-benchmark failed: {rows}")
    seconds = min(operations / float(rows[-1][1]), time.monotonic() - before)
    return Load(operations, seconds, usage.seconds(), used.ru_utime + used.ru_stime)
