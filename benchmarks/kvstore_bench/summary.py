"""From samples to medians, from medians to ratios, from ratios to whether a goal is met."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from statistics import median
from typing import NamedTuple

from kvstore_bench.registry import Goal, Row
from kvstore_bench.results import Sample


class Figure(NamedTuple):
    """What a contender came to in one case over all rounds."""

    case: str
    contender: str
    median: float
    low: float
    high: float
    unit: str
    less_is_better: bool
    server_cpu: float | None
    load_cpu: float | None
    limit: str


class Ratio(NamedTuple):
    """How many times as good ours is, whether more or less of the unit is better; ``cpu``: how many
    times as much CPU the rival's server takes for an operation."""

    goal: Goal
    case: str
    ours: str
    rival: str
    value: float
    cpu: float | None

    @property
    def is_met(self) -> bool | None:
        """None where the ratio is only stated."""
        return None if self.goal.at_least is None else self.value >= self.goal.at_least


def figures(samples: Iterable[Sample]) -> list[Figure]:
    """The figures of one row, in the order in which their cases and contenders first came."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    cases: dict[str, None] = {}
    for sample in samples:
        cases.setdefault(sample.case)
        groups.setdefault((sample.case, sample.contender), []).append(sample)
    order = list(cases)
    ordered = sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    return [_figure(group) for _, group in ordered]


def _figure(group: list[Sample]) -> Figure:
    first, values = group[0], [sample.value for sample in group]
    return Figure(
        first.case,
        first.contender,
        median(values),
        min(values),
        max(values),
        first.unit,
        first.less_is_better,
        _median(sample.server_cpu for sample in group),
        _median(sample.load_cpu for sample in group),
        next((sample.limit for sample in group if sample.limit), ""),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def ratios(row: Row, found: list[Figure]) -> list[Ratio]:
    """One ratio for each goal and each case in which both sides have a figure."""
    return [
        _ratio(goal, *pair)
        for goal in row.goals
        for case in dict.fromkeys(figure.case for figure in found)
        if fnmatchcase(case, goal.cases) and (pair := _sides(goal, case, found)) is not None
    ]


def _sides(goal: Goal, case: str, found: list[Figure]) -> tuple[Figure, Figure] | None:
    ours, rival = (
        [figure for figure in found if figure.case == case and fnmatchcase(figure.contender, pattern)]
        for pattern in (goal.ours, goal.rival)
    )
    return (_best(ours), _best(rival)) if ours and rival else None


def _best(candidates: list[Figure]) -> Figure:
    choose = min if candidates[0].less_is_better else max
    return choose(candidates, key=lambda figure: figure.median)


def _ratio(goal: Goal, ours: Figure, rival: Figure) -> Ratio:
    better, worse = (rival, ours) if ours.less_is_better else (ours, rival)
    value = better.median / worse.median if worse.median else 0.0
    cpu = rival.server_cpu / ours.server_cpu if ours.server_cpu and rival.server_cpu else None
    return Ratio(goal, ours.case, ours.contender, rival.contender, value, cpu)


def verdict(row: Row, found: list[Ratio]) -> str:
    """``yes``, ``no``, or ``not measured`` where a goal that has to be met has no ratio."""
    for goal in row.goals:
        if goal.at_least is not None and not any(ratio.goal is goal for ratio in found):
            return "not measured"
    return "yes" if all(ratio.is_met is not False for ratio in found) else "no"
