"""Values and batches that come from a file or from standard input, never more of them than can be used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import BinaryIO

import click

from kvstore_core.errors import KvError
from kvstore_core.process.files import reason

# So much is read before anybody is asked what the limit is: the limit of a service is seldom smaller,
# and a value that is smaller costs no further request.
ALWAYS_BYTES = 1024 * 1024
BATCH_BYTES = 64 * 1024 * 1024


def read_value(name: str, limit: Callable[[], int]) -> bytes:
    """All of the file ``name`` (``-`` is standard input).

    ``limit`` says how many bytes are the most, and is asked only for more than 1 MiB. Raises
    ``value_too_large`` as soon as there are more, and a usage error for what cannot be read.
    """
    with _opened(name) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= ALWAYS_BYTES:
            start = _read(name, file, ALWAYS_BYTES + 1)
            if len(start) <= ALWAYS_BYTES:
                return start
        else:
            start = b""
        most = limit()
        body = start if size > most else start + _read(name, file, max(0, most + 1 - len(start)))
    if max(size, len(body)) > most:
        found = f"{size} bytes" if size > most else "too many bytes"
        raise KvError(
            "value_too_large",
            f"{_shown(name)} has {found}; a value has at most {most} bytes (--max-value-bytes of the daemon)",
        )
    return body


def read_batch(name: str) -> bytes:
    """All of the file ``name`` (``-`` is standard input); a usage error above 64 MiB."""
    with _opened(name) as file:
        is_too_large = os.fstat(file.fileno()).st_size > BATCH_BYTES
        body = b"" if is_too_large else _read(name, file, BATCH_BYTES + 1)
    if is_too_large or len(body) > BATCH_BYTES:
        raise click.UsageError(f"{_shown(name)} has more than 64 MiB, the most of one batch; split it")
    return body


def _opened(name: str) -> BinaryIO:
    if name == "-":
        if sys.stdin is None:
            raise click.UsageError("standard input is closed, there is nothing to read")
        return sys.stdin.buffer
    try:
        return open(name, "rb")  # noqa: PTH123 - pathlib adds nothing here
    except OSError as error:
        raise _unreadable(name, error) from error


def _read(name: str, file: BinaryIO, most: int) -> bytes:
    try:
        return file.read(most)
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError) -> click.UsageError:
    return click.UsageError(f"cannot read {_shown(name)}: {reason(error)}")


def _shown(name: str) -> str:
    from kvstore_cli.terminal.output import readable

    return "standard input" if name == "-" else readable(name)
