"""The time that records are stamped with and expire by.

People read the machine's wall clock, but it can be set: a time to live measured by it would end early, or an
hour late. So there are two kinds of time, both in milliseconds:

- *steady* time starts as wall time when a store is made and then runs by CLOCK_BOOTTIME, which cannot be set
  and goes on while a laptop is suspended. Times to live and the ages of events and kept replies are measured
  by it.
- *present* time is steady time plus a shift: the wall clock, as of when it was last found to have stepped.
  Records and events are stamped with it.

A step of the wall clock changes the shift, from the next revision on. The shifts are kept in the store with
the revisions after which they apply, so that the stamp of any record can be turned into steady time.
Rejected: stamping with steady time, which would show a wrong date for the rest of the store's life; and
rewriting all expiring records after a step, which would be as many events as there are keys.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import orjson

Clock = Callable[[], int]

STEP_MS = 500
"""A smaller difference between the wall clock and ours is ignored."""

GRACE_MS = 3_600_000
"""After the first start of a store's daemon since the machine's boot, the machine's date alone makes no event
too old for this long. Further starts of the daemon do not extend it."""

_MANY_STEPS = 1_000
_CRC = struct.Struct(">I")
_ATTEMPTS = 3
_SAMPLE_MS = 100


class ClockStep(NamedTuple):
    """A step of the wall clock by ``by`` milliseconds, noticed at ``at`` (in present time, after it)."""

    at: int
    by: int


class ClockState(NamedTuple):
    """Present time; how often the wall clock was found to have stepped since the start; and by how much
    (above 0: forward) and when that was last, None if it never did. In milliseconds."""

    now: int
    steps: int
    step: int | None
    step_at: int | None


class _Line(NamedTuple):
    """The shifts, replaced as a whole: other threads read them while a step is noticed.

    ``shifts[i]`` applies to revisions above ``after[i]``.
    """

    after: tuple[int, ...] = (-1,)
    shifts: tuple[int, ...] = (0,)

    def shift_of(self, revision: int) -> int:
        return self.shifts[bisect_left(self.after, revision) - 1]

    def steady_of(self, stamp: int, revision: int) -> int:
        return max(0, stamp - self.shift_of(revision))


class StoreClock:
    """The clock of one open store. Any thread may read it; one alone calls :meth:`notice`.

    ``wall`` and ``steady`` return milliseconds; tests pass their own. ``boot`` names the boot of the machine
    during which ``steady`` never jumps.
    """

    def __init__(self, wall: Clock, steady: Clock, boot: str) -> None:
        self._wall = wall
        self._steady = steady
        self._boot = boot
        self._anchor = wall() - steady()
        self._line = _Line()
        self._idle = 0
        self._begun_at = 0
        self._begun_head = 0
        self._unconfirmed = 0
        self._most = _MANY_STEPS
        self._held: deque[int] = deque()
        self._lock = threading.Lock()
        self.steps = 0
        self.last_step: ClockStep | None = None

    def begin(self, kept: bytes | None, newest: tuple[int, int] | None, head: int) -> ClockStep | None:
        """Continue the time of a store: ``kept`` is its :meth:`row`, ``newest`` the time and the revision of
        its newest event. Returns the step if the wall clock was set meanwhile.

        Within one boot of the machine steady time just continues. Otherwise only the wall clock knows how
        much time has passed; but steady time never falls behind what the store has seen, since expired keys
        would come back.
        """
        is_same_boot = self._take(kept)
        last = 0 if newest is None else self.steady_of(*newest)
        if not is_same_boot:
            self._anchor = self._wall() - self._line.shifts[-1] - self._steady()
        self._anchor = max(self._anchor, last - self._steady())
        if not is_same_boot and newest is not None:
            self._begun_at = self.steady()
            self._begun_head = head
            self._unconfirmed = self._begun_at - last
            self._idle += self._unconfirmed
        return self.notice(head)

    def _take(self, kept: bytes | None) -> bool:
        """Take over what an earlier run stored; whether that was during this boot of the machine."""
        said = _decoded(kept)
        if said is None:
            return False
        self._line = _line_of(said)
        self._idle = said["idle"]
        if said["boot"] != self._boot:
            return False
        self._anchor = said["anchor"]
        # older versions did not store these
        self._unconfirmed, self._begun_at, self._begun_head = said.get("unconfirmed", (0, 0, 0))
        return True

    def row(self) -> bytes:
        """What to store whenever a store is opened or :meth:`notice` returned a step."""
        line = self._line
        said = orjson.dumps(
            {
                "boot": self._boot,
                "anchor": self._anchor,
                "idle": self._idle,
                "unconfirmed": (self._unconfirmed, self._begun_at, self._begun_head),
                "after": line.after,
                "shifts": line.shifts,
            }
        )
        return _CRC.pack(crc32(said)) + said

    def notice(self, head: int) -> ClockStep | None:
        """Compare with the wall clock; if it has stepped, everything above revision ``head`` is stamped by
        what it shows now. Returns the step."""
        shift = self._found_shift()
        line = self._line
        if shift is None or abs(shift - line.shifts[-1]) < STEP_MS:
            return None
        step = ClockStep(self.steady() + shift, shift - line.shifts[-1])
        kept = bisect_left(line.after, head)  # two steps at one revision are one
        after, shifts = (*line.after[:kept], head), (*line.shifts[:kept], shift)
        self._line = _Line(after, shifts)
        self.steps += 1
        self.last_step = step
        return step

    @property
    def knows_much(self) -> bool:
        """Whether so many steps are known that :meth:`forget` is worth reading all keys for."""
        return len(self._line.after) > self._most

    def forget(self, revisions: Iterable[int]) -> None:
        """Forget the shifts that none of ``revisions``, those of the records that expire, was stamped with.
        Only the dates of events that old are then off, by one step of the clock."""
        line = self._line
        used = {bisect_left(line.after, revision) - 1 for revision in revisions} | {len(line.after) - 1}
        kept = [index for index in range(len(line.after)) if index in used]
        # the first that is left applies from the beginning
        self._line = _Line(
            (-1, *(line.after[index] for index in kept[1:])), tuple(line.shifts[i] for i in kept)
        )
        self._most = max(_MANY_STEPS, 2 * len(kept))

    def _found_shift(self) -> int | None:
        """The wall clock less steady time; None if the two could not be read close together."""
        for _ in range(_ATTEMPTS):
            before = self.steady()
            wall = self._wall()
            after = self.steady()
            if after - before < _SAMPLE_MS:
                return wall - after
        return None

    def state(self) -> ClockState:
        """The clock's state for an operator."""
        at, by = self.last_step or (None, None)
        return ClockState(self.present(), self.steps, by, at)

    def steady(self) -> int:
        """Steady time now."""
        return self._steady() + self._anchor

    def hold(self) -> int:
        """Steady time now, for a transaction that writes; until :meth:`release`, :meth:`visible` returns it
        too, or that of an earlier one which is not over yet.

        What such a transaction finds alive it may keep alive, by a persist. A read at a later time but before
        the commit would show the key as gone, and the next read would show it again.
        """
        with self._lock:  # no read may come between the clock and what is held
            self._held.append(self.steady())
            return self._held[-1]

    def release(self, held: int | None = None) -> None:
        """The transaction to which :meth:`hold` returned ``held`` is over; None: all are."""
        with self._lock:
            if held is None:
                self._held.clear()
            else:
                self._held.remove(held)

    def visible(self) -> int:
        """The steady time by which a read decides what has expired."""
        with self._lock:
            return self._held[0] if self._held else self.steady()

    @property
    def shift(self) -> int:
        """Present time less steady time."""
        return self._line.shifts[-1]

    def present(self) -> int:
        """Present time: what records are stamped with now."""
        return self.steady() + self.shift

    def running(self) -> int:
        """Steady time without the times that the machine was off, which only the wall clock knows."""
        return self.steady() - self._idle

    def steady_of(self, stamp: int, revision: int) -> int:
        """The steady time of ``stamp``, a moment in the record or event at ``revision``. 0 for moments before
        steady time began, such as one in 1970 after the wall clock stepped forward."""
        return self._line.steady_of(stamp, revision)

    def present_of(self, stamp: int, revision: int) -> int:
        """``stamp``, a moment in the record or event at ``revision``, as the wall clock shows it now."""
        line = self._line
        return stamp if len(line.after) == 1 else stamp - line.shift_of(revision) + line.shifts[-1]

    def age_of(self, stamp: int, revision: int) -> int:
        """How old an event is, as far as that is certain."""
        now = self.steady()
        age = now - self.steady_of(stamp, revision)
        if self._unconfirmed and revision <= self._begun_head and now - self._begun_at < GRACE_MS:
            age -= self._unconfirmed
        return age


class SharedClock(StoreClock):
    """The clock of a store that several machines share: ``wall`` and nothing else.

    No machine can tell another what its steady clock shows, so times to live end when the wall clock of the
    machine that looks shows their end. Its steps are not noticed: they are those of the shared time.
    """

    def __init__(self, wall: Clock) -> None:
        super().__init__(wall, wall, "")
        self._anchor = 0

    def begin(self, *_: object) -> None:
        """Nothing that an earlier run saw says what time it is."""

    def notice(self, *_: object) -> None:
        """No step is one of this clock."""


def _decoded(row: bytes | None) -> dict[str, Any] | None:
    """The content of a row; None if there is none or it is damaged. That does not make the store unusable: at
    worst some keys live longer, or shorter, by as much as the wall clock was ever set."""
    if row is None or not is_whole(row):
        return None
    said: dict[str, Any] = orjson.loads(row[_CRC.size :])
    return said


def _line_of(said: dict[str, Any]) -> _Line:
    return _Line(tuple(said["after"]), tuple(said["shifts"]))


def is_whole(row: bytes) -> bool:
    """Whether a row is what :meth:`StoreClock.row` returned."""
    return len(row) > _CRC.size and _CRC.unpack_from(row)[0] == crc32(row[_CRC.size :])


def steady_stamps(row: bytes | None) -> Callable[[int, int], int]:
    """:meth:`StoreClock.steady_of`, from the ``row`` of a store that is not open."""
    said = _decoded(row)
    return (_Line() if said is None else _line_of(said)).steady_of


def machine_clock() -> StoreClock:
    """A store's clock that runs by this machine's clocks."""
    return StoreClock(
        lambda: time.time_ns() // 1_000_000,
        lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
        boot_id(),
    )


def boot_id() -> str:
    """The name of this boot of the machine; a unique one if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"unknown {os.urandom(8).hex()}"
