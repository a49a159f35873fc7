"""Where an export goes: standard output, or a file that has its name only when it is complete."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

from kvstore_cli.terminal import output
from kvstore_core.process.files import reason, whole_file

Write = Callable[[bytes], object]

_OUTPUT_BYTES = 256 * 1024


def refuse_target(path: Path, *, force: bool) -> None:
    """Raise a usage error for a file that cannot be written, or is there already and not to be replaced."""
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise click.UsageError(f"cannot write {output.readable(str(path))}: {why}")
    if path.exists() and not path.is_file():
        raise click.UsageError(
            f"cannot write {output.readable(str(path))}: it is no ordinary file; - is standard output"
        )
    refuse_mounted(path)
    if path.exists() and not force:
        raise click.UsageError(f"{output.readable(str(path))} already exists; --force replaces it")


def refuse_mounted(path: Path) -> None:
    """Raise a usage error for a file that is mounted: no other can take its name when it is complete."""
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return
    name = os.fsencode(path.resolve())
    # of a name, proc(5) writes blanks and backslashes in octal
    written = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % found[0][0], name)
    if path.is_file() and written in (line.split(b" ")[4] for line in mounts.splitlines()):
        raise click.UsageError(
            f"cannot write {output.readable(str(path))}: it is mounted there, and cannot be replaced; "
            "mount its folder, or write to - and redirect that"
        )


@contextmanager
def target(name: str) -> Iterator[Write]:
    """A function that writes a line to the file ``name``, ``-`` for standard output.

    The file is compressed if its name ends in .gz. It is readable by its owner only, and takes its name
    when all of it is on disk; when an error comes instead, nothing is left.
    """
    if name == "-":
        lines = _OutputLines()
        yield lines.write
        lines.flush()
        return
    path = Path(name)
    try:
        with whole_file(path, replace=True) as file, _compressed(file, path) as write:
            yield write
    except OSError as error:
        raise click.ClickException(f"cannot write {output.readable(name)}: {reason(error)}") from error


class _OutputLines:
    """Lines for standard output, many at a time; a terminal obeys nothing of what stands in them."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._size = 0
        self._on_terminal = output.on_terminal()

    def write(self, line: bytes) -> None:
        if self._on_terminal:
            line = output.visible(line.decode().rstrip("\n")).encode() + b"\n"
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _OUTPUT_BYTES:
            self.flush()

    def flush(self) -> None:
        output.write(b"".join(self._lines))
        self._lines.clear()
        self._size = 0


@contextmanager
def _compressed(file: IO[bytes], path: Path) -> Iterator[Write]:
    if path.suffix != ".gz":
        yield file.write
        return
    from gzip import GzipFile

    with GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
        yield compressed.write
