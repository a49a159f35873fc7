"""``kvstore completion``, and completion in bash, zsh and fish. Whatever characters a key or file name has,
it is completed to one word, which runs nothing.

zsh and fish quote completions and replace the whole word. readline, in bash, only replaces what follows the
last character of ``COMP_WORDBREAKS``, and does not quote: for bash, both are done here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class

from kvstore_cli.command_line.subcommand import Subcommand
from kvstore_cli.terminal import output


@dataclass
class Typed:
    """A line up to the cursor, as the shell reads it.

    ``word`` is what is being typed, without its quotes. readline keeps its first ``kept`` characters.
    ``quote`` is the open quote; ``is_mixed`` says that others were closed in the word.
    """

    words: list[str] = field(default_factory=list)
    word: str = ""
    kept: int = 0
    quote: str = ""
    is_mixed: bool = False
    has_tilde: bool = False

    def _next_word(self) -> None:
        self.word, self.kept, self.is_mixed, self.has_tilde = "", 0, False, False


def read_line(line: str, breaks: str, kept: str) -> Typed:
    """``line``, split into words as readline does at ``breaks``; those in ``kept`` stay in the word that they
    start."""
    typed = Typed()
    is_word = False
    left = iter(line)
    for char in left:
        if typed.quote:
            if char == typed.quote:
                typed.quote, typed.is_mixed = "", True
            elif char == "\\" and typed.quote == '"':
                following = next(left, "")
                typed.word += following if following in '$`"\\' else char + following
            else:
                typed.word += char
        elif char.isspace():
            if is_word:
                typed.words.append(typed.word)
            typed._next_word()  # noqa: SLF001 - a part of this
            is_word = False
            continue
        elif char in "'\"":
            typed.quote, typed.kept = char, len(typed.word)
        elif char == "\\":
            typed.word += next(left, "")
        else:
            typed.has_tilde = typed.has_tilde or (char == "~" and not is_word)
            typed.word += char
            if char in breaks:
                typed.kept = len(typed.word) - (char in kept)
        is_word = True
    return typed


class _ScriptedComplete(ShellComplete):
    """Completion whose script is a file, which an installation also puts where the shell looks for it."""

    def source(self) -> str:
        """What the shell has to run once."""
        folder = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120 - pathlib is slow to import
        with open(f"{folder}/completion/kvstore.{self.name}", encoding="utf-8") as script:  # noqa: PTH123
            return script.read()


class BashComplete(_ScriptedComplete):
    """Reads ``COMP_LINE`` up to the cursor, and answers with quoted words."""

    name = "bash"

    def get_completion_args(self) -> tuple[list[str], str]:
        environ = os.environ
        self._typed = read_line(
            environ.get("COMP_LINE", ""), environ.get("COMP_WORDBREAKS", ""), environ.get("COMP_KEPT", "")
        )
        return self._typed.words[1:], self._typed.word

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        """The completions, also of files; none that could not be typed safely at the cursor."""
        if self._typed.is_mixed:
            return []
        return [
            whole
            for item in super().get_completions(args, incomplete)
            for whole in self._whole(item, incomplete)
            if quoted(whole.value, self._typed.quote) is not None
        ]

    def _whole(self, item: CompletionItem[Any], incomplete: str) -> Iterator[CompletionItem[Any]]:
        """The words that ``item`` stands for."""
        if item.type in ("plain", "folder"):
            kind = "dir" if item.type == "folder" else "plain"
            yield CompletionItem(_option_of(incomplete) + item.value, type=kind, help=item.help)
            return
        front = incomplete[: len(incomplete) - len(item.value)]
        has_tilde = self._typed.has_tilde and not front
        for path in files(item.value, only_folders=item.type == "dir", expand=has_tilde):
            yield CompletionItem(front + path, type="dir" if path.endswith("/") else "plain")

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """The type, and what readline puts in place of the part of the word that it replaces."""
        text = quoted(item.value[self._typed.kept :], self._typed.quote) or ""
        if self._typed.has_tilde and text.startswith("\\~"):
            text = text[1:]
        return f"{item.type} {text}"


def _option_of(word: str) -> str:
    """``--option=`` of ``--option=value``, of which the value is completed."""
    return word[: word.index("=") + 1] if word.startswith("--") and "=" in word else ""


def files(start: str, *, only_folders: bool, expand: bool) -> Iterator[str]:
    """The paths that begin with ``start``, folders with a slash at the end, without those that cannot be
    typed. ``expand`` replaces a ``~`` at the start by the home folder."""
    folder, slash, name = start.rpartition("/")
    looked_at = os.path.expanduser(folder + slash) if expand else folder + slash  # noqa: PTH111
    with suppress(OSError), os.scandir(looked_at or ".") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith(name) or (entry.name[0] == "." and not name.startswith(".")):
                continue
            if entry.name.isprintable() and (entry.is_dir() or not only_folders):
                yield folder + slash + entry.name + ("/" if entry.is_dir() else "")


def quoted(text: str, quote: str = "") -> str | None:
    """``text``, which is printable, quoted for bash after the open ``quote``; without one, special characters
    are escaped with a backslash. None if that is impossible."""
    if quote == "'":
        return None if "'" in text else text
    if quote == '"':
        # bash would keep the backslash before an exclamation mark
        return None if "!" in text else re.sub(r'([\\$`"])', r"\\\1", text)
    return re.sub(r"([^\w./:=@%+,-])", r"\\\1", text)


class _WordComplete(_ScriptedComplete):
    """Reads the words before the cursor from ``COMP_WORDS`` and the one that is being typed from
    ``COMP_WORD``, and answers with type, word and help, separated by tabs."""

    completes_whole_word: bool

    def get_completion_args(self) -> tuple[list[str], str]:
        before = os.environ.get("COMP_WORDS", "")
        return before.split("\x1f") if before else [], os.environ.get("COMP_WORD", "")

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """A line; for a file, with the text before its name instead of the help."""
        word = os.environ.get("COMP_WORD", "")
        if item.type not in ("plain", "folder"):
            return f"{item.type}\t{item.value}\t{word[: len(word) - len(item.value)]}"
        front = _option_of(word) if self.completes_whole_word else ""
        return f"{item.type}\t{front}{item.value}\t{' '.join((item.help or '').split())}"


class ZshComplete(_WordComplete):
    """zsh completes only the value of an option."""

    name = "zsh"
    completes_whole_word = False


class FishComplete(_WordComplete):
    """fish completes the whole word."""

    name = "fish"
    completes_whole_word = True


SHELLS = {shell.name: add_completion_class(shell) for shell in (BashComplete, ZshComplete, FishComplete)}


@click.command(cls=Subcommand)
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes kvstore's commands, options and keys in SHELL.

    \b
    Examples:
      source <(kvstore completion bash)          in ~/.bashrc
      source <(kvstore completion zsh)           in ~/.zshrc
      kvstore completion fish > ~/.config/fish/completions/kvstore.fish
    """
    completion = SHELLS[shell](context.find_root().command, {}, "kvstore", output.COMPLETE_VARIABLE)
    output.write(completion.source().encode())
