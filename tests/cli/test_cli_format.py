"""``--format``: lines of one's own."""

from __future__ import annotations

import os

import pytest

from kvstore_cli.command_line.line_format import EVENT, RECORD, LineFormat
from kvstore_cli.subscribe.sinks import VARIABLES
from support.command_line import CommandLine


@pytest.mark.slow
def test_records_and_events_are_printed_as_the_template_has_them(kvstore: CommandLine) -> None:
    revision = kvstore.out("put", "format/a", "-", stdin=b"\xff\n").decode().strip()
    kvstore.out("put", "format/b", "2")
    template = "{revision} {key}={value}{author}"
    line = f"{revision} format/a=".encode() + b"\xff\n\n"
    assert kvstore.out("get", "format/a", "--format", template) == line
    assert kvstore.out("get", "--prefix", "format/", "--format", "{{{key}}}\\t{value}\\0").count(b"\0") == 2
    assert kvstore.out("list", "format/", "--format", "{key}\\0") == b"format/a\0format/b\0"
    assert kvstore.out("history", "format/a", "--format", "{op}:" + template) == b"put:" + line
    begin = str(int(revision) - 1)
    of_a = ["format/a", "--since", begin, "--format", template]
    assert kvstore.out("changes", *of_a) == line
    assert kvstore.out("subscribe", "--count", "1", *of_a) == line
    assert kvstore("get", "format/a", "format/none", "--format", "{key}").returncode == 3


@pytest.mark.slow
def test_a_terminal_does_not_obey_what_a_template_prints(kvstore: CommandLine) -> None:
    kvstore.out("put", "format/\x1b[2J", "\x1b[31m")
    shown = kvstore.on_terminal("get", "--prefix", "format/\x1b", "--format", "{key} {value}")
    assert shown == "format/\\x1b[2J \\x1b[31m\n"


@pytest.mark.parametrize("template", ["{nothing}", "{key.a}", "{0}", "{}", "{key[0]}"])
def test_a_template_names_members_and_nothing_else(template: str) -> None:
    with pytest.raises(ValueError, match=r"is none of .*\{key\}"):
        LineFormat(template, RECORD)


@pytest.mark.parametrize("template", ["{key!r}", "{key:>9}", "{modified_at:.19}"])
def test_a_template_does_not_shape_members_and_says_so(template: str) -> None:
    with pytest.raises(ValueError, match="conversions and formats are not supported"):
        LineFormat(template, RECORD)


@pytest.mark.parametrize("template", ["{", "}", "{key", "key}", "{key!}", "{{{key}}"])
def test_a_lone_brace_is_refused_with_how_to_write_one(template: str) -> None:
    with pytest.raises(ValueError, match=r"is written \{\{ or \}\}"):
        LineFormat(template, RECORD)


@pytest.mark.parametrize("template", ["\\x", "\\"])
def test_another_escape_is_refused_with_those_that_there_are(template: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        LineFormat(template, RECORD)


@pytest.mark.slow
def test_a_template_is_utf_8(kvstore: CommandLine) -> None:
    refused = kvstore("list", "--format", os.fsdecode(b"{key}\xff"))
    assert (refused.returncode, b"is not UTF-8 text" in refused.stderr) == (2, True)


def test_a_template_may_name_what_a_command_of_exec_gets() -> None:
    assert set(EVENT) == {*VARIABLES, "value"} - {"reason"}  # of a reset, which is no event
