"""Two checkouts that were measured in turn, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvstore_bench.registry import ROWS, Goal, Row
from kvstore_bench.report import conditions, number, samples_of, table
from kvstore_bench.results import Results
from kvstore_bench.summary import Figure, Ratio, figures, ratios


def comparison(before: Results, after: Results, rows: Sequence[Row] = ROWS) -> str:
    """The ratios of the goals with each checkout, and every figure with how many times as good it became."""
    old, new = (results.versions["kvstore"] for results in (before, after))
    how = f"{after.settings['rounds']} rounds, {after.settings['seconds']} s a figure"
    lines = [
        "# Before and after",
        f"Before: {before.settings['checkout']}, {old}; after: this checkout, {new}; {how}.",
        conditions(after),
        "## Goals",
        "\n".join(table(_GOALS, (line for row in rows for line in _goals(before, after, row)))),
        "## Figures",
        "Medians. A change above 1 is for the better; the CPU is the server's, for an operation.",
        "\n".join(table(_FIGURES, (line for row in rows for line in _changes(before, after, row)))),
    ]
    for name, results in (("before", before), ("after", after)):
        lines += [f"{row} failed {name}:\n```\n{why}\n```" for row, why in results.failures.items()]
    return "\n\n".join(filter(None, lines))


_GOALS = ("row", "case", "against", "before", "after", "at least", "met")
_FIGURES = ("row", "case", "contender", "before", "after", "change", "CPU before", "CPU after", "change")


def _goals(before: Results, after: Results, row: Row) -> Iterator[tuple[str, ...]]:
    old, new = (_ratios(results, row) for results in (before, after))
    for goal, case in {**old, **new}:
        was, ratio = (each.get((goal, case)) for each in (old, new))
        met = None if ratio is None else ratio.is_met
        yield (
            row.name,
            case,
            goal.label or row.against,
            *("" if each is None else f"{each.value:.2f}" for each in (was, ratio)),
            "stated" if goal.at_least is None else f"{goal.at_least:g}",
            {True: "yes", False: "no", None: ""}[met],
        )


def _ratios(results: Results, row: Row) -> dict[tuple[Goal, str], Ratio]:
    return {(each.goal, each.case): each for each in ratios(row, figures(samples_of(results, row)))}


def _changes(before: Results, after: Results, row: Row) -> Iterator[tuple[str, ...]]:
    old = {(each.case, each.contender): each for each in figures(samples_of(before, row))}
    for new in figures(samples_of(after, row)):
        was = old.get((new.case, new.contender))
        if was is not None:
            cpu = [_cpu(was.server_cpu), _cpu(new.server_cpu), _change(new.server_cpu, was.server_cpu)]
            yield (row.name, new.case, new.contender, _shown(was), _shown(new), _better(was, new), *cpu)


def _shown(figure: Figure) -> str:
    return f"{number(figure.median)} {figure.unit}"


def _cpu(seconds: float | None) -> str:
    """Seconds for 1,000 operations as microseconds for one."""
    return "" if seconds is None else f"{number(1000 * seconds)} µs"


def _better(was: Figure, new: Figure) -> str:
    pair = (new.median, was.median)
    return _change(*(pair if new.less_is_better else reversed(pair)))


def _change(less: float | None, more: float | None) -> str:
    """How many times ``less`` is in ``more``."""
    return f"{more / less:.2f}" if less and more else ""
