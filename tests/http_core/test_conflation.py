"""The newest change of each key, as it waits for a stream: properties, without a socket or a clock."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.follower import Batch
from kvstore_core.model import Event
from kvstore_http.streaming import event_format
from kvstore_http.streaming.conflation import ENTRY_BYTES, SENT_BYTES, Conflation, KeptChange, newest_of
from kvstore_http.streaming.event_format import Encoder, Format

EPOCH = "00112233445566ff"
LINES = Format(is_sse=False, has_values=True, is_chunked=False)

keys = st.sampled_from(["a", "b", "c", "dd", "\U0001f600"])
deliveries = st.lists(st.lists(st.lists(keys, min_size=1, max_size=3, unique=True), min_size=1, max_size=4))
"""Of each delivery the revisions, of each revision the keys that it changes."""


class Story:
    """Changes with rising revisions, and what was and was not sent of them."""

    def __init__(self) -> None:
        self.revision = 0
        self.encoder = Encoder(EPOCH)
        self.unsent: dict[str, list[int]] = {}
        self.sent: list[KeptChange] = []

    def next(self, delivery: list[list[str]]) -> list[Batch]:
        batches: list[Batch] = []
        for names in delivery:
            self.revision += 1
            batches.append(
                [
                    Event("delete", name, self.revision, index, len(names), 0, None, None, 0, None, None)
                    for index, name in enumerate(names)
                ]
            )
            for name in names:
                self.unsent.setdefault(name, []).append(self.revision)
        return batches

    def take(self, taken: list[KeptChange]) -> None:
        for change in taken:
            missed = self.unsent.pop(change.key)
            assert change.revision == missed[-1], "the newest"
            assert change.skipped == len(missed) - 1, "exactly those that were left out"
        self.sent += taken


def size_of(kept: list[KeptChange]) -> int:
    return sum(ENTRY_BYTES + len(each.key) + len(each.body) for each in kept)


@given(deliveries, st.data())
def test_the_newest_of_each_key_comes_in_order_and_stands_for_all_before_it(
    given_deliveries: list[list[list[str]]], data: st.DataObject
) -> None:
    story, conflation = Story(), Conflation(10**6)
    for delivery in given_deliveries:
        assert conflation.add(story.encoder.newest(LINES, story.next(delivery)))
        least = min((min(missed) for missed in story.unsent.values()), default=story.revision + 1)
        assert conflation.sent_through(story.revision) == least - 1
        assert len(conflation) == len(story.unsent)
        if data.draw(st.booleans()):
            size = conflation.size
            taken = conflation.take(0.0)
            assert size == size_of(taken)
            story.take(taken)
            assert not story.unsent
            assert not conflation.size
    story.take(conflation.take(0.0))
    positions = [(change.revision, change.at) for change in story.sent]
    assert positions == sorted(positions), "revisions rise"


@given(deliveries, st.integers(ENTRY_BYTES, 8 * ENTRY_BYTES), st.data())
def test_what_waits_is_bounded_in_bytes_and_what_finds_no_room_changes_nothing(
    given_deliveries: list[list[list[str]]], bound: int, data: st.DataObject
) -> None:
    story, conflation = Story(), Conflation(bound)
    behind: list[Batch] = []
    for delivery in given_deliveries:
        behind += story.next(delivery)
        some = behind
        while some and not conflation.add(
            story.encoder.newest(LINES, some), whatever=len(some) == 1 and not conflation.size
        ):
            assert conflation.wants_room
            some = [] if conflation.size else some[: len(some) // 2]
        del behind[: len(some)]
        assert conflation.size <= max(bound, 3 * (2 * ENTRY_BYTES)), "or one revision"
        if data.draw(st.booleans()):
            take_known(story, conflation, behind)
    while behind or conflation:
        take_known(story, conflation, behind)
        assert not conflation.wants_room
        one = story.encoder.newest(LINES, behind[:1])
        assert conflation.add(one, whatever=True)
        del behind[:1]
    assert not story.unsent, "the last change of every key has come"


def take_known(story: Story, conflation: Conflation, behind: list[Batch]) -> None:
    """As :meth:`Story.take`, of a stream that has not been given ``behind``."""
    later = {batch[0].revision for batch in behind}
    for change in conflation.take(0.0):
        missed = story.unsent[change.key]
        given_so_far = [revision for revision in missed if revision not in later]
        assert (change.revision, change.skipped) == (given_so_far[-1], len(given_so_far) - 1)
        del missed[: len(given_so_far)]
        if not missed:
            del story.unsent[change.key]


@given(deliveries, st.data())
def test_with_an_interval_a_key_comes_at_once_and_then_once_each_interval(
    given_deliveries: list[list[list[str]]], data: st.DataObject
) -> None:
    story, conflation, now, interval = Story(), Conflation(10**6, 10.0), 100.0, 10.0
    sent_at: dict[str, float] = {}
    resumed_from = 0
    for delivery in [*given_deliveries, []]:
        assert conflation.add(story.encoder.newest(LINES, story.next(delivery)))
        now += data.draw(st.sampled_from([0.0, 0.5, 4.0, 9.5, 10.0, 25.0]))
        due = {name for name in story.unsent if name not in sent_at or sent_at[name] + interval <= now}
        taken = conflation.take(now)
        assert {change.key for change in taken} == due, "no sooner, and no later"
        assert [(c.revision, c.at) for c in taken] == sorted((c.revision, c.at) for c in taken)
        story.take(taken)
        sent_at |= dict.fromkeys(due, now)
        through = conflation.sent_through(story.revision)
        least = min((min(missed) for missed in story.unsent.values()), default=story.revision + 1)
        assert through == least - 1, "one who resumes from there misses nothing"
        assert through >= resumed_from, "and it never goes back"
        resumed_from = through
        next_at = conflation.next_at()
        if story.unsent:
            assert next_at is not None
            assert next_at <= min(sent_at[name] for name in story.unsent) + interval
    remembered = [name for name, at in sent_at.items() if at + interval > now]
    assert conflation.size >= sum(SENT_BYTES + len(name) for name in remembered)
    now += interval
    story.take(conflation.take(now))
    assert not story.unsent
    conflation.take(now + interval)
    assert conflation.size == 0, "nothing is kept of keys that are quiet"


@given(deliveries.filter(bool), st.integers(0, 3) | st.none(), st.booleans())
def test_a_cursor_is_on_what_has_all_before_it_sent_and_on_the_last(
    given_deliveries: list[list[list[str]]], waits: int | None, is_sse: bool
) -> None:
    story = Story()
    batches = [batch for delivery in given_deliveries for batch in story.next(delivery)]
    form = LINES._replace(is_sse=is_sse)
    changes = story.encoder.newest(form, batches)
    waits_after = None if waits is None else min(waits, changes[-1].revision)
    text = event_format.newest(form, changes, EPOCH, waits_after).decode()
    found: list[tuple[dict[str, Any], str | None]] = []
    if is_sse:
        for block in text.split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            found.append((json.loads(fields["data"]), fields.get("id")))
    else:
        found = [((body := json.loads(line)), body.pop("cursor", None)) for line in text.splitlines()]
    assert [(body["key"], body["revision"], body["skipped"]) for body, _ in found] == [
        (event.key, event.revision, skipped) for event, skipped, _ in newest_of(batches)
    ]
    for number, (body, cursor) in enumerate(found):
        later = [change.after for change in changes[number + 1 :]]
        floor = min([*later, *([] if waits_after is None else [waits_after]), body["revision"]])
        if number == len(found) - 1 or floor == body["revision"]:
            assert cursor == f"{floor}-{EPOCH}"
        else:
            assert cursor is None
