"""What ``man`` shows of the commands."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import click
import pytest

from kvstore_cli.command_line.group import COMMANDS, cli
from support.programs import require_program

FOLDER = Path(__file__).parents[2] / "cli/man"
PAGES = sorted(FOLDER.glob("*.1"))


@cache
def shown(name: str) -> str:
    """A page as a terminal shows it, without its fonts."""
    command = [require_program("mandoc"), "-T", "utf8", "-O", "width=200", FOLDER / f"{name}.1"]
    page = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    return re.sub(r".\x08", "", page)


def lines(text: str) -> list[str]:
    """The lines, without blanks around and doubled within them."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_pages_have_no_faults_that_mandoc_knows() -> None:
    command = [require_program("mandoc"), "-T", "lint", "-W", "warning", *PAGES]
    said = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    # the day of the build would make each build another
    assert not [line for line in said if 'missing date, using "": TH' not in line]


def test_each_command_has_a_page_and_is_on_the_page_of_all() -> None:
    assert {page.stem for page in PAGES} == {"kvstore", *(f"kvstore-{name}" for name in COMMANDS)}
    whole = lines(shown("kvstore"))
    for name, summary in COMMANDS.items():
        assert f"kvstore-{name} - {summary}" in lines(shown(f"kvstore-{name}"))
        assert whole[whole.index(f"kvstore-{name}(1)") + 1] == summary


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_the_examples_sign_for_sign_and_every_option(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    page = lines(shown(f"kvstore-{name}"))
    said = " ".join(page)
    if "all options of kvstore-serve(1)" in said:
        said += shown("kvstore-serve")
    every = command.commands.values() if isinstance(command, click.Group) else [command]
    for each in every:
        examples = re.findall(r"\x08\n(.*?)(?:\n\n|\Z)", each.help or "", re.DOTALL)
        for line in lines("\n".join(examples)):
            assert line in page or line in ("Example:", "Examples:")
        for option in each.params:
            if isinstance(option, click.Option):
                assert re.search(rf"{option.opts[-1]}(?![\w-])", said), option.opts
