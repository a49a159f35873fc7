"""Output of the commands: data on stdout, in UTF-8 whatever the locale, messages on stderr.

A pipe gets exactly what is stored. A terminal gets tables and colours, and no control characters from keys
and values, which it would obey.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

EXIT_INTERRUPTED = 130
"""The exit status of a command that Ctrl-C ended."""
COMPLETE_VARIABLE = "_KVSTORE_COMPLETE"
"""Set by a shell that asks what a line can be completed to: what is printed then lands in that line."""

_COLOURS = {"put": "32", "delete": "31", "expire": "33", "bold": "1", "dim": "2"}


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def descriptor() -> int | None:
    """The file descriptor of stdout, None if it is closed."""
    return None if sys.stdout is None else sys.stdout.fileno()


class OutputError(Exception):
    """Standard output cannot be written: it is closed, or its disk is full."""

    @property
    def message(self) -> str:
        """What is said of it."""
        return str(self)


def write(data: bytes) -> None:
    """Write ``data`` to stdout and flush it. Raises OutputError, and BrokenPipeError for a closed pipe."""
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        from kvstore_core.process.files import reason

        drop()
        raise OutputError(f"cannot write to standard output: {reason(error)}") from error


def drop() -> None:
    """Let what was not written go nowhere: at exit, Python would try again, and print its own error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def write_line(text: str) -> None:
    """Write a line to stdout and flush it."""
    write(text.encode() + b"\n")


def json_line(value: Any) -> str:
    """A JSON value as one line."""
    import json

    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_json(value: Any) -> None:
    """Write a JSON value to stdout, as a line."""
    write_line(json_line(value))


def talk(message: str) -> None:
    """Write a message to stderr, if it is open."""
    if sys.stderr is None:
        return
    sys.stderr.write(f"kvstore: {visible(message)}\n")
    sys.stderr.flush()


def err(text: str) -> None:
    """Write text as it is to stderr, if it is open."""
    if sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()


def end_line() -> None:
    """Begin a line on stderr, behind what a terminal shows for Ctrl-C."""
    if sys.stderr is not None:
        sys.stderr.write("\n")
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
    """``text`` with control characters and invisible ones escaped."""
    if text.isprintable() and (text.isascii() or not _blank().search(text)):
        return text
    return "".join(
        char if char.isprintable() and not _blank().match(char) else char.encode("unicode_escape").decode()
        for char in text
    )


@cache  # most commands never ask for it
def _blank() -> re.Pattern[str]:
    # printable according to Python, but invisible: the letters and marks of Default_Ignorable_Code_Point,
    # which unicodedata does not have, and the blank Braille cell
    return re.compile(
        "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
    )


def readable(argument: str) -> str:
    """An argument for a message: bytes that are not UTF-8 are written as ``\\xff``."""
    return visible(os.fsencode(argument).decode(errors="backslashreplace"))


def write_value(value: bytes, content_type: str, *, raw: bool) -> None:
    """Write a value to stdout, with a newline added unless it ends with one, or ``raw``.

    On a terminal, control characters other than newline and tab are escaped, and a value that is not text is
    described, unless ``raw``.
    """
    if raw:
        write(value)
        return
    if on_terminal():
        value = for_terminal(value, content_type)
    write(value if value.endswith(b"\n") else value + b"\n")


def for_terminal(value: bytes, content_type: str) -> bytes:
    """A value with its control characters escaped, newlines and tabs apart; described if it is not text."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"({len(value)} bytes, {visible(content_type)}; --raw prints them)".encode()
    lines = ("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))
    return "\n".join(lines).encode()


def shown(text: str) -> str:
    """A key unchanged in a pipe; on a terminal :func:`visible`, also spaces at its ends."""
    return _outlined(visible(text)) if on_terminal() else text


def preview(value: bytes, content_type: str, width: int | None = 60) -> str:
    """A value on one line: its text, cut to ``width``, or a description if it is not text."""
    try:
        text = visible(value.decode())
    except UnicodeDecodeError:
        return f"({len(value)} bytes, {content_type})"
    return text if width is None or len(text) <= width else f"{text[: width - 1]}…"


def write_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout: aligned and with a header, if ``head`` is not empty, on a terminal; with tabs
    and no header in a pipe."""
    if not on_terminal():
        for row in rows:
            write_line("\t".join(row))
        return
    cells = [[_outlined(visible(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*[head] * bool(head), *cells, strict=True)]
    if head:
        write_line(coloured(_aligned(head, widths), "bold"))
    for row in cells:
        write_line(_aligned(row, widths))


def _outlined(cell: str) -> str:
    """A text with the spaces at both ends escaped."""
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
