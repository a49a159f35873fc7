"""Another checkout's kvstore, measured round by round beside this one's, by this one's rows.

    python -m kvstore_bench.before FOLDER SETTINGS

runs under the other checkout's Python, so that whatever a row starts or imports of kvstore is that one's.
SETTINGS are the :class:`Stage`'s, as JSON. It reads the name of a row and the number of a round a line, and
answers with that round's samples, a line each, and an empty line; a text in place of a sample says why there
are no more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from kvstore_bench.results import Results, Sample
from kvstore_bench.stage import Stage

BENCHMARKS = Path(__file__).parents[1]


def python_of(root: Path) -> Path:
    """The interpreter of a checkout's environment; raises ValueError where there is none."""
    python = root.absolute() / ".venv" / "bin" / "python"
    if not python.exists():
        raise ValueError(f"{root} has no .venv: run 'make bench QUICK=1 ONLY=cli_get' there first")
    return python


class Checkout:
    """A checkout with an environment of its own in ``.venv``, in which ``make bench`` has set up the peers.
    ``results`` has its figures."""

    def __init__(self, worker: subprocess.Popen[str], results: Results, file: Path) -> None:
        self._worker = worker
        self._file = file
        self.results = results

    @classmethod
    @contextmanager
    def started(cls, root: Path, stage: Stage, file: Path) -> Iterator[Self]:
        """Measures until the block is left; :meth:`save` writes ``file``."""
        python = python_of(root)
        version = "from kvstore_bench.servers import versions; print(versions()['kvstore'])"
        how: dict[str, Any] = {"env": {**os.environ, "PYTHONPATH": str(BENCHMARKS)}, "text": True}
        told = subprocess.run([python, "-c", version], stdout=subprocess.PIPE, check=True, **how)
        results = Results({"checkout": str(root)}, {}, {"kvstore": told.stdout.strip()})
        folder = stage.folder / "before"
        folder.mkdir()
        command = [str(python), "-m", "kvstore_bench.before", str(folder), json.dumps(stage.settings)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes, **how) as worker:
            try:
                yield cls(worker, results, file)
            finally:
                worker.terminate()

    def save(self) -> None:
        """Write its figures."""
        self.results.save(self._file)

    @property
    def pid(self) -> int:
        """The process that measures it."""
        return self._worker.pid

    def samples(self, row: str, number_of_round: int) -> Iterator[Sample]:
        """The figures of one round as they come; raises RuntimeError if it fails."""
        asked, answers = self._worker.stdin, self._worker.stdout
        assert asked is not None
        assert answers is not None
        asked.write(f"{row} {number_of_round}\n")
        asked.flush()
        for line in answers:
            said = json.loads(line) if line.strip() else None
            if said is None:
                return
            if isinstance(said, str):
                raise RuntimeError(f"with {self.results.settings['checkout']}:\n{said}")
            yield Sample(*said)
        raise RuntimeError(f"{self.results.settings['checkout']} is measured no more: its process has ended")


def main() -> int:
    """Measure rounds until nobody asks for another."""
    from kvstore_bench.registry import chosen

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on the way out
    folder, settings = sys.argv[1:]
    stage = Stage(Path(folder), **json.loads(settings))
    for line in sys.stdin:
        name, number_of_round = line.split()
        (row,) = chosen(name)
        stage.round = int(number_of_round)
        try:
            with closing(row.measure(stage)) as samples:  # type: ignore[type-var]
                for sample in samples:
                    print(json.dumps(sample), flush=True)
        except Exception:
            print(json.dumps(traceback.format_exc(limit=-4)), flush=True)
        else:
            print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
