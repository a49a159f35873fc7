"""Looking at ``/metrics`` again and again, beside whatever shows what was seen."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

from kvstore_cli.top.overview import overview
from kvstore_cli.top.prometheus_text import Reading
from kvstore_core.errors import KvError

_CPU_SECONDS = 4


class Look(NamedTuple):
    """What came of one look: figures, or why there are none."""

    shown: dict[str, Any] | None
    error: KvError | None


class Sampler:
    """Calls ``fetch`` for the text of ``/metrics`` every ``seconds``, in a thread of its own, so that a
    service that hangs holds up nobody. ``looks`` is where the outcomes come, and ``bell`` a file
    descriptor that can be read when there are some; nobody has to."""

    def __init__(self, fetch: Callable[[], bytes], seconds: float) -> None:
        self._fetch = fetch
        self._seconds = seconds
        self._readings: deque[Reading] = deque()
        self.looks: SimpleQueue[Look] = SimpleQueue()
        self.bell, self._ring = os.pipe()
        os.set_blocking(self._ring, False)

    def begin(self) -> None:
        """Take the first reading, which rates are counted from, and go on in the background; raises the
        KvError of a service that does not answer, or has no metrics."""
        self._readings.append(self._read())
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    def _read(self) -> Reading:
        text = self._fetch()
        try:
            return Reading(text.decode(), time.monotonic())
        except ValueError as error:
            raise KvError("internal", f"/metrics cannot be understood: {error}") from error

    # ── runs in the thread ──────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            # one that took longer than the interval is not made up for
            due = max(due + self._seconds, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            self.looks.put(self._look())
            with suppress(BlockingIOError):  # it has rung thousands of times, and nobody came
                os.write(self._ring, b"!")

    def _look(self) -> Look:
        try:
            after = self._read()
        except KvError as error:
            return Look(None, error)
        readings = self._readings
        while len(readings) > 1 and readings[1].at <= after.at - _CPU_SECONDS:
            readings.popleft()
        shown = overview(readings[-1], after, readings[0])
        readings.append(after)
        return Look(shown, None)
