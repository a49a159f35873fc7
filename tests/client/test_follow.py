"""Whatever PUB loses, repeats or reorders: in order, each once, none missing, a revision whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import Batch, Follower, LogPage
from kvstore_core.model import Cursor, Event, Record
from kvstore_core.snapshot_merge import SnapshotMerge
from kvstore_core.wire import Heartbeat, PublishedEvent, Reply
from support.lengths import examples
from support.model_store import EPOCHS, KEYS, Store, put, serve

pytestmark = pytest.mark.slow


class Following(RuleBasedStateMachine):
    """A Follower between a store and a PUB that drops, repeats, reorders and comes late."""

    @initialize(
        topics=st.sampled_from([(), ("a",), ("a1", "b")]),
        log_only=st.booleans(),
        held=st.integers(1, 6),
    )
    def start(self, topics: tuple[str, ...], log_only: bool, held: int) -> None:
        self.wanted = Filter(topics)
        self.store = Store()
        self.on_the_way: list[PublishedEvent | Heartbeat] = []
        self.answers: list[LogPage | KvError] = []
        self.asked: Cursor | None = None
        self.expected: list[Batch] = []
        self.delivered: list[Batch] = []
        self.follower = Follower(
            Cursor(0, self.store.epoch), filtered=bool(topics), log_only=log_only, max_held_events=held
        )

    def take(self, batches: list[Batch]) -> None:
        self.delivered += [
            kept for batch in batches if (kept := [e for e in batch if self.wanted.matches(e.op, e.key)])
        ]

    @rule(
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True),
        deletes=st.booleans(),
        skip=st.sampled_from([0, 0, 3]),
    )
    def commit(self, keys: list[str], deletes: bool, skip: int) -> None:
        changes = self.store.commit(keys, deletes, skip)
        heard = [c for c in changes if self.wanted.matches(c.event.op, c.event.key)]
        self.on_the_way += heard
        if heard:
            self.expected.append([change.event for change in heard])

    @rule()
    def beat(self) -> None:
        self.on_the_way.append(self.store.heartbeat())

    @precondition(lambda self: self.on_the_way)
    @rule()
    def receive(self) -> None:
        self.take(self.follower.hear(self.on_the_way.pop(0)))

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        del self.on_the_way[data.draw(st.integers(0, len(self.on_the_way) - 1))]

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data())
    def receive_out_of_order_and_again(self, data: st.DataObject) -> None:
        message = data.draw(st.sampled_from(self.on_the_way))
        self.take(self.follower.hear(message))

    @rule()
    def ask(self) -> None:
        cursor = self.follower.ask()
        if cursor is not None:
            assert self.asked is None, "one question at a time"
            self.asked = cursor

    @precondition(lambda self: self.asked is not None and not self.answers)
    @rule()
    def read_log(self) -> None:
        assert self.asked is not None
        try:
            self.answers.append(self.store.events(self.asked, self.wanted))
        except KvError as error:
            self.answers.append(error)

    @precondition(lambda self: self.asked is not None)
    @rule()
    def question_is_lost(self) -> None:
        self.asked = None
        self.answers.clear()
        self.follower.fail()

    @precondition(lambda self: self.answers)
    @rule()
    def receive_answer(self) -> None:
        self.asked, answer = None, self.answers.pop()
        if isinstance(answer, KvError):
            self.begin_anew()
            return
        try:
            self.take(self.follower.answer(answer))
        except KvError:
            self.begin_anew()

    def begin_anew(self) -> None:
        """What a subscriber does after a reset: go on from where the store is now."""
        self.check_order()
        self.follower.restart(Cursor(self.store.head, self.store.epoch))
        self.delivered, self.expected = [], []

    @rule()
    def restore_from_backup(self) -> None:
        self.store.restore()

    @rule()
    def trim(self) -> None:
        self.store.trim()

    @rule()
    def doubt(self) -> None:
        self.follower.doubt()

    @invariant()
    def check_order(self) -> None:
        if hasattr(self, "delivered"):
            assert self.delivered == self.expected[: len(self.delivered)]

    def teardown(self) -> None:
        """Once the network is quiet, nothing is missing."""
        if not hasattr(self, "store"):
            return
        if self.asked is not None:
            self.question_is_lost()
        self.on_the_way.append(self.store.heartbeat())
        while self.on_the_way:
            self.receive()
        for _ in range(1000):
            self.ask()
            if self.asked is None:
                break
            self.read_log()
            self.receive_answer()
        assert not self.follower.is_behind
        assert self.delivered == self.expected
        assert self.follower.cursor == Cursor(self.store.head, self.store.epoch)


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=examples(80), stateful_step_count=40, deadline=None)


def follow(start: int = 0, **options: Any) -> Follower:
    """A follower that has asked once and knows it is at the end."""
    follower = Follower(Cursor(start, EPOCHS[0]), **options)
    assert follower.ask() == Cursor(start, EPOCHS[0])
    follower.answer(LogPage([], start, 0, start, EPOCHS[0]))
    return follower


def change(event: Event, prev: int) -> PublishedEvent:
    return PublishedEvent(event, prev, EPOCHS[0])


def test_contiguous_messages_are_delivered_at_once_and_the_log_is_left_alone() -> None:
    follower = follow()
    for revision in range(1, 100):
        assert follower.hear(change(put("a", revision), revision - 1)) == [[put("a", revision)]]
        assert follower.ask() is None


def test_it_asks_once_before_it_says_that_nothing_is_missing() -> None:
    follower = Follower(Cursor(7, EPOCHS[0]))
    assert follower.is_behind
    assert follower.ask() == Cursor(7, EPOCHS[0])
    assert follower.ask() is None


def test_a_revision_is_held_until_it_is_whole() -> None:
    follower = follow()
    first, second = put("a", 1, 0, 2), put("b", 1, 1, 2)
    assert follower.hear(change(first, 0)) == []
    assert follower.ask() is None, "the rest is still under way"
    assert follower.hear(change(second, 0)) == [[first, second]]


def test_a_heartbeat_that_follows_half_a_revision_shows_that_the_rest_is_lost() -> None:
    follower = follow()
    follower.hear(change(put("a", 1, 0, 2), 0))
    follower.hear(Heartbeat(EPOCHS[0], 1, 0, 0))
    assert follower.ask() == Cursor(0, EPOCHS[0])


def test_a_filtered_subscriber_asks_the_log_for_a_revision_of_which_it_hears_a_part() -> None:
    follower = follow(filtered=True)
    assert follower.hear(change(put("a", 1, 1, 3), 0)) == []
    assert follower.ask() == Cursor(0, EPOCHS[0])


def test_messages_held_during_a_refill_follow_it_without_another_question() -> None:
    follower = follow()
    assert follower.hear(change(put("a", 3), 2)) == []
    assert follower.ask() == Cursor(0, EPOCHS[0])
    assert follower.hear(change(put("a", 4), 3)) == []
    page = LogPage([put("a", 1), put("a", 2)], 2, 0, 2, EPOCHS[0])
    assert follower.answer(page) == [[put("a", revision)] for revision in (1, 2, 3, 4)]
    assert follower.ask() is None


def test_what_is_held_is_bounded_by_bytes() -> None:
    follower = follow(max_held_bytes=10)
    for revision in range(5, 50):
        follower.hear(change(put("a", revision), revision - 1))
    assert sum(len(held.event.record.value) for held in follower._held) <= 10
    assert follower.ask() == Cursor(0, EPOCHS[0])


def test_a_position_that_the_store_lost_in_a_crash_is_not_asked_for_for_ever() -> None:
    follower = follow()
    follower.hear(Heartbeat(EPOCHS[0], 100, 0, 0))
    assert follower.ask() is not None
    follower.answer(LogPage([], 90, 0, 90, EPOCHS[0]))
    assert follower.ask() is None
    assert follower.hear(change(put("a", 101), 90)) == [[put("a", 101)]]


def test_a_message_of_another_epoch_is_never_delivered_and_the_log_decides() -> None:
    follower = follow()
    assert follower.hear(PublishedEvent(put("a", 1), 0, EPOCHS[1])) == []
    assert follower.ask() == Cursor(0, EPOCHS[0])
    with pytest.raises(KvError, match="restored") as caught:
        follower.answer(LogPage([], 5, 0, 5, EPOCHS[1]))
    assert caught.value.code == "cursor_expired"


@pytest.mark.parametrize(
    ("wanted", "topics"),
    [
        (Filter(), [b""]),
        (Filter(("", "a")), [b""]),
        (Filter(("é", "a")), [b"a", "é".encode()]),
        (Filter(keys=frozenset({"k"})), [b"k"]),
    ],
)
def test_topics_bring_at_least_the_wanted_keys(wanted: Filter, topics: list[bytes]) -> None:
    assert wanted.topics() == topics


def test_a_key_filter_takes_that_key_and_no_longer_one() -> None:
    wanted = Filter(("p/",), frozenset({"k"}), frozenset({"put"}))
    assert [wanted.matches("put", key) for key in ("k", "kk", "p/x", "p")] == [True, False, True, False]
    assert not wanted.matches("delete", "k")
    assert wanted.fields() == {"prefixes": ["p/"], "keys": ["k"], "ops": ["put"]}


# ── snapshots ────────────────────────────────────────────────────────────────────────────────────


commits = st.lists(
    st.tuples(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True), st.booleans()), max_size=4
)


@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.builds(
        Filter,
        st.sampled_from([(), ("a",), ("a", "b"), ("a", "a1")]),
        st.sampled_from([frozenset(), frozenset({"b", "a1"})]),
        st.just(frozenset()),
    ),
    scan=st.integers(1, 6),
    before=commits,
    between=st.lists(commits, max_size=8),
)
# a1 is put behind the place up to which the first page looked: the second page does not show it
@example(wanted=Filter(), scan=2, before=[(["a"], False)], between=[[], [(["a1"], False)]])
def test_a_snapshot_and_what_follows_show_each_change_once_and_end_in_the_present_state(
    wanted: Filter, scan: int, before: list[Any], between: list[list[Any]]
) -> None:
    store = Store()
    for keys, deletes in before:
        store.commit(keys, deletes, 0)
    merge = SnapshotMerge(wanted, Cursor(store.head, store.epoch), page_size=2)
    state: dict[str, Record] = {}
    last_seen: dict[str, int] = {}
    while ops := merge.next_ops():
        for keys, deletes in between.pop(0) if between else []:
            store.commit(keys, deletes, 0)
        for record in merge.accept(serve(store, ops, scan)):
            assert record.key not in state, "a key is shown once"
            state[record.key] = record
            last_seen[record.key] = record.revision
    assert merge.is_complete
    for event in [event for batch in store.log for event in batch if event.revision > merge.start.revision]:
        if not wanted.matches(event.op, event.key) or merge.shows(event):
            continue
        assert event.revision > last_seen.get(event.key, 0), "each change is delivered once, in order"
        last_seen[event.key] = event.revision
        state.pop(event.key, None)
        if event.record is not None:
            state[event.key] = event.record
    assert state == {key: record for key, record in store.records.items() if wanted.matches("put", key)}


def test_a_page_of_a_daemon_that_lags_does_not_go_with_the_start_of_another() -> None:
    """What happened between the two would be neither in the page nor after the start."""
    merge = SnapshotMerge(Filter(), Cursor(7, EPOCHS[0]))
    (op,) = merge.next_ops()
    assert op["stale"], "it need not be current: what is new comes by the log"
    with pytest.raises(KvError, match="another one had") as caught:
        merge.accept(Reply(EPOCHS[0], 6, [{"items": [], "cursor": None}]))
    assert caught.value.code == "cursor_expired"
    merge.accept(Reply(EPOCHS[0], 7, [{"items": [], "cursor": None}]))
    assert merge.is_complete


def test_a_snapshot_of_a_store_that_was_restored_meanwhile_is_refused() -> None:
    merge = SnapshotMerge(Filter(), Cursor(0, EPOCHS[0]))
    with pytest.raises(KvError, match="restored"):
        merge.accept(Reply(EPOCHS[1], 0, [{"items": [], "cursor": None}]))


def test_every_event_after_the_last_page_is_news() -> None:
    merge = SnapshotMerge(Filter(), Cursor(0, EPOCHS[0]))
    merge.accept(Reply(EPOCHS[0], 9, [{"items": [], "cursor": None}]))
    assert merge.through == 9
    assert merge.shows(put("a", 9))
    assert not merge.shows(put("a", 10))
