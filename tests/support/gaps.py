"""For how long a fault was felt: at each daemon one client writes at a steady pace and one follows, and the
longest time between two answers, or two events, around the fault is its gap."""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

from kvstore_client import Client, Event, Subscription
from support.load import Party
from support.servers import wait_until

PULSES = "pulse/"
PACE_SECONDS = 0.01
RECOVERED = 10
"""So many beats after a fault say that it is over."""


class Beating(Party):
    """Who notes in ``beats`` when each of many like things came, in monotonic seconds."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.beats: list[float] = []


class Pulse(Beating):
    """Puts one key over and over; a beat is an answer."""

    def __init__(self, name: str, requests: str) -> None:
        super().__init__(name)
        self._client = Client(requests, timeout=60)

    def work(self) -> None:
        for number in itertools.count():
            if self.stopping.wait(PACE_SECONDS):
                return
            self._client.put(PULSES + self.name, str(number))
            self.beats.append(time.monotonic())

    def close(self) -> None:
        self._client.close()


class Echo(Beating):
    """Follows all pulses; a beat is an event."""

    def __init__(self, name: str, requests: str, changes: str) -> None:
        super().__init__(name)
        self._endpoints = {"requests": requests, "changes": changes}

    def work(self) -> None:
        with Subscription(**self._endpoints, prefixes=[PULSES]) as subscription:
            while not self.stopping.is_set():
                if isinstance(subscription.next(timeout=1), Event):
                    self.beats.append(time.monotonic())


class Gap(NamedTuple):
    """Seconds without an answer, and without an event, at the daemon that was without one for longest."""

    answers: float
    events: float

    def __str__(self) -> str:
        return f"{self.answers:.2f} s without an answer, {self.events:.2f} s without an event"


def longest_gap(beats: Sequence[float], start: float, end: float) -> float:
    """The longest time between two beats, from the last before ``start`` to the first after ``end``."""
    first = max(0, bisect_right(beats, start) - 1)
    last = bisect_left(beats, end)
    return max((after - before for before, after in itertools.pairwise(beats[first : last + 1])), default=0.0)


class Gaps:
    """What each kind of fault came to."""

    def __init__(self, pulses: Sequence[Beating], echoes: Sequence[Beating], others: Sequence[Party]) -> None:
        self._pulses = pulses
        self._echoes = echoes
        self._parties = [*pulses, *echoes, *others]
        self.found: dict[str, list[Gap]] = {}
        self.latest = Gap(0, 0)

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """The block does the harm; then all that beats has to beat again."""
        start = time.monotonic()
        yield
        self.wait_for_beats()
        end = time.monotonic()
        both = self._pulses, self._echoes
        self.latest = Gap(*(max(longest_gap(one.beats, start, end) for one in beating) for beating in both))
        self.found.setdefault(kind, []).append(self.latest)

    def wait_for_beats(self) -> None:
        """Return once all beat; fails at once where one of the parties has failed."""
        beating = [*self._pulses, *self._echoes]
        targets = [len(one.beats) + RECOVERED for one in beating]

        def recovered() -> bool:
            for party in self._parties:
                assert party.failure is None, f"{party.name}: {party.failure!r}"
            return all(len(one.beats) >= target for one, target in zip(beating, targets, strict=True))

        wait_until(recovered, timeout=120, what="writes are answered and events come again")

    def table(self) -> str:
        """Lowest, median and highest of each kind, as Markdown."""
        lines = ["| fault | times | s without an answer | s without an event |", "|---|---|---|---|"]
        for kind, gaps in self.found.items():
            answers, events = (_range([gap[part] for gap in gaps]) for part in (0, 1))
            lines.append(f"| {kind} | {len(gaps)} | {answers} | {events} |")
        return "\n".join(lines)


def _range(seconds: list[float]) -> str:
    return f"{min(seconds):.2f} to {max(seconds):.2f}, median {median(seconds):.2f}"
