"""What every engine does: the definition of "the same observable behaviour"."""

from __future__ import annotations

import gc
import select
from dataclasses import replace
from typing import Any

import pytest

from kvstore_core.errors import KvError
from kvstore_core.media_types import TEXT_CONTENT_TYPE
from kvstore_daemon.storage.interface import EventFilter, LogPosition, Retention, Write, WriteRequest
from support.engine_store import OpenStore, Store, fill, refused

MIB = 1024 * 1024


def test_a_put_is_read_back_with_its_metadata(store: Store) -> None:
    result = store.write("put", b"a", value=b"\x00\xff", content_type="image/png", ttl_ms=5000)
    found = store.get(b"a")
    assert found is not None
    assert found.value == b"\x00\xff"
    assert found.content_type == "image/png"
    assert found.modified_at == store.clock.now
    assert found.expires_at == store.clock.now + 5000 == result["expires_at"]
    assert (found.revision, found.create_revision, found.version) == (
        result["revision"],
        result["create_revision"],
        result["version"],
    )


def test_version_counts_puts_and_starts_over_after_a_delete(store: Store) -> None:
    first = store.write("put")
    assert store.write("put")["version"] == 2
    store.write("delete")
    again = store.write("put")
    assert again["version"] == 1
    assert again["create_revision"] == again["revision"] > first["revision"]


def test_a_plain_put_clears_the_ttl(store: Store) -> None:
    store.write("put", ttl_ms=1000)
    store.write("put")
    store.clock.now += 2000
    assert store.get() is not None


def test_a_missing_key_is_not_found(store: Store) -> None:
    for op in ("delete", "touch", "persist"):
        with refused("not_found"):
            store.write(op, ttl_ms=1000)
    assert store.get() is None


def test_if_revision_0_creates_only(store: Store) -> None:
    revision = store.write("put", if_revision=0)["revision"]
    with refused("condition_failed") as caught:
        store.write("put", if_revision=0)
    assert caught.value.details["revision"] == revision


@pytest.mark.parametrize("op", ["put", "delete", "incr", "touch", "persist"])
def test_a_failed_condition_changes_nothing(store: Store, op: str) -> None:
    store.write("put", value=b"1")
    before, head = store.get(), store.engine.position().head
    with refused("condition_failed"):
        store.write(op, if_revision=head + 5, **({"ttl_ms": 1} if op == "touch" else {}))
    assert store.get() == before
    assert store.engine.position().head == head


def test_a_condition_on_a_missing_key_says_so(store: Store) -> None:
    with refused("condition_failed") as caught:
        store.write("delete", if_revision=7)
    assert caught.value.details["revision"] == 0


def test_incr_counts_from_zero_and_keeps_ttl_and_type(store: Store) -> None:
    assert store.write("incr", by=-3)["value"] == -3
    assert store.get().content_type == TEXT_CONTENT_TYPE  # type: ignore[union-attr]
    store.write("put", value=b"41", content_type="text/x-count", ttl_ms=9000)
    result = store.write("incr")
    found = store.get()
    assert result["value"] == 42
    assert found is not None
    assert (found.value, found.content_type) == (b"42", "text/x-count")
    assert found.expires_at == result["expires_at"] == store.clock.now + 9000


def test_a_put_keeps_the_moment_of_expiry_or_names_one(store: Store) -> None:
    assert "expires_at" not in store.write("put", keep_ttl=True)
    moment = store.write("put", ttl_ms=9_000)["expires_at"]
    store.clock.now += 1_234
    assert store.write("put", keep_ttl=True)["expires_at"] == moment
    assert store.write("put", expires_at=moment + 7)["expires_at"] == moment + 7
    store.clock.now = moment + 7
    assert store.get() is None
    assert "expires_at" not in store.write("put", keep_ttl=True)
    store.write("put", expires_at=store.clock.now)
    assert store.get() is None
    store.expire_due()
    assert store.log().events[-1].op == "expire"


@pytest.mark.parametrize("value", [b"", b"x", b"1.5", b" 1", b"1\n", b"+1", b"0x1", b"9" * 20])
def test_incr_of_what_is_no_integer_is_refused(store: Store, value: bytes) -> None:
    store.write("put", value=value)
    with refused("not_an_integer"):
        store.write("incr")
    assert store.get().value == value  # type: ignore[union-attr]


def test_incr_past_64_bits_is_refused(store: Store) -> None:
    store.write("put", value=str(2**63 - 1).encode())
    with refused("out_of_range"):
        store.write("incr")


def test_touch_and_persist_change_the_expiry_alone(store: Store) -> None:
    store.write("put", value=b"v")
    put = store.get()
    store.clock.now += 10
    touched = store.write("touch", ttl_ms=500)
    found = store.get()
    assert put is not None
    assert found == put._replace(revision=touched["revision"], expires_at=store.clock.now + 500)
    store.write("persist")
    assert store.get().expires_at is None  # type: ignore[union-attr]
    assert [change.op for change in store.log().events] == ["put", "put", "put"]


def test_persist_without_a_ttl_is_no_change(store: Store) -> None:
    revision = store.write("put")["revision"]
    assert store.write("persist")["revision"] == revision
    assert store.engine.position().head == revision


def test_an_expired_key_is_gone_from_the_instant_it_expires(store: Store) -> None:
    store.write("put", ttl_ms=1000)
    store.clock.now += 999
    assert store.get() is not None
    store.clock.now += 1
    assert store.get() is None
    assert store.keys() == []
    assert store.engine.count(b"", None).total == 0
    assert store.engine.count(b"a", b"z").total == 0


def test_expiry_is_an_event_with_the_old_value(store: Store) -> None:
    revision = store.write("put", value=b"old", ttl_ms=1000)["revision"]
    store.clock.now += 1000
    assert store.engine.due(10) == ([(b"k", revision)], None)
    store.expire_due()
    (change,) = store.feed[1:]
    assert (change.op, change.record, change.previous_revision) == ("expire", None, revision)
    assert change.previous is not None
    assert change.previous.value == b"old"
    assert store.engine.due(10) == ([], None)


def test_due_says_when_the_next_key_expires(store: Store) -> None:
    store.write("put", b"a", ttl_ms=1000)
    store.write("put", b"b", ttl_ms=3000)
    assert store.engine.due(10) == ([], store.clock.now + 1000)
    store.clock.now += 1000
    due, following = store.engine.due(10)
    assert [key for key, _ in due] == [b"a"]
    assert following == store.clock.now + 2000


def test_expiry_spares_a_key_that_was_changed_meanwhile(store: Store) -> None:
    seen = store.write("put", ttl_ms=1000)["revision"]
    store.write("touch", ttl_ms=9000)
    store.clock.now += 1000
    store.submit(WriteRequest([Write("expire", b"k", if_revision=seen)]))
    assert store.get() is not None


def test_a_write_to_an_expired_key_finds_it_missing_and_expires_it_first(store: Store) -> None:
    store.write("put", value=b"7", ttl_ms=1000)
    store.clock.now += 1000
    assert store.write("incr", if_revision=0)["value"] == 1
    assert [change.op for change in store.feed] == ["put", "expire", "put"]
    assert [change.revision for change in store.feed] == sorted({c.revision for c in store.feed})


def test_an_atomic_batch_is_one_revision(store: Store) -> None:
    store.write("put", b"b")
    results = store.atomic(
        Write("put", b"a", b"1", "t"),
        Write("delete", b"b"),
        Write("incr", b"c"),
        Write("put", b"d", b"", "t"),
    )
    assert len({result["revision"] for result in results}) == 1
    changes = store.log().events[1:]
    assert [(c.op, c.key, c.index, c.count) for c in changes] == [
        ("put", b"a", 0, 4),
        ("delete", b"b", 1, 4),
        ("put", b"c", 2, 4),
        ("put", b"d", 3, 4),
    ]


def test_an_atomic_batch_is_all_or_nothing(store: Store) -> None:
    store.write("put", b"b", value=b"x")
    head = store.engine.position().head
    with refused("not_an_integer") as caught:
        store.atomic(Write("put", b"a", b"1", "t"), Write("incr", b"b"), Write("put", b"c", b"1", "t"))
    assert caught.value.details["op"] == 1
    assert store.keys() == [b"b"]
    assert store.engine.position().head == head


def test_writes_that_change_nothing_do_not_count_in_an_atomic_batch(store: Store) -> None:
    first = store.write("put", b"a")["revision"]
    store.atomic(Write("persist", b"a"), Write("put", b"b", b"", "t"))
    (change,) = store.log(since=first).events
    assert (change.key, change.index, change.count) == (b"b", 0, 1)


def test_independent_writes_succeed_or_fail_alone(store: Store) -> None:
    (answer,) = store.submit(
        WriteRequest([Write("put", b"a", b"1", "t"), Write("delete", b"x"), Write("incr", b"a")])
    )
    assert answer.results is not None
    assert [isinstance(result, KvError) for result in answer.results] == [False, True, False]
    assert store.get(b"a").value == b"2"  # type: ignore[union-attr]


def test_requests_of_one_group_see_those_before_them(store: Store) -> None:
    answers = store.submit(
        *(WriteRequest([Write("put", b"k", b"", "t", if_revision=0)], ticket=n) for n in range(3))
    )
    outcomes = {answer.ticket: answer.results[0] for answer in answers}  # type: ignore[index]
    assert not isinstance(outcomes[0], KvError)
    assert isinstance(outcomes[1], KvError)
    assert isinstance(outcomes[2], KvError)


def test_changes_come_no_later_than_the_answer(store: Store) -> None:
    result = store.write("put")
    assert store.feed[-1].revision == result["revision"]


def test_the_feed_is_the_log(store: Store) -> None:
    store.write("put", b"a", ttl_ms=100)
    store.write("incr", b"b")
    store.atomic(Write("delete", b"b"), Write("put", b"c", b"1", "t"))
    store.clock.now += 100
    store.expire_due()
    logged = store.log().events
    assert [(c.op, c.key, c.revision, c.record) for c in store.feed] == [
        (c.op, c.key, c.revision, c.record) for c in logged
    ]


BY = {"author": "ann", "message": "tidy up"}


@pytest.mark.parametrize("op", ["put", "incr", "touch", "persist"])
def test_a_record_keeps_who_made_its_last_change_and_why(open_store: OpenStore, op: str) -> None:
    store = open_store()
    store.write("put", value=b"1", ttl_ms=5000, author="bob", message="first")
    store.write(op, **({"ttl_ms": 9000} if op == "touch" else {}), **BY)
    store.engine.close()
    store = open_store()
    found, event = store.get(), store.log().events[-1]
    assert found is not None
    assert event.record is not None
    assert event.previous is not None
    for said in (found, event, event.record, store.history().events[0]):
        assert (said.author, said.message) == ("ann", "tidy up")
    assert (event.previous.author, event.previous.message) == ("bob", "first")
    store.write("put", value=b"2")
    found = store.get()
    assert found is not None
    assert (found.author, found.message) == ("", "")


@pytest.mark.parametrize("said", [BY, {"author": "ann"}, {"message": "tidy up"}, {}])
@pytest.mark.parametrize("op", ["delete", "delete_prefix"])
def test_the_log_keeps_who_deleted_and_why(open_store: OpenStore, op: str, said: dict[str, str]) -> None:
    store = open_store(retention=Retention(10, 1 << 30, 10**9))
    for number in range(9):  # what is deleted is in the oldest eighth of the log, so the row has it too
        store.write("put", b"k" if number == 0 else b"other", value=b"old", message="first")
    store.write(op, **said)
    event = store.log().events[-1]
    assert event.previous is not None
    assert (event.op, event.previous.value, event.previous.message) == ("delete", b"old", "first")
    for known in (event, store.feed[-1], store.history().events[0]):
        assert (known.author, known.message) == (said.get("author", ""), said.get("message", ""))
    for _ in range(20):  # the event, and its tombstone, are trimmed
        store.write("put", b"other")
    assert not store.faults()


def test_an_expiry_is_nobodys(store: Store) -> None:
    store.write("put", b"a", ttl_ms=5, **BY)
    store.write("put", b"b", ttl_ms=5, **BY)
    store.clock.now += 10
    store.expire_due()
    store.write("put", b"c", ttl_ms=5, **BY)
    store.clock.now += 10
    store.write("put", b"c", **BY)
    expired = [event for event in store.log().events if event.op == "expire"]
    assert [(event.author, event.message) for event in expired] == [("", "")] * 3
    assert all(event.previous is not None and event.previous.author == "ann" for event in expired)


def test_delete_prefix_removes_a_bounded_number_in_one_revision(store: Store) -> None:
    last = [store.write("put", key)["revision"] for key in (b"a/1", b"a/2", b"a/3", b"a0", b"b")][-1]
    first = store.write("delete_prefix", b"a/", limit=2)
    second = store.write("delete_prefix", b"a/", limit=2)
    assert (first["deleted"], first["more"]) == (2, True)
    assert (second["deleted"], second["more"]) == (1, False)
    assert store.keys() == [b"a0", b"b"]
    changes = store.log(since=last).events
    one, two = first["revision"], second["revision"]
    assert last < one < two
    assert [(c.revision, c.index, c.count) for c in changes] == [(one, 0, 2), (one, 1, 2), (two, 0, 1)]
    assert "revision" not in store.write("delete_prefix", b"a/")


def test_delete_prefix_tells_of_expired_keys_as_expired(store: Store) -> None:
    store.write("put", b"p1", ttl_ms=1)
    store.write("put", b"p2")
    store.clock.now += 1
    assert store.write("delete_prefix", b"p")["deleted"] == 1
    assert [change.op for change in store.feed] == ["put", "put", "expire", "delete"]


def test_keys_are_in_byte_order_and_pages_join_without_a_gap(store: Store) -> None:
    keys = sorted(
        {f"{a}{chr(b)}".encode() for a in ("\x01", "/", "a", "Ã", "\U0001f511") for b in range(1, 250, 2)}
    )
    store.submit(WriteRequest([Write("put", key, key, "t") for key in reversed(keys)]))
    found: list[bytes] = []
    start: bytes | None = b""
    while start is not None:
        page = store.engine.range(start, None, 7, values=False, max_bytes=MIB)
        found += [key for key, stored in page.items]
        start = page.next_key
    assert found == keys


def test_a_range_is_half_open_and_may_leave_values_out(store: Store) -> None:
    for key in (b"a", b"b", b"c"):
        store.write("put", key, value=b"value")
    page = store.engine.range(b"a", b"c", 10, values=False, max_bytes=MIB)
    assert [(key, stored.value) for key, stored in page.items] == [(b"a", None), (b"b", None)]
    assert page.next_key is None


def test_a_page_ends_at_its_bytes_but_holds_at_least_one(store: Store) -> None:
    for key in (b"a", b"b", b"c"):
        store.write("put", key, value=b"x" * 100)
    page = store.engine.range(b"", None, 10, values=True, max_bytes=10)
    assert [key for key, _ in page.items] == [b"a"]
    assert page.next_key == b"b"


def test_a_read_of_large_values_gives_the_first_of_them(store: Store) -> None:
    keys = [b"k%d" % n for n in range(12)]
    for key in keys:
        store.write("put", key, value=b"x" * MIB)
    found, _ = store.engine.read(keys)
    assert 1 <= len(found) < len(keys)
    rest, _ = store.engine.read(keys[len(found) :])
    assert all(stored.value == b"x" * MIB for stored in [*found, *rest])  # type: ignore[union-attr]


def test_count_is_of_a_range(store: Store) -> None:
    store.submit(WriteRequest([Write("put", b"k%03d" % n, b"", "t") for n in range(200)]))
    assert store.engine.count(b"", None).total == 200
    assert store.engine.count(b"k1", b"k2").total == 100
    assert store.engine.count(b"x", None).total == 0


def test_a_long_key_is_as_good_as_any(store: Store) -> None:
    key = b"k" * 511
    store.write("put", key, ttl_ms=5)
    store.write("touch", key, ttl_ms=9)
    assert store.engine.range(key, None, 5, values=True, max_bytes=MIB).items[0][0] == key
    store.clock.now += 9
    store.expire_due()
    assert store.get(key) is None


def test_the_log_filters_by_prefix_key_and_op(store: Store) -> None:
    for key in (b"a/1", b"a/2", b"b", b"c"):
        store.write("put", key)
    store.write("delete", b"a/1")

    def seen(**wanted: Any) -> list[tuple[str, bytes]]:
        return [(c.op, c.key) for c in store.log(wanted=EventFilter(**wanted)).events]

    assert seen(prefixes=(b"a/",)) == [("put", b"a/1"), ("put", b"a/2"), ("delete", b"a/1")]
    assert seen(prefixes=(b"c",), keys=frozenset([b"b"])) == [("put", b"b"), ("put", b"c")]
    assert seen(ops=frozenset(["delete"])) == [("delete", b"a/1")]


def test_a_log_page_never_ends_inside_a_revision(store: Store) -> None:
    first = store.write("put", b"a")["revision"]
    second = store.atomic(*(Write("put", b"b%d" % n, b"", "t") for n in range(5)))[0]["revision"]
    third = store.write("put", b"c")["revision"]
    page = store.log(limit=2)
    assert [c.revision for c in page.events] == [first, *[second] * 5]
    assert page.next_revision == second
    rest = store.log(since=page.next_revision)
    assert [c.key for c in rest.events] == [b"c"]
    assert rest.next_revision == rest.position.head == third


def test_a_page_of_nothing_that_matches_still_moves_on(store: Store) -> None:
    revision = store.write("put", b"a")["revision"]
    page = store.log(wanted=EventFilter(prefixes=(b"zzz",)))
    assert (page.events, page.next_revision) == ([], revision)


def test_events_tell_the_previous_record(store: Store) -> None:
    first = store.write("put", value=b"1")["revision"]
    second = store.write("put", value=b"2")["revision"]
    store.write("delete")
    store.write("put", value=b"3")
    previous = [(c.previous and c.previous.value, c.previous_revision) for c in store.log().events]
    assert previous == [(None, 0), (b"1", first), (b"2", second), (None, 0)]


def test_history_is_newest_first_across_deletes(store: Store) -> None:
    first = store.write("put", value=b"1")["revision"]
    store.write("put", b"other")
    gone = store.write("delete")["revision"]
    last = store.write("put", value=b"3")["revision"]
    history = store.history()
    assert [(c.op, c.revision) for c in history.events] == [("put", last), ("delete", gone), ("put", first)]
    assert (history.cursor, history.truncated) == (None, False)


def test_history_pages_and_starts_below_a_revision(store: Store) -> None:
    revisions = [store.write("put", value=b"%d" % n)["revision"] for n in range(10)]
    first = store.history(before=revisions[8], limit=3)
    second = store.history(before=revisions[8], limit=3, cursor=first.cursor)
    assert [c.revision for c in first.events + second.events] == revisions[7:1:-1]


def test_history_of_a_key_that_never_was_is_not_found(store: Store) -> None:
    with refused("not_found"):
        store.history()


@pytest.mark.parametrize("cursor", ["", "x", "1", "1.", "1.2.3", "-1.0", "9" * 30 + ".0", "1.0", "²³.1"])
def test_a_history_cursor_that_was_not_given_out_is_refused(store: Store, cursor: str) -> None:
    store.write("put", b"other")
    store.write("put", b"k")
    with refused("invalid_cursor"):
        store.history(cursor=cursor)


def test_the_newest_events_of_a_prefix_are_the_log_backwards(store: Store) -> None:
    of_a, of_b = [], []
    for number in range(7):
        of_a.append(store.write("put", b"a/%d" % (number % 3), value=b"%d" % number)["revision"])
        of_b.append(store.write("put", b"b")["revision"])
    store.atomic(Write("put", b"a/x"), Write("delete", b"a/0"), Write("put", b"b"))
    for index in (0, 1, 9):  # what is there of other prefixes does not show
        page = store.recent(b"a/", cursor=f"{of_b[3]}.{index}", limit=2)
        assert [event.revision for event in page.events] == [of_a[3], of_a[2]]
    beyond = store.engine.position().head + 999
    assert store.recent(b"a/", cursor=f"{beyond}.0", limit=100) == store.recent(b"a/", limit=100)
    for prefix in (b"", b"a/", b"b", b"c"):
        expected = store.log(wanted=EventFilter((prefix,))).events[::-1]
        expected = [replace(event, previous=None) for event in expected]
        assert store.recent(prefix, limit=100).events == expected
        below = [event for event in expected if event.revision < of_a[4]]
        assert store.recent(prefix, before=of_a[4], limit=100).events == below
        paged, cursor = [], None
        while True:
            page = store.recent(prefix, limit=2, cursor=cursor)
            paged += page.events
            if (cursor := page.cursor) is None:
                break
        assert paged == expected
        assert not page.truncated
    assert store.recent(before=1).events == []


def test_the_newest_events_end_where_the_log_was_trimmed(open_store: OpenStore) -> None:
    store = open_store(retention=Retention(10, 1 << 30, 10**9))
    for _ in range(15):
        store.write("put")
    page = store.recent(limit=3)
    assert page.cursor is not None
    revisions = [store.write("put")["revision"] for _ in range(15)]
    store.trim_until(lambda position: position.floor == revisions[4])
    assert store.recent(cursor=page.cursor) == ([], None, True)
    assert [event.revision for event in store.recent(limit=100).events] == revisions[:4:-1]
    assert store.recent(limit=100).truncated


@pytest.mark.parametrize("cursor", ["", "x", "3", "-1.0"])
def test_a_cursor_of_the_newest_events_that_was_not_given_out_is_refused(store: Store, cursor: str) -> None:
    store.write("put")
    with refused("invalid_cursor"):
        store.recent(cursor=cursor)


def test_the_log_keeps_what_the_retention_says(open_store: OpenStore) -> None:
    store = open_store(retention=Retention(10, 1 << 30, 86_400_000))
    revisions = [store.write("put", b"k%d" % (n % 5))["revision"] for n in range(50)]
    position = store.trim_until(lambda position: position.floor == revisions[-11])
    assert position.head == revisions[-1]
    assert (
        store.engine.log(position.floor - 1, EventFilter(), 10, values=True, previous=True, max_bytes=MIB)
        == position
    )
    assert len(store.log(since=position.floor).events) == 10


def test_the_log_is_trimmed_by_age_and_by_bytes(open_store: OpenStore) -> None:
    store = open_store(retention=Retention(1000, 5000, 60_000))
    old = store.write("put", b"old")["revision"]
    store.clock.now += 60_001
    store.write("put", b"new")
    store.trim_until(lambda position: position.floor == old)
    for n in range(20):
        store.write("put", b"k%d" % n, value=b"x" * 1000)
    store.trim_to(1, 5)


def test_the_log_may_be_trimmed_to_its_end(open_store: OpenStore) -> None:
    store = open_store(retention=Retention(3, 1 << 30, 86_400_000))
    store.write("put", b"first")
    # more events than the log may hold, and none of a revision goes without the others
    together = store.atomic(*(Write("put", b"%d" % n, b"", "t") for n in range(5)))[0]["revision"]
    store.write("put", b"second")
    position = store.trim_until(lambda position: position.floor == together)
    assert [change.key for change in store.log(position.floor).events] == [b"second"]
    store.atomic(*(Write("put", b"%d" % n, b"", "t") for n in range(5)))
    store.trim_until(lambda position: position.floor == position.head)
    store.write("put", b"third")
    assert store.keys() == [b"0", b"1", b"2", b"3", b"4", b"first", b"second", b"third"]


@pytest.mark.lmdb_only("in a cluster the newest event tells the time, since a clock may be wrong")
def test_an_idle_log_is_trimmed_to_its_end_by_age(open_store: OpenStore) -> None:
    store = open_store(retention=Retention(3, 1 << 30, 86_400_000))
    store.write("put", b"first")
    store.clock.now += 86_400_001
    store.submit(WriteRequest([Write("delete", b"none")]))
    store.trim_until(lambda position: position.floor == position.head)
    store.write("put", b"second")
    assert store.keys() == [b"first", b"second"]


def test_trimming_forgets_events_and_no_record(open_store: OpenStore) -> None:
    store = open_store(retention=Retention(3, 1 << 30, 86_400_000))
    store.write("put", b"kept", value=b"here")
    store.write("put", b"gone")
    store.write("delete", b"gone")
    for n in range(10):
        last = store.write("put", b"k%d" % n)["revision"]
    store.trim_to(3)
    assert store.engine.position().head == last
    assert store.get(b"kept").value == b"here"  # type: ignore[union-attr]
    history = store.history(b"kept")
    assert (history.events, history.truncated) == ([], True)
    with refused("not_found"):
        store.history(b"gone")


def test_the_previous_value_of_a_fresh_event_outlives_the_trimming_of_the_old_one(
    open_store: OpenStore,
) -> None:
    store = open_store(retention=Retention(8, 1 << 30, 86_400_000))
    store.write("put", b"config", value=b"old")
    for n in range(20):
        store.write("put", b"noise%d" % n)
    store.trim_to(8)
    store.write("put", b"config", value=b"new")
    change = store.log(since=store.engine.position().floor).events[-1]
    assert change.previous is not None
    assert change.previous.value == b"old"


def test_a_cursor_beyond_the_head_cannot_be_continued(store: Store) -> None:
    store.write("put")
    assert isinstance(
        store.engine.log(2, EventFilter(), 10, values=True, previous=True, max_bytes=MIB), LogPosition
    )


def test_everything_is_still_there_after_closing_and_opening(open_store: OpenStore) -> None:
    store = open_store()
    store.write("put", b"a", value=b"1", ttl_ms=60_000)
    store.write("delete", b"a")
    store.write("put", b"a", value=b"2")
    before = (store.get(b"a"), store.log(), store.engine.position())
    store.engine.close()
    again = open_store()
    assert (again.get(b"a"), again.log(), again.engine.position()) == before
    assert again.write("put", b"a")["revision"] > before[2].head


def test_a_numbered_request_is_applied_once(open_store: OpenStore) -> None:
    store = open_store()
    request = WriteRequest([Write("incr", b"n")], client="c", seq=1, fingerprint=5)
    (first,) = store.submit(request)
    store.engine.close()
    again = open_store()
    assert again.submit(request) == [first]
    assert again.submit(request._replace(seq=2))[0].results[0]["value"] == 2  # type: ignore[index]
    (stale,) = again.submit(request)
    assert stale.error is not None
    assert stale.error.code == "sequence_stale"
    (reused,) = again.submit(request._replace(seq=2, fingerprint=6))
    assert reused.error is not None
    assert reused.error.code == "sequence_reused"
    assert again.get(b"n").value == b"2"  # type: ignore[union-attr]


def test_a_failed_numbered_request_fails_alike_when_it_is_repeated(store: Store) -> None:
    request = WriteRequest([Write("put", b"k", b"", "t", if_revision=5)], atomic=True, client="c", seq=1)
    (first,) = store.submit(request)
    store.write("put", b"k")
    (again,) = store.submit(request)
    assert first.error is not None
    assert again.error is not None
    assert again.error.as_json() == first.error.as_json()


def test_statistics_are_counts_of_what_is_there(store: Store) -> None:
    store.write("put", b"a")
    store.write("put", b"b")
    store.write("delete", b"a")
    statistics = store.engine.statistics()
    assert (statistics.keys, statistics.expiring_keys, statistics.log_events) == (1, 0, 3)
    assert 0 < statistics.log_bytes < statistics.store_bytes < statistics.max_store_bytes
    assert 0 < statistics.data_bytes < statistics.store_bytes <= statistics.file_bytes
    assert 0 < statistics.disk_free_bytes <= statistics.disk_bytes
    assert statistics.writes_refused is None
    store.write("put", b"c", ttl_ms=60_000)
    assert store.engine.statistics().expiring_keys == 1


def test_statistics_tell_how_far_back_the_log_reaches(open_store: OpenStore) -> None:
    store = open_store(retention=Retention(2, 1 << 30, 7 * 86_400_000))
    empty = store.engine.statistics()
    assert (empty.oldest_event_at, empty.newest_event_at) == (None, None)
    times = []
    for _ in range(4):
        store.clock.now += 1_000
        times.append(store.clock.now)
        store.write("put")
    store.trim_to(2)
    statistics = store.engine.statistics()
    assert (statistics.oldest_event_at, statistics.newest_event_at) == (times[2], times[3])


def test_commits_that_change_something_are_counted_with_their_writes_and_times(store: Store) -> None:
    store.submit(WriteRequest([Write("put", b"a"), Write("put", b"b")]), WriteRequest([Write("put", b"c")]))
    store.submit(WriteRequest([Write("delete", b"missing")]))
    commits = store.engine.statistics().commits.as_json()
    assert (commits["count"], commits["requests"], commits["ops"]["sum"]) == (1, 2, 3)
    for histogram in (commits["ops"], commits["seconds"]):
        assert sum(histogram["counts"]) == 1
        assert len(histogram["counts"]) == len(histogram["bounds"]) + 1
        at = histogram["counts"].index(1)
        low, high = (0, *histogram["bounds"])[at], (*histogram["bounds"], float("inf"))[at]
        assert low < histogram["sum"] <= high


def test_a_full_store_refuses_writes_and_takes_deletes(open_store: OpenStore) -> None:
    store = open_store(max_store_bytes=4 * MIB)
    written = fill(store)
    assert len(written) > 10
    refusal = store.engine.statistics().writes_refused
    assert refusal is not None
    for op in ("put", "incr"):
        with refused("store_full") as caught:
            store.write(op, b"x")
        assert "--max-store-bytes" in caught.value.message
        assert (refusal.code, refusal.message) == ("store_full", caught.value.message)
    with refused("store_full"):
        store.atomic(Write("delete", written[0]), Write("put", b"x", b"", "t"))
    assert store.get(written[0]) is not None
    for key in written:
        assert store.get(key) is not None
        store.write("delete", key)
    assert store.keys() == []
    assert store.engine.statistics().writes_refused is None


def test_a_full_store_takes_writes_again_once_its_log_is_short(open_store: OpenStore) -> None:
    store = open_store(max_store_bytes=4 * MIB)
    fill(store)
    store.write("delete_prefix", b"k", limit=1000)
    store.clock.now += 8 * 86_400_000
    store.submit(WriteRequest([Write("delete", b"none")]))
    store.write("put", b"again")


def test_what_was_refused_uses_nothing_up(store: Store) -> None:
    store.write("put", b"k", value=b"no number")
    gc.disable()  # that it would help in the end is no excuse
    try:
        for _ in range(70):
            store.submit(
                WriteRequest([Write("incr", b"k"), Write("delete", b"missing")]),
                WriteRequest([Write("incr", b"other"), Write("incr", b"k")], atomic=True),
            )
    finally:
        gc.enable()
    assert store.get().value == b"no number"  # type: ignore[union-attr]


def test_groups_are_committed_in_the_order_in_which_they_were_handed_over(store: Store) -> None:
    requests = [WriteRequest([Write("incr", b"count")], ticket=number) for number in range(1, 7)]
    for group in (requests[:2], requests[2:3], requests[3:]):
        store.engine.commit(group)
    answers: list[Any] = []
    while len(answers) < len(requests):
        assert select.select([store.engine.fileno()], [], [], 30)[0], "the engine never answered"
        answers += store.engine.poll()[1]
    assert [(answer.ticket, answer.results[0]["value"]) for answer in answers] == [
        (n, n) for n in range(1, 7)
    ]
