"""Runs :mod:`kvstore_daemon.storage.offline.reader_process` and turns its output and its end into results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from io import BufferedReader
from pathlib import Path
from typing import Any, ParamSpec, cast

import orjson

from kvstore_core.errors import KvError
from kvstore_core.process.signals import signal_name
from kvstore_daemon.storage.offline import OnBegun, Progress, never_ended, no_progress
from kvstore_daemon.storage.offline.run_as_owner import as_root

_ATTEMPTS = 5
_CHUNK_BYTES = 1 << 20
_DAMAGE_SIGNALS = frozenset((signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL))
"""The signals that end a process which follows a damaged page. Others come from outside, as from a system
that is out of memory."""
_Process = subprocess.Popen[bytes]
Given = ParamSpec("Given")


def _retried(read: Callable[Given, dict[str, Any]]) -> Callable[Given, dict[str, Any]]:
    """Let ``read`` be done by another process if the first one's reader slot is taken.

    LMDB knows its readers by their process ids, and two containers on one volume may have a process of the
    same number. It fails at once then, before anything was read.
    """

    @wraps(read)
    def retried(*args: Given.args, **kwargs: Given.kwargs) -> dict[str, Any]:
        for _ in range(_ATTEMPTS - 1):
            try:
                return read(*args, **kwargs)
            except KvError as error:
                if error.code != "too_busy":
                    raise
        return read(*args, **kwargs)

    return retried


@_retried
def facts(path: Path) -> dict[str, Any]:
    """The facts of the store in the data folder, or in the LMDB file, ``path``: see
    :func:`kvstore_daemon.storage.offline.reader_process.facts`. Raises KvError."""
    with _reader("facts", path) as process:
        found = _first(process)
        _expect_success(process, path)
    return found


@_retried
def check(
    path: Path,
    on_fault: Callable[[str], None],
    progress: Progress = no_progress,
    section: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Call ``on_fault`` with each fault of the store at ``path``; returns its facts, if it could be read to
    the end. ``progress`` counts rows. The ``section`` of a file, an offset and a length, has its journal.
    Raises KvError if it cannot be opened."""
    found: dict[str, Any] = {}
    with _reader("check", path, *map(str, section or ())) as process:
        for event, value in _events(process):
            if event == "fault":
                on_fault(value)
            elif event == "progress":
                progress(*value)
            else:
                found = value
        try:
            _expect_success(process, path)
        except KvError as error:
            if error.code != "damaged":
                raise
            on_fault(error.message)
    return found


@_retried
def copy(
    path: Path,
    write: Callable[[bytes], Any],
    progress: Progress = no_progress,
    on_begun: OnBegun = never_ended,
) -> dict[str, Any]:
    """Pass the store in the data folder ``path`` to ``write``, as of one revision: its image without free
    pages, then the frames of its journal beyond that. Returns the facts of that revision. ``progress`` counts
    bytes, and ``on_begun`` can end the process that reads.

    Raises KvError, maybe after a part was passed on, which is then of no use; also if it was ended.
    """
    with _reader("copy", path) as process:
        on_begun(process.kill)
        found = _first(process)
        if found:
            _pass_on(process, found["bytes"] + found["journal_bytes"], write, progress)
        _expect_success(process, path)
    return found


def _pass_on(process: _Process, total: int, write: Callable[[bytes], Any], progress: Progress) -> None:
    done, output = 0, cast(BufferedReader, process.stdout)
    while chunk := output.read1(_CHUNK_BYTES):
        done += len(chunk)
        if done > total:
            # a page that points back to one above it would be copied without end
            raise KvError("damaged", f"the store has more pages than its tables count ({total} bytes)")
        write(chunk)
        progress(done, total)


@contextmanager
def _reader(task: str, path: Path, *more: str) -> Iterator[_Process]:
    # -P: nothing is imported from the current folder, which may be the data folder
    module = "kvstore_daemon.storage.offline.reader_process"
    command = [sys.executable, "-P", "-m", module, task, os.fspath(path), *more]
    with as_root():
        started = subprocess.Popen(  # noqa: S603 - our own command
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    with started as process:
        try:
            yield process
        finally:
            process.kill()


def _events(process: _Process) -> Iterator[tuple[str, Any]]:
    """What the process writes, line by line."""
    for line in cast(BufferedReader, process.stdout):
        event, value = orjson.loads(line)
        yield event, value


def _first(process: _Process) -> dict[str, Any]:
    """The facts, which it writes first; none if it ended before."""
    return next((value for _, value in _events(process)), {})


def _expect_success(process: _Process, path: Path) -> None:
    """Wait for its end; raises the KvError that it reported, or one for how it ended."""
    said = cast(BufferedReader, process.stderr).read().decode(errors="replace").strip().splitlines()
    status = process.wait()
    if status < 0:
        name = signal_name(-status)
        if -status not in _DAMAGE_SIGNALS:
            raise KvError("internal", f"the process that read {path} was killed ({name}); try again")
        raise KvError("damaged", f"the process that read {path} was killed by a damaged page ({name})")
    if status > 0:
        if said and said[-1].startswith("{"):
            raise KvError.from_json(orjson.loads(said[-1]))
        raise KvError("damaged", f"LMDB could not read {path} to its end: {said[-1] if said else status}")
