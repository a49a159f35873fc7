"""Input from a file or from standard input, bounded in size."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import click

from kvstore_cli.terminal.output import readable
from kvstore_core.errors import KvError
from kvstore_core.process.files import reason

# The limit of a service is seldom smaller, and is asked for only above this.
_UNASKED_BYTES = 1024 * 1024
_BATCH_BYTES = 64 * 1024 * 1024
_BUFFER_BYTES = 256 * 1024


def shown_name(name: str) -> str:
    """The file ``name`` (``-`` is standard input) for a message."""
    return "standard input" if name == "-" else readable(name)


def unreadable(name: str, error: OSError) -> click.UsageError:
    """The usage error for a file that cannot be read."""
    return click.UsageError(f"cannot read {shown_name(name)}: {reason(error)}")


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """The file ``name`` (``-`` is standard input), open for reading; a usage error if it cannot be."""
    if name == "-":
        if sys.stdin is None:
            raise click.UsageError("standard input is closed, there is nothing to read")
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb", buffering=_BUFFER_BYTES)  # noqa: PTH123, SIM115 - pathlib adds nothing here
    except OSError as error:
        raise unreadable(name, error) from error
    with file:
        yield file


def read_limited(name: str, limit: Callable[[], int]) -> bytes:
    """All of the file ``name``.

    ``limit`` gives the most bytes that it may have, and is called only above 1 MiB. Raises
    ``value_too_large`` as soon as there are more, and a usage error for a file that cannot be read.
    """
    with opened(name) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _UNASKED_BYTES:
            start = _read(name, file, _UNASKED_BYTES + 1)
            if len(start) <= _UNASKED_BYTES:
                return start
        else:
            start = b""
        most = limit()
        body = start if size > most else start + _read(name, file, max(0, most + 1 - len(start)))
    if max(size, len(body)) > most:
        found = f"{size} bytes" if size > most else "too many bytes"
        raise KvError(
            "value_too_large",
            f"{shown_name(name)} has {found}; a value has at most {most} bytes "
            "(--max-value-bytes of the daemon)",
        )
    return body


def read_batch(name: str) -> bytes:
    """All of the file ``name``; a usage error above 64 MiB."""
    with opened(name) as file:
        is_too_large = os.fstat(file.fileno()).st_size > _BATCH_BYTES
        body = b"" if is_too_large else _read(name, file, _BATCH_BYTES + 1)
    if is_too_large or len(body) > _BATCH_BYTES:
        raise click.UsageError(f"{shown_name(name)} has more than 64 MiB, the most of one batch; split it")
    return body


def _read(name: str, file: BinaryIO, most: int) -> bytes:
    try:
        return file.read(most)
    except OSError as error:
        raise unreadable(name, error) from error
