"""The tables in the documentation that come from the code: ``python -m kvstore_cli.docs_tables docs/*.md``.

A table is between ``<!-- table: NAME -->`` and ``<!-- end -->``. A test compares it with what this module
makes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kvstore_cli.command_line.group import SECTIONS
from kvstore_cli.config.options import CONFIG, OPTIONS, Option
from kvstore_cli.subscribe.sinks import VARIABLES
from kvstore_cli.terminal.output import EXIT_INTERRUPTED
from kvstore_core.errors import ERRORS, EXIT_DONE, EXIT_USAGE

_BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_EXIT_MEANINGS = {
    0: "done",
    1: "an error",
    2: "the command line or the configuration is wrong; nothing was done",
    3: "no such key, or identity",
    4: "the condition does not hold; nothing was changed",
    5: "not allowed; also a certificate that is not trusted, or a data folder in use",
    6: "the service, or the daemon behind it, cannot be reached",
    124: "timed out",
    130: "interrupted with Ctrl-C",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _option_row(row: Option) -> tuple[str, ...]:
    flag = row.flag if not row.kind.metavar else f"{row.flag} {row.kind.metavar}"
    return f"`{flag}`", f"`{row.variable}`", row.shown_default(), row.consequence


def _options(*parts: tuple[str, ...]) -> str:
    rows = [row for row in OPTIONS.values() if row.parts in parts]
    return table(("Flag", "Variable", "Default", "What it does"), map(_option_row, rows))


def _config_option() -> str:
    return table(("Flag", "Variable", "Default", "What it does"), [_option_row(CONFIG)])


def _commands() -> str:
    rows = [(f"`{name}`", summary) for section in SECTIONS.values() for name, summary in section.items()]
    return table(("Command", "What it does"), rows)


def exit_statuses() -> list[tuple[int, str, list[str]]]:
    """Each exit status of the command, what it means, and the errors of the service that have it."""
    statuses = sorted({EXIT_DONE, EXIT_USAGE, EXIT_INTERRUPTED, *(row.exit for row in ERRORS.values())})
    return [
        (status, _EXIT_MEANINGS[status], [row.code for row in ERRORS.values() if row.exit == status])
        for status in statuses
    ]


def _exit_statuses() -> str:
    rows = [
        (str(status), meaning, ", ".join(f"`{code}`" for code in codes))
        for status, meaning, codes in exit_statuses()
    ]
    return table(("Status", "Meaning", "Errors of the service"), rows)


def _event_variables() -> str:
    rows = [(f"`KVSTORE_EVENT_{name.upper()}`", meaning) for name, meaning in VARIABLES.items()]
    return table(("Variable", "What it holds"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "daemon-options": lambda: _options(("daemon",), ("daemon", "store")),
    "http-options": lambda: _options(("http",), ("http", "client")),
    "shared-options": lambda: _options(("daemon", "http")),
    "client-options": lambda: _options(("client",), ("http", "client"), ("stream",)),
    "config-option": _config_option,
    "commands": _commands,
    "exit-statuses": _exit_statuses,
    "event-variables": _event_variables,
}


def refreshed(text: str) -> str:
    """``text`` with each marked table as the code has it now."""
    return _BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + block[3], text)


def main(paths: Sequence[str]) -> None:
    """Refresh the tables in the files at ``paths``."""
    for path in map(Path, paths):
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
