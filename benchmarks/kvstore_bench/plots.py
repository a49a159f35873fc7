"""The ratios and the medians as pictures (SVG)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvstore_bench.registry import ROWS, Row
from kvstore_bench.report import number, samples_of
from kvstore_bench.results import Results
from kvstore_bench.summary import Figure, Ratio, figures, ratios

MET, MISSED, GOAL, OTHER = "#1a7f5a", "#c2452d", "#444444", "#b8bec4"

COLUMNS = 2

SHOWN = ("http_get", "http_put", "http_batch", "native_puts", "native_gets", "sse_deliveries")
"""The rows whose rates are drawn."""


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the pictures and give their files."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kvstore", "font.size": 9})
    drawn = []
    for name, draw_one in (("ratios.svg", _draw_ratios), ("rates.svg", _draw_rates)):
        figure = draw_one(results)
        if figure is not None:
            figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight")
            drawn.append(folder / name)
    return drawn


def _judged(results: Results) -> list[tuple[Row, Ratio]]:
    return [
        (row, ratio)
        for row in ROWS
        for ratio in ratios(row, figures(samples_of(results, row)))
        if ratio.goal.at_least is not None and ratio.value > 0
    ]


def _draw_ratios(results: Results) -> Any:
    """Every ratio that is judged as a bar from 1, with a mark where it has to reach."""
    from matplotlib import pyplot

    judged = _judged(results)
    if not judged:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.24 * len(judged)))
    for place, (_, ratio) in enumerate(judged):
        color, least = MET if ratio.is_met else MISSED, ratio.goal.at_least or 0.0
        axes.barh(place, ratio.value - 1, left=1, color=color, height=0.7)
        axes.plot([least, least], [place - 0.45, place + 0.45], color=GOAL, linewidth=2)
        side = "left" if ratio.value >= 1 else "right"
        axes.annotate(f" {ratio.value:.2f} ", (ratio.value, place), va="center", ha=side)
    axes.set_yticks(range(len(judged)), [f"{row.name}: {_case(ratio)}" for row, ratio in judged])
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.axvline(1, color=GOAL, linewidth=0.8)
    axes.set_xlabel("times as good as the other (log scale); the dark mark is the least it has to be")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _case(ratio: Ratio) -> str:
    return f"{ratio.case}, {ratio.goal.label}" if ratio.goal.label else ratio.case


def _draw_rates(results: Results) -> Any:
    """The medians of the rows that are rates, one panel for each case."""
    from matplotlib import pyplot

    panels = _panels(results)
    if not panels:
        return None
    lines = [panels[at : at + COLUMNS] for at in range(0, len(panels), COLUMNS)]
    heights = [0.9 + 0.24 * max(len(bars) for _, bars in line) for line in lines]
    figure, grid = pyplot.subplots(
        len(lines), COLUMNS, figsize=(11, sum(heights)), squeeze=False, height_ratios=heights
    )
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, *panel)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.tight_layout()
    return figure


def _panels(results: Results) -> list[tuple[str, list[Figure]]]:
    found: dict[str, list[Figure]] = {}
    for row in ROWS:
        if row.name in SHOWN:
            for figure in figures(samples_of(results, row)):
                if figure.unit.endswith("/s"):
                    found.setdefault(f"{row.name}: {figure.case}, {figure.unit}", []).append(figure)
    return list(found.items())


def _draw_panel(axes: Any, title: str, bars: Sequence[Figure]) -> None:
    colors = [MET if bar.contender.startswith("kvstore") else OTHER for bar in bars]
    places = range(len(bars))
    axes.barh(places, [bar.median for bar in bars], color=colors)
    for place, bar in zip(places, bars, strict=True):
        axes.annotate(f" {number(bar.median)}", (bar.median, place), va="center")
    axes.set_yticks(places, [bar.contender for bar in bars])
    axes.set_title(title, loc="left", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
