"""When to send a request, how long to wait and when to try again. No socket, no clock.

A request is sent once on each connection, and awaited as long as that one lives; when it is lost, the next
attempt begins on a new socket. The Lazy Pirate pattern instead gives an attempt up after a time: many
clients that do so to a slow daemon leave it no time for anything but their repeats. A request that writes
carries a number, so that the daemon applies it once however often it arrives (protocol section 6).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

from kvstore_core.backoff import Backoff
from kvstore_core.errors import KvError
from kvstore_core.wire import Reply, decode_reply

FIRST_ATTEMPT_SECONDS = 1.0
LONGEST_ATTEMPT_SECONDS = 4.0
"""How long to wait for a connection before trying another one, at first and at most."""

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0

JITTER = 0.25

_request_ids = count(1)
"""No other process sends on this one's sockets, so its requests need no random ids; ``next`` is atomic."""


def enveloped(request: Sequence[bytes]) -> list[bytes]:
    """The frames of a request as they are sent: an id of its own, the empty delimiter, the request."""
    return [next(_request_ids).to_bytes(8, "big"), b"", *request]


def reply_at_once(sent: Sequence[bytes], received: Sequence[bytes]) -> Reply | None:
    """The reply to ``sent`` if ``received`` is one that needs nothing more to be done; what else it may be is
    for :meth:`RetryState.receive` to say."""
    if len(received) < 3 or received[0] != sent[0]:
        return None
    try:
        return decode_reply(received[2:])
    except KvError:
        return None


class NextAction(NamedTuple):
    """What to do next, until something happens but no longer than ``until``.

    ``is_sending``: hand the frames to the socket as soon as it is connected; otherwise await a reply.
    ``needs_new_socket``: first replace the socket, whose connection was lost or not made in time.
    """

    is_sending: bool
    needs_new_socket: bool
    until: float


class RetryState:
    """How far one request has got. All times are seconds of one monotonic clock.

    The socket must accept a message only when it is connected (``IMMEDIATE``), so that it is known whether
    anything can have arrived, and a write that was never sent is reported as such. It must not
    connect again by itself, so that what was sent on it is either under way or lost.
    """

    def __init__(
        self, frames: list[bytes], *, writes: bool, endpoint: str, seconds: float, now: float
    ) -> None:
        """``frames`` are :func:`enveloped`."""
        self._id = frames[0]
        self.frames = frames
        self._writes = writes
        self._endpoint = endpoint
        self._seconds = seconds
        self._deadline = now + seconds
        self._attempt_seconds = min(FIRST_ATTEMPT_SECONDS, seconds / 3)
        self._is_sending = True
        self._needs_new_socket = False
        self._is_pausing = False
        self._is_lost = False
        self._was_lost = False
        self._was_sent = False
        self._may_be_applied = False
        self._refusal: KvError | None = None
        self._pauses: Backoff | None = None
        self._attempts: Backoff | None = None
        # the others are spread by their Backoff
        self._until = now + self._attempt_seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311

    def next(self, now: float) -> NextAction:
        """What to do now; raises the KvError of the call once its time is over."""
        if now >= self._deadline:
            raise self._give_up()
        if now >= self._until:
            self._try_again(now)
        action = NextAction(self._is_sending, self._needs_new_socket, min(self._until, self._deadline))
        self._needs_new_socket = False
        return action

    def sent(self) -> None:
        """The frames were handed to a connection."""
        self._is_sending = False
        self._was_sent = True
        self._until = self._deadline

    def lost(self, now: float) -> None:
        """The connection was lost with what was sent on it, or could not be made."""
        self._is_lost = True
        if self._is_pausing:
            return
        self._may_be_applied |= self._is_unanswered
        # that an idle socket lost its connection some time ago is no reason to wait
        is_old = self._is_sending and not self._was_lost
        self._was_lost = True
        self._pause(now if is_old else now + self._next_pause())

    def receive(self, frames: Sequence[bytes], now: float) -> Reply | None:
        """The reply in ``frames``; None if it answers another request, or refuses this one for now. Raises
        the KvError with which the whole request was refused for good."""
        if len(frames) < 3 or frames[0] != self._id:
            return None
        try:
            return decode_reply(frames[2:])
        except KvError as error:
            if not error.row.is_temporary:
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
        """Its Backoff is made when it is needed: most requests are answered without a pause."""
        if self._pauses is None:
            self._pauses = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, jitter=JITTER)
        return self._pauses.next()

    def _next_attempt_seconds(self) -> float:
        if self._attempts is None:
            first = 1.5 * self._attempt_seconds
            self._attempts = Backoff(first, LONGEST_ATTEMPT_SECONDS, growth=1.5, jitter=JITTER)
        return self._attempts.next()

    @property
    def _is_unanswered(self) -> bool:
        """Whether the present attempt was sent and may still be on its way, or be applied."""
        return not self._is_sending and not self._is_pausing

    def _try_again(self, now: float) -> None:
        if not self._is_pausing:  # no connection came in time
            self._is_lost = True
            self._attempt_seconds = self._next_attempt_seconds()
        self._needs_new_socket = self._is_lost
        self._is_lost = self._is_pausing = False
        self._is_sending = True
        self._until = now + self._attempt_seconds

    def refused(self, error: KvError) -> KvError:
        """The error of the call, where no connection is to be had because of ``error``."""
        return KvError(error.code, error.message, **{**error.details, **self._outcome()})

    def _give_up(self) -> KvError:
        code, message = self._reason()
        details = {} if self._refusal is None else self._refusal.details
        return KvError(code, message, **{**details, **self._outcome()})

    def _outcome(self) -> dict[str, Any]:
        if not self._writes:
            return {}
        return {"outcome": "unknown" if self._is_unanswered or self._may_be_applied else "none"}

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
