"""One request until its answer: when to send, how long to wait, when to try again. No socket, no clock.

It is sent once for each connection, and awaited as long as that one lives; when the connection was lost,
the next attempt begins on a fresh socket. The Lazy Pirate pattern, which was here before, gives an attempt
up after a time: many clients that do so to a slow daemon leave it no time for anything but their repeats.
A request that writes carries a number, so that the daemon applies it once however often it arrives
(protocol section 6).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

from kvstore_core.errors import KvError
from kvstore_core.wire import Reply, decode_reply

FIRST_ATTEMPT_SECONDS = 1.0
LONGEST_ATTEMPT_SECONDS = 4.0
"""How long to wait for a connection before asking for another one, at first and at most."""

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0

_TRY_AGAIN = frozenset(("too_busy", "unavailable"))
"""Refusals of a whole request that time may cure; ``store_full`` is not cured by asking again."""


_numbers = count(1)
"""What tells the requests of this process apart. No other process sends on its sockets, so a number
does it, at a tenth of what random bytes cost; ``next`` is atomic."""


class Step(NamedTuple):
    """What to do next, and until which time at most before asking again.

    ``is_sending``: hand the frames to the socket as soon as it has a connection; otherwise a reply is
    awaited. ``is_fresh``: first replace the socket, once; its connection is over, or did not come.
    """

    is_sending: bool
    is_fresh: bool
    until: float


class Exchange:
    """The course of one request. All times are seconds of one monotonic clock.

    The socket must accept a message only when it has a connection (``IMMEDIATE``): so it is known
    whether anything can have arrived at all, and a write that was never sent is reported as such. It
    must not connect again by itself, so that what was sent on it is either under way or lost.
    """

    def __init__(
        self, request: Sequence[bytes], *, writes: bool, endpoint: str, seconds: float, now: float
    ) -> None:
        self._id = next(_numbers).to_bytes(8, "big")
        self.frames = [self._id, b"", *request]
        self._writes = writes
        self._endpoint = endpoint
        self._seconds = seconds
        self._deadline = now + seconds
        self._attempt_seconds = min(FIRST_ATTEMPT_SECONDS, seconds / 3)
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._is_sending = True
        self._is_fresh = False
        self._is_pausing = False
        self._is_lost = False
        self._was_lost = False
        self._was_sent = False
        self._may_be_applied = False
        self._refusal: KvError | None = None
        self._until = self._attempt_end(now)

    def next(self, now: float) -> Step:
        """What to do now; raises the KvError to give up with once the time is over."""
        if now >= self._deadline:
            raise self._give_up()
        if now >= self._until:
            self._try_again(now)
        step = Step(self._is_sending, self._is_fresh, min(self._until, self._deadline))
        self._is_fresh = False
        return step

    def sent(self) -> None:
        """The frames were handed to a connection."""
        self._is_sending = False
        self._was_sent = True
        self._until = self._deadline

    def lost(self, now: float) -> None:
        """The connection is over, with whatever was sent on it, or none came about."""
        self._is_lost = True
        if self._is_pausing:
            return
        self._may_be_applied |= self._is_unanswered
        # that an idle socket lost its connection some time ago is no reason to wait
        is_old = self._is_sending and not self._was_lost
        self._was_lost = True
        self._pause(now if is_old else now + self._next_pause())

    def receive(self, frames: Sequence[bytes], now: float) -> Reply | None:
        """The reply in ``frames``, or None: it is not for this request, or the daemon asks to come
        again later. Raises the KvError with which the whole request was refused for good."""
        if len(frames) < 3 or frames[0] != self._id:
            return None
        try:
            return decode_reply(frames[2:])
        except KvError as error:
            if error.code not in _TRY_AGAIN:
                raise
            self._refuse(error, now)
            return None

    def _refuse(self, refusal: KvError, now: float) -> None:
        self._refusal = refusal
        self._may_be_applied |= refusal.details.get("outcome") == "unknown"
        # the connection is as good as it was: the daemon has just answered on it
        self._pause(now + self._next_pause())

    def _pause(self, until: float) -> None:
        self._is_sending = False
        self._is_pausing = True
        self._until = until

    def _next_pause(self) -> float:
        seconds = _jittered(self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        return seconds

    @property
    def _is_unanswered(self) -> bool:
        """Whether the present attempt was sent and may still be on its way, or be applied."""
        return not self._is_sending and not self._is_pausing

    def _try_again(self, now: float) -> None:
        if not self._is_pausing:  # no connection came in time
            self._is_lost = True
            self._attempt_seconds = min(1.5 * self._attempt_seconds, LONGEST_ATTEMPT_SECONDS)
        self._is_fresh = self._is_lost
        self._is_lost = self._is_pausing = False
        self._is_sending = True
        self._until = self._attempt_end(now)

    def _attempt_end(self, now: float) -> float:
        return now + _jittered(self._attempt_seconds)

    def _give_up(self) -> KvError:
        details: dict[str, Any] = {}
        code, message = self._reason()
        if self._refusal is not None:
            details.update(self._refusal.details)
        if self._writes:
            details["outcome"] = "unknown" if self._is_unanswered or self._may_be_applied else "none"
        return KvError(code, message, **details)

    def _reason(self) -> tuple[str, str]:
        if self._refusal is not None:
            return self._refusal.code, self._refusal.message
        within = f"within {round(self._seconds, 2):g} s"
        if self._was_sent:
            return "timed_out", f"the daemon at {self._endpoint} did not answer {within}"
        return (
            "unavailable",
            f"the daemon at {self._endpoint} cannot be reached {within}; is it running there?",
        )


def _jittered(seconds: float) -> float:
    """Spread by a quarter to both sides, so that clients cut off together do not return together."""
    return seconds * (0.75 + 0.5 * random.random())  # noqa: S311 - not a secret
