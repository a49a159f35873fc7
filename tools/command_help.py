"""What the commands say of themselves, read from click for the pages that are made of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple

import click

from kvstore_cli.command_line.group import cli
from kvstore_cli.config.options import CONFIG, OPTIONS, Option

TABLE = {**OPTIONS, CONFIG.name: CONFIG}
COMMON = [row for row in TABLE.values() if {"client", "stream"} & {*row.parts}]
"""What every command takes that asks the service."""


class Help(NamedTuple):
    """The parts of a help text."""

    paragraphs: list[str]
    exit_status: list[str]
    examples: list[str]


def help_of(command: click.Command) -> Help:
    parts = Help([], [], [])
    for block in inspect.cleandoc(command.help or "").split("\n\n"):
        text = block.removeprefix("\b\n")  # click's mark for a block that keeps its lines
        if text.startswith("Exit status: "):
            parts.exit_status.append(text.removeprefix("Exit status: "))
        elif text == block:
            parts.paragraphs.append(text)
        else:
            parts.examples.append(inspect.cleandoc(re.sub(r"^Examples?:\n", "", text)))
    return parts


def names_of(context: click.Context) -> set[str]:
    """What a command calls the values that it takes."""
    shown = " ".join(parameter.make_metavar(context) for parameter in context.command.params)
    return set(re.findall(r"[A-Z]+", shown))


def options_of(context: click.Context) -> Iterator[tuple[click.Option, Option | None]]:
    """The options of a command, with the row of the table from which one is made."""
    for option in context.command.params:
        if isinstance(option, click.Option):
            yield option, None if option.expose_value else TABLE.get(option.opts[0].removeprefix("--"))


def asks(context: click.Context) -> bool:
    """Whether a command asks the service."""
    return any(row is TABLE["url"] for _, row in options_of(context))


def context_of(name: str) -> click.Context:
    parent = click.Context(cli, info_name="kvstore")
    command = cli.get_command(parent, name)
    assert command is not None  # noqa: S101 - it is of the table
    return click.Context(command, info_name=name, parent=parent)


def subcontexts(context: click.Context) -> list[click.Context]:
    """Those of the commands of a group."""
    group = context.command
    if not isinstance(group, click.Group):
        return []
    return [click.Context(each, info_name=name, parent=context) for name, each in group.commands.items()]
