"""The command, from click's tree: every command with its usage, options, exit statuses and examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import click
from command_help import COMMON, asks, context_of, help_of, names_of, options_of, subcontexts

from docs_site.text import code, escaped, slug
from kvstore_cli.command_line.group import ALIASES, SECTIONS
from kvstore_cli.config.options import Option
from kvstore_cli.docs_tables import TABLES, table
from kvstore_cli.subscribe.sinks import VARIABLES

_HEAD = """\
# Commands

Every command as `--help` has it. [The command line](../cli.md) shows how they are used together,
[Configuration](../configuration.md) where options come from: a flag, a variable of the environment, a file.

"""


def commands() -> str:
    """The page."""
    parts = [_HEAD, _overview()]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n\n")
        for name in names:
            context = context_of(name)
            parts.append(_command(context))
            parts += map(_command, subcontexts(context))
    parts += [_common_options(), _event_variables(), _statuses()]
    return "".join(parts)


def _overview() -> str:
    rows = [
        (
            title,
            ", ".join(f"[{name}](#{slug(f'kvstore {name}')})" for name in names),
        )
        for title, names in SECTIONS.items()
    ]
    also = ", ".join(f"`{alias}` for `{name}`" for alias, name in ALIASES.items())
    return f"{table(('For', 'Commands'), rows)}\nUsers of other stores may write {also}.\n\n"


def _command(context: click.Context) -> str:
    said, names = help_of(context.command), names_of(context)
    parts = [f"### `{context.command_path}`\n\n"]
    subcommands = subcontexts(context)
    if not subcommands:
        parts.append(f"```text\n{_usage(context)}\n```\n\n")
    parts += [f"{_marked(text, names)}\n\n" for text in said.paragraphs]
    if subcommands:
        shown = ", ".join(f"[{each.info_name}](#{slug(each.command_path)})" for each in subcommands)
        parts.append(f"Commands: {shown}.\n\n")
    for example in said.examples:
        parts.append(f"```sh\n{example}\n```\n\n")
    parts += [_options(context, names)]
    parts += [f"Exit status: {_marked(text, names)}\n\n" for text in said.exit_status]
    return "".join(parts)


def _usage(context: click.Context) -> str:
    words = " ".join(context.command.collect_usage_pieces(context))
    return f"{context.command_path} {words}".rstrip()


def _options(context: click.Context, names: set[str]) -> str:
    own, shared, of_servers = [], [], []
    for option, row in options_of(context):
        if row is None:
            flags, text = option.get_help_record(context) or ("", "")
            own.append((code(flags), _marked(text, names)))
        elif row in COMMON and asks(context):
            shared.append(row)
        else:
            of_servers.append(row)
    parts = [table(("Option", "What it does"), own) + "\n"] if own else []
    if shared:
        parts.append(f"Also {_flags(shared)}: [options of all that ask the service](#common-options).\n\n")
    if of_servers:
        parts.append(f"Also [settings](../configuration.md), as flags: {_flags(of_servers)}.\n\n")
    return "".join(parts)


def _flags(rows: Iterable[Option]) -> str:
    return ", ".join(code(row.flag) for row in rows)


def _common_options() -> str:
    return (
        "## Common options\n\nEvery command that asks the service takes these.\n\n"
        f"{TABLES['client-options']()}{''.join(TABLES['config-option']().splitlines(keepends=True)[2:])}\n"
    )


def _event_variables() -> str:
    rows = [(code(f"KVSTORE_EVENT_{name.upper()}"), escaped(meaning)) for name, meaning in VARIABLES.items()]
    return (
        "## Variables of events\n\nWhat a command of `kvstore subscribe --exec` gets of an event.\n\n"
        f"{table(('Variable', 'What it holds'), rows)}\n"
    )


def _statuses() -> str:
    return f"## Exit statuses\n\n{TABLES['exit-statuses']()}"


def _marked(text: str, names: set[str]) -> str:
    """A text of a help page as Markdown: flags, commands in backticks or quotes, and the ``names`` of values
    are code."""
    text = re.sub(r"'(kvstore [^']+)'", r"`\1`", " ".join(text.split()))
    values = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"
    found = rf"(`[^`]+`|(?<![\w-])--[a-z][a-z-]*|(?<![\w-])(?:{values})(?=s?(?![\w-])))"
    return "".join(_pieces(re.split(found, text)))


def _pieces(parts: list[str]) -> Iterator[str]:
    for number, part in enumerate(parts):
        yield code(part.strip("`")) if number % 2 else escaped(part)
