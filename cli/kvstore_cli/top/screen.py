"""``kvstore top`` on a terminal: what the screen shows, and the keys; the terminal is restored at the end."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from kvstore_cli.command_line.subcommand import exit_on_signals
from kvstore_cli.config.option_values import show_duration
from kvstore_cli.terminal.humanize import NOTHING, age, count, duration, percent, rate, size
from kvstore_cli.top.overview import Figures, Sampler

_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 240
_PROCESSES = "PROCESSES"
_TICK_SECONDS = 0.25
_SHORTEST_SILENCE = 3.0
_ROUTE_HEAD = ("METHOD", "ROUTE", "/S", "p50", "p99", "ANSWERS")


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as bars, the highest at full height."""
    shown = values[-width:]
    most = max(shown, default=0)
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] if most else _BARS[0] for value in shown)


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
        self._history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_HISTORY))

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
        rows = {} if self.shown is None else _rows(self.shown)
        drawn = {label: _drawn(label, cells, width) for label, cells in rows.items()}
        up, requests = drawn.pop("UP", []), drawn.pop("REQUESTS", [])
        bad = self._bad_news()
        lines = [self._title(width), *([bad] if bad else up)]
        footer = Text(" q quits", style="dim")
        if self.shown is not None:
            lower = [line for row in drawn.values() for line in row]
            history = self._drawn_history(width) if height >= 30 else []
            room = height - len(lines) - len(requests) - len(lower) - len(history) - 4
            routes = _routes(self.shown["http"]["routes"], room)
            lines += [Text(), *requests, *routes, Text(), *lower]
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

    def _bad_news(self) -> Text | None:
        """What takes the place of the first figures."""
        alarm = "bold white on red"
        if self.trouble:
            return Text(f" {self.trouble}", style=alarm)
        if self.shown is None:
            return Text(" waiting for the first figures", style="dim")
        if not self.shown["daemon_up"]:
            return Text(" the daemon does not answer: keys cannot be read or written", style=alarm)
        if self.shown["writes_refused"]:
            return Text(f" writes are refused: {self.shown['writes_refused']}", style=alarm)
        return None

    def _drawn_history(self, width: int) -> list[Text]:
        lines = []
        for name, values in self._history.items():
            most = f" max {rate(max(values, default=0))}"
            bars = sparkline([*values], width - 12 - 14)
            lines.append(Text.assemble((f" {name:<11}", "dim"), (bars, "green"), (most, "dim")))
        return lines


def _rows(shown: Figures) -> dict[str, list[Cell]]:
    """The label of each row, and its figures, the first ones first where the terminal is narrow."""
    http, streams, daemon, commits = (shown[part] for part in ("http", "streams", "daemon", "commits"))
    log, store = shown["log"], shown["store"]
    dropped_for = [f"{reason} {rate(number)}/s" for reason, number in streams["dropped_for"].items()]
    used, most = store["store_used_bytes"], store["store_max_bytes"]
    return {
        "UP": [
            Cell("for", age(shown["uptime"])),
            Cell("keys", count(shown["keys"])),
            Cell("data", size(shown["data_bytes"])),
            Cell("revision", count(shown["revision"])),
            Cell("sync", shown["sync"] or NOTHING),
            Cell("expiring", count(shown["expiring_keys"])),
        ],
        "REQUESTS": [
            Cell("/s", rate(http["requests"])),
            Cell("p50", duration(http["p50"])),
            Cell("p99", duration(http["p99"])),
            Cell("4xx/s", rate(http["refused"]), _alarm(http["refused"], "bold yellow")),
            Cell("5xx/s", rate(http["failed"]), _alarm(http["failed"], "bold red")),
            Cell("connections", count(http["connections"])),
            Cell("running", count(http["in_progress"])),
            Cell("workers", count(http["workers"])),
        ],
        "STREAMS": [
            Cell("open", count(streams["open"])),
            Cell("events/s", rate(streams["events"])),
            Cell("lag p50", duration(streams["lag_p50"])),
            Cell("p99", duration(streams["lag_p99"])),
            Cell("dropped/s", rate(streams["dropped"]), _alarm(streams["dropped"], "bold red")),
            Cell("resumed/s", rate(streams["resumed"])),
            Cell("opened/s", rate(streams["opened"])),
            Cell("resets/s", rate(streams["resets"]), _alarm(streams["resets"], "bold yellow")),
            Cell("backlog", size(streams["backlog_bytes"])),
            *([Cell("because", ", ".join(dropped_for), "bold red")] if dropped_for else []),
        ],
        "DAEMON": [
            Cell("ops/s", rate(daemon["operations"])),
            Cell("requests/s", rate(daemon["requests"])),
            Cell("ops each", rate(daemon["facade_ops_per_request"])),
            Cell("p50", duration(daemon["facade_p50"])),
            Cell("p99", duration(daemon["facade_p99"])),
            Cell("pending", count(daemon["pending"])),
            Cell("subscriptions", count(daemon["subscriptions"])),
        ],
        "": [Cell(op, f"{rate(number)}/s") for op, number in daemon["operations_by_name"].items()],
        "COMMITS": [
            Cell("/s", rate(commits["commits"])),
            Cell("writes each", rate(commits["writes_per_commit"])),
            Cell("p50", duration(commits["p50"])),
            Cell("p99", duration(commits["p99"])),
            Cell("sync p99", duration(commits["sync_p99"])),
            Cell("sync p50", duration(commits["sync_p50"])),
            Cell("events/s", rate(daemon["published"])),
            Cell("expired/s", rate(daemon["expired"])),
        ],
        "LOG": [
            Cell("events", count(log["events"])),
            Cell("size", size(log["bytes"])),
            Cell("reaches back", age(log["reaches_back"])),
            Cell("to revision", count(log["floor_revision"])),
        ],
        "STORE": [
            Cell("used", size(used), _alarm(used and most and used > 0.9 * most, "bold red")),
            Cell("of", size(most)),
            Cell("file", size(store["store_file_bytes"])),
            Cell("disk free", size(store["disk_free_bytes"])),
        ],
        _PROCESSES: [
            Cell(name, f"{percent(fields['cpu'])} {size(fields['memory_bytes'])}")
            for name, fields in shown["processes"].items()
        ],
    }


def _drawn(label: str, cells: list[Cell], width: int) -> list[Text]:
    """A row in one line, with as many of its cells as fit; that of the processes in up to three."""
    if label and not cells:
        return []
    lines = [Text.assemble((f" {label:<11}", "bold cyan"))]
    for cell in cells:
        # a unit follows its figure
        words = [(cell.value, cell.style), (cell.name, "dim")]
        part = Text.assemble(*words) if cell.name.startswith("/") else Text.assemble(words[1], " ", words[0])
        if len(lines[-1]) + len(part) > width:
            if label != _PROCESSES or len(lines) == 3:
                break
            lines.append(Text(" " * 12))
        lines[-1].append_text(part).append("  ")
    for line in lines:
        line.rstrip()
    return lines


def _alarm(is_bad: object, style: str) -> str:
    return style if is_bad else "bold"


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


def show(sampler: Sampler, url: str, interval_ms: int, count: int | None) -> None:
    """Draw what ``sampler`` sees until q or Ctrl-C is pressed, or ``count`` intervals are over."""
    screen = Screen(url, show_duration(interval_ms))
    silence = max(_SHORTEST_SILENCE, 3 * interval_ms / 1000)
    for variable in ("COLUMNS", "LINES"):  # they do not follow the size of the terminal
        os.environ.pop(variable, None)
    live = Live(screen, console=Console(), screen=True, auto_refresh=False)
    exit_on_signals()
    # a stopped process could not restore the screen
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    with suppress(KeyboardInterrupt), _keys_at_once(), live:
        _follow(sampler, screen, live, silence, count)


def _follow(sampler: Sampler, screen: Screen, live: Live, silence: float, count: int | None) -> None:
    heard = time.monotonic()
    drawn: object = None
    while count is None or count > 0:
        if b"q" in _pressed(sampler.wakeup).lower():
            return
        while not sampler.samples.empty():
            sample = sampler.samples.get()
            heard = time.monotonic()
            if sample.shown is not None:
                screen.note(sample.shown)
            elif sample.error is not None:
                screen.trouble = f"no figures from the service: {sample.error.message}"
            drawn = None
            count = None if count is None else count - 1
        quiet = int(time.monotonic() - heard)
        if quiet >= silence:
            screen.trouble = f"the service has not answered for {quiet} s"
        if drawn != (now := (live.console.size, screen.trouble)):
            drawn = now
            live.refresh()


def _pressed(wakeup: int) -> bytes:
    """The keys that were pressed; returns after a tick at most, or at a wake-up."""
    keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    ready, _, _ = select.select([wakeup] if keys is None else [wakeup, keys], [], [], _TICK_SECONDS)
    if wakeup in ready:
        os.read(wakeup, 1024)
    return os.read(keys, 1024) if keys is not None and keys in ready else b""


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Read keys one by one and without echo, until this ends."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
