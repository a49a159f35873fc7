"""``--format TEMPLATE``: records and events as the user wants them printed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from kvstore_cli.command_line.parameters import TEXT
from kvstore_cli.terminal import output

RECORD = (
    *("key", "value", "revision", "create_revision", "version", "content_type", "modified_at", "expires_at"),
    *("author", "message"),
)
"""What a template may name of a record."""
EVENT = (
    *("op", "key", "value", "revision", "index", "count", "time", "previous_revision", "content_type"),
    *("create_revision", "version", "modified_at", "expires_at", "author", "message", "skipped", "cursor"),
)
"""What a template may name of an event."""

_ESCAPES = {"n": "\n", "t": "\t", "0": "\0", "\\": "\\"}
_Function = TypeVar("_Function", bound=Callable[..., Any])


class LineFormat:
    """A template: text, with names of members in braces.

    A member that a record does not have is empty. ``\\n``, ``\\t``, ``\\0`` and ``\\\\`` are a newline,
    a tab, a NUL and a backslash, ``{{`` and ``}}`` are braces. Raises ``ValueError`` that says what is wrong.
    """

    def __init__(self, text: str, names: Sequence[str]) -> None:
        from string import Formatter  # few lines have a template

        unescaped = _unescaped(text)
        try:
            parts = list(Formatter().parse(unescaped))
        except ValueError as error:
            raise ValueError("a brace that is not around a name is written {{ or }}") from error
        self._parts: list[tuple[bytes, str | None]] = []
        for literal, name, how, conversion in parts:
            if name is not None and (how or conversion):
                raise ValueError(f"conversions and formats are not supported: write {{{name}}} alone")
            if name is not None and name not in names:
                raise ValueError(f"{{{name}}} is none of {', '.join(f'{{{known}}}' for known in names)}")
            self._parts.append((literal.encode(), name))
        self._end = b"" if text.endswith(("\\n", "\\0")) else b"\n"

    def write(self, item: dict[str, Any]) -> None:
        """Print one record or event, and a newline, unless the template ends with one or with a NUL.

        A value is its bytes in a pipe; on a terminal, control characters are escaped.
        """
        pieces = (literal + (b"" if name is None else _member(item, name)) for literal, name in self._parts)
        output.write(b"".join(pieces) + self._end)


def _unescaped(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise ValueError(f"\\{found[1]} is none of \\n, \\t, \\0 and \\\\")
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.?)", character, text, flags=re.DOTALL)


def _member(item: dict[str, Any], name: str) -> bytes:
    if name != "value":
        text = str(item.get(name, ""))
        return (output.visible(text) if output.on_terminal() else text).encode()
    value = output.value_of(item)
    return output.for_terminal(value, item.get("content_type", "")) if output.on_terminal() else value


class _LineFormatType(click.ParamType[LineFormat]):
    name = "template"

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> LineFormat:
        """The template; a usage error that says what it may name."""
        text = TEXT.convert(value, param, ctx)
        try:
            return LineFormat(text, self._names)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def format_option(names: Sequence[str]) -> Callable[[_Function], _Function]:
    """``--format TEMPLATE``, passed as ``line_format``."""
    example = "{revision} {key}\\t{value}" if "value" in names else "{revision} {key}"
    return click.option(
        "--format",
        "line_format",
        type=_LineFormatType(names),
        metavar="TEMPLATE",
        help=f"Each as TEMPLATE has it, such as '{example}'; with {', '.join(names)}.",
    )
