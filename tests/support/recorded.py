"""A disk that is recorded while commands use it, and what may be left of it after a cut of its power."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.disk import Disk, lay_out, preloaded, steps
from support.lengths import SHARE
from support.servers import clean_environment, kvstore_command

KINDS = "SFRLUD" if SHARE else "FRLU"
"""Before which steps of a command the power is cut: those that change names, or all that count."""


class Recorded:
    """Runs commands on a disk that is recorded, and cuts its power at each step of theirs. ``preloaded`` are
    the variables that put other processes on it."""

    def __init__(self, root: Path, home: Path, work: Path) -> None:
        self._root = root
        self._record = home / "record"
        self._work = work
        self.preloaded = preloaded(root, self._record)
        self._environment = clean_environment(home, **self.preloaded)

    def run(self, *arguments: object) -> None:
        done = subprocess.run(
            kvstore_command(*map(str, arguments)),
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def steps(self) -> int:
        """How many steps there were so far."""
        return len(steps(self._record))

    def cuts(self, since: int, kinds: str = KINDS) -> Iterator[tuple[Path, bool]]:
        """What may be left of the folder at each step of these kinds from the step ``since`` on, and whether
        it is what is left for certain after the last."""
        disk, chance, taken = Disk(), random.Random(since), steps(self._record)
        for number, step in enumerate(taken):
            if number >= since and step.kind in kinds:
                for left in (disk.least(), disk.most(), disk.torn(chance, step)):
                    lay_out(left, self._root, self._work)
                    yield self._work, False
            disk.happen(step)
        lay_out(disk.least(), self._root, self._work)
        yield self._work, True
