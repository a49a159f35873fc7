"""The pauses before trying again."""

from __future__ import annotations

import pytest

from kvstore_core.backoff import Backoff


def test_pauses_grow_up_to_the_longest_and_begin_anew() -> None:
    backoff = Backoff(0.25, 1.5)
    assert [backoff.next() for _ in range(5)] == [0.25, 0.5, 1.0, 1.5, 1.5]
    backoff.reset()
    assert backoff.next() == 0.25


def test_the_growth_can_be_chosen() -> None:
    backoff = Backoff(4, 10, growth=1.5)
    assert [backoff.next() for _ in range(4)] == [4, 6, 9, 10]


def test_jitter_spreads_pauses_to_both_sides_and_does_not_add_up() -> None:
    pauses = [Backoff(1.0, 8.0, jitter=0.25).next() for _ in range(200)]
    assert 0.75 <= min(pauses) < 0.9
    assert 1.1 < max(pauses) <= 1.25
    backoff = Backoff(1.0, 8.0, jitter=0.25)
    for middle in (1, 2, 4, 8, 8):
        assert backoff.next() == pytest.approx(middle, rel=0.25)


def test_what_a_server_asks_for_is_waited_and_a_little_more() -> None:
    backoff = Backoff(1.0, 8.0)
    assert backoff.next(3.0) == 3.25
    assert backoff.next(3.0) == 3.5
