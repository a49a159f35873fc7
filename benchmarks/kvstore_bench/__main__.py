"""``make bench``: measure, write ``benchmarks/results/``, print the table.

A full run with the defaults of kvstore writes there and into the README; anything else writes into
``benchmarks/results/quick/``, which is not kept.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from kvstore_bench.before import Checkout, python_of
from kvstore_bench.comparison import comparison
from kvstore_bench.registry import ROWS, Row, chosen
from kvstore_bench.report import conditions, markdown, readme_part, summary_table, with_part
from kvstore_bench.results import Results
from kvstore_bench.run import options, run, say
from kvstore_bench.stage import Stage

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

LARGEST, QUICK_LARGEST = 10_000_000, 100_000


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round, short, without what takes long")
    parser.add_argument(
        "--only", default="", help=f"rows, with commas: {', '.join(row.name for row in ROWS)}"
    )
    parser.add_argument("--rounds", type=int, help="how often each row is measured (3, quick: 1)")
    parser.add_argument("--seconds", type=int, help="how long each figure is measured (3, quick: 1)")
    parser.add_argument("--largest", type=int, help=f"keys in the largest store ({LARGEST:,})")
    parser.add_argument("--folder", type=Path, help="where the stores are made, and removed again")
    parser.add_argument(
        "--before", type=Path, metavar="CHECKOUT", help="measure another checkout in turn with this one"
    )
    parser.add_argument(
        "--render", action="store_true", help="write report, plots and README anew, measure nothing"
    )
    return parser.parse_args()


def main() -> int:
    """The exit status: 1 if a row failed; a goal that is not met is a result and not a failure."""
    asked = arguments()
    try:
        rows = chosen(asked.only)
        if asked.before is not None:
            python_of(asked.before)
    except ValueError as error:
        say(str(error))
        return 2
    is_full = not (asked.quick or asked.only or options())
    folder = RESULTS if is_full or asked.render else RESULTS / "quick"
    for each in (folder, RESULTS / "quick"):
        each.mkdir(parents=True, exist_ok=True)
    results = Results.load(folder / "results.json") if asked.render else _measure(asked, rows, folder)
    show(results, folder, rows, in_readme=is_full or asked.render)
    return 1 if results.failures else 0


def _measure(asked: argparse.Namespace, rows: list[Row], folder: Path) -> Results:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on the way out
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-", dir=asked.folder) as stores:
        stage = Stage(
            Path(stores),
            quick=asked.quick,
            seconds=asked.seconds or (1 if asked.quick else 3),
            largest=asked.largest or (QUICK_LARGEST if asked.quick else LARGEST),
        )
        rounds = asked.rounds or (1 if asked.quick else 3)
        if asked.before is None:
            return run(rows, stage, rounds, folder / "results.json")
        with Checkout.started(asked.before, stage, RESULTS / "quick" / "before.json") as before:
            results = run(rows, stage, rounds, folder / "results.json", before)
        compared = comparison(before.results, results, rows)
        (RESULTS / "quick" / "compared.md").write_text(compared + "\n")
        print(f"{compared}\n")
        return results


def show(results: Results, folder: Path, rows: list[Row], *, in_readme: bool) -> None:
    """Write the report and the plots, and print the table."""
    from kvstore_bench.plots import draw

    (folder / "report.md").write_text(markdown(results, rows))
    draw(results, folder)
    if in_readme:
        readme = ROOT / "README.md"
        readme.write_text(with_part(readme.read_text(), readme_part(results)))
    print(f"{summary_table(results, rows)}\n\n{conditions(results)}")
    for name in results.failures:
        print(f"\n{name} failed; see {folder / 'report.md'}")


if __name__ == "__main__":
    sys.exit(main())
