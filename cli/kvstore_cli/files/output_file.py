"""Output to standard output, or to a file that gets its name only when it is complete."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from kvstore_cli.terminal import output
from kvstore_core.process.files import reason, whole_file

Write = Callable[[bytes], object]

_BUFFER_BYTES = 256 * 1024


def refuse_unwritable(path: Path, *, force: bool) -> None:
    """Raise a usage error for a file that cannot be written, or exists and must not be replaced."""
    if path.is_dir() or not path.parent.is_dir():
        raise _unwritable(path, "it is a folder" if path.is_dir() else f"there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise _unwritable(path, "it is not a regular file; - is standard output")
    refuse_mounted(path)
    if path.exists() and not force:
        raise _existing(path)


def refuse_mounted(path: Path) -> None:
    """Raise a usage error for a file that is a mount point: another cannot take its name."""
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return
    name = os.fsencode(path.resolve())
    # proc(5): blanks and backslashes of a name are written in octal
    written = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % found[0][0], name)
    if path.is_file() and written in (line.split(b" ")[4] for line in mounts.splitlines()):
        raise _unwritable(
            path,
            "it is a mount point and cannot be replaced; mount its folder instead, or write to - and "
            "redirect that",
        )


def _unwritable(path: Path, why: str) -> click.UsageError:
    return click.UsageError(f"cannot write {output.readable(str(path))}: {why}")


def _existing(path: Path) -> click.UsageError:
    return click.UsageError(f"{output.readable(str(path))} already exists; --force replaces it")


@contextmanager
def written_whole(path: Path, *, replace: bool) -> Iterator[BinaryIO]:
    """:func:`whole_file`, within :func:`writing`."""
    with writing(path), whole_file(path, replace=replace) as file:
        yield file


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a usage error for a file that must not be replaced, and click's own for one that cannot be
    written."""
    try:
        yield
    except FileExistsError as error:
        raise _existing(path) from error
    except OSError as error:
        raise click.ClickException(f"cannot write {output.readable(str(path))}: {reason(error)}") from error


@contextmanager
def output_file(name: str) -> Iterator[Write]:
    """A function that writes a line to the file ``name``, ``-`` for standard output.

    The file is compressed if its name ends in .gz. It is readable by its owner only. It gets its name once
    all of it is on disk; after an error nothing is left.
    """
    if name == "-":
        lines = _StdoutLines()
        yield lines.write
        lines.flush()
        return
    path = Path(name)
    with written_whole(path, replace=True) as file, _compressed(file, path) as write:
        yield write


class _StdoutLines:
    """Lines for standard output, buffered; on a terminal, control characters in them are escaped."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._size = 0
        self._on_terminal = output.on_terminal()

    def write(self, line: bytes) -> None:
        if self._on_terminal:
            line = output.visible(line.decode().rstrip("\n")).encode() + b"\n"
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        output.write(b"".join(self._lines))
        self._lines.clear()
        self._size = 0


@contextmanager
def _compressed(file: BinaryIO, path: Path) -> Iterator[Write]:
    if path.suffix != ".gz":
        yield file.write
        return
    from gzip import GzipFile

    with GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
        yield compressed.write
