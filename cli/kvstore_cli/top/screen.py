"""The display of ``kvstore top``: lines, and a screen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kvstore_cli.terminal.humanize import NOTHING, age, count, duration, percent, rate, size
from kvstore_cli.top.overview import Figures

_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 240
_ROUTE_HEAD = ("METHOD", "ROUTE", "/S", "p50", "p99", "ANSWERS")


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as bars, the highest at full height."""
    shown = values[-width:]
    most = max(shown, default=0)
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] if most else _BARS[0] for value in shown)


# ── lines, where there is no screen ──────────────────────────────────────────────────────────────

PLAIN_HEAD = (
    f"{'TIME':8} {'REQ/S':>8} {'5XX/S':>6} {'P99':>8} {'OPS/S':>8} {'COMMITS/S':>9} {'SYNC P99':>8} "
    f"{'STREAMS':>7} {'EVENTS/S':>9} {'LAG P99':>8} {'KEYS':>10} {'REVISION':>11} {'DAEMON':>6}"
)


def plain_line(shown: Figures) -> str:
    """One interval under ``PLAIN_HEAD``."""
    http, daemon, commits, streams = (shown[name] for name in ("http", "daemon", "commits", "streams"))
    cpu = shown["processes"].get("daemon", {}).get("cpu")
    return (
        f"{shown['time'][11:19]} {rate(http['requests']):>8} {rate(http['failed']):>6} "
        f"{duration(http['p99']):>8} {rate(daemon['operations']):>8} {rate(commits['commits']):>9} "
        f"{duration(commits['sync_p99']):>8} {count(streams['open']):>7} {rate(streams['events']):>9} "
        f"{duration(streams['lag_p99']):>8} {count(shown['keys']):>10} {count(shown['revision']):>11} "
        f"{percent(cpu) if shown['daemon_up'] else 'away':>6}"
    )


# ── the screen ───────────────────────────────────────────────────────────────────────────────────


class Cell(NamedTuple):
    """A figure with its name, and its style."""

    name: str
    value: str
    style: str = "bold"


class Screen:
    """The current figures as a rich renderable of the terminal's size.

    ``shown`` is the last overview, None before the first. ``trouble`` is set while the service does not
    answer, and the figures are old.
    """

    def __init__(self, url: str, every: str) -> None:
        self._url = url
        self._every = every
        self.shown: Figures | None = None
        self.trouble: str | None = None
        self._history: dict[str, deque[float]] = {
            name: deque(maxlen=_HISTORY) for name in ("requests/s", "events/s", "commits/s")
        }

    def note(self, shown: Figures) -> None:
        """Show this overview now."""
        self.shown, self.trouble = shown, None
        for name, value in (
            ("requests/s", shown["http"]["requests"]),
            ("events/s", shown["streams"]["events"]),
            ("commits/s", shown["commits"]["commits"]),
        ):
            self._history[name].append(value or 0.0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        lines = [self._title(width), *self._state(width)]
        footer = Text(" q quits", style="dim")
        if self.shown is not None:
            upper, lower = self._requests(width), self._rest(width)
            history = self._drawn_history(width) if height >= 30 else []
            room = height - len(lines) - len(upper) - len(lower) - len(history) - 3
            routes = _routes(self.shown["http"]["routes"], room)
            lines += [*upper, *routes, Text(), *lower]
            if history:
                lines += [Text(), *history]
        lines = lines[: height - 1]
        lines += [Text()] * (height - 1 - len(lines))
        style = "dim" if self.trouble else ""
        for number, line in enumerate([*lines, footer]):
            line.truncate(width, overflow="ellipsis")
            line.no_wrap, line.end = True, "" if number == height - 1 else "\n"
            if style and number > 1:
                line.stylize(style)
            yield line

    def _title(self, width: int) -> Text:
        shown = self.shown or {}
        left = f" kvstore {shown.get('version') or ''}  {self._url}"
        right = f"{shown.get('time', '')[11:19]} UTC  every {self._every} " if shown else ""
        if len(left) + len(right) >= width:
            right = ""
        return Text(left.ljust(width - len(right)) + right, style="reverse")

    def _state(self, width: int) -> list[Text]:
        if self.trouble:
            return [Text(f" {self.trouble}", style="bold white on red")]
        shown = self.shown
        if shown is None:
            return [Text(" waiting for the first figures", style="dim")]
        if not shown["daemon_up"]:
            return [
                Text(" the daemon does not answer: keys cannot be read or written", style="bold white on red")
            ]
        if shown["writes_refused"]:
            return [Text(f" writes are refused: {shown['writes_refused']}", style="bold white on red")]
        return [
            _line(
                "UP",
                width,
                Cell("for", age(shown["uptime"])),
                Cell("keys", count(shown["keys"])),
                Cell("data", size(shown["data_bytes"])),
                Cell("revision", count(shown["revision"])),
                Cell("sync", shown["sync"] or NOTHING),
                Cell("expiring", count(shown["expiring_keys"])),
            )
        ]

    def _requests(self, width: int) -> list[Text]:
        assert self.shown is not None  # noqa: S101 - for the type checker
        http = self.shown["http"]
        return [
            Text(),
            _line(
                "REQUESTS",
                width,
                Cell("/s", rate(http["requests"])),
                Cell("p50", duration(http["p50"])),
                Cell("p99", duration(http["p99"])),
                Cell("4xx/s", rate(http["refused"]), _alarm(http["refused"], "bold yellow")),
                Cell("5xx/s", rate(http["failed"]), _alarm(http["failed"], "bold red")),
                Cell("connections", count(http["connections"])),
                Cell("running", count(http["in_progress"])),
                Cell("workers", count(http["workers"])),
            ),
        ]

    def _rest(self, width: int) -> list[Text]:
        assert self.shown is not None  # noqa: S101 - for the type checker
        shown = self.shown
        return [
            *_streams(shown["streams"], width),
            *_daemon(shown["daemon"], width),
            *_commits(shown["commits"], shown["daemon"], width),
            *_storage(shown["log"], shown["store"], width),
            *_processes(shown["processes"], width),
        ]

    def _drawn_history(self, width: int) -> list[Text]:
        lines = []
        for name, values in self._history.items():
            most = f" max {rate(max(values, default=0))}"
            bars = sparkline([*values], width - 12 - 14)
            lines.append(Text.assemble((f" {name:<11}", "dim"), (bars, "green"), (most, "dim")))
        return lines


def _line(label: str, width: int, *cells: Cell) -> Text:
    """As many of ``cells`` as fit, the first ones first."""
    line = Text.assemble((f" {label:<11}", "bold cyan"))
    for cell in cells:
        # a unit follows its figure
        words = [(cell.value, cell.style), (cell.name, "dim")]
        if cell.name.startswith("/"):
            part = Text.assemble(words[0], words[1])
        else:
            part = Text.assemble(words[1], " ", words[0])
        if len(line) + len(part) > width:
            break
        line.append_text(part).append("  ")
    line.rstrip()
    return line


def _alarm(value: float | None, style: str) -> str:
    return style if value else "bold"


def _routes(routes: list[Figures], room: int) -> list[Text]:
    if not routes or room < 2:
        return []
    wide = min(30, max(14, max(len(row["route"]) for row in routes[: room - 1])))
    lines = [_route_line(_ROUTE_HEAD, wide, "dim")]
    for row in routes[: room - 1]:
        answers = "  ".join(f"{status} {rate(number)}" for status, number in row["statuses"].items())
        has_failed = any(status[0] == "5" for status in row["statuses"])
        cells = (
            row["method"],
            row["route"],
            rate(row["requests"]),
            duration(row["p50"]),
            duration(row["p99"]),
        )
        lines.append(_route_line((*cells, answers), wide, "red" if has_failed else ""))
    if len(routes) > room - 1:
        lines[-1] = Text(f"   and {len(routes) - room + 2} more", style="dim")
    return lines


def _route_line(cells: Sequence[str], wide: int, style: str) -> Text:
    method, route, per_second, p50, p99, answers = cells
    return Text(f"   {method:<8}{route:<{wide}}{per_second:>9}{p50:>9}{p99:>9}   {answers}", style=style)


def _streams(streams: Figures, width: int) -> list[Text]:
    reasons = ", ".join(f"{reason} {rate(number)}/s" for reason, number in streams["dropped_for"].items())
    return [
        _line(
            "STREAMS",
            width,
            Cell("open", count(streams["open"])),
            Cell("events/s", rate(streams["events"])),
            Cell("lag p50", duration(streams["lag_p50"])),
            Cell("p99", duration(streams["lag_p99"])),
            Cell("dropped/s", rate(streams["dropped"]), _alarm(streams["dropped"], "bold red")),
            Cell("resumed/s", rate(streams["resumed"])),
            Cell("opened/s", rate(streams["opened"])),
            Cell("resets/s", rate(streams["resets"]), _alarm(streams["resets"], "bold yellow")),
            Cell("backlog", size(streams["backlog_bytes"])),
            *([Cell("because", reasons, "bold red")] if reasons else []),
        )
    ]


def _daemon(daemon: Figures, width: int) -> list[Text]:
    by_name = [Cell(op, f"{rate(number)}/s") for op, number in daemon["operations_by_name"].items()]
    return [
        _line(
            "DAEMON",
            width,
            Cell("ops/s", rate(daemon["operations"])),
            Cell("requests/s", rate(daemon["requests"])),
            Cell("ops each", rate(daemon["facade_ops_per_request"])),
            Cell("p50", duration(daemon["facade_p50"])),
            Cell("p99", duration(daemon["facade_p99"])),
            Cell("pending", count(daemon["pending"])),
            Cell("subscriptions", count(daemon["subscriptions"])),
        ),
        _line("", width, *by_name),
    ]


def _commits(commits: Figures, daemon: Figures, width: int) -> list[Text]:
    return [
        _line(
            "COMMITS",
            width,
            Cell("/s", rate(commits["commits"])),
            Cell("writes each", rate(commits["writes_per_commit"])),
            Cell("p50", duration(commits["p50"])),
            Cell("p99", duration(commits["p99"])),
            Cell("sync p99", duration(commits["sync_p99"])),
            Cell("sync p50", duration(commits["sync_p50"])),
            Cell("events/s", rate(daemon["published"])),
            Cell("expired/s", rate(daemon["expired"])),
        )
    ]


def _storage(log: Figures, store: Figures, width: int) -> list[Text]:
    used, most = store["store_used_bytes"], store["store_max_bytes"]
    is_short = bool(used and most and used > 0.9 * most)
    return [
        _line(
            "LOG",
            width,
            Cell("events", count(log["events"])),
            Cell("size", size(log["bytes"])),
            Cell("reaches back", age(log["reaches_back"])),
            Cell("to revision", count(log["floor_revision"])),
        ),
        _line(
            "STORE",
            width,
            Cell("used", size(used), "bold red" if is_short else "bold"),
            Cell("of", size(most)),
            Cell("file", size(store["store_file_bytes"])),
            Cell("disk free", size(store["disk_free_bytes"])),
        ),
    ]


def _processes(processes: dict[str, Figures], width: int) -> list[Text]:
    """Up to three lines."""
    lines: list[Text] = []
    left = [
        Cell(name, f"{percent(fields['cpu'])} {size(fields['memory_bytes'])}")
        for name, fields in processes.items()
    ]
    while left and len(lines) < 3:
        fitting = _fitting(left, width)
        lines.append(_line("" if lines else "PROCESSES", width, *left[:fitting]))
        left = left[fitting:]
    return lines


def _fitting(cells: Iterable[Cell], width: int) -> int:
    used, fitting = 12, 0
    for cell in cells:
        used += len(cell.name) + len(cell.value) + 3
        if used - 2 > width:
            break
        fitting += 1
    return max(1, fitting)
