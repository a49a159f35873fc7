"""The usual lines, ``kvstore get KEY`` and ``kvstore put KEY VALUE``, run without click: importing that takes
as long as all the rest of them.

Whatever is not plain is left to the commands, with every mistake; a test runs lines both ways. Functions
import what they need, so that other lines, which pass by here, do not have to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from kvstore_core.errors import EXIT_DONE


def understood(args: Sequence[str]) -> Callable[[], int] | None:
    """What runs the line, and returns its exit status; None for a line that is click's to read."""
    if not args or args[0] not in _FORMS:
        return None
    run, count, own = _FORMS[args[0]]
    words: list[str] = []
    flags: dict[str, Any] = {}
    given: set[str] = set()
    left = iter(args[1:])
    for arg in left:
        if arg[:1] != "-":
            words.append(arg)
        elif arg in own and not given:  # several may exclude each other
            given.add(arg)
        elif not _take_flag(arg, left, flags):
            return None
    if len(words) != count or not _is_key(words[0]):
        return None
    # what reads standard input or a file
    return None if words[-1].startswith("@") and run is _put else lambda: run(words, given, flags)


def _take_flag(arg: str, left: Iterator[str], flags: dict[str, Any]) -> bool:
    """Add an option that all of these commands have to ``flags``; whether it is one with a good value."""
    from kvstore_cli.config.options import CONFIG, FLAG, options_of

    name, has_value, value = arg.partition("=")
    row = next((row for row in (*options_of("client"), CONFIG) if row.flag == name), None)
    if row is None or row.kind is FLAG or row.name in flags:
        return False
    if not has_value:
        value = next(left, "-")
        if value.startswith("-"):
            return False
    try:
        flags[row.name] = row.kind.parse(value)
    except ValueError:
        return False
    return True


def _is_key(word: str) -> bool:
    try:
        return bool(os.fsencode(word).decode() == word and word)
    except UnicodeError:
        return False


def _get(words: Sequence[str], given: Collection[str], flags: Mapping[str, Any]) -> int:
    from kvstore_cli.command_line.reads import print_one
    from kvstore_cli.command_line.service import client_for

    with client_for(flags) as service:
        print_one(service, words[0], (), raw="--raw" in given, as_json="--json" in given, default=None)
    return EXIT_DONE


def _put(words: Sequence[str], given: Collection[str], flags: Mapping[str, Any]) -> int:
    from kvstore_cli.command_line.service import client_for
    from kvstore_cli.command_line.writes import print_revision, stored

    with client_for(flags) as service:
        made = stored(service, words[0], os.fsencode(words[1]))
    print_revision(made, as_json="--json" in given)
    return EXIT_DONE


_FORMS: dict[str, tuple[Callable[..., int], int, Collection[str]]] = {
    "get": (_get, 1, ("--raw", "--json")),
    "put": (_put, 2, ("--json",)),
}
"""What runs a command, how many words it takes, and which flags of its own."""
