"""Asks all workers the same: any of them may get the request, and each knows only of itself."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

import gevent
import gevent.socket
import orjson

from kvstore_http.inspection.inboxes import Inboxes
from kvstore_http.metrics.counters import SharedCounters

ANSWER_SECONDS = 2.0
"""How long the others are waited for. One that is busy, or hangs, is named instead."""

QUESTION_BYTES = 64 * 1024

_READ = 1

Answer = Callable[..., Any]

log = logging.getLogger("kvstore.http")


class Gathered(NamedTuple):
    """The answers of the workers, by their numbers, and the ``unheard``: those that gave none in time."""

    answers: dict[int, Any]
    unheard: list[int]


class Siblings:
    """The workers of a facade, for worker ``number`` of them. Everything runs in its hub's thread."""

    def __init__(self, inboxes: Inboxes, number: int, shared_counters: SharedCounters) -> None:
        self._number = number
        self._inboxes = inboxes
        self._shared_counters = shared_counters
        self._answers: dict[str, Answer] = {}
        self._inbox = inboxes.received[number]
        self._watcher = gevent.get_hub().loop.io(self._inbox.fileno(), _READ)
        self._watcher.start(self._receive)

    def answer(self, question: str, function: Answer) -> None:
        """Answer ``question`` by what ``function`` returns, which must be JSON; it is called in the hub, and
        must not wait."""
        self._answers[question] = function

    def ask(self, question: str, **details: Any) -> Gathered:
        """The answers of all workers that run; blocks the greenlet."""
        message = orjson.dumps([question, details])
        deadline = monotonic() + ANSWER_SECONDS
        numbers = sorted({*self._shared_counters.pids()} - {self._number})
        lines = {number: _opened(self._inboxes.sent[number], message) for number in numbers}
        gathered = Gathered({self._number: self._answers[question](**details)}, [])
        for number, line in lines.items():
            text = b"" if line is None else _read(line, deadline)
            if text:
                gathered.answers[number] = orjson.loads(text)
            else:
                gathered.unheard.append(number)
        return gathered

    def _receive(self) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._inbox, QUESTION_BYTES, 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        for descriptor in descriptors:
            line = gevent.socket.socket(fileno=descriptor)
            try:
                question, details = orjson.loads(message)
                answer = orjson.dumps(self._answers[question](**details))
            except Exception:
                log.exception("another worker's question was not answered")
                line.close()
            else:
                gevent.spawn(_write, line, answer)

    def close(self) -> None:
        """Answer no more."""
        self._watcher.close()


def _opened(inbox: socket.socket, message: bytes) -> gevent.socket.socket | None:
    """Where the answer to ``message`` will come; None if the inbox is full: nobody reads it."""
    ours, theirs = gevent.socket.socketpair()
    with theirs:
        try:
            socket.send_fds(inbox, [message], [theirs.fileno()], socket.MSG_DONTWAIT)
        except OSError:
            ours.close()
            return None
    return ours


def _read(line: gevent.socket.socket, deadline: float) -> bytes:
    """All that comes until its end, nothing if that does not come in time."""
    pieces: list[bytes] = []
    with line:
        while True:
            line.settimeout(max(0.001, deadline - monotonic()))
            try:
                piece = line.recv(QUESTION_BYTES)
            except OSError:
                return b""
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)


def _write(line: gevent.socket.socket, answer: bytes) -> None:
    with line, suppress(OSError):  # the worker that asked may have given up
        line.settimeout(ANSWER_SECONDS)
        line.sendall(answer)
