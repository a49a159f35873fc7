"""The checkers of histories find what is wrong, and find nothing wrong with what is right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from kvstore_client import Event, Record
from support.accounts import check_log, check_state, check_watcher
from support.gaps import longest_gap
from support.history import Effect, Found, Operation, WrongHistoryError, check_keys, check_witness
from support.load import COUNTER, Acknowledged, Ledger, Seen, seen_event
from support.mirrors import Mirror, Told, Truth, check_messages, check_mirror

LATE = 100_000
"""Milliseconds; long after all else in these stories."""


@dataclass
class Story:
    """A history and a log, told by hand. Times are milliseconds from its beginning."""

    operations: list[Operation] = field(default_factory=list)
    log: list[Event] = field(default_factory=list)
    state: dict[str, Record] = field(default_factory=dict)

    def ok(self, began: int, ended: int, *parts: tuple[Effect, Found], as_of: int = -1) -> Story:
        """An operation that was answered."""
        return self._add(began, ended, "ok", *zip(*parts, strict=True), as_of=as_of)

    def failed(self, began: int, ended: int, effect: Effect, revision: int) -> Story:
        """One whose condition did not hold."""
        return self._add(began, ended, "failed", (effect,), (Found(revision),), code="condition_failed")

    def unknown(self, began: int, *effects: Effect) -> Story:
        """One of which nothing was heard."""
        return self._add(began, None, "unknown", effects)

    def _add(
        self,
        began: int,
        ended: int | None,
        outcome: str,
        effects: Sequence[Effect],
        found: Sequence[Found] = (),
        **more: Any,
    ) -> Story:
        number, returned = len(self.operations), None if ended is None else ended * 1_000_000
        times = began * 1_000_000, began, returned, ended
        self.operations.append(
            Operation("c", number, tuple(effects), *times, outcome, found=tuple(found), **more)
        )
        return self

    def commit(
        self,
        revision: int,
        time: int,
        *changes: tuple[str, int | None] | tuple[str, int, int] | tuple[str, Literal["expired", "stays"]],
    ) -> Story:
        """Add to the log that keys got a number, and perhaps an end, or None for gone; or that they expired,
        or lost their end."""
        for index, (key, number, *end) in enumerate(changes):
            before = self.state.pop(key, None)
            record = None
            if isinstance(number, int):
                made, version = (
                    (revision, 1) if before is None else (before.create_revision, before.version + 1)
                )
                expires_at = end[0] if end else None
                record = Record(key, str(number).encode(), "t", revision, made, version, time, expires_at)
                self.state[key] = record
            elif number == "stays":
                assert before is not None
                record = self.state[key] = before._replace(revision=revision, expires_at=None)
            op = "put" if record else "expire" if number == "expired" else "delete"
            old = before if op == "expire" else None
            previous = 0 if before is None else before.revision
            self.log.append(Event(op, key, revision, index, len(changes), time, record, old, previous))
        return self


def put(
    key: str,
    number: int,
    revision: int,
    *,
    ttl: int | None = None,
    ends: int | None = None,
    only: int | None = None,
) -> tuple[Effect, Found]:
    return Effect("put", key, number, ttl, only), Found(revision, expires_at=ends)


def incr(key: str, total: int, revision: int) -> tuple[Effect, Found]:
    return Effect("incr", key, 1), Found(revision, total)


def delete(key: str, revision: int) -> tuple[Effect, Found]:
    return Effect("delete", key), Found(revision)


def check(key: str, revision: int) -> tuple[Effect, Found]:
    return Effect("check", key, if_revision=revision), Found(revision)


def persist(key: str, revision: int) -> tuple[Effect, Found]:
    return Effect("persist", key), Found(revision)


def get(key: str, number: int | None, revision: int = 0, *, ends: int | None = None) -> tuple[Effect, Found]:
    return Effect("get", key), Found(revision, number, expires_at=ends)


RIGHT = {
    "one after another": Story()
    .ok(0, 1, put("a", 1, 1)).ok(2, 3, get("a", 1, 1)).ok(4, 5, delete("a", 2)).ok(6, 7, get("a", None))
    .commit(1, 1, ("a", 1)).commit(2, 5, ("a", None)),
    "a read beside a write sees either": Story()
    .ok(0, 1, put("a", 1, 1)).ok(2, 9, put("a", 2, 2)).ok(3, 4, get("a", 1, 1)).ok(5, 6, get("a", 2, 2))
    .commit(1, 1, ("a", 1)).commit(2, 5, ("a", 2)),
    "increments at the same time": Story()
    .ok(0, 9, incr("a", 2, 2)).ok(0, 9, incr("a", 1, 1)).ok(0, 9, incr("a", 3, 3))
    .commit(1, 1, ("a", 1)).commit(2, 2, ("a", 2)).commit(3, 3, ("a", 3)),
    "an unknown write that comes late": Story()
    .unknown(0, Effect("put", "a", 1))
    .ok(1, 2, get("a", None)).ok(3, 4, put("a", 2, 1)).ok(9, 10, get("a", 1, 2))
    .commit(1, 4, ("a", 2)).commit(2, 8, ("a", 1)),
    "an unknown write that never comes": Story()
    .unknown(0, Effect("put", "a", 1)).ok(1, 2, get("a", None)).ok(3, 4, put("a", 2, 1, only=0))
    .commit(1, 4, ("a", 2)),
    "an unknown write that expires unseen": Story()
    .ok(0, 1, put("a", 1, 1)).unknown(2, Effect("put", "a", 2, 50)).ok(90, 91, get("a", None))
    .commit(1, 1, ("a", 1)).commit(2, 3, ("a", 2, 53)).commit(3, 60, ("a", "expired")),
    "a key that is hidden before it is removed": Story()
    .ok(0, 1, put("a", 1, 1, ttl=50, ends=51)).ok(40, 41, get("a", 1, 1, ends=51)).ok(80, 81, get("a", None))
    .commit(1, 1, ("a", 1, 51)).commit(2, 900, ("a", "expired")),
    "a key that is there while a commit that began before its end is under way": Story()
    .ok(0, 1, put("a", 1, 1, ttl=50, ends=51)).ok(50, 200, put("b", 1, 2))
    .ok(150, 151, get("a", 1, 1, ends=51), as_of=50).ok(201, 202, get("a", None))
    .commit(1, 1, ("a", 1, 51)).commit(2, 50, ("b", 1)).commit(3, 202, ("a", "expired")),
    "a batch seen whole": Story()
    .ok(0, 1, put("a", 1, 1), put("b", 1, 1)).ok(2, 9, put("a", 2, 2), put("b", 2, 2))
    .ok(3, 4, get("a", 1, 1), get("b", 1, 1)).ok(5, 6, get("a", 2, 2), get("b", 2, 2))
    .commit(1, 1, ("a", 1), ("b", 1)).commit(2, 5, ("a", 2), ("b", 2)),
    "a write under a check that held when it was made": Story()
    .ok(0, 1, put("a", 1, 1)).ok(2, 9, check("a", 1), check("c", 0), put("b", 1, 2)).ok(2, 9, put("a", 2, 3))
    .ok(10, 11, check("a", 3), delete("b", 4)).failed(12, 13, Effect("check", "a", if_revision=1), 3)
    .commit(1, 1, ("a", 1)).commit(2, 3, ("b", 1)).commit(3, 4, ("a", 2)).commit(4, 11, ("b", None)),
    "an unknown write under a check": Story()
    .ok(0, 1, put("a", 1, 1)).unknown(2, Effect("check", "a", if_revision=1), Effect("put", "b", 1))
    .ok(3, 4, put("a", 2, 3)).ok(5, 6, get("b", 1, 2))
    .commit(1, 1, ("a", 1)).commit(2, 3, ("b", 1)).commit(3, 4, ("a", 2)),
    "a persist of what another has made to stay": Story()
    .ok(0, 1, put("a", 1, 1, ttl=50, ends=51)).ok(2, 9, persist("a", 2))
    .ok(3, 8, put("b", 2, 2), persist("a", 2))
    .commit(1, 1, ("a", 1, 51)).commit(2, 5, ("b", 2), ("a", "stays")),
    "a persist that finds what an unknown one has done": Story()
    .ok(0, 1, put("a", 1, 1, ttl=5000, ends=5001)).unknown(2, Effect("persist", "a"))
    .ok(6, 7, put("b", 1, 3)).ok(8, 9, persist("a", 2))
    .commit(1, 1, ("a", 1, 5001)).commit(2, 3, ("a", "stays")).commit(3, 7, ("b", 1)),
    "a condition that failed": Story()
    .ok(0, 1, put("a", 1, 1))
    .failed(2, 3, Effect("put", "a", 2, None, 7), 1).failed(2, 3, Effect("put", "a", 3, None, 0), 1)
    .commit(1, 1, ("a", 1)),
}  # fmt: skip

WRONG = {
    "a lost update": Story()
    .ok(0, 9, incr("a", 1, 1)).ok(0, 9, incr("a", 1, 2))
    .commit(1, 1, ("a", 1)).commit(2, 2, ("a", 1)),
    "a stale read": Story()
    .ok(0, 1, put("a", 1, 1)).ok(2, 3, put("a", 2, 2)).ok(4, 5, get("a", 1, 1))
    .commit(1, 1, ("a", 1)).commit(2, 3, ("a", 2)),
    "a read of nothing after a write": Story()
    .ok(0, 1, put("a", 1, 1)).ok(2, 3, get("a", None))
    .commit(1, 1, ("a", 1)),
    "a read that goes back behind another": Story()
    .ok(0, 1, put("a", 1, 1)).ok(2, 9, put("a", 2, 2)).ok(3, 4, get("a", 2, 2)).ok(5, 6, get("a", 1, 1))
    .commit(1, 1, ("a", 1)).commit(2, 3, ("a", 2)),
    "an increment applied twice": Story()
    .ok(0, 1, incr("a", 1, 1)).ok(2, 3, get("a", 2, 2))
    .commit(1, 1, ("a", 1)).commit(2, 2, ("a", 2)),
    "an unknown increment applied twice": Story()
    .unknown(0, Effect("incr", "a", 1)).ok(2, 3, get("a", 1, 1)).ok(4, 5, get("a", 2, 2))
    .commit(1, 1, ("a", 1)).commit(2, 4, ("a", 2)),
    "an unknown put applied twice": Story()
    .unknown(0, Effect("put", "a", 1))
    .ok(1, 2, get("a", 1, 1)).ok(3, 4, put("a", 2, 2)).ok(5, 6, get("a", 1, 3))
    .commit(1, 1, ("a", 1)).commit(2, 3, ("a", 2)).commit(3, 5, ("a", 1)),
    "a read after the time to live": Story()
    .ok(0, 1, put("a", 1, 1, ttl=50, ends=51)).ok(90, 91, get("a", 1, 1, ends=51))
    .commit(1, 1, ("a", 1, 51)).commit(2, 99, ("a", "expired")),
    "a key that rose again": Story()
    .ok(0, 1, put("a", 1, 1, ttl=50, ends=51)).ok(90, 91, get("a", None)).ok(92, 93, incr("a", 2, 2))
    .commit(1, 1, ("a", 1, 51)).commit(2, 93, ("a", 2, 51)),
    "a key that is gone before its time": Story()
    .ok(0, 1, put("a", 1, 1, ttl=5000, ends=5001)).ok(90, 91, get("a", None))
    .commit(1, 1, ("a", 1, 5001)).commit(2, 80, ("a", "expired")),
    "a time to live that is forgotten": Story()
    .ok(0, 1, put("a", 1, 1, ttl=50)).ok(LATE, LATE + 1, get("a", 1, 1))
    .commit(1, 1, ("a", 1)),
    "a condition that did not hold": Story()
    .ok(0, 1, put("a", 1, 1)).ok(2, 3, put("a", 2, 2)).ok(4, 5, put("a", 3, 3, only=1))
    .commit(1, 1, ("a", 1)).commit(2, 3, ("a", 2)).commit(3, 5, ("a", 3)),
    "a write under a check that no longer held": Story()
    .ok(0, 1, put("a", 1, 1)).ok(2, 3, put("a", 2, 2)).ok(4, 5, check("a", 1), put("b", 1, 3))
    .commit(1, 1, ("a", 1)).commit(2, 3, ("a", 2)).commit(3, 5, ("b", 1)),
    "a check that did hold and failed": Story()
    .ok(0, 1, put("a", 1, 1)).failed(2, 3, Effect("check", "a", if_revision=1), 1)
    .commit(1, 1, ("a", 1)),
    "a condition that did hold and failed": Story()
    .ok(0, 1, put("a", 1, 1)).failed(2, 3, Effect("put", "a", 2, None, 1), 1)
    .commit(1, 1, ("a", 1)),
    "a write that is lost": Story()
    .ok(0, 1, put("a", 1, 1)).ok(2, 3, put("a", 2, 2)).ok(4, 5, get("a", 1, 1))
    .commit(1, 1, ("a", 1)),
}  # fmt: skip

WRONG_AS_A_WHOLE = {
    "a batch in two revisions": Story()
    .ok(0, 1, put("a", 1, 1), put("b", 1, 2))
    .commit(1, 1, ("a", 1)).commit(2, 1, ("b", 1)),
    "half of a batch seen": Story()
    .ok(0, 1, put("a", 1, 1), put("b", 1, 1)).ok(2, 9, put("a", 2, 2), put("b", 2, 2))
    .ok(3, 4, get("a", 2, 2), get("b", 1, 1))
    .commit(1, 1, ("a", 1), ("b", 1)).commit(2, 5, ("a", 2), ("b", 2)),
    "half of a batch applied": Story()
    .ok(0, 1, put("a", 1, 1), put("b", 1, 1))
    .commit(1, 1, ("a", 1)),
    "two keys in an order that nobody can have seen": Story()
    .ok(0, 9, put("a", 1, 1)).ok(0, 9, put("b", 1, 2))
    .ok(1, 2, get("a", None), get("b", 1, 2))
    .commit(1, 1, ("a", 1)).commit(2, 1, ("b", 1)),
    "a write that was made when its check had ceased to hold": Story()
    .ok(0, 1, put("a", 1, 1)).ok(2, 9, check("a", 1), put("b", 1, 3)).ok(2, 9, put("a", 2, 2))
    .commit(1, 1, ("a", 1)).commit(2, 3, ("a", 2)).commit(3, 5, ("b", 1)),
    "an unknown write that was made when its check had ceased to hold": Story()
    .ok(0, 1, put("a", 1, 1)).unknown(2, Effect("check", "a", if_revision=1), Effect("put", "b", 1))
    .ok(3, 4, put("a", 2, 2)).ok(8, 9, get("b", 1, 3))
    .commit(1, 1, ("a", 1)).commit(2, 4, ("a", 2)).commit(3, 6, ("b", 1)),
    "a revision lower than one before": Story()
    .ok(0, 1, put("a", 1, 2)).ok(2, 3, put("b", 1, 1))
    .commit(1, 3, ("b", 1)).commit(2, 3, ("a", 1)),
    "a change that nobody made": Story()
    .commit(1, 1, ("a", 1)),
    "two writes of one revision": Story()
    .ok(0, 1, put("a", 1, 1)).ok(0, 1, put("a", 1, 1))
    .commit(1, 1, ("a", 1)),
}  # fmt: skip


@pytest.mark.parametrize("story", RIGHT.values(), ids=RIGHT.keys())
def test_what_is_right_is_taken(story: Story) -> None:
    check_witness(story.operations, story.log)
    check_keys(story.operations)


@pytest.mark.parametrize("story", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_found_by_both(story: Story) -> None:
    with pytest.raises(WrongHistoryError):
        check_witness(story.operations, story.log)
    with pytest.raises(WrongHistoryError):
        check_keys(story.operations)


@pytest.mark.parametrize("story", WRONG_AS_A_WHOLE.values(), ids=WRONG_AS_A_WHOLE.keys())
def test_what_no_key_shows_alone_is_found_by_the_order_of_the_log(story: Story) -> None:
    with pytest.raises(WrongHistoryError):
        check_witness(story.operations, story.log)


RIGHT_TOGETHER = {
    "a check that finds a key expired": Story()
    .ok(0, 1, put("a", 1, 1, ttl=50, ends=51)).ok(80, 81, check("a", 0), put("b", 1, 2))
    .commit(1, 1, ("a", 1, 51)).commit(2, 80, ("a", "expired"), ("b", 1)),
    "two in one revision": Story()
    .ok(0, 9, put("a", 1, 1)).ok(1, 8, put("b", 2, 1)).ok(10, 11, get("a", 1, 1), get("b", 2, 1))
    .commit(1, 5, ("a", 1), ("b", 2)),
    "batches beside each other": Story()
    .ok(0, 9, put("a", 1, 1), put("b", 2, 1)).ok(0, 9, incr("c", 1, 1))
    .ok(0, 9, put("d", 3, 1), put("e", 4, 1))
    .commit(1, 5, ("a", 1), ("b", 2), ("c", 1), ("d", 3), ("e", 4)),
    "one that is known between two that are not": Story()
    .unknown(0, Effect("put", "a", 1), Effect("put", "b", 2)).ok(0, 9, put("c", 3, 1))
    .unknown(0, Effect("incr", "d", 1))
    .commit(1, 5, ("a", 1), ("b", 2), ("c", 3), ("d", 1)),
    "a persist beside a put, of what another has made to stay": Story()
    .ok(0, 1, put("a", 1, 1, ttl=50, ends=51)).ok(2, 9, put("b", 2, 2), persist("a", 2))
    .ok(2, 9, persist("a", 2), put("c", 3, 2))
    .commit(1, 1, ("a", 1, 51)).commit(2, 5, ("b", 2), ("a", "stays"), ("c", 3)),
    "a persist beside a put, of what another has stored": Story()
    .ok(0, 9, put("a", 1, 1)).ok(0, 9, put("b", 2, 1)).ok(0, 9, put("c", 3, 1), persist("a", 1))
    .commit(1, 5, ("a", 1), ("b", 2), ("c", 3)),
    "a check of what another has done before it": Story()
    .ok(0, 9, put("a", 1, 1)).ok(0, 9, check("a", 1), put("b", 2, 1))
    .commit(1, 5, ("a", 1), ("b", 2)),
}  # fmt: skip

WRONG_TOGETHER = {
    "a persist that did not happen": Story()
    .ok(0, 1, put("a", 1, 1, ttl=50, ends=51)).ok(2, 9, put("b", 2, 2))
    .ok(2, 9, put("c", 3, 2), persist("a", 2))
    .commit(1, 1, ("a", 1, 51)).commit(2, 5, ("b", 2), ("c", 3)),
    "one that began when the other had returned": Story()
    .ok(0, 4, put("a", 1, 1)).ok(6, 9, put("b", 2, 1))
    .commit(1, 3, ("a", 1), ("b", 2)),
    "a batch with another in its middle": Story()
    .ok(0, 9, put("a", 1, 1), put("c", 2, 1)).ok(0, 9, put("b", 2, 1))
    .commit(1, 5, ("a", 1), ("b", 2), ("c", 2)),
    "a write that is not in the revision it was told": Story()
    .ok(0, 9, put("a", 1, 1)).ok(0, 9, put("b", 2, 1)).ok(0, 9, put("c", 2, 1))
    .commit(1, 5, ("a", 1), ("b", 2)).commit(2, 5, ("c", 2)),
    "a change beside it that nobody made": Story()
    .ok(0, 9, put("a", 1, 1))
    .commit(1, 5, ("a", 1), ("b", 2)),
    "one change for two": Story()
    .ok(0, 9, incr("a", 1, 1)).ok(0, 9, incr("a", 1, 1))
    .commit(1, 5, ("a", 1)),
    "an unknown one applied twice": Story()
    .unknown(0, Effect("incr", "a", 1)).ok(0, 9, put("b", 1, 1)).ok(0, 9, put("c", 1, 2))
    .commit(1, 5, ("a", 1), ("b", 1)).commit(2, 5, ("a", 2), ("c", 1)),
    "a check of what another does after it": Story()
    .ok(0, 9, check("b", 1), put("a", 1, 1)).ok(0, 9, put("b", 2, 1))
    .commit(1, 5, ("a", 1), ("b", 2)),
    "a check of what another had ended before it": Story()
    .ok(0, 1, put("b", 1, 1)).ok(2, 9, delete("b", 2)).ok(2, 9, check("b", 1), put("a", 1, 2))
    .commit(1, 1, ("b", 1)).commit(2, 5, ("b", None), ("a", 1)),
    "half of an unknown batch": Story()
    .unknown(0, Effect("put", "a", 1), Effect("put", "b", 2)).ok(0, 9, put("c", 3, 1))
    .commit(1, 5, ("a", 1), ("c", 3)),
}  # fmt: skip


@pytest.mark.parametrize("story", RIGHT_TOGETHER.values(), ids=RIGHT_TOGETHER.keys())
def test_what_several_did_in_one_commit_is_taken_where_that_is_done(story: Story) -> None:
    check_witness(story.operations, story.log, is_shared=True)
    check_keys(story.operations)
    with pytest.raises(WrongHistoryError):
        check_witness(story.operations, story.log)


@pytest.mark.parametrize(
    "story", [*WRONG_TOGETHER.values(), *WRONG.values()], ids=[*WRONG_TOGETHER.keys(), *WRONG.keys()]
)
def test_what_is_wrong_is_found_where_several_share_a_commit(story: Story) -> None:
    with pytest.raises(WrongHistoryError):
        check_witness(story.operations, story.log, is_shared=True)


def test_a_key_that_another_daemon_does_not_show_any_more_may_be_kept() -> None:
    touch = Effect("touch", "a", None, 50), Found(2, expires_at=101)
    story = (
        Story()
        .ok(0, 1, put("a", 1, 1, ttl=50, ends=51))
        .ok(49, 90, touch)
        .ok(80, 81, get("a", None))
        .ok(95, 96, get("a", 1, 2, ends=101))
    )
    check_keys(story.operations, is_shared=True)
    with pytest.raises(WrongHistoryError):
        check_keys(story.operations)
    with pytest.raises(WrongHistoryError):
        check_keys(WRONG["a key that is gone before its time"].operations, is_shared=True)


@pytest.mark.parametrize("story", RIGHT.values(), ids=RIGHT.keys())
def test_what_is_right_alone_is_right_where_several_share_a_commit(story: Story) -> None:
    check_witness(story.operations, story.log, is_shared=True)


def test_a_read_that_is_changed_in_a_long_right_history_is_found() -> None:
    """A history of a plain dict, of which one answer after the other is put back to an older one."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance, story, seen = random.Random(seed), Story(), []
    for number in range(1, 200):
        key = chance.choice("abc")
        time = number * 10
        story.ok(time, time + 15, put(key, number, number)).commit(number, time + 5, (key, number))
        if chance.random() < 0.5:
            seen.append((len(story.operations), key, number))
            story.ok(time + 16, time + 17, get(key, number, number))
    check_witness(story.operations, story.log)
    check_keys(story.operations)
    for index, key, number in seen[5::10]:
        # the put right before may be taken for the later one, by who believes no revision
        earlier = [event.revision for event in story.log if event.key == key and event.revision < number - 1]
        older = max(earlier, default=0)
        operation = story.operations[index]
        right, operation.found = operation.found, (Found(older, older or None),)
        with pytest.raises(WrongHistoryError):
            check_witness(story.operations, story.log)
        with pytest.raises(WrongHistoryError):
            check_keys(story.operations)
        operation.found = right


# ── what mirrors were told ───────────────────────────────────────────────────────────────────────

LOG = (
    Story()
    .commit(1, 1, ("a", 1))
    .commit(2, 2, ("b", 2), ("c", 2))
    .commit(3, 3, ("a", None))
    .commit(5, 5, ("b", 5))
)
A1, B2, C2, A3, B5 = (seen_event(event) for event in LOG.log)
PRESENT = {"b": (5, "5"), "c": (2, "2")}
SNAPSHOT = [Told("shown", A1), Told("shown", B2), Told("shown", C2), Told("sync", None, 2)]
NEWS = [Told("event", A3, 3), Told("event", B5, 5)]

RIGHT_TELLINGS = {
    "a snapshot, and what followed": [*SNAPSHOT, *NEWS],
    "resumed in between": [*SNAPSHOT, NEWS[0], Told("resumed", None, 3), NEWS[1], Told("sync", None, 5)],
    "begun anew": [*SNAPSHOT, Told("reset"), Told("shown", B5), Told("shown", C2), Told("sync", None, 5)],
    "changed while it was shown": [
        *SNAPSHOT[:3], Told("shown", A3), Told("shown", B5), Told("sync", None, 5),
    ],
}  # fmt: skip

WRONG_TELLINGS = {
    "an event is missing": [*SNAPSHOT, NEWS[1]],
    "an event is missing, and Sync is said": [*SNAPSHOT, NEWS[0], Told("sync", None, 5)],
    "an event comes twice": [*SNAPSHOT, NEWS[0], NEWS[0], NEWS[1]],
    "an event comes again after it was resumed": [*SNAPSHOT, NEWS[0], Told("resumed", None, 3), *NEWS],
    "out of order": [*SNAPSHOT, *reversed(NEWS)],
    "half of a revision": [Told("shown", A1), Told("sync", None, 1), Told("event", C2, 2), *NEWS],
    "a cursor inside a revision": [
        Told("shown", A1), Told("sync", None, 1), Told("event", B2, 2), Told("event", C2, 2), *NEWS,
    ],
    "Sync too early": [*SNAPSHOT[:3], Told("sync", None, 1), Told("event", B2), Told("event", C2, 2), *NEWS],
    "Sync too late": [*SNAPSHOT[:3], Told("sync", None, 3), NEWS[1]],
    "a record is not shown": [*SNAPSHOT[1:], *NEWS],
    "a record is shown that was removed": [*SNAPSHOT[:3], Told("shown", B5), Told("sync", None, 5)],
    "a record is shown twice": [SNAPSHOT[0], *SNAPSHOT, *NEWS],
    "what never happened": [*SNAPSHOT, NEWS[0], Told("event", B5._replace(value="6"), 5)],
    "the end is missing": [*SNAPSHOT, NEWS[0]],
}  # fmt: skip


def mirror_that_was_told(told: list[Told]) -> Mirror:
    mirror = Mirror("mirror", 0, lambda _: None)
    mirror.told = told
    return mirror


@pytest.mark.parametrize("told", RIGHT_TELLINGS.values(), ids=RIGHT_TELLINGS.keys())
def test_what_mirrors_are_told_rightly_is_taken(told: list[Told]) -> None:
    check_mirror(mirror_that_was_told(told), Truth(LOG.log), PRESENT)


@pytest.mark.parametrize("told", WRONG_TELLINGS.values(), ids=WRONG_TELLINGS.keys())
def test_what_mirrors_are_told_wrongly_is_found(told: list[Told]) -> None:
    with pytest.raises(AssertionError):
        check_mirror(mirror_that_was_told(told), Truth(LOG.log), PRESENT)


def test_a_gap_that_prev_hides_is_found() -> None:
    check_messages([(A1, 0), (A3, 2), (B5, 3)], Truth(LOG.log))
    with pytest.raises(AssertionError, match="says that it follows"):
        check_messages([(A1, 0), (B5, 1)], Truth(LOG.log))
    with pytest.raises(AssertionError, match="out of order"):
        check_messages([(A3, 2), (A1, 0)], Truth(LOG.log))


# ── what was acknowledged, and what watchers saw ─────────────────────────────────────────────────

SEEN = [Seen(1, 0, "put", "w/1", "one"), Seen(2, 0, "put", COUNTER, "1"), Seen(3, 0, "put", "w/2", "two")]


def ledger_of(*writes: Acknowledged) -> Ledger:
    ledger = Ledger()
    ledger.note(*writes)
    ledger.note_increment()
    return ledger


RIGHT_LEDGER = ledger_of(Acknowledged(1, "put", "w/1", "one"), Acknowledged(3, "put", "w/2", "two"))


def test_what_was_acknowledged_and_is_there_is_taken() -> None:
    check_log(SEEN, RIGHT_LEDGER)
    check_state({"w/1": "one", COUNTER: "1", "w/2": "two"}, SEEN, RIGHT_LEDGER)
    check_watcher("one", SEEN, SEEN)


@pytest.mark.parametrize(
    "log",
    [
        SEEN[:2],
        [*SEEN, Seen(4, 0, "put", "w/1", "one")],
        [SEEN[0], SEEN[2], SEEN[1]],
        [*SEEN[:2], SEEN[2]._replace(value="three")],
    ],
    ids=["a write is lost", "a write is applied twice", "out of order", "a write became another"],
)
def test_a_log_that_does_not_hold_what_was_acknowledged_is_found(log: list[Seen]) -> None:
    with pytest.raises(AssertionError):
        check_log(log, RIGHT_LEDGER)


def test_an_increment_that_was_applied_twice_is_found() -> None:
    log = [*SEEN, Seen(4, 0, "put", COUNTER, "2")]
    check_log(log, RIGHT_LEDGER)
    with pytest.raises(AssertionError):
        check_state({"w/1": "one", COUNTER: "2", "w/2": "two"}, log, RIGHT_LEDGER)


@pytest.mark.parametrize(
    "seen",
    [[SEEN[1], SEEN[0], SEEN[2]], [SEEN[0], *SEEN], SEEN[:2], [SEEN[0], SEEN[2]]],
    ids=["swapped", "twice", "without the last", "without one in the middle"],
)
def test_a_watcher_that_saw_anything_else_is_found(seen: list[Seen]) -> None:
    with pytest.raises(AssertionError):
        check_watcher("one", seen, SEEN)


# ── gaps ─────────────────────────────────────────────────────────────────────────────────────────

BEATS = [0.0, 5.0, 6.0, 9.0, 10.0, 20.0]


@pytest.mark.parametrize(
    ("start", "end", "longest"),
    [(6.5, 8.5, 3.0), (5.5, 9.5, 3.0), (6.0, 9.0, 3.0), (9.5, 30.0, 10.0), (5.1, 5.9, 1.0)],
)
def test_a_gap_is_the_longest_time_without_a_beat_around_the_fault(
    start: float, end: float, longest: float
) -> None:
    assert longest_gap(BEATS, start, end) == longest
