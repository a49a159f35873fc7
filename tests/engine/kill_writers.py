"""Kills a process that writes, the one that makes its checkpoints, or both: ``ROOT RECORD SEED KILLS``.

After each time the store is looked at: nothing is lost that was acknowledged, and nothing is wrong. Then the
next process goes on with it. Prints how many of each were killed; ends with an error at the first that lacks
something.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cut_power import Promised, faults

from support.disk import steps
from support.servers import wait_until

FOREVER = 10**9


def notes(record: Path) -> int:
    return len(steps(record)) if record.exists() else 0


def checkpointers(pid: int) -> Sequence[int]:
    """The processes that a process's threads have started."""
    lists = (file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for each in lists for child in each.split()]


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Writer:
    """A process that writes until it is killed."""

    def __init__(self, root: str, record: Path, seed: int) -> None:
        script = Path(__file__).with_name("keep_writing.py")
        command = [sys.executable, str(script), root, str(record), str(seed), str(FOREVER)]
        self._record, self._began_at = record, notes(record)
        self._process = subprocess.Popen(command)

    def wait_for(self, more: int) -> None:
        """Until it has noted as many more."""
        target = notes(self._record) + more

        def has_noted() -> bool:
            if self._process.poll() is not None:
                sys.exit(f"the process that writes ended by itself: {self._process.returncode}")
            return notes(self._record) >= target

        wait_until(has_noted, timeout=120, what="it goes on")

    def kill_checkpointers(self) -> int:
        """How many there were."""
        found = checkpointers(self._process.pid)
        for child in found:
            kill(child)
        return len(found)

    def kill(self) -> None:
        kill(self._process.pid)
        self._process.wait()


def main(root: str, record_name: str, seed: str, kills: str) -> None:
    chance, record, taken = random.Random(int(seed)), Path(record_name), 0
    promised, killed, cut_short = Promised(), 0, 0
    for number in range(int(kills)):
        writer = Writer(root, record, int(seed) + number)
        writer.wait_for(chance.randint(2, 40))
        victim = chance.choice(("writer", "checkpointer", "both"))
        if victim == "checkpointer":
            cut_short += writer.kill_checkpointers()
            writer.wait_for(chance.randint(1, 20))
        time.sleep(chance.random() * 0.02)  # in the middle of something
        if victim == "both":
            cut_short += writer.kill_checkpointers()
        writer.kill()
        killed += 1
        noted = steps(record)
        for step in noted[taken:]:
            promised.take(json.loads(step.data))
        taken = len(noted)
        found = list(faults(Path(root) / "above" / "data", promised, settles=True))
        if found:
            sys.exit(f"seed {seed}, kill {number}, of {victim}: {found[:5]}")
    sys.stdout.write(f"{killed} {cut_short}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
