"""What a parent concludes from the silence of a process that it started."""

from __future__ import annotations

import signal

import pytest

from kvstore_core.process.supervision import KILL_TICKS, LATE_TICKS, START_TICKS, STUCK_TICKS, Liveness


def ticks(liveness: Liveness, count: int) -> list[signal.Signals | None]:
    return [liveness.tick() for _ in range(count)]


def test_a_process_that_beats_is_never_late() -> None:
    liveness = Liveness()
    for _ in range(STUCK_TICKS):
        assert not liveness.beat()
        assert liveness.tick() is None
        assert not liveness.is_late


def test_a_silent_process_is_late_then_aborted_then_killed() -> None:
    liveness = Liveness()
    liveness.beat()
    assert ticks(liveness, LATE_TICKS) == [None] * LATE_TICKS
    assert not liveness.is_late
    liveness.tick()
    assert liveness.is_late
    assert liveness.has_become_late
    assert ticks(liveness, STUCK_TICKS - LATE_TICKS - 1)[-1] == signal.SIGABRT
    assert not liveness.has_become_late
    assert ticks(liveness, KILL_TICKS + 2) == [None, signal.SIGKILL, signal.SIGKILL, signal.SIGKILL]


def test_a_late_process_that_beats_again_is_as_good_as_before() -> None:
    liveness = Liveness()
    liveness.beat()
    ticks(liveness, LATE_TICKS + 1)
    assert liveness.beat()
    assert not liveness.is_late
    assert set(ticks(liveness, STUCK_TICKS - 1)) == {None}


@pytest.mark.parametrize("was_ready", [False, True])
def test_a_process_that_begins_has_longer_until_it_is_ready(was_ready: bool) -> None:
    liveness = Liveness()
    if was_ready:
        liveness.beat()
    liveness.started()
    assert not liveness.is_ready
    said = ticks(liveness, START_TICKS)
    assert set(said[:-1]) == {None}
    assert said[-1] == signal.SIGABRT
    assert not liveness.is_late
