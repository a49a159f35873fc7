"""How the server processes log: on standard error, as text for people or as JSON lines for programs.

The servers only use ``logging``; the command that starts one calls :func:`set_up` first. A line of JSON is
one object without a line feed in it, whatever the message or a traceback holds.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import stat
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import orjson

from kvstore_core.process.logging import LEVEL_SIGNALS, announcer

BACKLOG_BYTES = 1024 * 1024
"""How much of lines that were not read yet is kept; more is left out."""

FLUSH_SECONDS = 1.0
"""How long a process that ends waits for the rest to be read."""

_WHOLE_BYTES = select.PIPE_BUF
"""A pipe takes so much in one piece, without lines of other processes in between."""

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "worker"}
"""The attributes of every record; all others were given with the line (``extra``)."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def chosen_format(wish: str) -> str:
    """``text`` or ``json``; for ``auto`` text where a person sees it, on a terminal."""
    if wish != "auto":
        return wish
    return "text" if sys.stderr is not None and sys.stderr.isatty() else "json"


def set_up(part: str, level: str, log_format: str) -> None:
    """Send what this process logs from ``level`` upwards to standard error, under the name ``part``.

    Exceptions that end the process or a thread, and warnings of Python, are logged too. Call it in the main
    thread.
    """
    _occupy_standard_descriptors()
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter(part) if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda failed: _log_uncaught(
        failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback
    )
    for number in LEVEL_SIGNALS:
        # until the server handles them: they would end it
        signal.signal(number, signal.SIG_IGN)


def _occupy_standard_descriptors() -> None:
    """A process that was started with standard error closed would write its lines into whatever file or
    socket gets the number 2."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for the life of the process


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("kvstore").critical("an error that nobody expected", exc_info=(kind, error, trace))


# ── how a line looks ─────────────────────────────────────────────────────────────────────────────


class TextFormatter(logging.Formatter):
    """``TIME LEVEL LOGGER: MESSAGE``, with a traceback below it; announced lines are the message alone."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line; what a client sent can neither begin another nor steer a terminal."""
        message = record.message if record.name == announcer.name else super().formatMessage(record)
        ids = getattr(record, "request_id", None)
        if ids:
            message += f" (request {ids})" if isinstance(ids, str) else f" (requests {', '.join(ids)})"
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", message)


class JsonFormatter(logging.Formatter):
    """One JSON object; what was given with the line (``extra``), and a traceback, are further members."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its line feed."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.removesuffix("+00:00") + "Z",
            "level": record.levelname.lower(),
            "part": self._part,
            "logger": record.name,
            "pid": record.process,
        }
        given = vars(record)
        if "worker" in given:
            line["worker"] = given["worker"]
        line["message"] = record.getMessage()
        line |= {name: value for name, value in given.items() if name not in _OWN and name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return _as_json(line)


def _as_json(line: dict[str, Any]) -> str:
    try:
        return orjson.dumps(line, default=str).decode()
    except TypeError:  # half a surrogate pair, a number of more than 64 bits
        return json.dumps(line, default=str)


# ── where it goes ────────────────────────────────────────────────────────────────────────────────


class StderrHandler(logging.Handler):
    """Hands lines to :data:`stderr`, and says how many could not be."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; never raises and never waits."""
        try:
            self.report_lost()
            self._write(record)
        except Exception:
            self.handleError(record)

    def report_lost(self) -> None:
        """Say how many lines were left out, if there is room again."""
        lost = stderr.take_lost()
        if lost:
            self._write(_lost_record(lost))

    def _write(self, record: logging.LogRecord) -> None:
        stderr.write(self.format(record).encode(errors="backslashreplace") + b"\n")

    def flush(self) -> None:
        """Wait for what could not be written yet, but not for longer than ``FLUSH_SECONDS``."""
        stderr.flush(FLUSH_SECONDS)


def write_through(said: bytes) -> None:
    """Write whole lines to standard error as they are, those of another process for example."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, StderrHandler):
            handler.report_lost()
    stderr.write(said)


def _lost_record(count: int) -> logging.LogRecord:
    message = "%d lines of the log were left out here, because nobody read standard error"
    return logging.LogRecord("kvstore", logging.WARNING, __file__, 0, message, (count,), None)


class Stderr:
    """Standard error that is never waited for, though its reader may have stopped reading.

    A line is written at once where there is room for it, so that a crash loses none. Without room it is kept,
    up to ``BACKLOG_BYTES``, and written by a thread that may wait; more lines are left out and counted. When
    the reader is gone, all are dropped. Any thread may call this.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # after a fork the parent writes what waits, and the child has no such thread
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """Write whole lines."""
        with self._lock:
            if not self._waiting and self._has_room(len(data)):
                data = self._attempt(data)
                if not data:
                    return
            if self._waiting_bytes + len(data) > BACKLOG_BYTES:
                self._lost += data.count(b"\n")
                return
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._drain, name="kvstore-stderr", daemon=True)
                self._thread.start()

    def take_lost(self) -> int:
        """How many lines were left out since the last call; 0 while there is no room."""
        with self._lock:
            if self._waiting or not self._lost:
                return 0
            lost, self._lost = self._lost, 0
            return lost

    def flush(self, seconds: float) -> None:
        """Wait until everything is written, but not for longer than ``seconds``."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _has_room(self, size: int) -> bool:
        """Whether ``size`` bytes can be written now without waiting."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if not poll.poll(0):
            return False
        is_pipe = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)
        return size <= _WHOLE_BYTES or not is_pipe or self._pipe_takes(size)

    def _pipe_takes(self, size: int) -> bool:
        # Pages of a pipe are at least half full, but for the last.
        import fcntl
        import termios

        unread = int.from_bytes(fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0" * 4), sys.byteorder)
        capacity = fcntl.fcntl(self._descriptor, fcntl.F_GETPIPE_SZ)
        return 2 * unread + size + _WHOLE_BYTES <= capacity

    def _attempt(self, data: bytes) -> bytes:
        """Write what there is room for; returns the rest."""
        try:
            return data[os.write(self._descriptor, data) :]
        except BlockingIOError:  # another process has made the descriptor non-blocking
            return data
        except OSError:
            return b""

    def _drain(self) -> None:
        """Write what waits, at the pace of its reader; the thread ends when nothing waits."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                data = self._waiting[0]
            self._write_patiently(data)
            with self._lock:
                self._waiting.popleft()
                self._waiting_bytes -= len(data)

    def _write_patiently(self, data: bytes) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while data:
            poll.poll()
            data = self._attempt(data)


stderr = Stderr(2)
