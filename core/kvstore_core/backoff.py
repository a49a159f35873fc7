"""How long to wait before trying again."""

from __future__ import annotations

import os


class Backoff:
    """Pauses that grow: ``first`` seconds, then ``growth`` times as long each time, ``longest`` at most.

    ``jitter`` spreads each pause by up to that share of it to both sides, so that clients which lost a
    server together do not all come back at the same time.
    """

    __slots__ = ("_first", "_growth", "_jitter", "_longest", "_seconds")

    def __init__(self, first: float, longest: float, *, growth: float = 2.0, jitter: float = 0.0) -> None:
        self._first = self._seconds = first
        self._longest = longest
        self._growth = growth
        self._jitter = jitter

    def next(self, asked_for: float | None = None) -> float:
        """The seconds to wait now; the next pause is longer. If a server ``asked_for`` some seconds, they
        and a quarter of the pause, since the server asks all its clients for the same."""
        seconds = self._seconds
        self._seconds = min(self._growth * seconds, self._longest)
        # Not from random, which is slow to import: most clients need not wait, and a parent whose children
        # end while no file can be opened can import nothing.
        share = int.from_bytes(os.urandom(4), "little") / 0xFFFFFFFF
        spread = self._jitter * (2 * share - 1)
        pause = seconds * (1 + spread)
        return pause if asked_for is None else asked_for + pause / 4

    def reset(self) -> None:
        """Begin with the first pause again: what was tried has worked."""
        self._seconds = self._first
