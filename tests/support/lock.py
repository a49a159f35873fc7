"""A store in which no commit can begin, as on a disk that does not answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import lmdb, sys
with lmdb.open(sys.argv[1], max_dbs=16).begin(write=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def write_lock_held(store: Path) -> Iterator[None]:
    """Another process is in the middle of a write transaction, so the engine's cannot begin."""
    command = [sys.executable, "-c", HOLD, str(store / "lmdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            holder.communicate()
