"""Pauses; and one request's course: it ends in time, tells what may have become of it, and takes no
stranger's reply."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_client.transport.retry import (
    LONGEST_ATTEMPT_SECONDS,
    LONGEST_PAUSE_SECONDS,
    RetryState,
    enveloped,
)
from kvstore_core.backoff import Backoff
from kvstore_core.errors import KvError
from kvstore_core.wire import encode_error, encode_reply, encode_request


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


REQUEST = encode_request([{"op": "get", "key": "k"}])
REPLY = encode_reply("e" * 16, 1, [{}])


def begin(seconds: float = 5, writes: bool = True) -> RetryState:
    return RetryState(enveloped(REQUEST), writes=writes, endpoint="tcp://nowhere", seconds=seconds, now=0)


def sent() -> RetryState:
    """A write that was handed to a connection."""
    retry = begin()
    retry.sent()
    return retry


def answer(retry: RetryState, frames: list[bytes], now: float = 0) -> Any:
    return retry.receive([*retry.frames[:2], *frames], now)


class Course(NamedTuple):
    """What became of a request that was never answered."""

    error: KvError
    sent: int
    fresh: int


def outlast(retry: RetryState, *, is_connected: bool, is_lost: bool = False) -> Course:
    """Run without any answer until it gives up. Each connection is lost as soon as it was used, or none."""
    now, sent, fresh = 0.0, 0, 0
    while True:
        try:
            action = retry.next(now)
        except KvError as error:
            return Course(error, sent, fresh)
        fresh += action.needs_new_socket
        assert now < action.until <= 100
        if action.is_sending and is_connected:
            retry.sent()
            sent += 1
            assert not retry.next(now).is_sending
            if is_lost:
                retry.lost(now)
                action = retry.next(now)
        now = action.until


def keep_busy(retry: RetryState) -> KvError:
    """Answer every further attempt with "too busy" until it gives up."""
    now = 0.0
    while True:
        try:
            action = retry.next(now)
        except KvError as error:
            return error
        if action.is_sending:
            retry.sent()
            answer(retry, encode_error(KvError("too_busy", "full")), now)
        now = action.until


def test_frames_begin_with_a_name_of_their_own_and_the_empty_delimiter() -> None:
    one, other = begin(), begin()
    assert one.frames[1:] == [b"", *REQUEST]
    assert one.frames[0] != other.frames[0]


@given(seconds=st.floats(0.001, 100), is_connected=st.booleans(), writes=st.booleans())
def test_it_gives_up_at_its_deadline_and_says_whether_the_daemon_can_have_seen_it(
    seconds: float, is_connected: bool, writes: bool
) -> None:
    error = outlast(begin(seconds, writes), is_connected=is_connected).error
    assert error.code == ("timed_out" if is_connected else "unavailable")
    expected = "unknown" if is_connected else "none"
    assert error.details == ({"outcome": expected} if writes else {})


@given(seconds=st.floats(0.001, 100))
def test_it_is_sent_once_as_long_as_the_connection_lives(seconds: float) -> None:
    course = outlast(begin(seconds), is_connected=True)
    assert (course.sent, course.fresh) == (1, 0)


def test_where_no_connection_comes_another_is_asked_for() -> None:
    course = outlast(begin(60), is_connected=False)
    assert course.fresh >= 60 / (LONGEST_ATTEMPT_SECONDS * 1.25) - 1


def test_what_a_lost_connection_took_with_it_is_sent_again_after_a_pause_on_a_fresh_socket() -> None:
    retry = sent()
    retry.lost(0)
    pause = retry.next(0)
    assert not pause.is_sending
    again = retry.next(pause.until)
    assert again.is_sending
    assert again.needs_new_socket
    assert not retry.next(pause.until).needs_new_socket


def test_it_is_sent_on_every_further_connection_with_bounded_pauses() -> None:
    course = outlast(begin(60), is_connected=True, is_lost=True)
    assert course.fresh == course.sent - 1
    assert 60 / (LONGEST_PAUSE_SECONDS * 1.25) <= course.sent <= 60 / (LONGEST_PAUSE_SECONDS * 0.75) + 6
    assert course.error.details["outcome"] == "unknown"


def test_a_socket_that_lost_its_connection_while_idle_is_replaced_at_once_and_then_with_pauses() -> None:
    retry = begin()
    retry.lost(0)
    action = retry.next(0)
    assert action.is_sending
    assert action.needs_new_socket
    retry.lost(0)
    assert not retry.next(0).is_sending
    with pytest.raises(KvError) as caught:
        retry.next(5)
    assert (caught.value.code, caught.value.details["outcome"]) == ("unavailable", "none")


def test_a_reply_to_another_request_is_not_taken() -> None:
    retry = sent()
    assert retry.receive([b"stranger", b"", *REPLY], 0) is None
    assert retry.receive(REPLY, 0) is None
    assert answer(retry, REPLY).revision == 1


def test_a_refusal_for_good_is_raised_at_once() -> None:
    retry = sent()
    with pytest.raises(KvError, match="not now, not ever"):
        answer(retry, encode_error(KvError("bad_request", "not now, not ever")))


def test_a_busy_daemon_is_asked_again_after_a_pause_on_the_same_socket() -> None:
    retry = sent()
    assert answer(retry, encode_error(KvError("too_busy", "full"))) is None
    pause = retry.next(0)
    assert not pause.is_sending
    again = retry.next(pause.until)
    assert again.is_sending
    assert not again.needs_new_socket


def test_a_daemon_that_stays_busy_is_reported_as_such_and_nothing_was_applied() -> None:
    error = keep_busy(begin())
    assert (error.code, error.message) == ("too_busy", "full")
    assert error.details["outcome"] == "none"


def test_an_unanswered_attempt_leaves_the_outcome_open_even_if_a_refusal_came_before_it() -> None:
    retry = sent()
    answer(retry, encode_error(KvError("too_busy", "full")))
    retry.next(retry.next(0).until)
    retry.sent()
    with pytest.raises(KvError) as caught:
        retry.next(5)
    assert caught.value.details["outcome"] == "unknown"


def test_a_lost_attempt_leaves_the_outcome_open_even_if_a_refusal_comes_after_it() -> None:
    retry = sent()
    retry.lost(0)
    error = keep_busy(retry)
    assert error.code == "too_busy"
    assert error.details["outcome"] == "unknown"


def test_an_outcome_that_the_daemon_itself_does_not_know_stays_unknown() -> None:
    retry = sent()
    answer(retry, encode_error(KvError("unavailable", "no quorum", outcome="unknown")))
    with pytest.raises(KvError) as caught:
        retry.next(5)
    assert caught.value.code == "unavailable"
    assert caught.value.details["outcome"] == "unknown"
