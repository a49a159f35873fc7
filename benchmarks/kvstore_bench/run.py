"""Running rows and keeping what they came to."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from kvstore_bench import machine, servers
from kvstore_bench.before import Checkout
from kvstore_bench.registry import Row
from kvstore_bench.report import number
from kvstore_bench.results import Results, Sample
from kvstore_bench.stage import Stage
from kvstore_core.process.startup import raise_descriptor_limit


def run(
    rows: Sequence[Row], stage: Stage, rounds: int, file: Path, before: Checkout | None = None
) -> Results:
    """Measure the rows one after another, each ``rounds`` times in turn with all its contenders; with
    ``before`` each round also with the kvstore of that checkout, first in every second one.

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
    say(f"kvstore {results.versions['kvstore']}, {rounds} rounds, {stage.seconds} s a figure")
    for row in rows:
        _run_row(row, stage, rounds, results, before)
        results.save(file)
        if before is not None:
            before.save()
    return results


def options() -> dict[str, str]:
    """The options of kvstore that the environment sets, beside which it has its defaults."""
    return {name: value for name, value in os.environ.items() if name.startswith("KVSTORE_")}


def _run_row(row: Row, stage: Stage, rounds: int, results: Results, before: Checkout | None) -> None:
    observer = machine.Observer(*([] if before is None else [before.pid]))
    began = time.monotonic()
    say(f"{row.name}: {row.what}")
    for number_of_round in range(rounds):
        stage.round = number_of_round
        sides = [("", results, row.measure(stage))]
        if before is not None:
            sides.append(("before", before.results, before.samples(row.name, number_of_round)))
        for side in sides if number_of_round % 2 else reversed(sides):
            _run_round(row.name, number_of_round, *side, observer)
    results.seconds[row.name] = time.monotonic() - began
    results.conditions[row.name] = seen = observer.conditions()
    say(f"  {results.seconds[row.name]:.0f} s, other programs {seen.foreign_cores:.2f} cores")


def _run_round(
    row: str,
    number_of_round: int,
    side: str,
    results: Results,
    samples: Iterator[Sample],
    observer: machine.Observer,
) -> None:
    if row in results.failures:
        return
    try:
        with closing(samples):  # type: ignore[type-var]
            for sample in samples:
                results.samples.append((row, number_of_round, sample))
                say(f"  {side or number_of_round + 1}  {_line(sample)}")
                observer.look()
    except Exception:
        # the boundary: one peer that cannot be started must not cost the figures of all others
        results.failures[row] = traceback.format_exc(limit=-4)
        say(results.failures[row])


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
