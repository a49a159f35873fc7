"""The process that puts full files of the journal into LMDB, and the daemon's side of it.

A process of its own, since py-lmdb lets go of the interpreter lock around each row that it puts. A thread
beside a busy loop gets it back milliseconds later each time: a checkpoint of 20,000 rows took two minutes
that way, and a fifth of a second in here.

It is told ``FILE NUMBER ID``, one line on its standard input, and puts the frames of that file of the
journal with that id, of which ``NUMBER`` is the last, into LMDB; the answer is a line of JSON. It ends when
its input does, and is killed if the daemon is, wherever it is: LMDB then has what it had before. Should it
live a moment longer, it finds that the next daemon has begun another journal.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple, cast

import lmdb
import orjson

from kvstore_core.errors import KvError
from kvstore_core.process.linux import end_with_parent
from kvstore_daemon.storage.lmdb_store.file_errors import file_error
from kvstore_daemon.storage.lmdb_store.journaling import checkpoint, journal
from kvstore_daemon.storage.lmdb_store.schema import TABLES
from kvstore_daemon.storage.lmdb_store.tables import open_environment

_RETRY_SECONDS = 1.0
_TICK_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0
"""How long an attempt may take; twice as long after each that took longer."""

_END_SECONDS = 2.0
"""How long an end waits for it. What was not done the end does itself."""


class Checkpoint(NamedTuple):
    """A checkpoint that was tried: how long it took, and the error that it failed with. It is tried again
    until it is done."""

    seconds: float
    error: KvError | None = None


class Checkpointer(threading.Thread):
    """Has checkpoints made of the store in ``folder``, one at a time, and calls ``deliver`` in this thread
    with what came of each attempt."""

    def __init__(
        self, folder: Path, map_size: int, journal_id: bytes, deliver: Callable[[Checkpoint], None]
    ) -> None:
        super().__init__(name="kvstore-checkpointer", daemon=True)
        self._id = journal_id
        # -P: nothing is imported from the folder that the daemon was started in
        command = [sys.executable, "-P", "-m", __name__, os.fspath(folder), str(map_size), str(os.getpid())]
        self._command = command
        self._patience = _PATIENCE_SECONDS
        self._file = folder / "data.mdb"
        self._deliver = deliver
        self._wanted: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, file: int, number: int) -> None:
        """Ask for a checkpoint of the journal's file at index ``file``, whose last frame is ``number``."""
        self._wanted.put((file, number))

    def stop(self) -> None:
        """Finish the checkpoint that is under way if that is soon, and end; to be joined."""
        self._is_over.set()
        self._wanted.put(None)

    def run(self) -> None:
        """Make the checkpoints that are asked for, until :meth:`stop`."""
        while (wanted := self._wanted.get()) is not None and not self._is_over.is_set():
            while not self._attempt(*wanted) and not self._is_over.wait(_RETRY_SECONDS):
                pass
        self._end()

    def _attempt(self, file: int, number: int) -> bool:
        began = time.perf_counter()
        try:
            error = self._ask(file, number)
        except BrokenPipeError:
            error = self._cut_short()
        except OSError as failure:
            error = file_error(Path(sys.executable), failure)
        except Exception as failure:
            error = KvError("internal", f"the checkpoint of {self._file} failed: {failure!r}")
        if error is not None:
            # whatever state it is in: the next attempt begins with a new one
            self._end()
        self._deliver(Checkpoint(time.perf_counter() - began, error))
        return error is None

    def _cut_short(self) -> KvError:
        return KvError("internal", f"the checkpoint of {self._file} was cut short; it is tried again")

    def _ask(self, file: int, number: int) -> KvError | None:
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        to, back = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        to.write(b"%d %d %s\n" % (file, number, self._id.hex().encode()))
        to.flush()
        answer = self._answer(back)
        if not answer:
            return self._cut_short()
        said = orjson.loads(answer)
        return None if said is None else KvError.from_json(said)

    def _answer(self, back: IO[bytes]) -> bytes:
        """The process's answer; empty if there is none, or not in time: it may be stopped, or its disk."""
        ready = select.poll()
        ready.register(back, select.POLLIN)
        waited = 0.0
        while not ready.poll(_TICK_SECONDS * 1000):
            waited += _TICK_SECONDS
            if waited >= (_END_SECONDS if self._is_over.is_set() else self._patience):
                self._patience *= 2
                return b""
        return back.readline()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            process.communicate(timeout=_END_SECONDS)
        # LMDB takes no harm from it, wherever it is; and one that is stopped would keep LMDB's lock
        process.kill()
        process.communicate()


def put_frames(env: lmdb.Environment, path: Path, number: int, journal_id: bytes) -> None:
    """Put the frames of one file of the journal, of which ``number`` is the last, into LMDB. Raises KvError,
    also if another journal has begun, and lmdb.Error."""
    # a reader that was killed keeps its slot, and while it does no page is used again
    env.reader_check()
    with env.begin(write=True) as txn:
        tables = [
            env.open_db(name.encode(), txn, dupsort=dupsort, create=False) for name, dupsort in TABLES.items()
        ]
        if checkpoint.journal_id(txn, tables) != journal_id:
            raise KvError("not_allowed", "another daemon has begun another journal")
        done = checkpoint.applied(txn, tables)
        found = journal.frames_of(journal.read_file(path), journal_id)
        frames = [each for each in found if done < each.number <= number]
        if number > done and [each.number for each in frames[-1:]] != [number]:
            raise KvError("damaged", f"{path} has not all of the frames {done + 1} to {number}")
        checkpoint.apply(txn, tables, frames)


def main(folder: Path, map_size: int, daemon: int) -> None:
    """Serve the standard input of a process whose parent is ``daemon``."""
    if not end_with_parent(daemon, signal.SIGKILL):
        return
    # the daemon decides when it ends: Ctrl-C goes to all processes of a terminal
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    env: lmdb.Environment | None = None
    for line in sys.stdin.buffer:
        error: KvError | None = None
        try:
            if env is None:
                env = open_environment(folder, map_size)
            file, number, journal_id = line.split()
            path = folder / journal.NAMES[int(file)]
            put_frames(env, path, int(number), bytes.fromhex(journal_id.decode()))
        except KvError as failure:
            error = failure
        except (OSError, lmdb.Error) as failure:
            named = failure.filename if isinstance(failure, OSError) else None
            error = file_error(Path(named or folder / "data.mdb"), failure)
        with contextlib.suppress(BrokenPipeError):  # the daemon is gone
            sys.stdout.buffer.write(orjson.dumps(None if error is None else error.as_json()) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
