"""Running rows and keeping what they came to."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from kvstore_bench import machine, servers
from kvstore_bench.registry import Row
from kvstore_bench.report import number
from kvstore_bench.results import Results, Sample
from kvstore_bench.stage import Stage
from kvstore_core.process.startup import raise_descriptor_limit


def run(rows: Sequence[Row], stage: Stage, rounds: int, file: Path) -> Results:
    """Measure the rows one after another, each ``rounds`` times in turn with all its contenders.

    A row that fails is noted and the others go on. What there is is saved after every row.
    """
    raise_descriptor_limit()  # thousands of streams; servers inherit it
    results = Results(
        settings={
            "began": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "quick": stage.quick,
            "rounds": rounds,
            "seconds": stage.seconds,
            "largest": stage.largest,
            "options": options(),
        },
        machine=machine.description(stage.folder),
        versions={**servers.versions(), **machine.library_versions()},
    )
    for row in rows:
        _run_row(row, stage, rounds, results)
        results.save(file)
    return results


def options() -> dict[str, str]:
    """The options of kvstore that the environment sets, beside which it has its defaults."""
    return {name: value for name, value in os.environ.items() if name.startswith("KVSTORE_")}


def _run_row(row: Row, stage: Stage, rounds: int, results: Results) -> None:
    observer, began = machine.Observer(), time.monotonic()
    say(f"{row.name}: {row.what}")
    try:
        for number_of_round in range(rounds):
            stage.round = number_of_round
            with closing(row.measure(stage)) as samples:  # type: ignore[type-var]
                for sample in samples:
                    results.samples.append((row.name, number_of_round, sample))
                    say(f"  {number_of_round + 1}  {_line(sample)}")
                    observer.look()
    except Exception:
        # the boundary: one peer that cannot be started must not cost the figures of all others
        results.failures[row.name] = traceback.format_exc(limit=-4)
        say(results.failures[row.name])
    results.seconds[row.name] = time.monotonic() - began
    results.conditions[row.name] = seen = observer.conditions()
    say(f"  {results.seconds[row.name]:.0f} s, other programs {seen.foreign_cores:.2f} cores")


def _line(sample: Sample) -> str:
    cpu = (
        "" if sample.server_cpu is None else f"   CPU {sample.server_cpu:.3g} + {sample.load_cpu:.3g} s/1,000"
    )
    limit = f"   limited by {sample.limit}" if sample.limit else ""
    return (
        f"{sample.case:44.44} {sample.contender:36.36} {number(sample.value):>10} {sample.unit}{cpu}{limit}"
    )


def say(text: str) -> None:
    """Progress, for whoever waits for it."""
    print(text, file=sys.stderr, flush=True)
