"""What the commands print: data on stdout as UTF-8 whatever the locale, talk on stderr.

A pipe gets exactly what was stored. A terminal gets tables and colours, and never a control character
out of a key or value: it would be obeyed.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import click

_COLOURS = {"put": "32", "delete": "31", "expire": "33", "bold": "1", "dim": "2"}


def on_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def descriptor() -> int | None:
    """The file descriptor of stdout, None if it is closed."""
    return None if sys.stdout is None else sys.stdout.fileno()


class OutputFailed(click.ClickException):
    """Standard output takes nothing: it is closed, or what is behind it is full."""


def write(data: bytes) -> None:
    """Put ``data`` on stdout, at once. Raises OutputFailed, and BrokenPipeError if its reader is gone."""
    if sys.stdout is None:
        raise OutputFailed("standard output is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        from kvstore_core.process.files import reason

        _drop_output()
        raise OutputFailed(f"writing to standard output failed: {reason(error)}") from error


def _drop_output() -> None:
    # Python would try once more to write what is buffered when it exits, and complain in its own words
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def write_line(text: str) -> None:
    """Put a line on stdout, at once."""
    write(text.encode() + b"\n")


def write_json(value: Any) -> None:
    """Put one JSON value on stdout, as a line."""
    import json

    write_line(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def talk(message: str) -> None:
    """Say something to the person on stderr, if it is open."""
    if sys.stderr is None:
        return
    sys.stderr.write(f"kvstore: {visible(message)}\n")
    sys.stderr.flush()


def counted(number: int, noun: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def coloured(text: str, colour: str) -> str:
    """``text`` in the colour of an event's op (or ``bold``, ``dim``), on a terminal that wants it."""
    if not on_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def visible(text: str) -> str:
    """``text`` with everything that a terminal would obey, or show as nothing, written as an escape."""
    if text.isprintable() and (text.isascii() or not _BLANK.search(text)):
        return text
    return "".join(
        char if char.isprintable() and not _BLANK.match(char) else char.encode("unicode_escape").decode()
        for char in text
    )


# What is printable to Python and yet seen by nobody: Default_Ignorable_Code_Point, which unicodedata does not
# know, as far as it is letters and marks; and the blank Braille cell.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def readable(argument: str) -> str:
    """An argument for a message: bytes of it that are not UTF-8 are shown as ``\\xff``."""
    return visible(os.fsencode(argument).decode(errors="backslashreplace"))


def write_value(value: bytes, content_type: str, *, raw: bool) -> None:
    """Put one value on stdout, with a newline behind it unless it ends with one or is ``raw``.

    On a terminal, control characters other than newline and tab are written as escapes, and a value
    that is no text is described; ``raw`` is for those who want it all the same.
    """
    if raw:
        write(value)
        return
    if on_terminal():
        value = _for_the_eye(value, content_type)
    write(value if value.endswith(b"\n") else value + b"\n")


def _for_the_eye(value: bytes, content_type: str) -> bytes:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"({len(value)} bytes, {visible(content_type)}; --raw prints them)".encode()
    lines = ("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))
    return "\n".join(lines).encode()


def shown(text: str) -> str:
    """A key as it stands for a pipe; for a terminal :func:`visible`, with its ends to be seen."""
    return _outlined(visible(text)) if on_terminal() else text


def preview(value: bytes, content_type: str, width: int | None = 60) -> str:
    """A value on one line for a person: its text, cut to ``width``, or what it is instead of text."""
    try:
        text = visible(value.decode())
    except UnicodeDecodeError:
        return f"({len(value)} bytes, {content_type})"
    return text if width is None or len(text) <= width else f"{text[: width - 1]}…"


def write_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Put a table on stdout: aligned, with a head, on a terminal; tabs and no head in a pipe."""
    if not on_terminal():
        for row in rows:
            write_line("\t".join(row))
        return
    cells = [[_outlined(visible(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    write_line(coloured(_aligned(head, widths), "bold"))
    for row in cells:
        write_line(_aligned(row, widths))


def _outlined(cell: str) -> str:
    """A text whose spaces at either end, which nobody sees, are escapes."""
    inner = cell.strip(" ")
    if inner == cell:
        return cell
    before = len(cell) - len(cell.lstrip(" "))
    return "\\x20" * before + inner + "\\x20" * (len(cell) - len(inner) - before)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def value_of(item: dict[str, Any]) -> bytes:
    """The value in a record's or event's JSON: ``value`` is text, ``value_b64`` other bytes."""
    if "value_b64" in item:
        from base64 import b64decode

        return b64decode(item["value_b64"])
    text: str = item.get("value", "")
    return text.encode()
