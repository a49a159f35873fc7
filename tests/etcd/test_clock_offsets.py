"""Clocks that differ are found from what other daemons write into their changes."""

from __future__ import annotations

import pytest

from kvstore_daemon.storage.etcd_store.clock_offsets import ClockOffsets


class Seconds:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def offsets(seconds: Seconds) -> ClockOffsets:
    return ClockOffsets("here", seconds)


def test_a_clock_that_is_ahead_is_seen_from_one_change(offsets: ClockOffsets) -> None:
    """It was written in the future, which no delay explains."""
    offsets.note("there", written_at=10_700, arrived_at=10_000)
    assert offsets.ahead() == {"there": 700}


def test_a_delay_is_not_taken_for_a_clock(offsets: ClockOffsets) -> None:
    for delay in (900, 4, 2000, 1500):
        offsets.note("there", written_at=10_000, arrived_at=10_000 + delay)
    assert offsets.ahead() == {"there": -4}


def test_one_late_change_says_nothing(offsets: ClockOffsets) -> None:
    offsets.note("there", written_at=10_000, arrived_at=19_000)
    assert offsets.ahead() == {}
    for _ in range(2):
        offsets.note("there", written_at=10_000, arrived_at=19_001)
    assert offsets.ahead() == {"there": -9000}


def test_own_changes_say_nothing(offsets: ClockOffsets) -> None:
    offsets.note("here", written_at=10_700, arrived_at=10_000)
    assert offsets.ahead() == {}


def test_a_clock_that_was_set_right_is_forgiven(offsets: ClockOffsets, seconds: Seconds) -> None:
    offsets.note("there", written_at=10_700, arrived_at=10_000)
    for _ in range(3):
        seconds.now += 61
        offsets.note("there", written_at=20_000, arrived_at=20_003)
    assert offsets.ahead() == {"there": -3}


def test_a_slow_minute_does_not_hide_the_quick_one_before_it(offsets: ClockOffsets, seconds: Seconds) -> None:
    for _ in range(3):
        offsets.note("there", written_at=10_000, arrived_at=10_002)
    seconds.now += 61
    offsets.note("there", written_at=20_000, arrived_at=20_900)
    assert offsets.ahead() == {"there": -2}


def test_a_daemon_that_is_gone_is_forgotten(offsets: ClockOffsets, seconds: Seconds) -> None:
    offsets.note("gone", written_at=10_700, arrived_at=10_000)
    seconds.now += 3601
    assert offsets.ahead() == {}


def test_names_of_daemons_take_bounded_room(offsets: ClockOffsets, seconds: Seconds) -> None:
    for number in range(1000):
        seconds.now += 0.001
        offsets.note(f"node-{number}", written_at=2, arrived_at=1)
    assert len(offsets.ahead()) <= 64
    assert "node-999" in offsets.ahead()
