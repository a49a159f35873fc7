"""The usual lines are run without click: they do what they do when click reads them, and load little."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

from support.command_line import CommandLine

# Runs each line of standard input in processes of its own: as it is, and as click reads it.
_BOTH_WAYS = """
import json, os, sys, tempfile
from kvstore_cli.command_line import group, short
from kvstore_cli.main import main

understood = short.understood

def run(words, understands):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            sys.argv, short.understood = ["kvstore", *words], understands
            os._exit(main())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, *(os.pread(each.fileno(), 65536, 0).decode() for each in (out, err))

for words in json.load(sys.stdin):
    is_short = understood(words) is not None
    print(json.dumps([is_short, run(words, understood), run(words, lambda _: None)]), flush=True)
"""

SHORT = [
    ["get", "greeting"],
    ["get", "--raw", "greeting"],
    ["get", "greeting", "--json"],
    ["get", "umlaut/ä ö"],
    ["get", "no such key"],
    ["get", "no such key", "--json"],
    ["get", "k" * 512],
    ["get", "greeting", "--request-timeout", "5s", "--retry-for=0"],
    ["get", "greeting", "--config", "missing.toml"],
    ["get", "greeting", "--url", "http://127.0.0.1:1"],
    ["get", "greeting", "--url=http://127.0.0.1:1/base path"],
    ["get", "greeting", "--token-file", "missing"],
    ["put", "stored", "value"],
    ["put", "stored", ""],
    ["put", "--json", "stored", "value with\nlines and ä"],
    ["put", ".", "dot"],
    ["put", "k" * 512, "value"],
]
LEFT_TO_CLICK = [
    [],
    ["get"],
    ["get", ""],
    ["get", "-h"],
    ["get", "greeting", "stored"],
    ["get", "--", "greeting"],
    ["get", "-5"],
    ["get", "greeting", "--default", "x"],
    ["get", "--prefix", "gree"],
    ["get", "greeting", "--raw", "--json"],
    ["get", "greeting", "--json", "--json"],
    ["get", "greeting", "--retry-for", "soon"],
    ["get", "greeting", "--retry-for", "1s", "--retry-for=2s"],
    ["get", "greeting", "--url"],
    ["get", "greeting", "--url", "-x"],
    ["get", "greeting", "--url="],
    ["get", "greeting", "-url=http://127.0.0.1:1"],
    ["get", "greeting", "--plain-http"],
    ["get", "greeting", "--data", "folder"],
    ["get", "greeting", "--unknown"],
    ["gte", "greeting"],
    ["put", "stored"],
    ["put", "stored", "value", "more"],
    ["put", "", "value"],
    ["put", "stored", "-5"],
    ["put", "stored", "@missing"],
    ["put", "stored", "value", "--raw"],
    ["put", "stored", "value", "--ttl", "1h"],
    ["put", "stored", "value", "-m", "why"],
    ["put", "stored", "value", "--guard", "greeting@0"],
    ["put", "--guard=missing@0", "stored", "value"],
    ["put", "stored", "value", "--guard"],
    ["put", "stored", "value", "--if-value", "value"],
    ["put", "stored/", "value", "--sequence", "--guard", "greeting@0"],
    ["--url", "http://127.0.0.1:1", "get", "greeting"],
]


class Ran(NamedTuple):
    is_short: bool
    as_it_is: list[Any]
    by_click: list[Any]


@pytest.fixture(scope="module")
def ran(kvstore: CommandLine) -> dict[str, Ran]:
    kvstore.out("put", "greeting", "hello")
    kvstore.out("put", "umlaut/ä ö", "ü")
    lines = SHORT + LEFT_TO_CLICK
    done = subprocess.run(
        [sys.executable, "-c", _BOTH_WAYS],
        input=json.dumps(lines),
        env=kvstore.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told = re.sub(r'(revision\W*|version\W*|")\d+', r"\1N", done.stdout)
    answers = map(json.loads, told.splitlines())
    return {repr(line): Ran(*answer) for line, answer in zip(lines, answers, strict=True)}


@pytest.mark.parametrize("line", SHORT + LEFT_TO_CLICK, ids=lambda line: " ".join(line)[:60] or "nothing")
def test_a_line_does_the_same_whether_click_reads_it_or_not(line: list[str], ran: dict[str, Ran]) -> None:
    found = ran[repr(line)]
    assert found.as_it_is == found.by_click
    assert found.is_short is (line in SHORT)


def test_a_line_whose_reader_is_gone_says_nothing(kvstore: CommandLine) -> None:
    kvstore.out("put", "long", "-", stdin=bytes(500_000))
    program = [sys.executable, "-m", "kvstore_cli.main", "get", "long"]
    with subprocess.Popen(
        program, env=kvstore.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 1


# ── what is loaded ───────────────────────────────────────────────────────────────────────────────

_EVERY = """
    collections contextlib copyreg enum errno functools gc itertools keyword operator re reprlib types typing
    warnings
    kvstore_cli kvstore_cli.main kvstore_cli.command_line kvstore_cli.command_line.short
    kvstore_cli.terminal kvstore_cli.terminal.output kvstore_core kvstore_core.errors
"""
_OPTIONS = """
    ipaddress urllib
    kvstore_cli.config kvstore_cli.config.option_values kvstore_cli.config.options kvstore_cli.config.resolve
    kvstore_core.access kvstore_core.access.login_file kvstore_core.addresses kvstore_core.limits
    kvstore_core.units
"""
_ASKING = f"""
    {_EVERY} {_OPTIONS} array math select selectors socket
    kvstore_cli.command_line.service kvstore_cli.config.token_source
    kvstore_cli.http_client kvstore_cli.http_client.client kvstore_cli.http_client.connection
    kvstore_cli.http_client.errors kvstore_cli.http_client.exchange
    kvstore_core.backoff kvstore_core.media_types
"""
_CLICK = "click gettext locale kvstore_cli.command_line.group"
_COMMAND = f"{_CLICK} kvstore_cli.command_line.subcommand kvstore_cli.commands"
_PARAMETERS = f"{_COMMAND} kvstore_cli.command_line.parameters"
MAY_LOAD = {
    "get greeting": f"{_ASKING} kvstore_cli.command_line.reads",
    "put loaded value": f"{_ASKING} json kvstore_cli.command_line.writes",
    "list": f"{_ASKING} {_PARAMETERS} json kvstore_cli.command_line.line_format kvstore_cli.commands.list",
    "status": f"{_ASKING} {_PARAMETERS} json kvstore_cli.commands.status kvstore_cli.terminal.humanize",
    "--help": f"{_EVERY} {_CLICK} bz2 fnmatch lzma shutil textwrap zlib",
    "completion bash": f"{_EVERY} {_OPTIONS} {_COMMAND} copy dataclasses kvstore_cli.commands.completion",
}
"""What a line may load beyond what Python has at its start, and click with what it imports where it reads the
line: the modules of kvstore, and the packages of others."""

_LOADED_BY = """
import sys
start = set(sys.modules)
from kvstore_cli.main import main
try:
    main()
except SystemExit:
    pass
loaded = set(sys.modules) - start
if "click" in loaded:
    for name in loaded:
        del sys.modules[name]
    import click
    loaded = loaded - set(sys.modules) | {"click"}
print("LOADED", *loaded)
"""


@pytest.mark.parametrize("line", MAY_LOAD)
def test_a_line_loads_what_the_table_says_and_no_more(line: str, kvstore: CommandLine) -> None:
    kvstore.out("put", "greeting", "hello")
    done = subprocess.run(
        [sys.executable, "-c", _LOADED_BY, *line.split()],
        env=kvstore.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    names = done.stdout.rpartition("LOADED ")[2].split()
    loaded = {name if name.startswith("kvstore_") else name.partition(".")[0] for name in names}
    loaded = {name for name in loaded if not name.startswith("_") and name != "encodings"}
    more = loaded - set(MAY_LOAD[line].split())
    assert not more, (
        f"'kvstore {line}' is slower by {', '.join(sorted(more))}: import it in the function that needs it, "
        "or, if every such line does, add it to the table"
    )
