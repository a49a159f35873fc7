"""Reads what the documentation shows: fenced blocks, shell sessions, tables, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

ELLIPSIS = "…"
"""Stands in a shown output for anything that differs from run to run, over lines too."""


class Block(NamedTuple):
    """A fenced block: its language, its text, the headings above it, outermost first, and the line of prose
    that leads to it."""

    language: str
    text: str
    headings: tuple[str, ...]
    lead: str = ""


class Step(NamedTuple):
    """A command of a ``console`` block, and the output shown after it."""

    command: str
    output: str


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    headings: list[str] = []
    inside: list[str] | None = None
    language = lead = indent = ""
    for line in text.splitlines():
        if fence := re.match(r"( *)```(.*)", line):
            if inside is None:
                indent, language, inside = fence[1], fence[2].strip(), []
            else:
                yield Block(language, "\n".join(inside) + "\n", tuple(headings), lead)
                inside, lead = None, ""
        elif inside is not None:
            inside.append(line.removeprefix(indent))
        elif heading := re.match(r"(#+) (.*)", line):
            headings, lead = [*headings[: len(heading[1]) - 1], heading[2]], ""
        elif line:
            lead = line
    assert inside is None, "a fence is not closed"


def steps(block: Block) -> Iterator[Step]:
    """The commands of a ``console`` block: ``$ `` begins one and ``> `` continues it."""
    command: list[str] = []
    output: list[str] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command:
                yield Step("\n".join(command), "\n".join(output))
            command, output = [line[2:]], []
        elif line.startswith("> ") and not output:
            command.append(line[2:])
        else:
            output.append(line)
    if command:
        yield Step("\n".join(command), "\n".join(output))


def looks_like(shown: str, real: str) -> bool:
    """Whether ``real`` is what ``shown`` says, where an ellipsis stands for anything."""
    pattern = ".*".join(map(re.escape, shown.strip().split(ELLIPSIS)))
    return re.fullmatch(pattern, real.strip(), re.DOTALL) is not None


def table_rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under ``heading``, without its head, code marks taken off."""
    section = re.split(rf"^#+ {re.escape(heading)}$", text, maxsplit=1, flags=re.MULTILINE)[1]
    found: list[list[str]] = []
    for line in section.splitlines():
        if line.startswith("|"):
            found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
        elif found:
            break
    return found[2:]


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """All anchors of a page."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", outside, re.MULTILINE)}


def links(text: str) -> list[str]:
    """The targets of all links that lead to a file or an anchor of the repository."""
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]
