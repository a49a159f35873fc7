"""Completion for bash. Whatever a key holds, what it is completed to is one word that runs nothing."""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

# The line itself goes to the command, not COMP_WORDS: bash has cut those at each : = and @. Nothing of
# the answer is ever expanded.
_SCRIPT = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} type value at=
    COMPREPLY=()
    # where bash does not cut a word at its @, the @ of @FILE is part of what is replaced
    [[ $line =~ [[:space:]]@[^[:space:]]*$ && $COMP_WORDBREAKS != *@* ]] && at=@
    while IFS=' ' read -r type value; do
        case $type in
            plain) COMPREPLY+=("$value")
                ;;
            file)
                compopt -o filenames 2>/dev/null
                mapfile -t COMPREPLY < <(compgen -P "$at" -f -- "$value")
                ;;
            dir)
                compopt -o filenames 2>/dev/null
                mapfile -t COMPREPLY < <(compgen -d -- "$value")
                ;;
        esac
    done < <(COMP_LINE=$line COMP_WORDBREAKS=$COMP_WORDBREAKS %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class BashComplete(ShellComplete):
    """Takes ``COMP_LINE`` up to the cursor, and answers with words that are quoted already."""

    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = _SCRIPT

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is being typed, and that one."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)[1:]
        self._raw = "" if line[-1:].isspace() else re.split(r"(?<!\\)\s", line)[-1]
        if not self._raw:
            return words, ""
        return words[:-1], words[-1] if words else ""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        """The completions, without those that could not be typed safely between the quotes."""
        items = super().get_completions(args, incomplete)
        is_option = incomplete.startswith("--") and "=" in incomplete
        self._cut = _cut_after(incomplete.partition("=")[2] if is_option else incomplete)
        if "'" in self._raw or '"' in self._raw:
            return [item for item in items if item.type != "plain" or quoted(item.value) == item.value]
        return items

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """A type and what readline is to put in place of the part of the word that it looks at."""
        if item.type != "plain":
            return f"{item.type} {item.value}"
        return f"plain {quoted(item.value[self._cut :])}"


def _cut_after(incomplete: str) -> int:
    """How much of what is being typed readline takes for words of their own, and keeps."""
    breaks = [char for char in ":=@" if char in os.environ.get("COMP_WORDBREAKS", "")]
    return max((incomplete.rfind(char) + 1 for char in breaks), default=0)


def quoted(text: str) -> str:
    """``text``, which is printable, as bash reads it back: each character that means something to it
    behind a backslash."""
    return re.sub(r"([^\w./:=@%+,-])", r"\\\1", text)


add_completion_class(BashComplete)
