"""Sampling ``/metrics`` in a thread, beside what shows it."""

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


class Sample(NamedTuple):
    """The result of one sample: figures, or why there are none."""

    shown: dict[str, Any] | None
    error: KvError | None


class Sampler:
    """Calls ``fetch`` for the text of ``/metrics`` every ``seconds``, in a thread, so that a service that
    hangs does not block the screen. ``samples`` is the queue of results; ``wakeup`` is a file descriptor
    that is readable when there are some, and need not be read."""

    def __init__(self, fetch: Callable[[], bytes], seconds: float) -> None:
        self._fetch = fetch
        self._seconds = seconds
        self._readings: deque[Reading] = deque()
        self.samples: SimpleQueue[Sample] = SimpleQueue()
        self.wakeup, self._wake = os.pipe()
        os.set_blocking(self._wake, False)

    def begin(self) -> None:
        """Take the first reading, which rates start from, and continue in the background. Raises the KvError
        of the first request."""
        self._readings.append(self._read())
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    def _read(self) -> Reading:
        text = self._fetch()
        try:
            return Reading(text.decode(), time.monotonic())
        except ValueError as error:
            raise KvError("internal", f"cannot parse /metrics: {error}") from error

    # ── runs in the thread ──────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            # intervals that were missed are skipped
            due = max(due + self._seconds, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            self.samples.put(self._sample())
            with suppress(BlockingIOError):  # the pipe is full of wake-ups that were not read
                os.write(self._wake, b"!")

    def _sample(self) -> Sample:
        try:
            after = self._read()
        except KvError as error:
            return Sample(None, error)
        readings = self._readings
        while len(readings) > 1 and readings[1].at <= after.at - _CPU_SECONDS:
            readings.popleft()
        shown = overview(readings[-1], after, readings[0])
        readings.append(after)
        return Sample(shown, None)
