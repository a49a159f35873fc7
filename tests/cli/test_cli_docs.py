"""What is written about the command line is what it does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kvstore_cli.command_line.group import COMMANDS, SECTIONS, cli
from kvstore_cli.commands import get
from kvstore_cli.docs_tables import TABLES, refreshed
from kvstore_cli.http_client.batch import _REQUEST_OPS
from kvstore_core.errors import ERRORS
from kvstore_daemon.requests.pending_request import GETS_AT_ONCE
from kvstore_daemon.storage.lmdb_store.snapshot_reads import _READ_BYTES

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["cli.md", "configuration.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_those_of_the_code(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert text == refreshed(text), "run: python -m kvstore_cli.docs_tables docs/cli.md docs/configuration.md"


def test_each_table_is_on_a_page() -> None:
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in PAGES)
    assert sorted(re.findall(r"<!-- table: (\S+) -->", text)) == sorted(TABLES)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, subcommands included."""
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", each) for sub, each in command.commands.items())


def invocations(text: str) -> Iterator[list[str]]:
    """The arguments of each ``kvstore`` in lines of shell."""
    for line in text.splitlines():
        for command in simple_commands(line):
            if command[:1] == ["kvstore"]:
                yield command[1:]


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands in a line of shell, without variables in front and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for token in lexer:
        if set(token) <= set("<>"):
            next(lexer)
        elif set(token) <= set("|;&()<>"):
            yield words
            words = []
        elif words or not re.match(r"[A-Z_]+=", token):
            words.append(token)
    yield words


def shell_blocks(page: str) -> str:
    """The shell examples of a page."""
    return "\n".join(re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL))


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command parse its arguments; usage errors come out."""
    monkeypatch.setenv("HOME", "/nonexistent")
    words = [word.replace("$revision", "1042").replace("$token", "1042") for word in words]
    command: click.Command = cli
    context = click.Context(cli, info_name="kvstore")
    while isinstance(command, click.Group):
        _, found, words = command.resolve_command(context, list(words))
        assert found is not None
        command = found
        context = click.Context(command, parent=context, info_name=command.name)
    command.make_context(command.name, list(words), parent=context.parent)


def test_the_examples_in_the_documents_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = (*PAGES, "backup.md", "monitoring.md")
    examples = [words for page in pages for words in invocations(shell_blocks(page))]
    assert len(examples) > 20
    for words in examples:
        parse(words, monkeypatch)


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_each_help_text_has_examples_that_parse(
    name: str, command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (command.help or "").replace("\b", "")
    if isinstance(command, click.Group):
        assert "\n\n" in text  # it says more than its summary
        return
    examples = list(invocations(text.partition("Example")[2]))
    assert examples, name
    assert any(words[: len(name.split())] == name.split() for words in examples)
    for words in examples:
        parse(words, monkeypatch)


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_help_texts_fit_a_terminal_and_explain_each_option(name: str, command: click.Command) -> None:
    context = click.Context(command, info_name=f"kvstore {name}", terminal_width=80)
    for line in command.get_help(context).splitlines():
        assert len(line) <= 100, line
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_each_command_has_a_summary_and_a_section() -> None:
    assert all(summary and not summary.endswith(".") for summary in COMMANDS.values())
    assert sum(len(section) for section in SECTIONS.values()) == len(COMMANDS)


def test_the_exit_statuses_of_the_main_help_are_those_of_the_table() -> None:
    named = {
        int(status) for status in re.findall(r"\b(\d+) [a-z]", (cli.help or "").partition("Exit status")[2])
    }
    assert {row.exit for row in ERRORS.values()} <= named


def test_how_much_is_read_at_one_moment_is_what_the_code_reads_at_once() -> None:
    assert get.command.help is not None
    told = [get.command.help, *((DOCS / page).read_text() for page in ("cli.md", "http.md", "protocol.md"))]
    for text in told:
        words = re.search(r"[Uu]p to (\d+)\s[^.]*?less\s+than\s+(\d+)\s+MiB", text)
        assert words is not None
        assert int(words[1]) == GETS_AT_ONCE == _REQUEST_OPS
        assert int(words[2]) << 20 == _READ_BYTES
