"""Start :mod:`kvstore_daemon.storage.offline.reader_process` as a process, and tell what became of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import orjson

from kvstore_core.errors import KvError
from kvstore_daemon.storage.offline.run_as_owner import as_root

Progress = Callable[[int, int], None]
"""Called now and then with what is done and what there is to do."""

_ATTEMPTS = 5
_CHUNK_BYTES = 1 << 20
_OF_A_PAGE = frozenset((signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL))
"""What ends a process that follows what a damaged page says. Others come from somebody, as from a system that
has no memory left."""
_Process = subprocess.Popen[bytes]


def no_progress(_done: int, _total: int) -> None:
    """A progress that goes nowhere."""


def facts(path: Path) -> dict[str, Any]:
    """What the store in the data folder, or in the LMDB file, ``path`` is. Raises KvError."""
    return _patiently(lambda: _facts(path))


def _facts(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with _reader("facts", path) as process:
        for event, value in _events(process):
            if event == "facts":
                found = value
        _expect_success(process, path)
    return found


def check(path: Path, on_fault: Callable[[str], None], progress: Progress = no_progress) -> dict[str, Any]:
    """Tell ``on_fault`` everything that is wrong with the store at ``path``; its facts, if it could be read
    to the end. ``progress`` counts rows. Raises KvError where it cannot be looked at."""
    return _patiently(lambda: _check(path, on_fault, progress))


def _check(path: Path, on_fault: Callable[[str], None], progress: Progress) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with _reader("check", path) as process:
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


def copy(path: Path, write: Callable[[bytes], Any], progress: Progress = no_progress) -> dict[str, Any]:
    """Give ``write`` the image of the store in the data folder ``path``, as of one revision and without free
    pages; the facts of that revision. ``progress`` counts bytes.

    Raises KvError, also after a part was given: that part is worth nothing then.
    """
    return _patiently(lambda: _copy(path, write, progress))


def _copy(path: Path, write: Callable[[bytes], Any], progress: Progress) -> dict[str, Any]:
    with _reader("copy", path) as process:
        found: dict[str, Any] = next((value for _, value in _events(process)), {})
        if found:
            _pass_on(process, found["bytes"], write, progress)
        _expect_success(process, path)
    return found


def _patiently(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``read`` gives, in another process if the place of the first one is taken.

    LMDB knows its readers by their process ids, and two containers on one volume may both have a process
    of that number. It is told at once, before anything was read.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return read()
        except KvError as error:
            if error.code != "too_busy":
                raise
    return read()


def _pass_on(process: _Process, total: int, write: Callable[[bytes], Any], progress: Progress) -> None:
    done, output = 0, cast(BufferedReader, process.stdout)
    while chunk := output.read1(_CHUNK_BYTES):
        done += len(chunk)
        if done > total:
            # a page that leads back to one above it would be copied without end
            raise KvError("damaged", f"the store has more pages than its tables count ({total} bytes)")
        write(chunk)
        progress(done, total)


@contextmanager
def _reader(task: str, path: Path) -> Iterator[_Process]:
    # not from the current folder, which may be the data folder: nothing there is to be run
    command = [
        sys.executable,
        "-P",
        "-m",
        "kvstore_daemon.storage.offline.reader_process",
        task,
        os.fspath(path),
    ]
    with as_root():
        started = subprocess.Popen(  # noqa: S603 - nobody else's words
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    with started as process:
        try:
            yield process
        finally:
            process.kill()


def _events(process: _Process) -> Iterator[tuple[str, Any]]:
    """What the process tells, line by line."""
    for line in cast(BufferedReader, process.stdout):
        event, value = orjson.loads(line)
        yield event, value


def _expect_success(process: _Process, path: Path) -> None:
    """Wait for its end; raises the KvError that it tells of, or that its end speaks of."""
    said = cast(BufferedReader, process.stderr).read().decode(errors="replace").strip().splitlines()
    status = process.wait()
    if status < 0:
        name = signal.Signals(-status).name
        if -status not in _OF_A_PAGE:
            raise KvError("internal", f"the process that read {path} was ended ({name}); do it again")
        raise KvError("damaged", f"LMDB came upon a page of {path} that ended its process ({name})")
    if status > 0:
        if said and said[-1].startswith("{"):
            raise KvError.from_json(orjson.loads(said[-1]))
        raise KvError("damaged", f"LMDB could not read {path} to its end: {said[-1] if said else status}")
