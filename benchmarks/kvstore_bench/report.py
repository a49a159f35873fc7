"""Results as Markdown: the table of the goals, and every figure behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kvstore_bench.registry import ROWS, Goal, Row
from kvstore_bench.results import Results, Sample
from kvstore_bench.summary import Figure, Ratio, figures, ratios, verdict

NOT_RUN = "not run"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def samples_of(results: Results, row: Row) -> list[Sample]:
    """The samples of one row, over all rounds."""
    return [sample for name, _, sample in results.samples if name == row.name]


def summary_table(results: Results | None, rows: Sequence[Row] = ROWS) -> str:
    """What was measured against what, how far ahead we want to be, and how far we are; without
    results only the first three."""
    head = ["what", "against", "at least"]
    if results is None:
        return "\n".join(table(head, ((row.what, row.against, row.at_least) for row in rows)))
    return "\n".join(table([*head, "measured", "met"], (_summary(results, row) for row in rows)))


def _summary(results: Results, row: Row) -> tuple[str, ...]:
    samples = samples_of(results, row)
    if not samples:
        return (row.what, row.against, row.at_least, NOT_RUN, "")
    found = ratios(row, figures(samples))
    return (row.what, row.against, row.at_least, _measured(row, found), verdict(row, found))


def _measured(row: Row, found: list[Ratio]) -> str:
    """The ratios that are judged, one range for each goal."""
    parts = []
    for goal in row.goals:
        values = [ratio.value for ratio in found if ratio.goal is goal]
        if goal.at_least is not None and values:
            parts.append(_named(goal, row, f"{_range(values)}"))
    return "; ".join(parts) or "no goal in this run"


def losses(results: Results, rows: Sequence[Row] = ROWS) -> str:
    """Where kvstore is behind, as a list: the aims that were missed, and what else was measured of others
    (under a label) and came out below 1."""
    lines = []
    for row in rows:
        found = ratios(row, figures(samples_of(results, row)))
        if any(ratio.is_met is False for ratio in found):
            lines.append(f"- {row.what}: {_measured(row, found)}, where the aim is {row.at_least}")
        if row.against.startswith("itself"):
            continue
        for goal in row.goals:
            behind = [ratio.value for ratio in found if ratio.goal is goal and ratio.value < 1]
            if goal.at_least is None and goal.label and behind:
                lines.append(f"- {row.what}, against {goal.label}: {_range(behind)}")
    return "\n".join(lines)


def _named(goal: Goal, row: Row, text: str) -> str:
    is_alone = sum(each.at_least is not None for each in row.goals) == 1
    return text if is_alone or not goal.label else f"{goal.label} {text}"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


# ── everything ───────────────────────────────────────────────────────────────────────────────────


def markdown(results: Results, rows: Sequence[Row] = ROWS) -> str:
    """The whole report."""
    parts = ["# Results", _preface(results), "## Goals", summary_table(results, rows), "## Figures", READING]
    for row in rows:
        if samples := samples_of(results, row):
            parts += [f"### {row.name}", f"{row.what}; against {row.against}: {row.at_least}."]
            parts += ["\n".join(_figure_table(samples)), "\n".join(_ratio_table(row, samples))]
        if row.name in results.failures:
            parts += [f"### {row.name} failed", f"```\n{results.failures[row.name]}\n```"]
    return "\n\n".join(parts) + "\n"


READING = """\
Medians over the rounds, with the lowest and the highest round. CPU is seconds per 1,000 operations, the
server's processes and the load generator's. On a machine where both share the cores it is steadier
than the rate. A ratio above 1 says that we are better, whether more or less of the unit is better;
that of the server CPU says how much less of it ours takes for an operation."""


def _preface(results: Results) -> str:
    settings = results.settings
    how = "quick" if settings["quick"] else "full"
    rounds = f"{settings['rounds']} round{'s' * (settings['rounds'] != 1)}"
    minutes = sum(results.seconds.values()) / 60
    lines = [
        f"{settings['began']}, {how} run: {rounds}, {settings['seconds']} s a figure, {minutes:.0f} minutes.",
        conditions(results),
        "",
        *(f"- {name}: {value}" for name, value in results.machine.items()),
        *(f"- not the default: {name}={value}" for name, value in settings["options"].items()),
        "- " + ", ".join(f"{name} {version}" for name, version in results.versions.items()),
    ]
    return "\n".join(lines)


QUIET_CORES = 0.1
STEADY = 1.3


def conditions(results: Results) -> str:
    """How far to trust the run: what the machine was like meanwhile."""
    seen = list(results.conditions.values())
    if not seen:
        return ""
    foreign, stolen = max(each.foreign_cores for each in seen), max(each.stolen_cores for each in seen)
    quickest, slowest = min(each.loop_us for each in seen), max(each.loop_us for each in seen)
    said = (
        f"While a row was measured, other programs used up to {foreign:.2f} cores, and the machine's host "
        f"took up to {stolen:.2f}; a loop that took {quickest:,.0f} µs in the best row took {slowest:,.0f} "
        "in the worst."
    )
    is_quiet = max(foreign, stolen) < QUIET_CORES and slowest < STEADY * quickest
    return said if is_quiet else f"{said} That was no quiet machine: trust only large ratios."


def _figure_table(samples: Sequence[Sample]) -> Iterator[str]:
    head = ("case", "contender", "median", "lowest to highest", "server CPU", "load CPU", "limited by")
    return table(head, map(_figure_row, figures(samples)))


def _figure_row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.case,
        figure.contender,
        f"{number(figure.median)} {figure.unit}",
        "" if figure.low == figure.high else f"{number(figure.low)} to {number(figure.high)}",
        _cpu(figure.server_cpu),
        _cpu(figure.load_cpu),
        figure.limit,
    )


def _cpu(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def number(value: float) -> str:
    """Three significant digits, or whole with commas."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio_table(row: Row, samples: Sequence[Sample]) -> Iterator[str]:
    head = ("case", "ours", "against", "ratio", "at least", "met", "server CPU")
    return table(head, map(_ratio_row, ratios(row, figures(samples))))


def _ratio_row(ratio: Ratio) -> tuple[str, ...]:
    at_least = ratio.goal.at_least
    return (
        ratio.case,
        ratio.ours,
        ratio.rival,
        f"{ratio.value:.2f}",
        "stated" if at_least is None else f"{at_least:g}",
        {True: "yes", False: "no", None: ""}[ratio.is_met],
        "" if ratio.cpu is None else f"{ratio.cpu:.2f}",
    )


# ── the README's part ────────────────────────────────────────────────────────────────────────────

BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"


def readme_part(results: Results | None) -> str:
    """What stands in the README between the two marks: the goals, and the last full run if there is
    one."""
    if results is None:
        return summary_table(None)
    named = {**results.machine, "Python": f"Python {results.machine['Python']}"}
    machine, began = ", ".join(map(str, named.values())), results.settings["began"]
    ours = f"kvstore {results.versions['kvstore']}"
    lines = [
        f"Ratios of medians, above 1 where kvstore is better; {began}, {ours} on {machine}.",
        "All figures: [benchmarks/results/report.md](benchmarks/results/report.md).",
        "",
        summary_table(results),
        "",
        "![How many times as fast kvstore is](benchmarks/results/ratios.svg)",
    ]
    if behind := losses(results):
        lines += ["", "Where kvstore is behind what it was measured against, or behind its aim:", "", behind]
    return "\n".join(lines)


def with_part(readme: str, part: str) -> str:
    """The README with the part between the marks replaced; raises ValueError where there are none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"
