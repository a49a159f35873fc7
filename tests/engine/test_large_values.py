"""What a short request may make of large values: bounded, on every engine."""

from __future__ import annotations

import pytest

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_PRESENT_BYTES
from kvstore_daemon.storage.interface import StoredEvent, Write, WriteRequest
from support.engine_store import MIB, OpenStore, Store, refused

MANY = MAX_PRESENT_BYTES // MIB + 8


def put_large(store: Store, count: int = MANY, ttl_ms: int | None = None) -> list[bytes]:
    """Store values of a MiB each; their keys."""
    keys = [b"large%03d" % number for number in range(count)]
    for number, key in enumerate(keys):
        store.write("put", key, value=b"%d" % number + bytes(MIB - 10), ttl_ms=ttl_ms)
    return keys


def previous_bytes(events: list[StoredEvent]) -> int:
    return sum(len(event.previous.value or b"") for event in events if event.previous is not None)


def test_an_atomic_batch_needs_no_more_than_so_many_bytes_of_present_values(store: Store) -> None:
    keys = put_large(store)
    head = store.engine.position().head
    for writes in (
        [Write("touch", key, ttl_ms=60_000) for key in keys],
        [Write("check", key, if_value=b"another") for key in keys],
    ):
        with refused("request_too_large"):
            store.atomic(*writes)
    assert store.engine.position().head == head
    assert len(store.atomic(*[Write("check", key, must_exist=True) for key in keys])) == MANY


@pytest.mark.lmdb_only("etcd takes each in a transaction of its own")
def test_of_independent_writes_those_are_done_that_need_no_more(store: Store) -> None:
    left = put_large(store)
    for expected in (MANY - MAX_PRESENT_BYTES // MIB, 0):
        (answer,) = store.submit(WriteRequest([Write("touch", key, ttl_ms=60_000) for key in left]))
        results = zip(left, answer.results or (), strict=True)
        refusals = {key: result for key, result in results if isinstance(result, KvError)}
        assert {error.code for error in refusals.values()} <= {"request_too_large"}
        left = list(refusals)
        assert len(left) == expected


def test_large_values_that_expire_together_are_removed_in_parts(store: Store) -> None:
    keys = put_large(store, ttl_ms=1000)
    store.clock.now += 2000
    due, following = store.engine.due(1000)
    assert 1 < len(due) < MANY
    assert following is not None
    assert following <= store.clock.now
    while store.engine.due(1000)[0]:
        store.expire_due()
    assert [event.key for event in store.feed if event.op == "expire"] == keys


def test_a_page_of_one_revision_leaves_out_what_large_values_it_replaced(store: Store) -> None:
    keys = put_large(store, 60)
    since = store.engine.position().head
    store.atomic(*[Write("delete", key) for key in keys])
    events = store.log(since).events
    assert [event.key for event in events] == keys, "no page ends inside a revision"
    assert 32 * MIB < previous_bytes(events) <= 48 * MIB


def test_a_page_of_history_counts_what_expired(store: Store) -> None:
    put_large(store, 4, ttl_ms=1000)
    store.clock.now += 2000
    store.expire_due()
    page = store.recent()
    assert page.cursor is not None
    assert previous_bytes(page.events) <= 2 * MIB


def test_deletes_keep_only_so_much_of_old_values(open_store: OpenStore) -> None:
    store = open_store()
    keys = put_large(store)
    store.submit(*[WriteRequest([Write("put", b"k", b"%d" % number)]) for number in range(10 * MANY)])
    before = store.engine.statistics().log_bytes
    store.atomic(*[Write("delete", key) for key in keys])
    assert store.engine.statistics().log_bytes < before + MAX_PRESENT_BYTES + 2 * MIB
